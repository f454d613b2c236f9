//! Folders that last as long as the process that made them; those that killed processes left are removed. Each is
//! locked by its maker, and the kernel releases the lock when the process ends. A process id would not do: it may
//! belong to another process by then.

use crate::error::{Error, Result};
use rustix::process::getuid;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Prefix of the names of such folders.
const PREFIX: &str = "onestep-";
/// Number of random letters at the end of the names.
const RANDOM: usize = 8;
/// Attempts to make a folder: another process may sweep it away before it is locked.
const ATTEMPTS: usize = 16;

/// A folder that nobody else takes for a leftover while this process lives. Dropping it does not remove it: its maker
/// does that.
#[derive(Debug)]
pub struct Held {
    /// Path of the folder.
    pub path: PathBuf,
    /// None where the file system has no locks: then nobody sweeps there either.
    _lock: Option<File>,
}

impl Held {
    /// Makes a folder in `parent`, called onestep-PID-START-RANDOM: the id of this process, its start time in ticks
    /// since boot, and letters. Error: it cannot be made or opened.
    pub fn make(parent: &Path) -> io::Result<Self> {
        let prefix = format!("{PREFIX}{}-{}-", std::process::id(), start_time());
        for _ in 0..ATTEMPTS {
            let made = tempfile::Builder::new().prefix(&prefix).rand_bytes(RANDOM).tempdir_in(parent)?;
            let path = made.keep();
            let lock = match File::open(&path).map(|folder| (folder.try_lock(), folder)) {
                Ok((Ok(()), folder)) if path.exists() => Some(folder),
                Ok((Err(TryLockError::Error(_)), _)) => None,
                // Another process was sweeping, and took it for a leftover.
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            return Ok(Self { path, _lock: lock });
        }
        Err(io::Error::other("new folders are removed as soon as they are made"))
    }
}

/// Calls `remove` on each folder in `parent` that a process of this user made by [`Held::make`] and that no living
/// process holds. A folder with something mounted below it stays: what is mounted there is not its maker's.
pub fn sweep(parent: &Path, remove: impl Fn(&Path)) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !is_held_name(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let Ok(folder) = OpenOptions::new().read(true).custom_flags(flags).open(&path) else { continue };
        let is_own = folder.metadata().is_ok_and(|info| info.uid() == getuid().as_raw());
        let is_mounted = mounts.iter().any(|at| Path::new(at).starts_with(&path));
        if is_own && !is_mounted && folder.try_lock().is_ok() {
            remove(&path);
        }
    }
}

/// True for a name that [`Held::make`] gives.
fn is_held_name(name: &str) -> bool {
    let is_number = |text: Option<&str>| text.is_some_and(|text| text.parse::<u64>().is_ok());
    let mut parts = name.strip_prefix(PREFIX).unwrap_or_default().split('-');
    is_number(parts.next())
        && is_number(parts.next())
        && parts.next().is_some_and(|text| text.len() == RANDOM && text.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// The start time of this process in ticks since boot; 0 when it cannot be read.
fn start_time() -> u64 {
    let line = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name is in parentheses and may hold anything; the start is the 22nd field of proc(5).
    let fields = line.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_ascii_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// A folder of this process in the system's folder for temporary files. Removed with its contents when dropped, or by a
/// later process of this program if this one is killed.
#[derive(Debug)]
pub struct Scratch(Held);

impl Scratch {
    /// Makes a folder, and removes those that dead processes left.
    ///
    /// # Errors
    /// System: it cannot be made; the message names the folder it should lie in.
    pub fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        sweep(&parent, remove_folder);
        Held::make(&parent).map(Self).map_err(|e| Error::io("making a folder for temporary files in", &parent, &e))
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_folder(self.path());
    }
}

/// Removes a folder and its contents, at any depth and whatever their permissions. What cannot be removed stays.
pub fn remove_folder(folder: &Path) {
    let mut trees = vec![];
    for path in entries(folder) {
        if fs::symlink_metadata(&path).is_ok_and(|info| info.is_dir()) {
            trees.push(path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
    remove_trees(folder, trees);
    let _ = fs::remove_dir(folder);
}

/// Removes whole trees that lie in `top`, at any depth: each folder is moved up to `top` before its own entries are
/// read, so that no path gets long and nothing recurses.
pub fn remove_trees(top: &Path, mut trees: Vec<PathBuf>) {
    let mut moved = 0;
    while let Some(tree) = trees.pop() {
        for path in entries(&tree) {
            if fs::symlink_metadata(&path).is_ok_and(|info| info.is_dir()) {
                if let Ok(path) = move_up(top, &path, &mut moved) {
                    trees.push(path);
                }
            } else {
                let _ = fs::remove_file(&path);
            }
        }
        let _ = fs::remove_dir(&tree);
    }
}

fn move_up(top: &Path, path: &Path, moved: &mut u64) -> io::Result<PathBuf> {
    // A folder that its owner may not write to cannot be moved to another parent.
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    loop {
        let target = top.join(format!(".removed-{moved}"));
        *moved += 1;
        // The rename replaces an empty folder of that name, and fails on anything else.
        match fs::rename(path, &target) {
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => {}
            result => return result.map(|()| target),
        }
    }
}

/// The paths in a folder, after its owner is given full access to it.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let _ = fs::set_permissions(folder, Permissions::from_mode(0o700));
    let names: Vec<OsString> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    names.into_iter().map(|name| folder.join(name)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_living_process_holds_stays_and_what_a_dead_one_left_goes() {
        let parent = tempfile::tempdir().unwrap();
        let (held, left) = (Held::make(parent.path()).unwrap(), Held::make(parent.path()).unwrap());
        let dead = left.path.clone();
        fs::create_dir(dead.join("shut")).unwrap();
        fs::write(dead.join("shut/file"), "text").unwrap();
        fs::set_permissions(dead.join("shut"), Permissions::from_mode(0o0)).unwrap();
        drop(left); // releases the lock, as the end of its process does
        let others = ["onestep-1", "onestep-abc", "onestep-1-2", "onestep-1-2-short", "other-1-2-abcdefgh"];
        others.iter().for_each(|name| fs::create_dir(parent.path().join(name)).unwrap());
        fs::write(parent.path().join("onestep-1-2-abcdefgh"), "a file").unwrap();
        std::os::unix::fs::symlink(parent.path(), parent.path().join("onestep-1-2-ijklmnop")).unwrap();
        sweep(parent.path(), remove_folder);
        assert!(held.path.exists() && !dead.exists());
        let mut names: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().path()).collect();
        names.retain(|path| *path != held.path);
        assert_eq!(names.len(), others.len() + 2, "{names:?}");
        drop(held);
        sweep(parent.path(), remove_folder);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), others.len() + 2);
    }
}
