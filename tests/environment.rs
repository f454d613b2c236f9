//! The environment with a runner that plays scripts written in a few words, so that every ending of a run can be had at will.
#![allow(clippy::unwrap_used)]

use onestep::environment::action::{Action, render};
use onestep::environment::workspace::{self, FileError, Workspace};
use onestep::environment::*;
use onestep::error::{Error, Kind, Result};
use onestep::reward::Case;
use onestep::sandbox::{Job, Limits, Outcome, Verdict};
use onestep::task::{Metric, PreparedTask, Task};
use onestep::trajectory::Message;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// Plays scripts of one directive a line, and counts them.
#[derive(Default)]
struct Fake {
    runs: AtomicUsize,
    batches: Mutex<Vec<usize>>,
    fails: bool,
}

impl Fake {
    fn play(job: &Job) -> Verdict {
        let file = |name: &str| job.folder.join(name);
        let mut verdict = Verdict {
            outcome: Outcome::Exited(0),
            stdout: String::new(),
            stderr: String::new(),
            cpu_seconds: 0.5,
            wall_seconds: 1.0,
        };
        for line in fs::read_to_string(file(&job.script)).unwrap().lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "print" => verdict.stdout += &format!("{rest}\n"),
                "warn" => verdict.stderr += &format!("{rest}\n"),
                // So many of ten rows are right.
                "right" => {
                    let right: usize = rest.parse().unwrap();
                    let rows: String = (0..10).map(|i| if i < right { "1\n" } else { "0\n" }).collect();
                    fs::write(file("submission.csv"), rows).unwrap();
                }
                "submit" => fs::write(file("submission.csv"), rest).unwrap(),
                "symlink" => symlink(rest, file("submission.csv")).unwrap(),
                "hardlink" => fs::hard_link(rest, file("submission.csv")).unwrap(),
                "leave" => fs::write(file("left.txt"), "left").unwrap(),
                "list" => {
                    let mut names: Vec<_> = fs::read_dir(&job.folder)
                        .unwrap()
                        .map(|e| e.unwrap().file_name().into_string().unwrap())
                        .collect();
                    names.sort();
                    verdict.stdout += &format!("{}\n", names.join(" "));
                }
                "where" => verdict.stdout += &format!("{0} {0}/train.py\n", job.folder.display()),
                "raise" => {
                    verdict.stderr += &format!("Traceback (most recent call last):\n{rest}\n");
                    verdict.outcome = Outcome::Exited(1);
                    break;
                }
                "exit" => verdict.outcome = Outcome::Exited(rest.parse().unwrap()),
                "signal" => verdict.outcome = Outcome::Signaled(rest.parse().unwrap()),
                "end" => {
                    verdict.outcome = match rest {
                        "cpu" => Outcome::CpuLimit,
                        "wall" => Outcome::WallLimit,
                        "memory" => Outcome::MemoryLimit,
                        "output" => Outcome::OutputLimit,
                        _ => Outcome::FileLimit,
                    }
                }
                _ => assert!(line.starts_with('#') || line.is_empty(), "unknown directive {line:?}"),
            }
        }
        verdict
    }
}

impl Runner for Fake {
    fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
        if self.fails {
            return Err(Error::system("the helper died"));
        }
        self.runs.fetch_add(jobs.len(), Ordering::Relaxed);
        self.batches.lock().unwrap().push(jobs.len());
        Ok(jobs.iter().map(Fake::play).collect())
    }
}

/// An environment of one task of ten examples, from 2 of them right to all.
struct World {
    folder: TempDir,
    fake: Arc<Fake>,
    environment: Environment,
}

const START: &str = "print two right\nright 2\n# end\n";

