//! Writes files and folders that appear whole: to a temporary sibling, synced, then renamed. Also renames, hashes and
//! lists files. Knows no formats.

pub mod json;
pub mod lock;
pub mod regular;
pub mod scratch;

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The text between a file's name and the random letters of its temporary sibling.
const TEMPORARY: &str = ".tmp-";
/// Number of the random letters: tempfile's own number.
const RANDOM: usize = 6;

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, never a part. Errors leave the old file
/// as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    publish(path, |temporary| {
        let mut file = File::create(temporary).map_err(|e| Error::io("creating", temporary, &e))?;
        file.write_all(bytes).map_err(|e| Error::io("writing", path, &e))?;
        Ok(bytes.len() as u64)
    })
}

/// Lets `write` fill a temporary sibling of `path` and return its length in bytes, then checks that length, syncs and
/// renames. Missing folders are made. Errors leave the old file as it was and remove the temporary one.
pub fn publish(path: &Path, write: impl FnOnce(&Path) -> Result<u64>) -> Result<()> {
    let (folder, prefix) = sibling(path)?;
    let temporary = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(0o666)) // less the umask, as for any file
        .tempfile_in(folder)
        .map_err(|e| Error::io("creating a file in", folder, &e))?;
    let expected = write(temporary.path())?;
    let file = File::open(temporary.path()).map_err(|e| Error::io("opening", temporary.path(), &e))?;
    let length = file.metadata().map_err(|e| Error::io("measuring", temporary.path(), &e))?.len();
    if length != expected {
        return Err(Error::system(format!("writing {}: {length} of {expected} bytes arrived", path.display())));
    }
    file.sync_all().map_err(|e| Error::io("syncing", path, &e))?;
    std::fs::rename(temporary.path(), path).map_err(|e| Error::io("renaming to", path, &e))?;
    let _ = temporary.keep(); // renamed: nothing is left to remove
    sync_folder(folder)
}

/// Lets `write` fill a temporary sibling of the folder `path`, then syncs and renames it. Missing folders above it are
/// made. Error: something other than an empty folder is there already; `write` fails. Errors leave nothing behind.
pub fn publish_folder(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let is_empty = || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if path.exists() && !is_empty() {
        return Err(Error::usage(format!(
            "{} is there already; name a new folder, or remove it first",
            path.display()
        )));
    }
    let (folder, prefix) = sibling(path)?;
    let temporary = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(0o777)) // less the umask, as for any folder
        .tempdir_in(folder)
        .map_err(|e| Error::io("creating a folder in", folder, &e))?;
    write(temporary.path())?;
    sync_folder(temporary.path())?;
    std::fs::rename(temporary.path(), path).map_err(|e| Error::io("renaming to", path, &e))?;
    // On an error, undoes the rename: otherwise the same command would find the folder there.
    sync_folder(folder).inspect_err(|_| drop(std::fs::rename(path, temporary.path())))?;
    let _ = temporary.keep(); // renamed: nothing is left to remove
    Ok(())
}

/// Removes what `publish` and `publish_folder` left, in processes that were killed, in `folder` and in the folders
/// below it. Nobody else may be writing there. What cannot be removed stays.
pub fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, is_folder) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
        match (sibling_of(&entry.file_name().to_string_lossy()).is_some(), is_folder) {
            (true, true) => drop(std::fs::remove_dir_all(path)),
            (true, false) => drop(std::fs::remove_file(path)),
            (false, true) => sweep(&path),
            (false, false) => (),
        }
    }
}

/// The name of the file or folder whose temporary sibling `name` is: `model.safetensors` for
/// `model.safetensors.tmp-a1B2c3`; `None` for any other name.
pub fn sibling_of(name: &str) -> Option<&str> {
    let is_random = |text: &str| text.len() == RANDOM && text.bytes().all(|b| b.is_ascii_alphanumeric());
    name.rsplit_once(TEMPORARY).filter(|(stem, random)| !stem.is_empty() && is_random(random)).map(|(stem, _)| stem)
}

