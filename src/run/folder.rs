//! A run's folder: decides whether a run may take it, renames an earlier run that is there, and finds the checkpoint
//! that a resumed run goes on from.

use crate::checkpoint::{self};
use crate::console::errln;
use crate::error::{Error, Result};
use crate::files::json;
use crate::files::{self, write_whole};
use crate::identity::{self, Identity};
use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Name of the settings file in a run's folder.
pub const CONFIG: &str = "config.toml";
/// Name of the file with the batch of a step that failed.
pub const FAILED_STEP: &str = "failed_step.json";
/// Name of the file with the GEMM algorithms that a run chose for its GPU.
const GEMMS: &str = "gemms.json";

/// Names of everything that verbs write at the top level of a run's folder.
const ENTRIES: &[&str] = &[
    CONFIG,
    GEMMS,
    identity::FILE,
    crate::metrics::FILE,
    crate::metrics::EVENTS,
    "adapter",
    "checkpoints",
    "collect.toml",
    "evaluation.json",
    FAILED_STEP,
    "model",
    "report.html",
    "rl",
    "sft",
    "snapshots",
    "summary.json",
    "trajectories",
    "trajectories.jsonl",
];

/// True for a name that a verb writes, and for a temporary file that a killed verb left.
fn is_ours(name: &str) -> bool {
    ENTRIES.contains(&files::sibling_of(name).unwrap_or(name))
}

/// How a run takes its folder.
#[derive(Debug, PartialEq)]
enum Entry {
    /// The folder holds no run.
    New,
    /// It holds another run, which is renamed first.
    Occupied,
    /// It holds the same run, stopped before its first checkpoint: the run begins anew in its place.
    Again,
    /// The run resumes from its newest checkpoint: step and folder.
    Resumed(u64, PathBuf),
}

/// A run's request for a folder: where it writes, what it reads, and whether it resumes from a checkpoint.
pub struct Place<'a> {
    /// The folder, `--out`.
    pub out: &'a Path,
    /// `sft`, `rl`, `pretrain`; for another verb its name.
    pub phase: &'static str,
    /// `--resume`.
    pub resume: bool,
    /// The paths that the run reads, with their options (`--data`, ...); none may lie in a folder that is renamed.
    pub inputs: &'a [(&'static str, &'a Path)],
}

/// A folder that belongs to one run alone until this is dropped.
pub struct Folder {
    /// Path of the folder.
    pub path: PathBuf,
    /// The checkpoint that the run resumes from: step and folder.
    pub resumed: Option<(u64, PathBuf)>,
    /// The run's identity.
    pub identity: Identity,
    /// Held so that no second run takes the folder. `None` where the file system has no locks.
    _lock: Option<File>,
}