fn prepared(folder: &Path, script: &str) -> PreparedTask {
    for (name, content) in
        [("labels.csv", "1\n".repeat(10).as_bytes()), ("data.npz", b"PK\0\xff\xfe"), ("notes.csv", b"a,b\n1,2\n")]
    {
        fs::write(folder.join(name), content).unwrap();
    }
    let task = Task {
        name: "ten".into(),
        description: "say yes ten times".into(),
        modality: "tabular".into(),
        metric: Metric::Accuracy,
        m_init: 0.2,
        m_best: 1.0,
        noise_floor: 0.05,
        held_out: false,
        entry: "train.py".into(),
        submission: "submission.csv".into(),
        limits: Limits {
            cpu_seconds: 2.0,
            wall_seconds: 20.0,
            memory_bytes: 1 << 30,
            output_bytes: 1 << 16,
            file_bytes: 1 << 16,
        },
        starter: BTreeMap::from([("train.py".to_string(), script.to_string())]),
        folder: folder.to_path_buf(),
    };
    let data = ["data.npz", "notes.csv"].map(|name| (name.to_string(), folder.join(name))).to_vec();
    PreparedTask { task, data, labels: folder.join("labels.csv"), data_id: "one".into() }
}

fn settings(folder: &Path) -> Settings {
    Settings {
        format: ReplyFormat::NoThought,
        prompt: Style::Compact,
        max_steps: 15,
        episode_seconds: 1800.0,
        observation_limit: 2000,
        undo_failed_edits: true,
        scratch: folder.join("scratch"),
    }
}

fn world_of(script: &str, fake: Fake, change: impl FnOnce(&mut Settings)) -> World {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    change(&mut settings);
    let fake = Arc::new(fake);
    let task = prepared(folder.path(), script);
    let environment = Environment::new(fake.clone(), vec![task], settings).unwrap();
    World { folder, fake, environment }
}

fn world() -> World {
    world_of(START, Fake::default(), |_| {})
}

impl World {
    fn start(&self) -> State {
        self.environment.reset("ten").unwrap()
    }

    fn step(&self, state: &State, reply: impl Into<String>) -> StepResult {
        self.environment.step_many(vec![(state.clone(), reply.into())]).unwrap().remove(0)
    }

    fn runs(&self) -> usize {
        self.fake.runs.load(Ordering::Relaxed)
    }

    fn script(&self, state: &State) -> String {
        self.environment.files(state).unwrap()["train.py"].to_string()
    }
}

fn edit(search: &str, replace: &str) -> String {
    render(&Action::EditScript { script_name: "train.py".into(), search: search.into(), replace: replace.into() })
}

fn execute(script: &str) -> String {
    render(&Action::ExecuteScript { script_name: script.into() })
}

fn copy(source: &str, destination: &str) -> String {
    render(&Action::CopyFile { source: source.into(), destination: destination.into() })
}

fn list(folder: &str) -> String {
    render(&Action::ListFiles { dir_path: folder.into() })
}

fn inspect(script: &str, start: u64, end: u64) -> String {
    let script_name = script.to_string();
    render(&Action::InspectScriptLines { script_name, start_line_number: start, end_line_number: end })
}

fn finish() -> String {
    render(&Action::FinalAnswer { final_answer: "done".into() })
}

#[test]
fn a_good_edit_is_graded_and_kept() {
    let world = world();
    let start = world.start();
    assert_eq!((start.metric, start.best, start.graded_final, start.done), (0.2, 0.2, true, false));
    let step = world.step(&start, edit("right", "right 6"));
    assert_eq!((step.case, step.action.as_str()), (Case::Edit, "Edit Script"));
    assert_eq!((step.metric_before, step.metric_after), (0.2, 0.6));
    assert!((step.share - 0.5).abs() < 1e-12);
    assert_eq!(world.script(&step.next), "print two right\nright 6\n# end\n");
    assert_eq!((step.next.metric, step.next.best, step.next.steps, step.next.done), (0.6, 0.6, 1, false));
    assert!(step.observation.contains("-right 2\n+right 6\n"), "{}", step.observation);
    assert!(step.observation.ends_with("The script has been executed. Here is the output:\ntwo right"));
    assert!(!step.observation.contains("0.6"), "the agent is never told its score");
    assert_eq!(step.compact, "Script ran. two right");
    assert_eq!(step.detail, "accuracy 0.2 -> 0.6 (share 0.500)");

    // The next share is against the last graded run; a worse edit is kept too, and the best remembered.
    let worse = world.step(&step.next, edit("right", "right 4"));
    assert_eq!((worse.case, worse.metric_before, worse.metric_after), (Case::Edit, 0.6, 0.4));
    assert!((worse.share + 0.25).abs() < 1e-12);
    assert_eq!((worse.next.metric, worse.next.best), (0.4, 0.6));
    assert_eq!(worse.next.history.len(), 2);
}

