//! Scripts end as Python ends: each file of the folder ends/ leaves the same files, output and exit code in a sandbox as `python FILE`.

use super::{LIMITS, job, pool, python};
use onestep::sandbox::{Outcome, Verdict};
use regex::Regex;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sandbox/ends");
const SCRIPT: &str = "train.py";

/// What is left of a script's run.
#[derive(Debug, PartialEq)]
struct End {
    outcome: Outcome,
    stdout: String,
    stderr: String,
    /// Regular files by name, beside the script; folders are left out.
    files: BTreeMap<String, String>,
}

/// Without what differs from run to run, and without the source lines of tracebacks, which Python can no longer read at its very end.
fn plain(text: &str, folder: &Path) -> String {
    let path = format!("{}/", folder.canonicalize().unwrap().display());
    let text = Regex::new("0x[0-9a-f]+").unwrap().replace_all(text, "ADDRESS").replace(&path, "");
    // Python 3.13 says it in other words.
    let flushing = "Exception ignored in: <_io.TextIOWrapper name='<stdout>' mode='w' encoding='utf-8'>";
    let text = text.replace("Exception ignored on flushing sys.stdout:", flushing);
    text.lines().filter(|line| !line.starts_with("    ")).map(|line| format!("{line}\n")).collect()
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.filter(|path| path.is_file()).map(|path| {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        (path.file_name().unwrap().to_str().unwrap().to_string(), plain(&text, folder))
    });
    named.filter(|(name, _)| name != SCRIPT).collect()
}

/// As `python train.py` ends in a folder of its own.
fn by_python(script: &str) -> End {
    let (folder, _job) = job(script, LIMITS);
    let mut command = Command::new(&python().interpreter);
    command.arg(SCRIPT).current_dir(folder.path()).env_clear();
    command.envs([("PATH", "/usr/bin:/bin"), ("LANG", "C.UTF-8"), ("PYTHONUTF8", "1"), ("PYTHONHASHSEED", "0")]);
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    let outcome = output.status.code().map(Outcome::Exited);
    let text = |bytes: &[u8]| plain(&String::from_utf8_lossy(bytes), folder.path());
    End {
        outcome: outcome.unwrap_or_else(|| Outcome::Signaled(output.status.signal().unwrap())),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
        files: files(folder.path()),
    }
}

#[test]
fn scripts_end_as_python_ends() {
    let mut paths: Vec<_> = std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 50, "only {} scripts", paths.len());
    let scripts: Vec<String> = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let (folders, jobs): (Vec<_>, Vec<_>) = scripts.iter().map(|script| job(script, LIMITS)).unzip();
    let verdicts = pool().run_many(jobs).unwrap();
    let mut wrong = String::new();
    for (((path, script), folder), verdict) in paths.iter().zip(&scripts).zip(&folders).zip(verdicts) {
        let Verdict { outcome, stdout, stderr, .. } = verdict;
        let text = |text: &str| plain(text, folder.path());
        let ours = End { outcome, stdout: text(&stdout), stderr: text(&stderr), files: files(folder.path()) };
        let theirs = by_python(script);
        if ours != theirs {
            wrong += &format!("{}:\nours   {ours:?}\nPython {theirs:?}\n", path.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