/// Renames the file or folder `path` to the first free one of `path`.1, `path`.2, ..., and returns that name. Error:
/// there is no such file, or it cannot be renamed.
pub fn set_aside(path: &Path) -> Result<PathBuf> {
    for number in 1.. {
        let target = numbered(path, number);
        if target.symlink_metadata().is_err() {
            std::fs::rename(path, &target).map_err(|e| Error::io("renaming", path, &e))?;
            sync_folder(parent(path))?;
            return Ok(target);
        }
    }
    Err(Error::system(format!("renaming {}: no number is free", path.display())))
}

/// Appends a number to the name of `path`.
fn numbered(path: &Path, number: u64) -> PathBuf {
    // Through the components: after a slash at the end the number would name a file inside the folder.
    let mut name: OsString = path.components().collect::<PathBuf>().into_os_string();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The folder of `path`, made if it is missing, and the prefix of a temporary sibling's name.
fn sibling(path: &Path) -> Result<(&Path, OsString)> {
    let folder = parent(path);
    std::fs::create_dir_all(folder).map_err(|e| Error::io("creating the folder", folder, &e))?;
    let mut prefix = path.file_name().unwrap_or_default().to_os_string();
    prefix.push(TEMPORARY);
    Ok((folder, prefix))
}

/// Makes renames inside `folder` survive a power cut.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io("syncing", folder, &e))
}

/// Bytes read at a time; blake3 hashes them on all threads.
const CHUNK: usize = 16 << 20;

/// The blake3 hash of a file's content, and its length in bytes.
pub fn hash(path: &Path) -> Result<(blake3::Hash, u64)> {
    let failed = |e: std::io::Error| Error::io("reading", path, &e);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hasher, mut buffer, mut length) = (blake3::Hasher::new(), vec![], 0);
    loop {
        buffer.clear();
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok((hasher.finalize(), length));
        }
        length += read as u64;
        hasher.update_rayon(&buffer);
    }
}

/// The regular files of a folder and of those below it, sorted. Names that `wanted` refuses are left out, with
/// everything below them.
pub fn below(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let (mut open, mut found) = (vec![folder.to_path_buf()], vec![]);
    while let Some(folder) = open.pop() {
        let failed = |e: std::io::Error| Error::io("listing", &folder, &e);
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if !wanted(&entry.file_name().to_string_lossy()) {
                continue;
            }
            if path.is_dir() {
                open.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The folder that holds `path`.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_failing_write_leaves_the_old_file_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_whole(&path, b"old").unwrap();
        let full = publish(&path, |temporary| {
            std::fs::write(temporary, b"ne").unwrap();
            Err(Error::system("No space left on device"))
        });
        assert_eq!(full.unwrap_err().kind(), Kind::System);
        let short = publish(&path, |temporary| {
            std::fs::write(temporary, b"ne").unwrap();
            Ok(3)
        });
        assert!(short.unwrap_err().to_string().contains("2 of 3 bytes"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        write_whole(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, rest) = (dir.path().join("adapter"), dir.path().join("adapter.tmp-a1B2c3"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(rest.join("below")).unwrap();
        for name in ["model.safetensors.tmp-abcdef", "kept.tmp-1", ".tmp-abcdef", "kept"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        // The names that `publish` gives are of this form.
        let seen = publish(&folder.join("kept"), |temporary| {
            assert_eq!(sibling_of(&temporary.file_name().unwrap().to_string_lossy()), Some("kept"));
            Ok(0)
        });
        seen.unwrap();
        sweep(dir.path());
        let mut left: Vec<_> =
            below(dir.path(), |_| true).unwrap().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        left.sort();
        assert_eq!(left, [".tmp-abcdef", "kept", "kept.tmp-1"]);
        assert!(!rest.exists());
    }

    #[test]
    fn what_is_set_aside_takes_the_next_free_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        for number in 1..=3 {
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("x"), number.to_string()).unwrap();
            let expected = dir.path().join(format!("run.{number}"));
            assert_eq!(set_aside(&path.join("")).unwrap(), expected);
            assert_eq!(std::fs::read_to_string(expected.join("x")).unwrap(), number.to_string());
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        write_whole(&file, b"old").unwrap();
        let error = write_whole(&file.join("below"), b"new").unwrap_err();
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
    }
}
