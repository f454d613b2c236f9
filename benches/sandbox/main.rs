//! What a sandbox costs: against fork and exec and against bubblewrap side by side in one run, from a limit to a free slot, over
//! slots, and a soak that looks for leaks. `cargo bench --bench sandbox -- [--repeats N] [--soak JOBS] [--out FILE]` prints tables
//! and writes one JSON file. Not a test: nothing passes or fails by time.
#![allow(clippy::unwrap_used)]

mod cost;
mod soak;

use clap::Parser;
use onestep::sandbox::{Job, Limits, Outcome, Pool, Python, Verdict, Wanted};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

#[derive(Parser)]
struct Arguments {
    /// Runs of each contender
    #[arg(long, default_value_t = 300)]
    repeats: usize,
    /// Jobs of the soak; 0 leaves it out
    #[arg(long, default_value_t = 0)]
    soak: usize,
    /// The best tier that is tried
    #[arg(long, default_value_t = 3)]
    tier: u8,
    /// JSON file of the results
    #[arg(long)]
    out: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Far from what a job here needs.
const LIMITS: Limits = Limits {
    cpu_seconds: 20.0,
    wall_seconds: 60.0,
    memory_bytes: 1 << 29,
    output_bytes: 1 << 16,
    file_bytes: 1 << 24,
    disk_bytes: 1 << 25,
    processes: 64,
};

/// What all measurements need.
struct Bench {
    python: Python,
    tier: u8,
}

impl Bench {
    /// A pool whose fork-servers have `modules` loaded.
    fn pool(&self, workers: usize, modules: &[&str]) -> Pool {
        self.start(workers, Some(modules.iter().map(|name| name.to_string()).collect()))
    }

    /// A pool as training has it.
    fn full_pool(&self, workers: usize) -> Pool {
        self.start(workers, None)
    }

    fn start(&self, workers: usize, preload: Option<Vec<String>>) -> Pool {
        let wanted = Wanted { best: self.tier, unsafe_without: false, preload };
        Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), workers, &self.python, &wanted, Arc::default()).unwrap()
    }
}

/// A folder with a script in it.
fn job(script: &str, limits: &Limits) -> (TempDir, Job) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.py"), script).unwrap();
    let job = Job::new(folder.path(), "train.py", limits.clone());
    (folder, job)
}

/// Runs a script that must end well.
fn run(pool: &Pool, script: &str) -> Verdict {
    let (_folder, job) = job(script, &LIMITS);
    let verdict = pool.run(job).unwrap();
    assert_eq!(verdict.outcome, Outcome::Exited(0), "{verdict:?}");
    verdict
}

fn main() {
    let arguments = Arguments::parse();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    let python = Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap();
    let bench = Bench { python, tier: arguments.tier };
    let cores = std::thread::available_parallelism().unwrap().get();
    let tier = bench.pool(1, &[]).protection().tier;
    println!("tier {tier}, {cores} cores, {} repeats", arguments.repeats);
    let mut results = json!({ "tier": tier, "cores": cores, "repeats": arguments.repeats });
    if arguments.repeats > 0 {
        // First: where many files were just deleted, ext4 takes several times as long to make new ones.
        results["restore"] = cost::restore(&bench, arguments.repeats);
        results["latency"] = cost::latency(&bench, arguments.repeats);
        results["limit_to_free"] = cost::limits(&bench, arguments.repeats);
        results["throughput"] = cost::throughput(&bench, cores, arguments.repeats);
    }
    if arguments.soak > 0 {
        results["soak"] = soak::soak(&bench, cores, arguments.soak);
    }
    if let Some(path) = arguments.out {
        std::fs::write(&path, serde_json::to_string_pretty(&results).unwrap() + "\n").unwrap();
    }
}