#[test]
fn lower_is_better_turns_the_sign() {
    let folder = tempfile::tempdir().unwrap();
    let mut task = prepared(folder.path(), START);
    (task.task.metric, task.task.m_init, task.task.m_best) = (Metric::Mae, 0.8, 0.0);
    let environment = Environment::new(Arc::new(Fake::default()), vec![task], settings(folder.path())).unwrap();
    let mut replies = vec![edit("right", "right 6"), edit("right", "right 0")].into_iter();
    let state = environment.reset("ten").unwrap();
    let mut step = |state: State| environment.step_many(vec![(state, replies.next().unwrap())]).unwrap().remove(0);
    let better = step(state);
    assert!((better.share - 0.5).abs() < 1e-12 && (better.next.best - 0.4).abs() < 1e-12, "{better:?}");
    let worse = step(better.next);
    assert!((worse.share + 0.75).abs() < 1e-12 && (worse.next.best - 0.4).abs() < 1e-12, "{worse:?}");
}

#[test]
fn a_change_below_the_noise_floor_counts_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut task = prepared(folder.path(), START);
    task.task.noise_floor = 0.15;
    let environment = Environment::new(Arc::new(Fake::default()), vec![task], settings(folder.path())).unwrap();
    let state = environment.reset("ten").unwrap();
    let step = environment.step_many(vec![(state, edit("right", "right 3"))]).unwrap().remove(0);
    assert_eq!((step.case, step.share, step.metric_after), (Case::Edit, 0.0, 0.3));
}

#[test]
fn edits_that_fail_are_undone() {
    for (line, case, compact, part) in [
        (
            "raise NameError: name 'x' is not defined",
            Case::Error,
            "Undone. NameError: name 'x' is not defined",
            "Traceback",
        ),
        ("exit 3", Case::Error, "Undone. exit code 3", "exit code 3"),
        ("signal 11", Case::Error, "Undone. killed by signal 11", "signal 11"),
        ("end cpu", Case::Corner, "Undone. time limit", "time limit"),
        ("end wall", Case::Corner, "Undone. time limit", "time limit"),
        ("end memory", Case::Corner, "Undone. memory limit", "memory limit"),
        ("end output", Case::Corner, "Undone. output limit", "output limit"),
        ("end file", Case::Corner, "Undone. file size limit", "file size limit"),
        ("# nothing", Case::Error, "Undone. the script wrote no file submission.csv", "cannot be scored"),
        ("submit 1", Case::Error, "Undone. ", "cannot be scored"),
        ("submit nan", Case::Error, "Undone. ", "finite"),
        ("submit one", Case::Error, "Undone. ", "not a number"),
    ] {
        let world = world();
        let start = world.start();
        let step = world.step(&start, edit("right", line));
        assert_eq!((step.case, step.action.as_str()), (case, "Edit Script"), "{line}");
        assert!(step.compact.starts_with(compact), "{line}: {}", step.compact);
        assert!(step.compact.chars().count() <= 68, "{}", step.compact);
        assert!(step.observation.contains(part), "{line}: {}", step.observation);
        assert!(step.observation.ends_with("The edit was undone: the files are as they were before it."));
        assert_eq!((step.share, step.metric_after, step.next.graded_final), (0.0, 0.2, true));
        assert_eq!((&step.next.snapshot, step.next.steps), (&start.snapshot, 1));
    }
}

#[test]
fn without_undo_a_failed_edit_stays_and_scores_as_the_last_graded_state() {
    let world = world_of(START, Fake::default(), |s| s.undo_failed_edits = false);
    let good = world.step(&world.start(), edit("right", "right 6")).next;
    let step = world.step(&good, edit("right", "raise ValueError: no"));
    assert_eq!((step.case, step.compact.as_str()), (Case::Error, "Failed. ValueError: no"));
    assert!(!step.observation.contains("undone"));
    assert!(world.script(&step.next).contains("raise"));
    assert_eq!((step.next.metric, step.next.graded_final), (0.6, false));
    let repaired = world.step(&step.next, edit("raise", "right 7")).next;
    assert_eq!((repaired.metric, repaired.graded_final), (0.7, true));
}

