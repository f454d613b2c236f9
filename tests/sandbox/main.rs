//! Drives the real helper, workers and fork-servers with scripts that behave and scripts that do not. No test is decided
//! by how long something takes: limits are either far away or certain to be reached.
#![allow(clippy::unwrap_used)]

mod ends;
mod fresh;
mod processes;

use onestep::sandbox::worker::HELPER_ARGUMENT;
use onestep::sandbox::{Job, Limits, Outcome, Pool, Python, Verdict, Wanted};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Limits that no well-behaved test script comes near.
const LIMITS: Limits = Limits {
    cpu_seconds: 30.0,
    wall_seconds: 60.0,
    memory_bytes: 1 << 28,
    output_bytes: 1 << 20,
    file_bytes: 1 << 20,
    disk_bytes: 1 << 24,
    processes: 32,
};

const BEST: Wanted = Wanted { best: 3, unsafe_without: false, preload: None };

fn python() -> &'static Python {
    static PYTHON: OnceLock<Python> = OnceLock::new();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    PYTHON.get_or_init(|| Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap())
}

fn start(workers: usize) -> Pool {
    Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), workers, python(), &BEST, Arc::default()).unwrap()
}

/// Shared by the tests that do not harm it.
fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| start(2))
}

fn job(script: &str, limits: Limits) -> (TempDir, Job) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("train.py"), script).unwrap();
    let job = Job::new(folder.path(), "train.py", limits);
    (folder, job)
}

fn run(script: &str, limits: Limits) -> Verdict {
    let (_folder, job) = job(script, limits);
    pool().run(job).unwrap()
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, PartialEq)]
struct Process {
    pid: u32,
    parent: u32,
    started: u64,
}

fn processes() -> Vec<Process> {
    let parse = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (fields[0] != "Z").then(|| Process {
            pid,
            parent: fields[1].parse().unwrap(),
            started: fields[19].parse().unwrap(),
        })
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(parse).collect()
}

fn below(root: u32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = all.iter().filter(|process| process.parent == root).cloned().collect();
    let mut i = 0;
    while i < found.len() {
        let parent = found[i].pid;
        found.extend(all.iter().filter(|process| process.parent == parent).cloned());
        i += 1;
    }
    found
}

/// The worker of a pool that has one.
fn worker_of(pool: &Pool) -> u32 {
    let is_ours = |pid: u32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(HELPER_ARGUMENT))
    };
    below(pool.helper_pid()).into_iter().map(|process| process.pid).find(|&pid| is_ours(pid)).unwrap()
}

