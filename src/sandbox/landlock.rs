//! Makes the Landlock rules for one script, as a descriptor. Only the script's own process can apply them to itself.

use super::system;
use landlock::{
    ABI, Access, AccessFs, AccessNet, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
    path_beneath_rules,
};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Newest Landlock version whose rights are used; an older kernel enforces those it knows.
const VERSION: ABI = ABI::V6;

/// Makes a ruleset: a script may read and execute below `readable`, also write below `writable`, only list names below
/// `listable`, and reach nothing else. No TCP, no abstract sockets and no signals to the outside, where the kernel
/// supports that. Error: the kernel has no Landlock.
pub(super) fn ruleset<R: AsRef<Path>, W: AsRef<Path>>(
    readable: &[R],
    writable: &[W],
    listable: &[PathBuf],
) -> io::Result<OwnedFd> {
    if system::landlock_version() == 0 {
        return Err(io::Error::other("the kernel has no Landlock"));
    }
    let ruleset = || -> Result<RulesetCreated, RulesetError> {
        let ruleset = landlock::Ruleset::default().handle_access(AccessFs::from_all(VERSION))?;
        let ruleset = ruleset.handle_access(AccessNet::from_all(VERSION))?.scope(Scope::from_all(VERSION))?.create()?;
        ruleset
            .add_rules(path_beneath_rules(readable, AccessFs::from_read(VERSION)))?
            .add_rules(path_beneath_rules(writable, AccessFs::from_all(VERSION)))?
            .add_rules(path_beneath_rules(listable, AccessFs::ReadDir))
    };
    let ruleset = ruleset().map_err(|error| io::Error::other(format!("Landlock: {error}")))?;
    Option::<OwnedFd>::from(ruleset).ok_or_else(|| io::Error::other("the kernel has no Landlock"))
}

/// Splits `folders` around `hidden`. Returns the folders to be listed only, since some of `hidden` lies in them, and
/// the paths to be read: everything else in `folders`. Does not follow symbolic links inside them.
pub(super) fn around(folders: &[PathBuf], hidden: &[PathBuf]) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut listable, mut readable, mut todo) = (vec![], vec![], folders.to_vec());
    while let Some(path) = todo.pop() {
        let real = path.canonicalize()?;
        if !hidden.iter().any(|folder| folder.starts_with(&real)) {
            readable.push(path);
        } else if !hidden.contains(&real) {
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                if !entry.file_type()?.is_symlink() {
                    todo.push(entry.path());
                }
            }
            listable.push(path);
        }
    }
    Ok((listable, readable))
}