#[test]
fn actions_that_change_nothing_are_neutral() {
    let world = world();
    let start = world.start();
    for (reply, compact, observation) in [
        (list("."), "data.npz notes.csv train.py", "data.npz\nnotes.csv\ntrain.py"),
        (inspect("train.py", 2, 9), "Shown.", "Here are the lines (the file ends at line 3):\nright 2\n# end\n"),
        (inspect("notes.csv", 1, 1), "Shown.", "Here are the lines (the file ends at line 2):\na,b\n"),
        (execute("train.py"), "Script ran. two right", "The script has been executed. Here is the output:\ntwo right"),
        (edit("right", "right 2"), "Nothing changed.", "Nothing changed: the file is as it was."),
        (copy("train.py", "./train.py"), "Nothing changed.", "Nothing changed: the file is as it was."),
    ] {
        let step = world.step(&start, reply);
        assert_eq!((step.case, step.share, step.metric_after), (Case::Neutral, 0.0, 0.2), "{step:?}");
        assert_eq!((step.compact.as_str(), step.observation.as_str()), (compact, observation));
        assert_eq!((&step.next.snapshot, step.next.steps, step.next.done), (&start.snapshot, 1, false));
    }
    let ended = world.step(&start, finish());
    assert_eq!((ended.case, ended.action.as_str(), ended.next.done), (Case::Neutral, "Final Answer", true));
}

#[test]
fn invalid_replies_leave_the_state_and_count_a_step() {
    let world = world();
    let start = world.start();
    for (reply, action, compact, part) in [
        ("Let me think.".to_string(), "Invalid", "Undone. no valid action", "\"Action:\" is missing"),
        (edit("nothing", "x"), "Edit Script", "Undone. search not found", "search not found"),
        (edit("", "x"), "Edit Script", "Undone. search is empty", "empty"),
        (execute("other.py"), "Execute Script", "Undone. no such file", "no file \"other.py\""),
        (inspect("train.py", 1, 101), "Inspect Script Lines", "Undone. too many lines", "101 lines are too many"),
        (inspect("data.npz", 1, 2), "Inspect Script Lines", "Undone. no text file", "no text file"),
        (copy("train.py", "data.npz"), "Copy File", "Undone. read-only", "read-only"),
        (copy("data.npz", "x.npz"), "Copy File", "Undone. no text file", "no text file"),
        (copy("../labels.csv", "x.csv"), "Copy File", "Undone. outside the workspace", "outside"),
        (list("nowhere"), "List Files", "Undone. no such folder", "no folder"),
    ] {
        let step = world.step(&start, reply);
        assert_eq!((step.case, step.action.as_str(), step.compact.as_str()), (Case::Invalid, action, compact));
        assert!(step.observation.contains(part), "{}", step.observation);
        assert_eq!((&step.next.snapshot, step.next.steps, step.next.metric), (&start.snapshot, 1, 0.2));
    }
    assert_eq!(world.runs(), 0);
}

#[test]
fn a_patch_that_names_two_lines_says_so() {
    let world = world_of("right 2\nright 3\n", Fake::default(), |_| {});
    let step = world.step(&world.start(), edit("right", "right 5"));
    assert_eq!((step.case, step.compact.as_str()), (Case::Invalid, "Undone. search not unique"));
    assert!(step.observation.contains("matches 2 places"), "{}", step.observation);
}

#[test]
fn a_script_that_crashes_when_executed_is_an_error() {
    let world = world_of("raise KeyError: 'y'\n", Fake::default(), |_| {});
    let step = world.step(&world.start(), execute("train.py"));
    assert_eq!((step.case, step.compact.as_str()), (Case::Error, "Failed. KeyError: 'y'"));
    assert_eq!(step.next.metric, 0.2);
}