/// Waits for something that must come; the deadline only ends a test that has failed.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not after 60 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn how_scripts_end() {
    use Outcome::*;
    let brief = Limits { wall_seconds: 0.5, ..LIMITS };
    let little_cpu = Limits { cpu_seconds: 0.3, ..LIMITS };
    let little_output = Limits { output_bytes: 1000, ..LIMITS };
    let cases: &[(&str, &str, &Limits, Outcome)] = &[
        ("nothing", "", &LIMITS, Exited(0)),
        ("sys.exit(3)", "import sys; sys.exit(3)", &LIMITS, Exited(3)),
        ("exit()", "exit()", &LIMITS, Exited(0)),
        ("exit with a text", "raise SystemExit('why')", &LIMITS, Exited(1)),
        ("os._exit", "import os; os._exit(7)", &LIMITS, Exited(7)),
        ("exception", "1 / 0", &LIMITS, Exited(1)),
        ("syntax error", "def f(:\n", &LIMITS, Exited(1)),
        ("killed by itself", "import os; os.kill(os.getpid(), 15)", &LIMITS, Signaled(15)),
        ("abort", "import os; os.abort()", &LIMITS, Signaled(6)),
        ("endless loop", "while True: pass", &little_cpu, CpuLimit),
        ("endless loop in children", "import os\nos.fork(); os.fork()\nwhile True: pass", &little_cpu, CpuLimit),
        ("sleep", "import time; time.sleep(1000)", &brief, WallLimit),
        ("stops itself", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", &brief, WallLimit),
        (
            "ignores SIGTERM",
            "import signal, time\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\nwhile True: time.sleep(1)",
            &brief,
            WallLimit,
        ),
        ("memory bomb", "x = []\nwhile True: x.append(bytearray(1 << 20))", &LIMITS, MemoryLimit),
        ("numpy memory bomb", "import numpy as np\nnp.ones((1 << 15, 1 << 15))", &LIMITS, MemoryLimit),
        (
            "memory of children",
            "import os, time\nfor _ in range(4):\n  if os.fork() == 0: break\nx = b'x' * (100 << 20)\ntime.sleep(1000)",
            &LIMITS,
            MemoryLimit,
        ),
        (
            "shared memory",
            "import mmap, time\nm = mmap.mmap(-1, 1 << 29)\nfor i in range(0, 1 << 29, 4096): m[i] = 1\ntime.sleep(1000)",
            &LIMITS,
            MemoryLimit,
        ),
        ("memory error that is handled", "try: bytearray(1 << 40)\nexcept MemoryError: pass", &LIMITS, Exited(0)),
        (
            "memory error that is only told",
            "import sys\nprint('MemoryError', file=sys.stderr)\nsys.exit(1)",
            &LIMITS,
            Exited(1),
        ),
        ("output flood", "while True: print('x' * 100)", &LIMITS, OutputLimit),
        ("a little too much output", "print('x' * 1000)", &little_output, OutputLimit),
        ("just enough output", "print('x' * 999)", &little_output, Exited(0)),
        ("too large a file", "open('big', 'wb').write(bytes(2 << 20))", &LIMITS, FileLimit),
        ("sparse file", "open('big', 'wb').truncate(1 << 40)", &LIMITS, FileLimit),
        (
            "thread that lives on",
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()",
            &brief,
            WallLimit,
        ),
        (
            "handler at exit that never ends",
            "import atexit\n@atexit.register\ndef end():\n  while True: pass",
            &little_cpu,
            CpuLimit,
        ),
        ("handler at exit that sleeps", "import atexit, time\natexit.register(time.sleep, 1000)", &brief, WallLimit),
        (
            "finalizer that never ends",
            "class Last:\n  def __del__(self):\n    while True: pass\nlast = Last()",
            &little_cpu,
            CpuLimit,
        ),
        (
            "what is flushed at the end is output",
            "f = open(1, 'w', buffering=1 << 21)\nf.write('x' * 2000)",
            &little_output,
            OutputLimit,
        ),
        ("interrupted", "raise KeyboardInterrupt", &LIMITS, Signaled(2)),
    ];
    let (_folders, jobs): (Vec<_>, Vec<_>) =
        cases.iter().map(|(_, script, limits, _)| job(script, (*limits).clone())).unzip();
    let verdicts = pool().run_many(jobs).unwrap();
    for ((name, _, limits, expected), verdict) in cases.iter().zip(verdicts) {
        assert_eq!(verdict.outcome, *expected, "{name}: {verdict:?}");
        assert!((verdict.stdout.len() + verdict.stderr.len()) as u64 <= limits.output_bytes, "{name}");
    }
}

#[test]
fn a_script_prints_and_writes_into_its_folder() {
    let script = "print(__name__, __file__.endswith('/train.py'))\nopen('out.csv', 'w').write('1')\nimport sys; sys.stderr.write('é')";
    let (folder, job) = job(script, LIMITS);
    let verdict = pool().run(job).unwrap();
    assert_eq!(verdict.outcome, Outcome::Exited(0), "{verdict:?}");
    assert_eq!((verdict.stdout.as_str(), verdict.stderr.as_str()), ("__main__ True\n", "é"));
    assert_eq!(std::fs::read_to_string(folder.path().join("out.csv")).unwrap(), "1");
}

#[test]
fn tracebacks_are_those_of_python() {
    let (folder, job) = job("def f():\n    return {}['key']\n\nf()\n", LIMITS);
    let theirs = Command::new(&python().interpreter).arg("train.py").current_dir(folder.path()).output().unwrap();
    // Python shows the whole path of the script since 3.9; we leave the folder out, which differs from run to run.
    let path = format!("{}/", folder.path().canonicalize().unwrap().display());
    let expected = String::from_utf8(theirs.stderr).unwrap().replace(&path, "");
    let verdict = pool().run(job).unwrap();
    assert!(expected.contains("File \"train.py\", line 2, in f"), "{expected}");
    assert_eq!(verdict.stderr, expected);
}

