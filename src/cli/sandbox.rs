//! `onestep sandbox`: runs one script in a sandbox (run), or prints the protection that this machine has (probe).

use super::args::{SandboxArgs, SandboxCommand, SandboxRunArgs};
use super::session;
use crate::console::{err, errln, out, outln};
use crate::error::{Error, Result};
use crate::files::{self, regular, scratch::Scratch};
use crate::sandbox::{Job, Limits, Outcome, Pool, Protection, Python, Verdict, Wanted};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest size of a script in bytes.
pub(super) const MOST_SCRIPT: u64 = 16 << 20;

/// `onestep sandbox ...`
pub fn sandbox(command: &SandboxCommand) -> Result<()> {
    match command {
        SandboxCommand::Run(args) => run(args),
        SandboxCommand::Probe(args) => probe(args),
    }
}

fn python(args: &SandboxArgs) -> Result<Python> {
    Python::ensure(args.python.as_deref(), &session::cache()?, &mut |line| errln!("{line}"))
}

fn start(args: &SandboxArgs, python: &Python) -> Result<Pool> {
    let program = std::env::current_exe().map_err(|e| Error::system(format!("finding this program: {e}")))?;
    let wanted = Wanted { best: args.tier as u8, unsafe_without: args.unsafe_no_sandbox, preload: None };
    Pool::start(&program, 1, python, &wanted, Arc::default())
}

fn run(args: &SandboxRunArgs) -> Result<()> {
    let limits = Limits {
        cpu_seconds: args.time,
        wall_seconds: args.time,
        memory_bytes: args.memory,
        output_bytes: args.output,
        file_bytes: args.disk,
        disk_bytes: args.disk,
        processes: args.processes,
    };
    let name = args.script.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Error::usage(format!("{}: expected the path of a Python script, like train.py", args.script.display()))
    })?;
    let text = regular::read(&args.script, MOST_SCRIPT)?;
    let python = python(&args.sandbox)?;
    let scratch = Scratch::new()?;
    if let Some(workspace) = &args.workspace {
        let mut links = vec![];
        copy(workspace, scratch.path(), limits.disk_bytes, &mut links).map_err(|error| {
            error.context(format!("--workspace, of which --disk={} allows as much", limits.disk_bytes))
        })?;
        if let Some(first) = links.iter().min() {
            errln!("--workspace: symbolic links left out: {}, the first {}", links.len(), first.display());
        }
    }
    let script = scratch.path().join(name);
    fs::write(&script, text).map_err(|e| Error::io("writing", &script, &e))?;
    let disk_bytes = limits.disk_bytes;
    let job = Job::new(scratch.path(), name, limits);
    let answer = match start(&args.sandbox, &python) {
        Ok(pool) => {
            let verdict = pool.run(job)?;
            describe(&verdict, pool.protection().tier)
        }
        Err(why) => {
            json!({"verdict": "refused", "exit_code": null, "signal": null, "stdout": "", "stderr": why.to_string(),
            "truncated": false, "seconds": 0.0, "cpu_seconds": 0.0, "peak_memory": 0, "tier": 0})
        }
    };
    let is_refused = answer["verdict"] == "refused";
    if args.json {
        outln!("{answer}");
    } else {
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_string();
        out!("{}", text("stdout"));
        err!("{}", text("stderr"));
        errln!(
            "{}: {:.3} s, {:.3} s of CPU, {:.1} MB, tier {}",
            text("verdict"),
            answer["seconds"].as_f64().unwrap_or(0.0),
            answer["cpu_seconds"].as_f64().unwrap_or(0.0),
            answer["peak_memory"].as_f64().unwrap_or(0.0) / 1e6,
            answer["tier"]
        );
    }
    if let Some(workspace) = args.workspace.as_ref().filter(|_| !is_refused) {
        bring_back(scratch.path(), workspace, disk_bytes, Some(name))?;
    }
    match is_refused {
        true => Err(Error::system(
            "the script was not run, for the reason above; `onestep sandbox probe` says what is possible here",
        )),
        false => Ok(()),
    }
}

