//! Many jobs, one in ten of them hostile, and what is left of them: nothing, and a supervisor no larger than before.

use super::{Bench, LIMITS, job};
use onestep::sandbox::{Limits, Outcome, Pool};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

const HONEST: &str = "import numpy as np\nopen('submission.csv', 'w').write('1')\nprint(np.arange(10).sum())\n";

/// What a hostile job does, and how it ends.
fn hostile(which: usize) -> (&'static str, Limits, &'static [Outcome]) {
    let brief = Limits { wall_seconds: 0.3, processes: 16, memory_bytes: 1 << 26, ..LIMITS };
    match which % 8 {
        0 => (
            "import os\nwhile True: os.fork()",
            brief,
            &[Outcome::Exited(1), Outcome::ProcessLimit, Outcome::WallLimit],
        ),
        1 => ("x = []\nwhile True: x.append(bytearray(1 << 22))", brief, &[Outcome::MemoryLimit]),
        2 => (
            "import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(1000)\nprint('done')",
            brief,
            &[Outcome::Exited(0)],
        ),
        3 => ("while True: print('x' * 10000)", brief, &[Outcome::OutputLimit]),
        4 => (
            "while True: open('f', 'ab').write(bytes(1 << 20))",
            brief,
            &[Outcome::Exited(1), Outcome::FileLimit, Outcome::WallLimit],
        ),
        5 => (
            "import signal, time\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\nwhile True: time.sleep(1)",
            brief,
            &[Outcome::WallLimit],
        ),
        6 => (
            "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nos.symlink('/etc/passwd', 'submission.csv')",
            brief,
            &[Outcome::Exited(0)],
        ),
        _ => ("import os\nos.kill(os.getpid(), 11)", brief, &[Outcome::Signaled(11)]),
    }
}

/// What must be the same after as before.
#[derive(Debug, PartialEq)]
struct Left {
    processes: usize,
    mounts: usize,
    cgroups: usize,
    descriptors: usize,
    scratch: BTreeSet<String>,
}

impl Left {
    fn count(pool: &Pool) -> Self {
        let names = |folder: &str| -> BTreeSet<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let groups = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"];
        Self {
            processes: below(pool.helper_pid()).len(),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap().lines().count(),
            cgroups: groups.iter().flat_map(|group| names(group)).filter(|name| name.starts_with("onestep-")).count(),
            descriptors: names("/proc/self/fd").len(),
            scratch: names(&std::env::temp_dir().to_string_lossy()),
        }
    }
}

/// Every process below `root`.
fn below(root: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        fields.get(1)?.parse().ok().filter(|_| fields[0] != "Z")
    };
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let of = found[next];
        found.extend(all.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// Bytes that the supervisor holds: this process, the helper and its workers, without fork-servers.
fn supervisor_bytes(pool: &Pool) -> u64 {
    let own = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        !name.starts_with("python")
    };
    let anonymous = |pid: u32| -> u64 {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("RssAnon:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let helper = pool.helper_pid();
    [std::process::id(), helper].into_iter().chain(below(helper)).filter(|pid| own(*pid)).map(anonymous).sum()
}

/// Runs `jobs` jobs in batches of 200.
pub(super) fn soak(bench: &Bench, cores: usize, jobs: usize) -> Value {
    println!("soak: {jobs} jobs, one in ten hostile");
    let pool = bench.pool(cores, &["numpy"]);
    let batch = |first: usize, count: usize| {
        let scripts = (first..first + count)
            .map(|i| if i % 10 == 9 { hostile(i / 10) } else { (HONEST, LIMITS, &[Outcome::Exited(0)][..]) });
        let (expected, made): (Vec<_>, Vec<_>) =
            scripts.map(|(text, limits, ends)| ((text, ends), job(text, &limits))).unzip();
        let (folders, jobs): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let verdicts = pool.run_many(jobs).unwrap();
        let wrong = expected.iter().zip(&verdicts).filter(|((_, ends), verdict)| !ends.contains(&verdict.outcome));
        wrong.clone().for_each(|((text, _), verdict)| println!("  {text:?}: {:?}", verdict.outcome));
        let graded = folders.iter().filter(|folder| folder.path().join("submission.csv").is_file()).count();
        (wrong.count(), graded)
    };
    // Each slot has run an honest job, and what is to run the next waits.
    let settle = || {
        let (_folders, jobs): (Vec<_>, Vec<_>) =
            (0..cores).map(|_| job("import time\ntime.sleep(0.2)", &LIMITS)).unzip();
        pool.run_many(jobs).unwrap();
        std::thread::sleep(Duration::from_millis(500));
    };
    // Buffers and allocators have grown to what they need.
    batch(0, 1000.min(jobs / 4));
    settle();
    let (before, bytes_before, start) = (Left::count(&pool), supervisor_bytes(&pool), Instant::now());
    let (mut done, mut unexpected, mut graded) = (0, 0, 0);
    while done < jobs {
        let count = 200.min(jobs - done);
        let (wrong, with_file) = batch(done, count);
        done += count;
        unexpected += wrong;
        graded += with_file;
        if done % 2000 == 0 {
            println!(
                "  {done} jobs, {:.0} s, supervisor {:.2} MB",
                start.elapsed().as_secs_f64(),
                supervisor_bytes(&pool) as f64 / 1e6
            );
        }
    }
    settle();
    let (after, bytes_after) = (Left::count(&pool), supervisor_bytes(&pool));
    let growth = bytes_after as f64 / bytes_before as f64 - 1.0;
    println!(
        "  before {before:?}\n  after  {after:?}\n  supervisor {bytes_before} to {bytes_after} bytes: {:+.2} %",
        100.0 * growth
    );
    println!("  {graded} submissions of {} honest jobs, {unexpected} unexpected verdicts", jobs - jobs / 10);
    json!({
        "jobs": jobs, "seconds": start.elapsed().as_secs_f64(), "unexpected_verdicts": unexpected, "submissions": graded,
        "nothing_left": before == after, "supervisor_bytes": [bytes_before, bytes_after], "growth": growth,
    })
}