#[test]
fn a_syntax_error_names_script_and_line() {
    let verdict = run("x = 1\ny = = 2\n", LIMITS);
    assert!(verdict.stderr.starts_with("  File \"train.py\", line 2\n"), "{}", verdict.stderr);
    assert!(verdict.stderr.ends_with("SyntaxError: invalid syntax\n"), "{}", verdict.stderr);
}

#[test]
fn a_missing_script_is_told_like_python_does() {
    let (_folder, mut job) = job("", LIMITS);
    job.script = "other.py".to_string();
    let verdict = pool().run(job).unwrap();
    assert_eq!(verdict.outcome, Outcome::Exited(2));
    assert!(verdict.stderr.contains("can't open file 'other.py'"), "{}", verdict.stderr);
}

#[test]
fn a_missing_folder_and_a_senseless_limit_are_content_errors() {
    let (folder, job) = job("", LIMITS);
    let gone = Job { folder: folder.path().join("nowhere"), ..job.clone() };
    let error = pool().run(gone).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("nowhere"), "{error}");
    let senseless = Job { limits: Limits { wall_seconds: f64::NAN, ..LIMITS }, ..job };
    let error = pool().run(senseless).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("wall_seconds"), "{error}");
}

#[test]
fn a_module_beside_the_script_is_found() {
    let (folder, job) = job("import helper\nprint(helper.VALUE)", LIMITS);
    std::fs::write(folder.path().join("helper.py"), "VALUE = 42").unwrap();
    assert_eq!(pool().run(job).unwrap().stdout, "42\n");
    assert!(!folder.path().join("__pycache__").exists());
}

#[test]
fn the_environment_is_cleared_and_no_descriptor_leaks() {
    let secret = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let verdict = run(
        "import glob, os\nprint(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))\n\
         for name in glob.glob('/proc/[0-9]*/environ'):\n  try: print(open(name, 'rb').read())\n  except OSError: pass\nprint(dict(os.environ))",
        LIMITS,
    );
    assert_eq!(verdict.outcome, Outcome::Exited(0), "{verdict:?}");
    // The fourth is the listing's own.
    assert!(verdict.stdout.starts_with("['0', '1', '2'] 4\n"), "{}", verdict.stdout);
    let own = verdict.stdout.lines().last().unwrap();
    assert!(own.contains("PYTHONHASHSEED") && !own.contains("CARGO_MANIFEST_DIR"), "{own}");
    // Without a pid namespace, /proc shows the trainer itself.
    if pool().protection().pid_namespace {
        assert!(!verdict.stdout.contains("CARGO_MANIFEST_DIR"), "{}", verdict.stdout);
        assert!(!verdict.stdout.contains(&format!("={secret}\\x00")), "{}", verdict.stdout);
    }
}

#[test]
fn what_protection_promises_holds() {
    let protection = pool().protection();
    assert!(!protection.notes.is_empty());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let outside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "whole").unwrap();
    let verdict = run(
        &format!(
            "import ctypes, os, socket\n\
             def tried(f):\n  try: f(); return 'done'\n  except OSError: return 'refused'\n\
             print('network', tried(lambda: socket.create_connection(('127.0.0.1', {port}), 5)))\n\
             print('write', tried(lambda: open({victim:?}, 'w')))\n\
             print('read', tried(lambda: open({victim:?}).read()))\n\
             print('remove', tried(lambda: os.unlink({victim:?})))\n\
             libc = ctypes.CDLL(None)\n\
             print('remount', libc.mount(None, b'/', None, 4096 | 32, None))\n\
             print('unmount', libc.umount2(b'/proc', 2))\n\
             print('pid', os.getpid())"
        ),
        LIMITS,
    );
    let said = |line: &str| verdict.stdout.lines().any(|l| l == line);
    assert_eq!(said("network refused"), protection.network_closed, "{verdict:?}");
    assert_eq!(said("write refused") && said("remove refused"), protection.files_closed, "{verdict:?}");
    assert_eq!(said("read refused"), protection.files_hidden, "{verdict:?}");
    assert_eq!(said("pid 2"), protection.pid_namespace, "{verdict:?}");
    assert!(said("remount -1") && said("unmount -1"), "{verdict:?}");
    assert_eq!(std::fs::read_to_string(&victim).is_ok_and(|text| text == "whole"), protection.files_closed);
}

