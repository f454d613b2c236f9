//! Bundled tasks, real scripts, the real sandbox.

use super::world::{edit, execute, list};
use onestep::environment::*;
use onestep::reward::Case;
use onestep::sandbox::{Pool, Python, Wanted};
use onestep::task::{PreparedTask, Task};
use std::path::Path;
use std::sync::Arc;

fn environment(scratch: &Path, names: &[&str]) -> Environment {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    let python = Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap();
    let pool = Pool::start(
        Path::new(env!("CARGO_BIN_EXE_onestep")),
        2,
        &python,
        &Wanted { best: 3, unsafe_without: false, preload: None },
        Default::default(),
    )
    .unwrap();
    let all = Task::load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks")).unwrap();
    let tasks = if names.is_empty() { all } else { Task::find(&all, names).unwrap() };
    let prepare = |task: &Task| PreparedTask::prepare(task, &python.interpreter, &cache.join("tasks")).unwrap();
    let tasks = tasks.iter().map(prepare).collect();
    Environment::new(Arc::new(pool), &python.id, tasks, super::world::SETTINGS, scratch).unwrap()
}

/// Every baseline, touched but not changed in what it does, is worth what its task.toml says it is.
#[test]
fn baselines_reach_m_init() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path(), &[]);
    let states: Vec<State> = environment.tasks().map(|t| environment.reset(&t.task.name).unwrap()).collect();
    let batch = states.iter().map(|s| (s.clone(), edit("data =", "data = np.load(\"data.npz\") # touched"))).collect();
    for step in environment.step_many(batch).unwrap() {
        let task = &environment.task(&step.next.task).unwrap().task;
        assert_eq!(step.case, Case::Edit, "{}: {}", task.name, step.observation);
        // m_init is written with six significant digits.
        for (metric, m_init) in [(step.metric_after, task.m_init), (step.report_after, task.report.m_init)] {
            assert!((metric / m_init - 1.0).abs() <= 0.5e-5, "{}: {metric} is not {m_init}", task.name);
        }
        assert_eq!(step.share, 0.0, "{}: {}", task.name, step.detail);
    }
}

#[test]
fn edits_of_a_real_script() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path(), &["digits"]);
    let start = environment.reset("digits").unwrap();
    let run = |reply: String| environment.step_many(vec![(start.clone(), reply)]).unwrap().remove(0);

    let ran = run(execute("train.py"));
    assert_eq!(ran.case, Case::Neutral);
    assert!(ran.compact.starts_with("Script ran. train score 0."), "{}", ran.compact);

    let better = run(edit("model =", "model = linear_model.LogisticRegression(C=1, max_iter=200)"));
    assert_eq!(better.case, Case::Edit, "{}", better.observation);
    assert!(better.share > 0.1, "{}", better.detail);
    assert_eq!(better.next.metric, better.metric_after);

    for (search, replace, case, compact) in [
        (
            "model =",
            "model = linear_model.Nothing()",
            Case::Error,
            "Undone. AttributeError: module 'sklearn.linear_model'",
        ),
        ("model =", "model = = 1", Case::Error, "Undone. SyntaxError: invalid syntax"),
        ("np.savetxt", "pass", Case::Error, "Undone. the script wrote no file submission.csv"),
        ("np.savetxt", "np.savetxt(\"submission.csv\", p[1:])", Case::Error, "Undone. submission has 599 rows"),
        (
            "np.savetxt",
            "np.savetxt(\"submission.csv\", p * np.nan)",
            Case::Error,
            "Undone. submission row 1: NaN is not finite",
        ),
        ("# model", "while True: pass", Case::Corner, "Undone. time limit"),
        ("# model", "big = np.ones(10 ** 10)", Case::Corner, "Undone. memory limit"),
        ("# model", "open(\"data.npz\", \"ab\").write(b\"x\")", Case::Error, "Undone. PermissionError"),
    ] {
        let step = run(edit(search, replace));
        assert_eq!(step.case, case, "{replace}: {}", step.observation);
        assert!(step.compact.starts_with(compact), "{replace}: {}", step.compact);
        assert_eq!((&step.next.snapshot, step.next.metric), (&start.snapshot, start.metric));
        let scratch = environment.scratch().display().to_string();
        assert!(!step.observation.contains(&scratch), "{}", step.observation);
    }
    assert_eq!(run(list(".")).compact, "data.npz train.py");
}
