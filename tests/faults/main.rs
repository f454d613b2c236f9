//! Faults, enumerated: every call site that touches a file, every process of a run at any instant, several runs at once. What must hold:
//! nothing published is ever wrong, and a run that goes on afterwards ends equal, to the bit, to one that nothing has happened to.
//!
//!     cargo test --release --test faults                          a part of each kind, drawn from fixed seeds
//!     FAULTS=all cargo test --release --test faults               all of it; writes the tables of tests/faults/results/
//!     FAULTS=kill FAULTS_RUNS=50 cargo test --release --test faults kill      one kind: io, kill, stop or together
#![allow(clippy::unwrap_used)]

mod io;
mod kill;
mod processes;
mod results;
mod stage;
#[allow(dead_code)] // shared with the tests of the command line, which use all of it
#[path = "../cli/support.rs"]
mod support;
mod table;
mod together;

use kill::Tally;
use processes::Role;
use results::Right;
use stage::{Verb, stage};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One test at a time: what is left over is looked for on the whole machine, and times are measured.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an uninterrupted run of `verb` comes to: found out once.
fn right(verb: Verb) -> &'static Right {
    static RIGHTS: Mutex<BTreeMap<Verb, &'static Right>> = Mutex::new(BTreeMap::new());
    let mut rights = RIGHTS.lock().unwrap_or_else(PoisonError::into_inner);
    rights.entry(verb).or_insert_with(|| Box::leak(Box::new(Right::of(stage(), verb))))
}

/// True when all of this kind of faults is asked for.
fn is_full(kind: &str) -> bool {
    std::env::var("FAULTS").is_ok_and(|asked| asked == "all" || asked == kind)
}

/// How many runs a kind has when all of it is asked for.
fn runs(usual: usize) -> usize {
    std::env::var("FAULTS_RUNS").map_or(usual, |text| text.parse().expect("FAULTS_RUNS is a number"))
}

#[test]
fn kill_any_process_at_any_time() {
    const KILLS: usize = 20;
    let (_alone, stage, begun) = (alone(), stage(), Instant::now());
    let mut tally = Tally::default();
    let full = is_full("kill");
    // Half of the runs are sft, a quarter each of the others.
    let count = runs(50);
    for (verb, share) in [(Verb::Sft, count.div_ceil(2)), (Verb::Ppo, count.div_ceil(4)), (Verb::Grpo, count / 4)] {
        let right = right(verb);
        println!("{}: {:?}, of which {:?} to start", verb.name(), right.length, right.start);
        let (runs, kills) = if full { (share, KILLS) } else { (1, if verb == Verb::Sft { 12 } else { 5 }) };
        (0..runs as u64).for_each(|seed| kill::killed(stage, right, seed, kills, &mut tally));
    }
    table::hits("kill", "killed", &tally, begun.elapsed(), full);
}

#[test]
fn stop_any_process() {
    let (_alone, stage, begun) = (alone(), stage(), Instant::now());
    let mut tally = Tally::default();
    let full = is_full("stop");
    let all = [Role::Trainer, Role::All, Role::Worker, Role::Helper, Role::ForkServer, Role::Loader];
    // What is noticed by a limit of half a minute and more is left to the whole.
    let (verbs, roles): (&[Verb], _) =
        if full { (&[Verb::Ppo, Verb::Grpo], &all[..]) } else { (&[Verb::Grpo], &all[..2]) };
    for &verb in verbs {
        let right = right(verb);
        for seed in 0..if full { runs(1) as u64 } else { 1 } {
            for &role in roles {
                let pause = Duration::from_secs(if full { 25 } else { 1 });
                kill::stopped(stage, right, role, seed, pause, &mut tally);
            }
        }
    }
    table::hits("stop", "stopped", &tally, begun.elapsed(), full);
}

/// Every call of a verb on files fails once; `part` of them when not all is asked for.
fn fail(verb: Verb, part: usize) {
    let (_alone, stage, begun) = (alone(), stage(), Instant::now());
    let full = is_full("io");
    let quicker: &[Verb] = if full { verb.quicker() } else { &[] };
    let quicker: Vec<&Right> = quicker.iter().map(|&verb| right(verb)).collect();
    let tally = io::failed(stage, right(verb), &quicker, (!full).then_some(part));
    table::faults(verb, &tally, begun.elapsed(), full);
    assert!(tally.findings.is_empty(), "{} findings:\n{}", tally.findings.len(), tally.findings.join("\n"));
}

/// A resumed run counts on the log up to its checkpoint, also after a power cut.
#[test]
fn the_log_is_on_disk_before_its_checkpoint_has_its_name() {
    let (_alone, stage) = (alone(), stage());
    let (mut is_synced, mut checkpoints) = (true, 0);
    for (_, call, path) in io::watched(stage, Verb::Sft).1 {
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_checkpoint = name.strip_prefix("step-").is_some_and(|step| step.bytes().all(|b| b.is_ascii_digit()));
        match call.as_str() {
            "write" if name == "metrics.jsonl" => is_synced = false,
            "fsync" if name == "metrics.jsonl" => is_synced = true,
            "rename" if is_checkpoint => {
                assert!(is_synced, "{name} is there, lines of the log up to it may not be");
                checkpoints += 1;
            }
            _ => (),
        }
    }
    assert!(checkpoints > 3, "{checkpoints} checkpoints");
}

#[test]
fn fail_any_call_of_sft() {
    fail(Verb::Sft, 8);
}

#[test]
fn fail_any_call_of_pretrain() {
    fail(Verb::Pretrain, 2);
}

#[test]
fn fail_any_call_of_export() {
    fail(Verb::Export, 6);
}

#[test]
fn fail_any_call_of_collect() {
    fail(Verb::Collect, 1);
}

#[test]
fn fail_any_call_of_eval() {
    fail(Verb::Eval, 1);
}

#[test]
fn fail_any_call_of_ppo() {
    fail(Verb::Ppo, 2);
}

#[test]
fn fail_any_call_of_grpo() {
    fail(Verb::Grpo, 1);
}

/// Two and four runs at once: one has the folder, and with one cache all end as one alone does.
#[test]
fn run_several_at_once() {
    let (_alone, stage, begun) = (alone(), stage(), Instant::now());
    let full = is_full("together");
    let sft = right(Verb::Sft);
    let grpo = right(Verb::Grpo);
    let rounds = if full { runs(10) } else { 1 };
    for _ in 0..rounds {
        for count in [2, 4] {
            together::one_folder(stage, sft, count, count == 4);
        }
        together::one_cache(stage, grpo, 2);
        if full {
            together::one_cache(stage, grpo, 4);
        }
    }
    let (folders, caches) = (2 * rounds, rounds * if full { 2 } else { 1 });
    table::together(folders, caches, begun.elapsed(), full);
}