#[test]
fn jobs_in_parallel_keep_their_order() {
    let (_folders, jobs): (Vec<_>, Vec<_>) = (0..40).map(|i| job(&format!("print({i})"), LIMITS)).unzip();
    let verdicts = pool().run_many(jobs).unwrap();
    let printed: Vec<String> = verdicts.into_iter().map(|verdict| verdict.stdout).collect();
    assert_eq!(printed, (0..40).map(|i| format!("{i}\n")).collect::<Vec<_>>());
    assert_eq!(pool().run_many(Vec::new()).unwrap(), []);
}

#[test]
fn the_same_script_prints_the_same_on_every_worker() {
    let script = "import random, numpy as np\nfrom sklearn.ensemble import RandomForestClassifier\n\
        print({f'name{i}' for i in range(50)}, random.random(), np.random.rand(3), hash('x'))\n\
        x = np.random.rand(100, 5); y = x[:, 0] > 0.5\n\
        print(RandomForestClassifier(5).fit(x, y).predict_proba(x).sum(0))";
    let (_folders, jobs): (Vec<_>, Vec<_>) = (0..6).map(|_| job(script, LIMITS)).unzip();
    let mut verdicts = pool().run_many(jobs).unwrap();
    let other = start(1);
    let (_folder, again) = job(script, LIMITS);
    verdicts.push(other.run(again).unwrap());
    assert_eq!(verdicts[0].outcome, Outcome::Exited(0), "{:?}", verdicts[0]);
    assert!(verdicts.iter().all(|verdict| verdict.stdout == verdicts[0].stdout), "{verdicts:?}");
    assert!(verdicts[0].stdout.contains("0.84442185"), "random.seed(0): {}", verdicts[0].stdout);
    assert!(verdicts[0].stdout.contains("0.5488135"), "np.random.seed(0): {}", verdicts[0].stdout);
}

#[test]
fn as_many_processes_as_allowed_may_live() {
    // Seen over several scans of the worker; one more is refused or ends the job.
    let script = |children: u32| {
        format!(
            "import os, time\ntry:\n  for _ in range({children}):\n    if os.fork() == 0: time.sleep(100)\nexcept OSError: pass\n\
             time.sleep(0.5)\nprint('alive')"
        )
    };
    for processes in [1, 3] {
        let limits = Limits { processes, ..LIMITS };
        let verdict = run(&script(processes as u32 - 1), limits.clone());
        assert_eq!((verdict.outcome.clone(), verdict.stdout.as_str()), (Outcome::Exited(0), "alive\n"), "{verdict:?}");
        let more = run(&script(processes as u32 + 400), limits);
        let is_refused = more.outcome == Outcome::Exited(0) && pool().protection().tier >= 2;
        assert!(is_refused || more.outcome == Outcome::ProcessLimit, "{more:?}");
    }
}

#[test]
fn what_a_job_has_written_is_not_charged_to_the_next() {
    let pool = start(1);
    let disk = Limits { memory_bytes: 1 << 29, file_bytes: 1 << 28, disk_bytes: 1 << 28, ..LIMITS };
    let (_folder, large) =
        job("import os\nopen('/tmp/large' if os.access('/tmp', 2) else 'large', 'wb').write(bytes(200 << 20))", disk);
    let (_other, small) = job("print(1)", Limits { memory_bytes: 1 << 24, ..LIMITS });
    for _ in 0..3 {
        assert_eq!(pool.run(large.clone()).unwrap().outcome, Outcome::Exited(0));
        let worker = worker_of(&pool);
        let verdict = pool.run(small.clone()).unwrap();
        assert_eq!((verdict.outcome, verdict.stdout.as_str()), (Outcome::Exited(0), "1\n"));
        assert!(verdict.peak_bytes < 150 << 20, "{}", verdict.peak_bytes);
        assert_eq!(worker_of(&pool), worker, "a worker was lost over it");
    }
}