#[test]
fn a_copy_is_neutral_but_over_a_file_it_is_an_edit() {
    let world = world();
    let saved = world.step(&world.start(), copy("train.py", "old/train.py"));
    assert_eq!((saved.case, saved.next.graded_final), (Case::Neutral, true));
    let listed = world.step(&saved.next, list("."));
    assert_eq!(listed.compact, "data.npz notes.csv old/ train.py");
    assert_eq!(world.step(&saved.next, list("old/")).compact, "train.py");
    assert_eq!(world.runs(), 0);
    let better = world.step(&saved.next, edit("right", "right 6"));
    let back = world.step(&better.next, copy("old/train.py", "train.py"));
    assert_eq!((back.case, back.metric_before, back.metric_after), (Case::Edit, 0.6, 0.2));
    assert!((back.share + 0.5).abs() < 1e-12, "going back costs what the edit gave");
}

#[test]
fn another_file_that_is_edited_is_graded_by_the_entry() {
    let world = world();
    let state = world.step(&world.start(), copy("train.py", "other.py")).next;
    let action =
        Action::EditScript { script_name: "other.py".into(), search: "right".into(), replace: "right 9".into() };
    let step = world.step(&state, render(&action));
    assert_eq!((step.case, step.metric_after), (Case::Edit, 0.2));
    // Run by itself it is not graded.
    let run = world.step(&step.next, execute("other.py"));
    assert_eq!((run.case, run.metric_after), (Case::Neutral, 0.2));
}

#[test]
fn equal_runs_are_executed_once() {
    let world = world();
    let start = world.start();
    let replies = [
        edit("right", "right 6"),
        edit("right", "right 5"),
        edit("right 2", "right 6"),
        execute("train.py"),
        list("."),
    ];
    let batch: Vec<_> = replies.iter().cycle().take(20).map(|r| (start.clone(), r.clone())).collect();
    let steps = world.environment.step_many(batch).unwrap();
    assert_eq!(world.runs(), 3, "two edits and the baseline");
    assert_eq!(*world.fake.batches.lock().unwrap(), [3], "all in one go");
    assert_eq!(world.environment.cache.counts(), Counts { executions: 3, hits: 13 });
    // In order, and as each would be alone.
    for (step, reply) in steps.iter().zip(replies.iter().cycle()) {
        assert_eq!(step.next.history[0].reply, *reply);
        assert_eq!(*step, world.step(&start, reply.clone()));
    }
    assert_eq!(world.runs(), 3);
    // The run after an edit answers Execute Script too.
    let after = world.step(&steps[0].next, execute("train.py"));
    assert_eq!((after.case, world.runs()), (Case::Neutral, 3));
}

#[test]
fn a_run_that_met_the_wall_clock_is_not_remembered() {
    let world = world();
    for runs in 1..=2 {
        let batch = vec![(world.start(), edit("right", "end wall")); 2];
        assert!(world.environment.step_many(batch).unwrap().iter().all(|s| s.case == Case::Corner));
        assert_eq!(world.runs(), runs);
    }
}

#[test]
fn saved_runs_and_snapshots_go_on_where_they_stopped() {
    let (first, second) = (world(), world());
    let step = first.step(&first.start(), edit("right", "right 7"));
    let third = first.step(&step.next, edit("right", "right 3"));
    first.environment.store.save(first.folder.path()).unwrap();
    first.environment.cache.save(&first.folder.path().join("runs.jsonl")).unwrap();
    let state: State = serde_json::from_str(&serde_json::to_string(&step.next).unwrap()).unwrap();
    assert_eq!(state, step.next);

    let refused = second.environment.step_many(vec![(state.clone(), finish())]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Content, "the snapshot is unknown: {refused}");
    second.environment.store.load(first.folder.path()).unwrap();
    second.environment.cache.load(&first.folder.path().join("runs.jsonl")).unwrap();
    assert_eq!(second.step(&state, edit("right", "right 3")), third);
    assert_eq!(second.runs(), 0);

    let broken = first.folder.path().join("broken.jsonl");
    fs::write(&broken, "{\"key\": \"a\"}\n").unwrap();
    let error = second.environment.cache.load(&broken).unwrap_err();
    assert!(error.kind() == Kind::Content && error.to_string().contains("broken.jsonl:1:"), "{error}");
}

