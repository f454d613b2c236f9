//! Latency, throughput, and the time from a limit to a free slot.

use super::{Bench, LIMITS, job, run};
use onestep::sandbox::{Limits, Outcome, Pool};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::Instant;

const NUMPY: &str =
    "import numpy as np\nx = np.arange(10000.0).reshape(100, 100) + np.eye(100)\nprint(np.linalg.solve(x, x[0])[0])\n";
const FIT: &str = "import numpy as np\nfrom sklearn.linear_model import LogisticRegression\n\
    x = np.random.rand(200, 10)\ny = x[:, 0] > 0.5\nprint(LogisticRegression().fit(x, y).score(x, y))\n";
/// A job that keeps a core busy.
const WORK: &str =
    "import numpy as np\nx = np.random.rand(120, 120)\nfor _ in range(40): x = x @ x / 60\nprint(x[0, 0])\n";
const LIBRARIES: [&str; 2] = ["numpy", "sklearn.linear_model"];

/// Milliseconds of a call.
fn timed(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    1e3 * start.elapsed().as_secs_f64()
}

/// Of a sorted sample, by nearest rank.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1]
}

fn summary(name: &str, mut sample: Vec<f64>) -> Value {
    sample.sort_by(f64::total_cmp);
    let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|q| quantile(&sample, q));
    println!("  {name:40} p50 {p50:8.2} ms   p90 {p90:8.2} ms   p99 {p99:8.2} ms");
    json!({ "name": name, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "n": sample.len() })
}

