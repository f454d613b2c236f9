//! Nothing of a job is left for the next one of its slot, and nothing that a script writes but its files and output changes its verdict.

use super::{LIMITS, job, python};
use onestep::sandbox::{Job, Outcome, Pool, Verdict, Wanted};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Writes into all it can reach, and ends with exit code 3.
const MARK: &str = include_str!("fresh/mark.py");
/// Prints the state it finds, and writes a submission that depends on it.
const LOOK: &str = include_str!("fresh/look.py");

/// A pool in the best tier up to `best`; none where that tier is not possible, which is said.
fn pool_of(workers: usize, best: u8) -> Option<Pool> {
    let wanted = Wanted { best, unsafe_without: false, preload: Some(vec!["numpy".into()]) };
    let pool =
        Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), workers, python(), &wanted, Arc::default()).unwrap();
    if pool.protection().tier < best {
        println!("{}", pool.protection().notes.join("; "));
        return None;
    }
    Some(pool)
}

/// How a job ended, what it printed and what it left to be graded.
#[derive(Debug, Clone, PartialEq)]
struct Graded {
    outcome: Outcome,
    stdout: String,
    submission: Option<String>,
}

fn graded(folder: &TempDir, verdict: Verdict) -> Graded {
    let submission = std::fs::read_to_string(folder.path().join("submission.csv")).ok();
    Graded { outcome: verdict.outcome, stdout: verdict.stdout, submission }
}

fn run(pool: &Pool, script: &str) -> Graded {
    let (folder, job) = job(script, LIMITS);
    let verdict = pool.run(job).unwrap();
    let ended = graded(&folder, verdict.clone());
    assert!(ended.outcome != Outcome::Exited(1), "{verdict:?}");
    ended
}

#[test]
fn a_job_finds_nothing_of_those_before_it() {
    for tier in (1..=3).rev() {
        let Some(pool) = pool_of(1, tier) else { continue };
        let first = run(&pool, LOOK);
        assert_eq!(first.outcome, Outcome::Exited(0), "{first:?}");
        assert!(
            first.stdout.contains("'writable shared memory': []") && first.stdout.contains("'open maps': 0"),
            "{first:?}"
        );
        assert!(first.submission.is_some());
        for _ in 0..2 {
            let marked = Graded { outcome: Outcome::Exited(3), stdout: "marked\n".into(), submission: None };
            assert_eq!(run(&pool, MARK), marked, "tier {tier}");
            assert_eq!(run(&pool, LOOK), first, "tier {tier}");
        }
    }
}

#[test]
fn the_order_of_jobs_and_the_number_of_slots_change_no_grade() {
    for tier in (1..=3).rev() {
        let (Some(one), Some(two)) = (pool_of(1, tier), pool_of(2, tier)) else { continue };
        let in_order = [run(&one, LOOK), run(&one, MARK)];
        let reversed = [run(&one, MARK), run(&one, LOOK)];
        assert_eq!([&reversed[1], &reversed[0]], [&in_order[0], &in_order[1]], "tier {tier}");
        let scripts = [LOOK, MARK, MARK, LOOK, LOOK, MARK];
        let (folders, jobs): (Vec<TempDir>, Vec<Job>) = scripts.iter().map(|script| job(script, LIMITS)).unzip();
        let verdicts = two.run_many(jobs).unwrap();
        for ((script, folder), verdict) in scripts.iter().zip(&folders).zip(verdicts) {
            assert_eq!(graded(folder, verdict), in_order[usize::from(*script == MARK)], "tier {tier}");
        }
    }
}

/// Out of memory is what an uncaught MemoryError says, whatever the script has done to signals before, and nothing else says it.
#[test]
fn only_an_uncaught_memory_error_is_one() {
    use Outcome::{Exited, MemoryLimit};
    let cases = [
        ("import sys\nsys.exit(3)", Exited(3)),
        ("bytearray(1 << 40)", MemoryLimit),
        ("try: bytearray(1 << 40)\nexcept MemoryError: pass", Exited(0)),
        ("import sys\nsys.excepthook = lambda *_: sys.exit(4)\nbytearray(1 << 40)", Exited(4)),
        (
            "import signal\nfor n in signal.valid_signals() - {9, 19}: signal.signal(n, signal.SIG_IGN)\n\
             signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nbytearray(1 << 40)",
            MemoryLimit,
        ),
        (
            "import os, sys\nif os.fork() == 0: bytearray(1 << 40)\nsys.exit(os.waitstatus_to_exitcode(os.wait()[1]) + 5)",
            Exited(6),
        ),
    ];
    for tier in (1..=3).rev() {
        let Some(pool) = pool_of(1, tier) else { continue };
        for (script, expected) in &cases {
            let (_folder, job) = job(script, LIMITS);
            assert_eq!(pool.run(job).unwrap().outcome, *expected, "tier {tier}: {script}");
        }
    }
}