#[test]
fn what_a_result_depends_on_is_in_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let id = SnapshotId("a".into());
    let key = |change: &dyn Fn(&mut PreparedTask)| {
        let mut other = task.clone();
        change(&mut other);
        cache::RunKey::new(&other, &id, "train.py")
    };
    let same = key(&|t| t.task.description = "other words".into());
    assert_eq!(same, cache::RunKey::new(&task, &id, "train.py"));
    for other in [
        key(&|t| t.data_id = "two".into()),
        key(&|t| t.task.metric = Metric::Mae),
        key(&|t| t.task.entry = "other.py".into()),
        key(&|t| t.task.submission = "other.csv".into()),
        key(&|t| t.task.limits.cpu_seconds = 3.0),
        cache::RunKey::new(&task, &SnapshotId("b".into()), "train.py"),
        cache::RunKey::new(&task, &id, "other.py"),
    ] {
        assert_ne!(same, other);
    }
}

#[test]
fn a_run_starts_clean_and_leaves_nothing() {
    let world = world();
    // The agent may own a file named like the submission; it is not there when the script runs.
    let state = world.step(&world.start(), copy("notes.csv", "submission.csv")).next;
    let step = world.step(&state, edit("right", "list\nleave"));
    assert_eq!(step.case, Case::Error, "there is no submission to score");
    assert!(
        step.observation.contains("\ndata.npz notes.csv train.py\n"),
        "no labels, no submission: {}",
        step.observation
    );
    let again = world.step(&state, edit("right", "list\nright 5"));
    assert!(!again.observation.contains("left.txt"));
    let scratch = fs::read_dir(&world.environment.settings().scratch).unwrap();
    assert_eq!(scratch.count(), 0, "the folders of runs are gone");
}

#[test]
fn a_submission_that_links_elsewhere_is_refused() {
    let world = world();
    let labels = world.folder.path().join("labels.csv");
    for word in ["symlink", "hardlink"] {
        let step = world.step(&world.start(), edit("right", &format!("{word} {}", labels.display())));
        assert_eq!((step.case, step.metric_after), (Case::Error, 0.2), "{word} to the labels would score 1");
    }
}

#[test]
fn folders_of_runs_do_not_show() {
    let world = world();
    let step = world.step(&world.start(), edit("print", "where"));
    assert!(step.observation.ends_with("\n. train.py"), "{}", step.observation);
}

#[test]
fn long_observations_are_cut_in_the_middle() {
    let world = world_of(START, Fake::default(), |s| s.observation_limit = 40);
    let long = format!("print {}", "é".repeat(100));
    let step = world.step(&world.start(), edit("print", &long));
    assert_eq!(step.case, Case::Edit);
    let output = step.observation.split("Here is the output:\n").nth(1).unwrap();
    let expected = format!("{}\n... 61 characters left out ...\n{}", "é".repeat(20), "é".repeat(19));
    assert_eq!(output, expected);
    assert_eq!(step.compact, format!("Script ran. {}", "é".repeat(20)));
}

#[test]
fn episodes_end() {
    let world = world_of(START, Fake::default(), |s| s.max_steps = 2);
    let one = world.step(&world.start(), list(".")).next;
    let two = world.step(&one, "nonsense").next;
    assert_eq!((one.done, two.done), (false, true));
    let error = world.environment.step_many(vec![(two, list("."))]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);

    // A run of the fake takes a second, remembered or not.
    let world = world_of(START, Fake::default(), |s| s.episode_seconds = 2.0);
    let one = world.step(&world.start(), execute("train.py")).next;
    let two = world.step(&one, execute("train.py")).next;
    assert_eq!((one.done, two.done, world.runs()), (false, true, 1));
}

#[test]
fn a_failing_runner_is_no_reward() {
    let world = world_of(START, Fake { fails: true, ..Fake::default() }, |_| {});
    let error = world.environment.step_many(vec![(world.start(), edit("right", "right 6"))]).unwrap_err();
    assert_eq!(error.kind(), Kind::System);
    assert_eq!(world.environment.cache.counts().executions, 0);
    assert_eq!(world.step(&world.start(), list(".")).case, Case::Neutral, "what needs no run goes on");
    assert!(world.environment.reset("eleven").unwrap_err().to_string().contains("it has ten"));
}