/// bubblewrap with a root that can only be read, as its manual has it; none where it is not installed.
fn bubblewrap(program: &str, arguments: &[&str]) -> Option<Command> {
    let found = Command::new("bwrap").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    let mut command = Command::new("bwrap");
    command.args(["--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]);
    command.args(["--tmpfs", "/tmp", program]).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command.env("OMP_NUM_THREADS", "1").env("OPENBLAS_NUM_THREADS", "1");
    found.then_some(command)
}

fn succeed(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

/// Each contender in turn, `repeats` rounds, so that noise meets all of them. Slow ones every tenth round.
pub(super) fn latency(bench: &Bench, repeats: usize) -> Value {
    let (bare, numpy, fit) = (bench.pool(1, &[]), bench.pool(1, &["numpy"]), bench.pool(1, &LIBRARIES));
    let full = bench.full_pool(1);
    let python = bench.python.interpreter.to_str().unwrap();
    type Contender<'a> = (&'a str, usize, Box<dyn Fn() + 'a>);
    let mut contenders: Vec<Contender> = vec![
        ("fork and exec of true", 1, Box::new(|| succeed(&mut Command::new("true")))),
        ("sandbox, empty script", 1, Box::new(|| drop(run(&bare, "")))),
        ("sandbox, numpy, warm", 1, Box::new(|| drop(run(&numpy, NUMPY)))),
        ("sandbox, scikit-learn fit, warm", 1, Box::new(|| drop(run(&fit, FIT)))),
        ("sandbox, the same, all libraries loaded", 1, Box::new(|| drop(run(&full, FIT)))),
    ];
    if bubblewrap("true", &[]).is_some() {
        let cold = move |script| move || succeed(&mut bubblewrap(python, &["-s", "-c", script]).unwrap());
        contenders.push(("bubblewrap, true", 1, Box::new(|| succeed(&mut bubblewrap("true", &[]).unwrap()))));
        contenders.push(("bubblewrap, python, empty script", 1, Box::new(cold(""))));
        contenders.push(("bubblewrap, python, numpy", 10, Box::new(cold(NUMPY))));
        contenders.push(("bubblewrap, python, scikit-learn fit", 10, Box::new(cold(FIT))));
    } else {
        println!("  bubblewrap is not installed: not measured");
    }
    contenders.iter().for_each(|(_, _, call)| call());
    let mut samples = vec![Vec::new(); contenders.len()];
    for round in 0..repeats {
        for ((_, every, call), sample) in contenders.iter().zip(&mut samples) {
            if round % every == 0 {
                sample.push(timed(call));
            }
        }
    }
    println!("latency of one job, one slot");
    contenders.iter().zip(samples).map(|((name, _, _), sample)| summary(name, sample)).collect()
}

/// From the moment a limit is reached, as far as that can be known from outside, until the slot takes the next job.
pub(super) fn limits(bench: &Bench, repeats: usize) -> Value {
    let pool = bench.pool(1, &[]);
    let spend = |seconds: f64| Limits { wall_seconds: seconds, ..LIMITS };
    let cases = [
        ("wall limit, sleeping", "import time; time.sleep(1000)", spend(0.1), Outcome::WallLimit),
        (
            "wall limit, ignoring signals",
            "import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: signal.pause()",
            spend(0.1),
            Outcome::WallLimit,
        ),
        (
            "wall limit, 16 processes",
            "import os, time\nfor _ in range(4): os.fork()\ntime.sleep(1000)",
            spend(0.1),
            Outcome::WallLimit,
        ),
        ("CPU limit", "while True: pass", Limits { cpu_seconds: 0.1, ..LIMITS }, Outcome::CpuLimit),
        (
            "CPU limit, 4 processes",
            "import os\nos.fork(); os.fork()\nwhile True: pass",
            Limits { cpu_seconds: 0.1, ..LIMITS },
            Outcome::CpuLimit,
        ),
    ];
    println!("from a limit (0.1 s, in the whole job's time) to a free slot");
    let one = |(name, script, limits, outcome): (&str, &str, Limits, Outcome)| {
        let sample = (0..repeats.div_ceil(3)).map(|_| {
            let (_folder, job) = job(script, &limits);
            let elapsed = timed(|| assert_eq!(pool.run(job).unwrap().outcome, outcome));
            elapsed - 100.0
        });
        summary(name, sample.collect())
    };
    cases.map(one).into_iter().collect()
}

/// Jobs a second over `slots`, by our pool and by as many threads that run bubblewrap.
pub(super) fn throughput(bench: &Bench, cores: usize, repeats: usize) -> Value {
    println!("jobs a second");
    let show = |name: String, slots: usize, per_second: f64| {
        println!("  {name:40} {slots:2} slots {per_second:8.1}");
        json!({ "name": name, "slots": slots, "jobs_per_second": per_second })
    };
    let ours = |pool: &Pool, script: &str, jobs: usize| {
        let (_folders, jobs): (Vec<_>, Vec<_>) = (0..jobs).map(|_| job(script, &LIMITS)).unzip();
        let count = jobs.len() as f64;
        1e3 * count / timed(|| assert!(pool.run_many(jobs).unwrap().iter().all(|v| v.outcome == Outcome::Exited(0))))
    };
    let python = bench.python.interpreter.to_str().unwrap();
    let theirs = |slots: usize, script: &str, jobs: usize| {
        let work = || (0..jobs / slots).for_each(|_| succeed(&mut bubblewrap(python, &["-s", "-c", script]).unwrap()));
        let all = || std::thread::scope(|scope| (0..slots).for_each(|_| drop(scope.spawn(work))));
        1e3 * (jobs / slots * slots) as f64 / timed(all)
    };
    let mut found = Vec::new();
    for (name, script) in [("empty script", ""), ("numpy", NUMPY)] {
        let pool = bench.pool(cores, &["numpy"]);
        found.push(show(format!("sandbox, {name}"), cores, ours(&pool, script, 2 * repeats)));
        if bubblewrap("true", &[]).is_some() {
            found.push(show(
                format!("bubblewrap, python, {name}"),
                cores,
                theirs(cores, script, repeats.div_ceil(4).max(cores)),
            ));
        }
    }
    for slots in (0..).map(|power| 1 << power).take_while(|slots| *slots <= 2 * cores) {
        let pool = bench.pool(slots, &["numpy"]);
        found.push(show("sandbox, a busy core".to_string(), slots, ours(&pool, WORK, repeats)));
    }
    found.into()
}

/// A state of 100 files and 50 MB of data, against an empty folder.
pub(super) fn restore(bench: &Bench, repeats: usize) -> Value {
    let pool = bench.pool(1, &[]);
    let shared = tempfile::tempdir().unwrap();
    let data = shared.path().join("data.npz");
    std::fs::write(&data, vec![7u8; 50_000_000]).unwrap();
    let (mut written, mut empty, mut full) = (vec![], vec![], vec![]);
    for _ in 0..repeats {
        let (_folder, without) = job("", &LIMITS);
        empty.push(timed(|| assert_eq!(pool.run(without).unwrap().outcome, Outcome::Exited(0))));
        let (folder, mut with) = job("", &LIMITS);
        written.push(timed(|| {
            for i in 0..99 {
                std::fs::write(folder.path().join(format!("module{i}.py")), "x = 1\n".repeat(100)).unwrap();
            }
        }));
        with.data = vec![("data.npz".to_string(), data.clone())];
        full.push(timed(|| assert_eq!(pool.run(with).unwrap().outcome, Outcome::Exited(0))));
    }
    println!("restoring 100 files and 50 MB of data");
    let more = empty.iter().zip(&full).zip(&written).map(|((empty, full), written)| full - empty + written).collect();
    [
        summary("files written into the job's folder", written),
        summary("empty job", empty),
        summary("job that is shown them", full),
        summary("what restoring adds, all in all", more),
    ]
    .into()
}
