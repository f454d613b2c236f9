//! What a step leads to, case by case. The files and prompts of the environment, and real runs, are tested in their own files.
#![allow(clippy::unwrap_used)]

mod files;
mod prompts;
mod real;
mod stored;

mod world;

use onestep::environment::action::{Action, render};
use onestep::environment::*;
use onestep::error::Kind;
use onestep::reward::Case;
use onestep::task::{Flag, Metric, PreparedTask, Scale};
use std::fs;
use std::sync::Arc;
use world::*;

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

    assert_eq!((step.report_before, step.report_after, step.next.report), (0.1, 0.6, 0.6));
    assert_eq!(step.flags, []);

    // The next share is against the last graded run; a worse edit is kept too, and the best remembered.
    let worse = world.step(&step.next, edit("right", "right 4"));
    assert_eq!((worse.case, worse.metric_before, worse.metric_after), (Case::Edit, 0.6, 0.4));
    assert!((worse.share + 0.25).abs() < 1e-12);
    assert_eq!((worse.next.metric, worse.next.best), (0.4, 0.6));
    assert_eq!(worse.next.history.len(), 2);
}

#[test]
fn rewards_come_from_one_split_and_the_other_is_reported() {
    let world = world();
    let start = world.start();
    assert_eq!((start.metric, start.report, start.best, start.best_report), (0.2, 0.1, 0.2, 0.1));
    let better = world.step(&start, edit("right", "right 6 3"));
    assert_eq!((better.metric_before, better.metric_after), (0.2, 0.6));
    assert_eq!((better.report_before, better.report_after), (0.1, 0.3));
    assert!((better.share - 0.5).abs() < 1e-12, "the share is of the reward split: {}", better.share);
    let next = &better.next;
    assert_eq!((next.metric, next.report, next.best, next.best_report), (0.6, 0.3, 0.6, 0.3));
    // Worse on the reward split, better on the other: no gain, and not the best state.
    let worse = world.step(next, edit("right", "right 5 9"));
    assert!(worse.share < 0.0, "{}", worse.share);
    let next = &worse.next;
    assert_eq!((next.metric, next.report, next.best, next.best_report), (0.5, 0.9, 0.6, 0.3));
    for told in [&better, &worse] {
        for score in ["0.3", "0.5", "0.6", "0.9"] {
            assert!(!told.observation.contains(score) && !told.compact.contains(score), "{}", told.observation);
        }
    }
    // A failed run leaves both.
    let failed = world.step(next, edit("right", "exit 1"));
    assert_eq!((failed.report_before, failed.report_after, failed.next.report), (0.9, 0.9, 0.9));
}

#[test]
fn flags_go_with_the_step_that_raised_them() {
    let world = world_of(START, Fake::default(), |_| {});
    let step = world.step(&world.start(), edit("right", "right 0"));
    assert_eq!((step.case, step.flags.as_slice()), (Case::Edit, [Flag::Constant].as_slice()));
    assert_eq!(step.detail, "accuracy 0.2 -> 0 (share -0.250, constant)");
    assert!(!step.observation.contains("constant") && !step.compact.contains("constant"));
    let ran = world.step(&step.next, execute("train.py"));
    assert_eq!((ran.case, ran.flags.as_slice()), (Case::Neutral, [].as_slice()));

    let folder = tempfile::tempdir().unwrap();
    let mut task = prepared(folder.path(), START);
    task.task.m_best = 0.4;
    let environment = environment(Arc::default(), task, SETTINGS, folder.path());
    let state = environment.reset("ten").unwrap();
    for (right, flags) in [("right 5", vec![]), ("right 6", vec![Flag::TooGood])] {
        let step = environment.step_many(vec![(state.clone(), edit("right", right))]).unwrap().remove(0);
        assert_eq!((step.case, step.flags), (Case::Edit, flags), "{right}");
    }
}

#[test]
fn lower_is_better_turns_the_sign() {
    let folder = tempfile::tempdir().unwrap();
    let mut task = prepared(folder.path(), START);
    (task.task.metric, task.task.m_init, task.task.m_best) = (Metric::Mae, 0.8, 0.0);
    task.task.report = Scale { m_init: 0.8, m_best: 0.0 };
    let environment = environment(Arc::default(), task, SETTINGS, folder.path());
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
    let environment = environment(Arc::default(), task, SETTINGS, folder.path());
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
    assert_eq!(world.environment.cache.counts(), Counts { executions: 3, hits: 13, earlier: 0, saved_seconds: 13.0 });
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
fn saved_snapshots_go_on_where_they_stopped() {
    let (first, second) = (world(), world());
    let step = first.step(&first.start(), edit("right", "right 7"));
    let third = first.step(&step.next, edit("right", "right 3"));
    first.environment.store.save(first.folder.path()).unwrap();
    let state: State = serde_json::from_str(&serde_json::to_string(&step.next).unwrap()).unwrap();
    assert_eq!(state, step.next);

    let refused = second.environment.step_many(vec![(state.clone(), finish())]).unwrap_err();
    assert_eq!(refused.kind(), Kind::Content, "the snapshot is unknown: {refused}");
    second.environment.store.load(first.folder.path()).unwrap();
    assert_eq!(second.step(&state, edit("right", "right 3")), third);
}

#[test]
fn what_a_result_depends_on_is_in_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let task = prepared(folder.path(), START);
    let id = SnapshotId("a".into());
    let of = |python: &str, task: &PreparedTask, limit, seed, id: &str, script: &str| {
        record::RunKey::new(python, task, limit, seed, &SnapshotId(id.into()), script)
    };
    let key = |change: &dyn Fn(&mut PreparedTask)| {
        let mut other = task.clone();
        change(&mut other);
        of("python", &other, 100, None, &id.0, "train.py")
    };
    let same = key(&|t| t.task.description = "other words".into());
    assert_eq!(same, of("python", &task, 100, None, "a", "train.py"));
    let others = [
        key(&|t| t.data_id = "two".into()),
        key(&|t| t.task.metric = Metric::Mae),
        key(&|t| t.task.entry = "other.py".into()),
        key(&|t| t.task.submission = "other.csv".into()),
        key(&|t| t.task.limits.cpu_seconds = 3.0),
        of("python", &task, 100, None, "b", "train.py"),
        of("python", &task, 100, None, "a", "other.py"),
        of("another python", &task, 100, None, "a", "train.py"),
        of("python", &task, 101, None, "a", "train.py"),
        of("python", &task, 100, Some(0), "a", "train.py"),
        of("python", &task, 100, Some(1), "a", "train.py"),
    ];
    for (i, other) in others.iter().enumerate() {
        assert_ne!(same, *other, "{i}");
        assert!(!others[..i].contains(other), "{i}");
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
    let scratch = fs::read_dir(world.environment.scratch()).unwrap();
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