impl Place<'_> {
    /// Checks what can be checked before anything is loaded. Error: the folder's path leads through a file; the folder
    /// holds an earlier run and also files that no run wrote, one of the inputs, or the working folder; another run is
    /// writing there.
    pub fn check(&self) -> Result<()> {
        self.check_contents()?;
        if self.out.exists() { lock(self.out).map(drop) } else { Ok(()) }
    }

    /// `check` without the test for another run that is writing.
    fn check_contents(&self) -> Result<()> {
        let out = self.out.display();
        if let Some(path) = self.out.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
            return Err(Error::usage(format!(
                "--out {out}: {} is a file; expected a folder or the path of a new one, for example runs/mine",
                path.display()
            )));
        }
        if self.resume && checkpoint::exists(&checkpoints(self.out, self.phase))? {
            return Ok(());
        }
        let (ours, others) = contents(self.out)?;
        if ours.is_empty() {
            return Ok(());
        }
        let another = "name another folder with --out, for example runs/mine";
        if !others.is_empty() {
            return Err(Error::usage(format!(
                "--out {out} holds an earlier run ({}) and things that no run wrote ({}), so it is not renamed; {another}",
                some(&ours),
                some(&others)
            )));
        }
        let inside = |path: &Path| match (path.canonicalize(), self.out.canonicalize()) {
            (Ok(path), Ok(out)) => path.starts_with(out),
            _ => false,
        };
        if std::env::current_dir().is_ok_and(|here| inside(&here)) {
            return Err(Error::usage(format!(
                "--out {out} holds an earlier run and is the working folder, so it is not renamed; {another}"
            )));
        }
        if let Some((option, path)) = self.inputs.iter().find(|(_, path)| inside(path)) {
            return Err(Error::usage(format!(
                "{option} {} lies in --out {out}, which holds an earlier run and would be renamed; {another}",
                path.display()
            )));
        }
        Ok(())
    }

    /// The newest intact checkpoint of this phase. A damaged one is reported on stderr.
    fn newest(&self) -> Result<Option<(u64, PathBuf)>> {
        let newest = checkpoint::newest(&checkpoints(self.out, self.phase), &|line| errln!("{line}"));
        newest.map_err(|error| error.context(format!("--resume: --out {}", self.out.display())))
    }

    /// A line that says what `begin` would do; `identity` holds the parts of the run's identity that are known so far.
    /// Error: as for `entry`.
    pub fn preview(&self, identity: &Identity) -> Result<String> {
        if self.resume
            && let Some((step, dir)) = self.newest()?
        {
            compare(&dir, identity, self.out, true)?;
            return Ok(format!("goes on after step {step}, from {}", dir.display()));
        }
        Ok(match self.entry(identity)? {
            Entry::Occupied => format!("{} holds an earlier run, which would be renamed", self.out.display()),
            _ => "starts at the beginning".to_string(),
        })
    }

    /// Decides how a run of this identity takes the folder. Differences that may change bits of the result are noted on
    /// stderr. Error: with `resume`, the checkpoint belongs to another run; names every difference.
    fn entry(&self, identity: &Identity) -> Result<Entry> {
        if self.resume {
            if let Some((step, dir)) = self.newest()? {
                compare(&dir, identity, self.out, false)?;
                return Ok(Entry::Resumed(step, dir));
            }
            errln!(
                "note: --resume: no {} checkpoint in {}: it starts at the beginning",
                self.phase,
                self.out.display()
            );
            if Identity::read(self.out)?.is_some_and(|earlier| earlier.is_same(identity)) {
                return Ok(Entry::Again);
            }
        }
        let (ours, _) = contents(self.out)?;
        Ok(if ours.is_empty() { Entry::New } else { Entry::Occupied })
    }

    /// Takes the folder for a run: renames an earlier run, with a note, and writes settings and identity. A resumed run
    /// keeps the ones it has.
    pub fn begin(&self, settings: &str, identity: Identity) -> Result<Folder> {
        let make = |path: &Path| std::fs::create_dir_all(path).map_err(|e| Error::io("making the folder", path, &e));
        make(self.out)?;
        // A path through the folder itself (`run/../run`) would lead nowhere after the folder is renamed.
        let path = match self.out.components().any(|part| part == Component::ParentDir) {
            true => self.out.canonicalize().map_err(|e| Error::io("finding the folder", self.out, &e))?,
            false => self.out.to_path_buf(),
        };
        // The lock is taken before the folder is inspected and held until the run ends; that of a renamed folder is
        // held until the new folder is locked.
        let mut held = lock(&path)?;
        self.check_contents()?;
        match self.entry(&identity)? {
            Entry::Resumed(step, dir) => {
                self.sweep(&path)?;
                checkpoint::set_aside_after(&checkpoints(&path, self.phase), step, &|line| errln!("{line}"))?;
                return Ok(Folder { path, resumed: Some((step, dir)), identity, _lock: held });
            }
            Entry::New => (),
            Entry::Again => self.sweep(&path)?,
            Entry::Occupied => {
                let earlier = files::set_aside(&path)?;
                errln!("note: {} held an earlier run, which is now {}", path.display(), earlier.display());
                make(&path)?;
                held = lock(&path)?;
                // The GPU was opened with these algorithms, so this run's bits depend on them.
                let gemms = earlier.join(GEMMS);
                if gemms.exists() {
                    std::fs::copy(&gemms, path.join(GEMMS)).map_err(|e| Error::io("copying", &gemms, &e))?;
                }
            }
        }
        write_whole(&path.join(CONFIG), settings.as_bytes())?;
        json::write(&path.join(identity::FILE), &identity)?;
        Ok(Folder { path, resumed: None, identity, _lock: held })
    }

    /// Removes the half-written files that this run left when it was killed, and its report on a failed step. Files
    /// that a running evaluation may be writing stay.
    fn sweep(&self, path: &Path) -> Result<()> {
        let played = File::open(path.join("trajectories")).ok();
        let is_evaluated =
            played.as_ref().is_some_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)));
        for name in contents(path)?.0 {
            let (path, stem) = (path.join(&name), files::sibling_of(&name));
            if is_evaluated && ["trajectories", "evaluation.json"].contains(&stem.unwrap_or(&name)) {
                continue;
            }
            if stem.is_some() || name == FAILED_STEP {
                drop(std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path)));
            } else {
                files::sweep(&path);
            }
        }
        checkpoint::sweep(&checkpoints(path, self.phase), &|line| errln!("{line}"));
        Ok(())
    }
}

/// The folder of a phase's checkpoints.
pub fn checkpoints(out: &Path, phase: &str) -> PathBuf {
    out.join("checkpoints").join(phase)
}