#[test]
fn paths_stay_inside() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let files: Files =
        [("train.py", "a\nb"), ("src/a.py", ""), ("src/b/c.py", "")].map(|(n, t)| (n.to_string(), Arc::from(t))).into();
    let workspace = Workspace { files: &files, prepared: &task };
    for (path, expected) in [
        ("train.py", Some("train.py")),
        ("./src/../train.py", Some("train.py")),
        ("src//b/./c.py", Some("src/b/c.py")),
        ("src/b/../../train.py", Some("train.py")),
    ] {
        assert_eq!(workspace.script(path).ok().map(|(name, _)| name).as_deref(), expected, "{path}");
    }
    let outside = |p: &str| FileError::Outside(p.into());
    let not_a_name = |p: &str| FileError::NotAName(p.into());
    let long = "x".repeat(256);
    let deep = ["y"; 600].join("/");
    for (path, expected) in [
        ("/etc/passwd", outside("/etc/passwd")),
        ("..", outside("..")),
        ("../train.py", outside("../train.py")),
        ("src/../../train.py", outside("src/../../train.py")),
        ("", not_a_name("")),
        (".", not_a_name(".")),
        ("src/", not_a_name("src/")),
        ("a\0b", not_a_name("a\0b")),
        (&long, not_a_name(&long)),
        (&deep, not_a_name(&deep)),
    ] {
        assert_eq!(workspace.copy_file("train.py", path).unwrap_err(), expected);
    }
    // A name that is a folder, or below a file.
    for path in ["src", "src/b", "train.py/x.py", "notes.csv/x.py"] {
        assert_eq!(workspace.copy_file("train.py", path).unwrap_err(), FileError::IsFolder(path.into()));
    }
    assert_eq!(workspace.list_files("./src").unwrap(), ["a.py", "b/"]);
    assert_eq!(workspace.list_files("").unwrap(), ["data.npz", "notes.csv", "src/", "train.py"]);
    assert_eq!(workspace.list_files("train.py").unwrap_err(), FileError::NoFolder("train.py".into()));
}

#[test]
fn inspecting_lines() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let long: String = (1..=250).map(|i| format!("{i}\n")).collect();
    let files: Files =
        [("long.py", long.as_str()), ("empty.py", "")].map(|(n, t)| (n.to_string(), Arc::from(t))).into();
    let workspace = Workspace { files: &files, prepared: &task };
    let (shown, last) = workspace.inspect_lines("long.py", 101, 200).unwrap();
    assert_eq!((shown.lines().next(), shown.lines().last(), last), (Some("101"), Some("200"), 250));
    assert_eq!(workspace.inspect_lines("long.py", 250, 300).unwrap(), ("250\n".into(), 250));
    assert_eq!(workspace.inspect_lines("empty.py", 1, 1).unwrap(), (String::new(), 0));
    for (start, end, expected) in [
        (101, 201, FileError::TooManyLines(101)),
        (1, u64::MAX, FileError::TooManyLines(u64::MAX)),
        (0, 10, FileError::BadRange { start: 0, end: 10 }),
        (5, 4, FileError::BadRange { start: 5, end: 4 }),
        (251, 260, FileError::BehindEnd { start: 251, last: 250 }),
    ] {
        assert_eq!(workspace.inspect_lines("long.py", start, end).unwrap_err(), expected);
    }
}

#[test]
fn a_real_folder_holds_copies() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let files: Files = [("train.py", START), ("a/b.py", "x"), ("submission.csv", "1")]
        .map(|(n, t)| (n.to_string(), Arc::from(t)))
        .into();
    let place = tempfile::tempdir().unwrap();
    workspace::materialise(&files, &task, place.path()).unwrap();
    assert_eq!(fs::read_to_string(place.path().join("a/b.py")).unwrap(), "x");
    assert!(!place.path().join("submission.csv").exists());
    let data = place.path().join("data.npz");
    let metadata = fs::symlink_metadata(&data).unwrap();
    assert!(metadata.is_file() && metadata.nlink() == 1 && metadata.permissions().mode() & 0o777 == 0o444);
    assert_ne!(metadata.ino(), fs::metadata(folder.path().join("data.npz")).unwrap().ino());

    // Neither a name nor a link that is there already leads out.
    let outside = tempfile::tempdir().unwrap();
    for name in ["../x.py", "/x.py", "a/../../x.py"] {
        let files: Files = [(name.to_string(), Arc::from("x"))].into();
        assert_eq!(workspace::materialise(&files, &task, outside.path()).unwrap_err().kind(), Kind::Content);
    }
    let place = tempfile::tempdir().unwrap();
    symlink(outside.path(), place.path().join("a")).unwrap();
    assert!(workspace::materialise(&files, &task, place.path()).is_err());
    assert!(!outside.path().join("b.py").exists());
    fs::write(outside.path().join("s.csv"), "1").unwrap();
    assert_eq!(workspace::left_behind(place.path(), "a/s.csv"), None);
}

