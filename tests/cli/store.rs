//! What one run of the program remembers for the next.

use crate::support::*;
use std::fs;
use tempfile::tempdir;

/// What stands behind `scripts: `: executed, remembered, from before.
fn counts(stdout: &str) -> [u64; 3] {
    let line = stdout.lines().find_map(|line| line.strip_prefix("scripts: ")).unwrap();
    let numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    numbers.take(3).collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn a_second_run_executes_nothing() {
    let folder = tempdir().unwrap();
    let (cache, out) = (folder.path().join("cache"), folder.path().join("out"));
    let trajectories = out.join("trajectories.jsonl");
    let collect = |more: &[&str]| {
        let fixed = ["collect", "--out", text(&out), "--python", python(), "trajectories=1", "tasks.names=digits"];
        onestep_with(&[("XDG_CACHE_HOME", text(&cache))], &[&fixed[..], more].concat())
    };
    let collected = |more: &[&str]| {
        let ended = collect(more);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("within one seed"), "the task is deterministic: {ended:?}");
        (counts(&ended.stdout), fs::read_to_string(&trajectories).unwrap())
    };
    let ([executed, hits, earlier], first) = collected(&[]);
    assert!(executed > 2 && earlier == 0, "the baseline twice, and edits: {executed} executed, {earlier} from before");
    // Seconds are those of the first execution, so even they are equal.
    assert_eq!(collected(&[]), ([0, executed - 2 + hits, executed - 2 + hits], first));
    let ([again, _, earlier], _) = collected(&["run.reuse_rewards=false"]);
    assert!(again >= executed - 2 && earlier == 0, "{again} of {executed} executed again, {earlier} from before");

    let store = cache.join("onestep").join("store.sqlite");
    fs::write(&store, "no database\n".repeat(1000)).unwrap();
    let refused = collect(&[]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains(text(&store)) && refused.stderr.contains("move it away"), "{refused:?}");
    assert!(fs::read_to_string(&store).unwrap().starts_with("no database"), "nothing is lost");
}
