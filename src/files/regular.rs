//! Reads files of users and scripts, which may be anything: only regular ones, and never more bytes than a file had
//! when it was opened, even if it grows meanwhile.

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Take};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens the regular file that `path` leads to. Does not block, even on a pipe without a writer.
///
/// # Errors
/// Content: it is a folder, a pipe or a device, or it is not there. System: it cannot be opened.
pub fn file(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = file.map_err(|e| Error::io("opening", path, &e))?;
    if !file.metadata().map_err(|e| Error::io("opening", path, &e))?.is_file() {
        return Err(Error::content(format!(
            "{}: expected a regular file, not a folder, a pipe or a device",
            path.display()
        )));
    }
    Ok(file)
}

/// Opens as [`file`] does, to be read up to its present length. Error: that is above `most` bytes.
fn open(path: &Path, most: u64) -> Result<Take<File>> {
    let file = file(path)?;
    let info = file.metadata().map_err(|e| Error::io("opening", path, &e))?;
    if info.len() > most {
        let (path, length) = (path.display(), info.len());
        return Err(Error::content(format!("{path}: it has {length} bytes, at most {most} are read")));
    }
    Ok(file.take(info.len()))
}

/// Reads the regular file that `path` leads to: the bytes that it had when it was opened, at most `most`.
///
/// # Errors
/// Content: it is not a regular file, is larger, or is not there. System: it cannot be read.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    open(path, most)?.read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, &e))?;
    Ok(bytes)
}

/// Reads as [`read`] does, to text.
///
/// # Errors
/// Those of [`read`]; content also when it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    let no_text = |_| Error::io("reading", path, &io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"));
    String::from_utf8(read(path, most)?).map_err(no_text)
}

/// Copies the regular file that `from` leads to, with its permissions: the bytes that it had when it was opened, at
/// most `most`.
///
/// # Errors
/// Those of [`read`]; system also when `to` cannot be written.
pub fn copy(from: &Path, to: &Path, most: u64) -> Result<()> {
    let mut file = open(from, most)?;
    let permissions = file.get_ref().metadata().map_err(|e| Error::io("opening", from, &e))?.permissions();
    let failed = |e: io::Error| Error::io("copying to", to, &e);
    let mut copy = File::create(to).map_err(failed)?;
    io::copy(&mut file, &mut copy).map_err(failed)?;
    fs::set_permissions(to, permissions).map_err(failed)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::io::Write;

    #[test]
    fn only_regular_files_of_a_size_are_read_also_behind_links() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("text"), "1234").unwrap();
        std::os::unix::fs::symlink(place("text"), place("link")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place("zero")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(place("pipe")).status().unwrap().success());
        assert_eq!(read_text(&place("link"), 4).unwrap(), "1234");
        for (path, why) in [("zero", "regular"), ("pipe", "regular"), (".", "regular"), ("text", "at most 3")] {
            for error in [read(&place(path), 3).unwrap_err(), copy(&place(path), &place("copy"), 3).unwrap_err()] {
                assert_eq!(error.kind(), Kind::Content);
                assert!(error.to_string().contains(why), "{error}");
            }
        }
        assert!(!place("copy").exists());
    }

    #[test]
    fn what_a_file_grows_by_after_it_is_opened_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("growing");
        fs::write(&path, "1234").unwrap();
        let mut opened = open(&path, 4).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"5678").unwrap();
        let mut text = String::new();
        opened.read_to_string(&mut text).unwrap();
        assert_eq!(text, "1234");
    }
}