#[test]
fn compact_prompt() {
    let world = world();
    let text = |state: &State| {
        let messages = world.environment.messages(state).unwrap();
        assert_eq!((messages.len(), messages[0].role.as_str()), (1, "user"));
        messages[0].content.clone()
    };
    let start = world.start();
    let head = "Task: say yes ten times. accuracy, higher is better.\ntrain.py:\nprint two right\n";
    assert_eq!(text(&start), format!("{head}right 2\n# end\nLast: start"));
    let step = world.step(&start, edit("right", "right 6"));
    assert_eq!(text(&step.next), format!("{head}right 6\n# end\nLast: Script ran. two right"));
    let undone = world.step(&step.next, edit("right", "raise NameError: x"));
    assert_eq!(text(&undone.next), format!("{head}right 6\n# end\nLast: Undone. NameError: x"));
}

#[test]
fn full_prompt_and_its_shortening() {
    let world = world_of(START, Fake::default(), |s| (s.prompt, s.format) = (Style::Full, ReplyFormat::Thought));
    let thought =
        |action: String| format!("Reflection: r\nResearch Plan and Status: p\nFact Check: f\nThought: t\n{action}");
    let mut state = world.start();
    for reply in [list("."), inspect("train.py", 1, 3), edit("right", "right 6")] {
        state = world.step(&state, thought(reply)).next;
    }
    assert_eq!(state.metric, 0.6);
    let all = world.environment.messages(&state).unwrap();
    let roles: Vec<&str> = all.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user"]);
    for part in [
        "List Files",
        "Copy File",
        "Inspect Script Lines",
        "Execute Script",
        "Edit Script",
        "Final Answer",
        "Fact Check:",
    ] {
        assert!(all[0].content.contains(part), "{part}");
    }
    // The example in the prompt is one the parser takes.
    let example = all[0].content.split("\"model =\":\n").nth(1).unwrap().split("\n\nYou have").next().unwrap();
    assert!(matches!(action::parse(example, ReplyFormat::Thought), Ok(Action::EditScript { .. })), "{example}");
    for part in [
        "say yes ten times.",
        "accuracy, higher is better",
        "data.npz (data, read-only)",
        "train.py:\n```\nprint two right\nright 2\n",
    ] {
        assert!(all[1].content.contains(part), "{part}: {}", all[1].content);
    }
    assert!(all[7].content.starts_with("Observation: The file was changed:"));

    let count = |messages: &[Message]| messages.iter().map(|m| m.content.len()).sum::<usize>();
    let within = |limit: usize| world.environment.messages_within(&state, &count, limit);
    assert_eq!(within(count(&all)).unwrap(), all);
    let shorter = within(count(&all) - 1).unwrap();
    assert_eq!(shorter[3].content, "Observation: data.npz notes.csv train.py");
    assert_eq!(shorter[5..], all[5..]);
    let least = count(&all[..2])
        + "\n\nThe first 2 steps are left out here.".len()
        + count(&all[6..7])
        + "Observation: Script ran. two right".len();
    let last = within(least).unwrap();
    assert_eq!((last.len(), count(&last)), (4, least));
    let error = within(least - 1).unwrap_err();
    assert!(error.kind() == Kind::Content && error.to_string().contains(&(least - 1).to_string()), "{error}");
    for limit in least..=count(&all) {
        assert!(count(&within(limit).unwrap()) <= limit);
    }
}
