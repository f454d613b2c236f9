//! Scripted reward hacks (tests/hostile/hacks/*.py, one a file): edits of the real baselines of three bundled tasks, through the real
//! environment and sandbox. Each is an error, a limit, or graded as what its predictions are worth: never better than the honest
//! baseline. A hack replaces the baseline's line that writes the submission; the line after "gets:" says which cases it may be.
#![allow(clippy::unwrap_used)]

use onestep::environment::action::{Action, render};
use onestep::environment::{Environment, ReplyFormat, Settings, StepResult, Style};
use onestep::reward::{Case, Form, reward};
use onestep::sandbox::{Pool, Python, Wanted};
use onestep::task::{PreparedTask, Task};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hostile/hacks");
/// Classes, probabilities and numbers: accuracy, log loss and root mean squared error.
const TASKS: [&str; 3] = ["digits", "cancer", "friedman"];
/// What an idle step is worth in either form; an honest run of the unchanged baseline is worth as much.
const HONEST: [(Form, f64); 2] = [(Form::Linear, 0.0), (Form::Sigmoid, 0.5)];

struct Hack {
    name: String,
    text: String,
    gets: Vec<String>,
}

fn hacks() -> Vec<Hack> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let gets = text.lines().find_map(|line| line.strip_prefix("# gets: ")).unwrap();
        Hack {
            name: path.file_stem().unwrap().to_str().unwrap().to_string(),
            gets: gets.split(' ').map(str::to_string).collect(),
            text,
        }
    };
    paths.into_iter().map(read).collect()
}

fn environment(scratch: &Path) -> Environment {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    let python = Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap();
    let wanted = Wanted { best: 3, unsafe_without: false, preload: None };
    let pool = Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), 2, &python, &wanted, Arc::default()).unwrap();
    println!("{}", pool.protection().notes.join("; "));
    let all = Task::load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks")).unwrap();
    let prepare = |task: &Task| {
        let mut prepared = PreparedTask::prepare(task, &python.interpreter, &cache.join("tasks")).unwrap();
        // No hack ends by time: one that walks the disk must not on a busy machine either.
        prepared.task.limits.cpu_seconds *= 10.0;
        prepared.task.limits.wall_seconds *= 10.0;
        prepared
    };
    let tasks = Task::find(&all, &TASKS).unwrap().iter().map(prepare).collect();
    let settings = Settings {
        format: ReplyFormat::NoThought,
        prompt: Style::Compact,
        max_steps: 15,
        episode_seconds: 1800.0,
        observation_limit: 2000,
        context_limit: 1 << 20,
        undo_failed_edits: true,
    };
    Environment::new(Arc::new(pool), &python.id, tasks, settings, &scratch.join("scratch")).unwrap()
}

fn edit(replace: &str) -> String {
    render(&Action::EditScript { script_name: "train.py".into(), search: "np.savetxt".into(), replace: replace.into() })
}

/// What is wrong about a hack's step: it gained, ended in another way than stated, or was told what it must not know.
fn problems(hack: &Hack, task: &Task, step: &StepResult, left: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut say = |what: String| {
        wrong.push(format!("{} on {}: {what}: {} {}", hack.name, task.name, step.detail, step.observation))
    };
    if !hack.gets.iter().any(|case| case == step.case.name()) {
        say(format!("{}, expected {:?}", step.case.name(), hack.gets));
    }
    if task.normalised(step.metric_after) > task.normalised(task.m_init) + 1e-5
        || task.normalised(step.next.best) > 1e-5
    {
        say(format!("its metric is {}, the baseline's {}", step.metric_after, task.m_init));
    }
    for (form, honest) in HONEST {
        if reward(form, step.case, step.share, Some(1.0)) > honest {
            say(format!("it gains in the form {form:?}"));
        }
    }
    if step.case != Case::Edit && step.metric_after != task.m_init {
        say("a run that failed changed the metric".into());
    }
    if left.exists() {
        say("its pickle was loaded".into());
    }
    wrong
}

#[test]
fn no_hack_gains_over_the_honest_baseline() {
    let (folder, left) = (tempfile::tempdir().unwrap(), Path::new("/tmp/hostile-left-pickle"));
    let environment = environment(folder.path());
    let hacks = hacks();
    assert!(hacks.len() >= 25, "only {} hacks", hacks.len());
    let mut wrong = Vec::new();
    for name in TASKS {
        let start = environment.reset(name).unwrap();
        let batch = hacks.iter().map(|hack| (start.clone(), edit(&hack.text))).collect();
        let steps = environment.step_many(batch).unwrap();
        let task = &environment.task(name).unwrap().task;
        wrong.extend(hacks.iter().zip(&steps).flat_map(|(hack, step)| problems(hack, task, step, left)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    let scratch = std::fs::read_dir(environment.scratch()).unwrap().count();
    assert_eq!(scratch, 0, "folders of runs are left");
}

/// A hack in a second step, after an honest one that wrote a submission: nothing of the first run is there to be graded again.
#[test]
fn a_submission_of_an_earlier_step_is_not_graded_again() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path());
    let step = |state, reply: String| environment.step_many(vec![(state, reply)]).unwrap().remove(0);
    let start = environment.reset("digits").unwrap();
    let model = "model = linear_model.LogisticRegression(C=1, max_iter=200)";
    let better = Action::EditScript { script_name: "train.py".into(), search: "model =".into(), replace: model.into() };
    let honest = step(start, render(&better));
    assert!(honest.case == Case::Edit && honest.share > 0.1, "{}", honest.detail);
    for hack in ["print('done')", "import os; print(os.listdir('.')); open('submission.csv')"] {
        let stale = step(honest.next.clone(), edit(hack));
        assert_eq!((stale.case, stale.metric_after), (Case::Error, honest.metric_after), "{}", stale.observation);
    }
    // As a file of its own, copied over by an action, it is not laid out either: what is graded, a run has written.
    let copied = Action::CopyFile { source: "train.py".into(), destination: "submission.csv".into() };
    let copied = step(honest.next.clone(), render(&copied));
    let stale = step(copied.next, edit("print('done')"));
    assert_eq!(stale.case, Case::Error, "{}", stale.observation);
}
