//! Drives the real helper, workers and fork-server with scripts that behave and scripts that do not.
#![allow(clippy::unwrap_used)]

use onestep::sandbox::{Job, Limits, Outcome, Pool, Python, Verdict};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

fn limits() -> Limits {
    Limits { cpu_seconds: 20.0, wall_seconds: 120.0, memory_bytes: 1 << 28, output_bytes: 1 << 20, file_bytes: 1 << 24 }
}

fn python() -> &'static Python {
    static PYTHON: OnceLock<Python> = OnceLock::new();
    PYTHON.get_or_init(|| Python { interpreter: "/tmp/sbxvenv/bin/python".into(), versions: vec![], id: "".into() })
}

fn start(workers: usize) -> Pool {
    Pool::start(Path::new(env!("CARGO_BIN_EXE_onestep")), workers, python()).unwrap()
}

/// Shared by the tests that do not kill it.
fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| start(2))
}

fn job(script: &str, limits: Limits) -> (tempfile::TempDir, Job) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::write(folder.path().join("train.py"), script).unwrap();
    let job = Job { folder: folder.path().to_path_buf(), script: "train.py".to_string(), limits };
    (folder, job)
}

fn run(script: &str, limits: Limits) -> Verdict {
    let (_folder, job) = job(script, limits);
    pool().run(job).unwrap()
}

#[test]
fn a_script_prints_and_writes_into_its_folder() {
    let (folder, job) =
        job("print('hello')\nopen('out.csv', 'w').write('1')\nimport sys; sys.stderr.write('é')", limits());
    let verdict = pool().run(job).unwrap();
    assert_eq!(verdict.outcome, Outcome::Exited(0), "{verdict:?}");
    assert_eq!((verdict.stdout.as_str(), verdict.stderr.as_str()), ("hello\n", "é"));
    assert_eq!(std::fs::read_to_string(folder.path().join("out.csv")).unwrap(), "1");
    println!("{:?}", pool().protection());
}