/// The verdict as the line that `--json` prints.
fn describe(verdict: &Verdict, tier: u8) -> Value {
    let (word, exit_code, signal) = match verdict.outcome {
        Outcome::Exited(0) => ("ok", Some(0), None),
        Outcome::Exited(code) => ("error", Some(code), None),
        Outcome::Signaled(signal) => ("error", None, Some(signal)),
        Outcome::CpuLimit | Outcome::WallLimit => ("timeout", None, None),
        Outcome::MemoryLimit => ("oom", None, None),
        Outcome::OutputLimit | Outcome::FileLimit | Outcome::ProcessLimit => ("limit", None, None),
        Outcome::Quarantined => ("refused", None, None),
    };
    json!({
        "verdict": word,
        "exit_code": exit_code,
        "signal": signal,
        "stdout": verdict.stdout,
        "stderr": verdict.stderr,
        "truncated": verdict.is_truncated,
        "seconds": verdict.wall_seconds,
        "cpu_seconds": verdict.cpu_seconds,
        "peak_memory": verdict.peak_bytes,
        "tier": tier,
    })
}

/// Copies the regular files of a folder, and of those below it, into another; symbolic links are left out and added to
/// `links`. Error: a file has more than `most` bytes.
fn copy(from: &Path, to: &Path, most: u64, links: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(from).map_err(|e| Error::io("reading the folder", from, &e))? {
        let entry = entry.map_err(|e| Error::io("reading the folder", from, &e))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|e| Error::io("looking at", &source, &e))?;
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(|e| Error::io("creating", &target, &e))?;
            copy(&source, &target, most, links)?;
        } else if kind.is_file() {
            regular::copy(&source, &target, most)?;
        } else if kind.is_symlink() {
            links.push(source);
        }
    }
    Ok(())
}

/// Copies the regular files that a script made or changed in `from` back into the user's folder `to`, each whole or not
/// at all; the top-level one named `except` stays behind. Error: a link, or something of another kind, is in the place
/// of a file or folder (it is never followed); a file has more than `most` bytes.
fn bring_back(from: &Path, to: &Path, most: u64, except: Option<&str>) -> Result<()> {
    for entry in fs::read_dir(from).map_err(|e| Error::io("reading the folder", from, &e))? {
        let entry = entry.map_err(|e| Error::io("reading the folder", from, &e))?;
        if except.is_some_and(|name| entry.file_name() == name) {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|e| Error::io("looking at", &source, &e))?;
        let there = fs::symlink_metadata(&target).map(|info| info.file_type()).ok();
        if there.is_some_and(|there| there != kind && (kind.is_dir() || kind.is_file())) {
            return Err(Error::content(format!(
                "{}: what the script made there was not brought back: something else, or a link, is in its place",
                target.display()
            )));
        }
        if kind.is_dir() {
            if there.is_none() {
                fs::create_dir(&target).map_err(|e| Error::io("creating", &target, &e))?;
            }
            bring_back(&source, &target, most, None)?;
        } else if kind.is_file() && !(there.is_some() && is_same(&source, &target)?) {
            files::publish(&target, |temporary| {
                regular::copy(&source, temporary, most)?;
                let length = fs::metadata(&source).map_err(|e| Error::io("measuring", &source, &e))?.len();
                Ok(length)
            })?;
        }
    }
    Ok(())
}

/// True when two regular files have the same bytes.
fn is_same(one: &Path, other: &Path) -> Result<bool> {
    Ok(files::hash(one)? == files::hash(other)?)
}

fn probe(args: &SandboxArgs) -> Result<()> {
    let pool = start(args, &python(args)?)?;
    let Protection { tier, network_closed, pid_namespace, files_closed, files_hidden, notes } = pool.protection();
    outln!("tier {tier}");
    for note in notes {
        outln!("  {note}");
    }
    let facts = [
        ("no network", network_closed),
        ("processes die with the script's namespace", pid_namespace),
        ("files outside cannot be changed", files_closed),
        ("files outside cannot be read", files_hidden),
    ];
    for (fact, holds) in facts {
        outln!("  {fact}: {}", if *holds { "yes" } else { "NO" });
    }
    let raise = match tier {
        3 => "nothing: this is the highest tier",
        2 => {
            "memory and pids cgroups that this user may make: run as root, or `systemd-run --user --scope -p Delegate=yes onestep ...`"
        }
        _ => {
            "user namespaces: `sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000`; in a container, run it with \
              CAP_SYS_ADMIN or with user namespaces allowed"
        }
    };
    outln!("  what would raise it: {raise}");
    Ok(())
}
