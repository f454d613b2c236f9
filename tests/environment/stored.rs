//! What is remembered across environments, by the database behind them, and what is not.

use super::world::*;
use onestep::environment::*;
use onestep::reward::Case;
use std::path::Path;
use std::sync::Arc;

/// A world over the database in `folder`, of this seed.
fn over(folder: &Path, script: &str, seed: u64, change: impl FnOnce(&mut Settings)) -> World {
    let World { folder: own, fake, environment } = world_of(script, Fake::default(), change);
    let store = Arc::new(Store::open(&folder.join("store.sqlite"), 1 << 30).unwrap());
    let environment = environment.with_store(store, seed).unwrap();
    World { folder: own, fake, environment }
}

#[test]
fn the_same_edit_is_executed_once_by_all_runs() {
    let folder = tempfile::tempdir().unwrap();
    let first = over(folder.path(), START, 0, |_| {});
    assert_eq!((first.runs(), first.environment.varying().len()), (2, 0), "the baseline is tried twice");
    assert_eq!(*first.fake.batches.lock().unwrap(), [2], "at once");
    let (better, failed) = (edit("right", "right 6"), edit("right", "raise ValueError: no"));
    let steps = [&better, &failed, &execute("train.py")].map(|reply| first.step(&first.start(), reply));
    assert_eq!(first.runs(), 4, "the baseline is remembered from the trial");
    assert_eq!(first.environment.cache.counts(), Counts { executions: 4, hits: 1, earlier: 0, saved_seconds: 1.0 });

    let second = over(folder.path(), START, 1, |_| {});
    let batch = [&better, &failed, &execute("train.py"), &better].map(|reply| (second.start(), reply.clone()));
    let again = second.environment.step_many(batch.into()).unwrap();
    assert_eq!(again[..3], steps);
    assert_eq!(again[3], steps[0]);
    assert_eq!(second.runs(), 0);
    assert_eq!(second.environment.cache.counts(), Counts { executions: 0, hits: 4, earlier: 4, saved_seconds: 4.0 });
    assert_eq!(
        second.environment.cache.counts().to_string(),
        "0 executed, 4 remembered (4 from before), 4 s of scripts saved"
    );

    // Both at once: each has what the other does from then on.
    let other = first.step(&steps[0].next, edit("right", "right 9"));
    assert_eq!(second.step(&steps[0].next, edit("right", "right 9")), other);
    assert_eq!((first.runs(), second.runs()), (5, 0));

    // A state of another run is restored without its file.
    let third = over(folder.path(), START, 0, |_| {});
    assert_eq!(third.script(&other.next), "print two right\nright 9\n# end\n");
    let unstored = world();
    assert!(unstored.environment.files(&other.next).unwrap_err().to_string().contains("is not in the store"));
    assert_eq!((unstored.step(&unstored.start(), better), unstored.runs()), (steps[0].clone(), 1));
}

#[test]
fn a_run_at_the_wall_clock_is_not_remembered_across_runs_either() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let world = over(folder.path(), START, 0, |_| {});
        let before = world.runs();
        assert_eq!(world.step(&world.start(), edit("right", "end wall")).case, Case::Corner);
        assert_eq!(world.runs(), before + 1);
    }
}

#[test]
fn texts_cut_at_another_length_are_not_reused() {
    let folder = tempfile::tempdir().unwrap();
    let long = edit("print", &format!("print {}", "x".repeat(300)));
    for (limit, runs) in [(100, 3), (200, 3), (100, 0)] {
        let world = over(folder.path(), START, 0, |s| s.observation_limit = limit);
        let step = world.step(&world.start(), &*long);
        assert!(step.observation.contains(&format!("{} characters left out", 300 - limit + 1)), "{}", step.observation);
        assert_eq!(world.runs(), runs, "limit {limit}");
    }
}

#[test]
fn a_task_that_varies_is_marked_and_shared_within_one_seed_only() {
    let reply = edit("# end", "right 6");
    for script in ["print two right\ntick\nright 2\n# end\n", "luck\n# end\n", "tick\nraise ValueError: no\n# end\n"] {
        let folder = tempfile::tempdir().unwrap();
        let first = over(folder.path(), script, 7, |_| {});
        assert_eq!((first.environment.varying(), first.runs()), (vec!["ten"], 2), "{script}");
        let step = first.step(&first.start(), &*reply);
        assert_eq!((first.step(&first.start(), &*reply), first.runs()), (step.clone(), 3), "{script}");

        let same_seed = over(folder.path(), script, 7, |_| {});
        assert_eq!((same_seed.environment.varying(), same_seed.runs()), (vec!["ten"], 0), "the mark is remembered");
        assert_eq!((same_seed.step(&same_seed.start(), &*reply), same_seed.runs()), (step.clone(), 0), "{script}");
        same_seed.step(&same_seed.start(), execute("train.py"));
        assert_eq!(same_seed.runs(), 0, "the trial's first run is remembered");

        let other_seed = over(folder.path(), script, 8, |_| {});
        assert_eq!((other_seed.environment.varying(), other_seed.runs()), (vec!["ten"], 0));
        other_seed.step(&other_seed.start(), &*reply);
        assert_eq!(other_seed.runs(), 1, "{script}");
    }
}

#[test]
fn what_only_stderr_says_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let world = over(folder.path(), "tock\nright 2\n", 0, |_| {});
    assert_eq!((world.environment.varying().len(), world.runs()), (0, 2));
}

#[test]
fn a_trial_that_met_the_wall_clock_decides_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let world = over(folder.path(), "right 2\nend wall\n", 0, |_| {});
        assert_eq!((world.environment.varying(), world.runs()), (vec!["ten"], 2), "tried again, not shared until then");
    }
}

#[test]
fn a_failing_runner_marks_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = || Arc::new(Store::open(&folder.path().join("store.sqlite"), 1 << 30).unwrap());
    let broken = world_of(START, Fake { fails: true, ..Fake::default() }, |_| {}).environment;
    assert!(broken.with_store(store(), 0).is_err());
    let world = over(folder.path(), START, 0, |_| {});
    assert_eq!((world.environment.varying().len(), world.runs()), (0, 2));
}