/// Compares the checkpoint in `dir` with this run; with `is_partial`, only the parts that `identity` has. Differences
/// that may change bits are noted on stderr. Error: the checkpoint belongs to another run, or does not say to which.
fn compare(dir: &Path, identity: &Identity, out: &Path, is_partial: bool) -> Result<()> {
    let otherwise = format!("without --resume a new run begins, and {} is renamed", out.display());
    let Some(earlier) = Identity::read(dir)? else {
        return Err(Error::content(format!(
            "--resume: {} does not say what run it belongs to: an earlier version of this program wrote it; go on with that version, or \
             start from its adapter with --adapter; {otherwise}",
            dir.display()
        )));
    };
    let earlier = if is_partial { earlier.restricted_to(identity) } else { earlier };
    let differences = earlier.differences(identity);
    if !differences.refused.is_empty() {
        return Err(Error::usage(format!(
            "--resume: {} belongs to another run:\n  {}\ngive what that run was given; {otherwise}",
            dir.display(),
            differences.refused.join("\n  ")
        )));
    }
    for line in differences.told {
        errln!("note: --resume: {line}; results may differ in their last bits from those of one whole run");
    }
    Ok(())
}

/// The names at the top level of a folder: those that a run writes, and all others. Both are empty when there is no
/// folder.
fn contents(out: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let entries = match std::fs::read_dir(out) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((vec![], vec![])),
        entries => entries.map_err(|e| Error::io("reading the folder", out, &e))?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>().map_err(|e| Error::io("reading the folder", out, &e))?;
    names.sort();
    Ok(names.into_iter().partition(|name| is_ours(name)))
}

/// The first few names.
fn some(names: &[String]) -> String {
    let shown = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 3 { format!("{shown}, ...") } else { shown }
}

/// Number of further attempts to take a lock, `RETRY` apart: a process that only checks whether a folder is free holds
/// its lock for an instant.
const RETRIES: usize = 10;
const RETRY: Duration = Duration::from_millis(10);

/// Locks a folder until the file is dropped; `None` where the file system has no locks. Error: another run has the
/// lock.
fn lock(path: &Path) -> Result<Option<File>> {
    lock_opened(File::open(path).map_err(|e| Error::io("opening the folder", path, &e))?, path)
}

/// Like `lock`, for a folder that was opened at `path`. Error also: it has been renamed since.
fn lock_opened(folder: File, path: &Path) -> Result<Option<File>> {
    let place = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let is_there = || Ok::<_, std::io::Error>(place(folder.metadata()?) == place(path.metadata()?));
    let mut locked = folder.try_lock();
    for _ in 0..RETRIES {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(RETRY);
        locked = folder.try_lock();
    }
    let out = path.display();
    match locked {
        Ok(()) if is_there().unwrap_or(false) => Ok(Some(folder)),
        Ok(()) => Err(Error::usage(format!(
            "--out {out}: another run has just renamed it to begin there; name another folder with --out"
        ))),
        Err(TryLockError::WouldBlock) => Err(Error::usage(format!(
            "--out {out}: another run is writing there, {}; wait for it, or name another folder with --out",
            files::lock::holder(&folder)
        ))),
        // Some network file systems have no locks.
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn of_runs_that_begin_at_once_one_has_the_folder() {
        const RUNS: usize = 8;
        let folder = tempfile::tempdir().unwrap();
        let settings = crate::config::Config::load(&[], &[], "sft").unwrap().to_toml().unwrap();
        for round in 0..20 {
            // A new folder, and one that holds an earlier run.
            let out = folder.path().join(format!("run-{}", round / 2));
            let place = Place { out: &out, phase: "sft", resume: false, inputs: &[] };
            let barrier = Barrier::new(RUNS);
            let begin = || {
                let identity = Identity::new("sft", &settings).unwrap();
                barrier.wait();
                place.begin(&settings, identity)
            };
            let begun: Vec<Result<Folder>> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..RUNS).map(|_| scope.spawn(begin)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(begun.iter().flatten().count(), 1, "round {round}");
            assert!(out.join(identity::FILE).exists() && !folder.path().join(format!("run-{}.2", round / 2)).exists());
        }
    }

    #[test]
    fn a_folder_renamed_since_it_was_opened_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        std::fs::create_dir(&out).unwrap();
        let opened = File::open(&out).unwrap();
        assert!(lock_opened(opened.try_clone().unwrap(), &out).is_ok());
        files::set_aside(&out).unwrap();
        assert_eq!(lock_opened(opened.try_clone().unwrap(), &out).unwrap_err().exit_code(), 2);
        std::fs::create_dir(&out).unwrap();
        assert_eq!(lock_opened(opened, &out).unwrap_err().exit_code(), 2);
    }
}