/// A small file system, which only root can have: unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(folder.path()).output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_file_that_the_host_has_no_room_for_is_an_error_and_no_verdict() {
    let Some(disk) = SmallDisk::new() else {
        println!("not possible here: mounting a small file system (needs root)");
        return;
    };
    let pool = start(1); // after the mount, which it would not see
    if pool.protection().tier < 2 {
        println!("not possible here: in tier {} scripts write to the host itself", pool.protection().tier);
        return;
    }
    std::fs::write(disk.0.path().join("train.py"), "open('submission.csv', 'wb').write(bytes(1 << 19))").unwrap();
    let error = pool.run(Job::new(disk.0.path(), "train.py", LIMITS)).unwrap_err();
    assert!(error.exit_code() == 1 && error.to_string().contains("No space left"), "{error}");
    assert!(!disk.0.path().join("submission.csv").exists(), "a part of a file is left");
    std::fs::write(disk.0.path().join("train.py"), "open('submission.csv', 'wb').write(bytes(1 << 10))").unwrap();
    assert_eq!(pool.run(Job::new(disk.0.path(), "train.py", LIMITS)).unwrap().outcome, Outcome::Exited(0));
    assert_eq!(std::fs::metadata(disk.0.path().join("submission.csv")).unwrap().len(), 1 << 10);
}

#[test]
fn data_is_shown_read_only_and_the_shared_file_stays_as_it_is() {
    let shared = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, bytes) in [("small", 10), ("large", 200_000)] {
        let data = shared.path().join(name);
        std::fs::write(&data, vec![b'x'; bytes]).unwrap();
        // Nothing but the mount keeps a script from writing to it.
        std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        let script = "import os\ntext = open('data.npz').read()\nprint(len(text), set(text))\n\
            try: open('data.npz', 'w').write('y')\nexcept OSError: print('refused')\n\
            try: os.chmod('data.npz', 0o666); open('data.npz', 'w').write('y')\nexcept OSError: pass\n";
        let (folder, job) = job(script, LIMITS);
        let verdict = pool().run(Job { data: vec![("data.npz".into(), data.clone())], ..job }).unwrap();
        let expected = format!("{bytes} {{'x'}}\nrefused\n");
        assert_eq!((verdict.outcome, verdict.stdout), (Outcome::Exited(0), expected), "{name}");
        assert_eq!(std::fs::read(&data).unwrap(), vec![b'x'; bytes], "{name}");
        assert!(pool().protection().tier < 2 || bytes < 200_000 || !folder.path().join("data.npz").exists());
    }
    let (_folder, job) = job("", LIMITS);
    for (name, path) in [("a/b", shared.path().join("small")), ("a", shared.path().join("none"))] {
        let error = pool().run(Job { data: vec![(name.into(), path)], ..job.clone() }).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[test]
fn an_interpreter_that_was_given_is_used_as_it_is() {
    let cache = tempfile::tempdir().unwrap();
    let mut said = Vec::new();
    let given =
        Python::ensure(Some(&python().interpreter), cache.path(), &mut |line| said.push(line.to_string())).unwrap();
    assert_eq!((given.id, given.versions), (python().id.clone(), python().versions.clone()));
    assert_eq!(said, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn an_interpreter_below_tmp_works_and_scripts_have_a_scratch_folder_all_the_same() {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    // Its user must get there too.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let venv = folder.path().join("venv");
    let made = Command::new(&python().interpreter).args(["-m", "venv", "--without-pip"]).arg(&venv).status().unwrap();
    assert!(made.success());
    // The packages are those of the environment that is there.
    let packages = |root: &Path| {
        let lib = std::fs::read_dir(root.join("lib")).unwrap().next().unwrap().unwrap().path();
        lib.join("site-packages")
    };
    let there = packages(python().interpreter.parent().unwrap().parent().unwrap());
    std::fs::write(packages(&venv).join("there.pth"), format!("{}\n", there.display())).unwrap();
    std::fs::write(packages(&venv).join("only_here.py"), "word = 'here'").unwrap();
    let below_tmp = Python::ensure(Some(&venv.join("bin/python")), folder.path(), &mut |_| ()).unwrap();
    let wanted = Wanted { best: 3, unsafe_without: false, preload: Some(vec!["numpy".into()]) };
    let pool = Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), 1, &below_tmp, &wanted, Arc::default()).unwrap();
    assert_eq!(pool.protection().tier, self::pool().protection().tier, "{:?}", pool.protection());
    let script = "import only_here, sys, tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'x')\n\
        print(only_here.word, sys.prefix)";
    let (_folder, job) = job(script, LIMITS);
    let verdict = pool.run(job).unwrap();
    let expected = format!("here {}\n", venv.display());
    assert_eq!((verdict.outcome.clone(), verdict.stdout.clone()), (Outcome::Exited(0), expected), "{verdict:?}");
}
