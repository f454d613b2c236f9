//! The agent's view of its folder: its text files and the task's read-only data. Also writes the files into a real
//! folder for a run, and finds what the run left there. Nothing here runs code.

use super::record::Files;
use crate::error::{Error, Result};
use crate::files::regular;
use crate::task::PreparedTask;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most lines that one inspection shows.
pub const MAX_LINES: u64 = 100;

/// Reason why a file action is refused. The text is shown to the agent; `short` is its form for the compact prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The path leaves the workspace.
    #[error("the path {0:?} is outside the workspace; give one relative to it, such as train.py")]
    Outside(String),
    /// The path cannot name a file.
    #[error("{0:?} is not a file name")]
    NotAName(String),
    /// There is no such file.
    #[error("there is no file {0:?} in the workspace")]
    NoFile(String),
    /// There is no such folder.
    #[error("there is no folder {0:?} in the workspace")]
    NoFolder(String),
    /// A file and a folder would have the same name.
    #[error("{0:?} and a folder cannot have the same name")]
    IsFolder(String),
    /// The file is task data, which cannot be changed.
    #[error("{0:?} is task data and read-only")]
    ReadOnly(String),
    /// The file is not text.
    #[error("{0:?} is no text file")]
    Binary(String),
    /// The file is larger than the task's limit.
    #[error("{0:?} is too large to copy")]
    TooLarge(String),
    /// The range of lines is not valid.
    #[error("lines {start} to {end} cannot be shown: the first line is 1, and the last must not come before the first")]
    BadRange {
        /// First line.
        start: u64,
        /// Last line.
        end: u64,
    },
    /// The range has more lines than one inspection shows.
    #[error("{0} lines are too many: at most {MAX_LINES} can be shown at once")]
    TooManyLines(u64),
    /// The range begins after the end of the file.
    #[error("line {start} is behind the end of the file, which has {last} lines")]
    BehindEnd {
        /// First line asked for.
        start: u64,
        /// The file's last line.
        last: u64,
    },
}

impl FileError {
    /// The reason in a few words, for the compact prompt.
    pub fn short(&self) -> &'static str {
        match self {
            FileError::Outside(_) => "outside the workspace",
            FileError::NotAName(_) => "not a file name",
            FileError::NoFile(_) => "no such file",
            FileError::NoFolder(_) => "no such folder",
            FileError::IsFolder(_) => "is a folder",
            FileError::ReadOnly(_) => "read-only",
            FileError::Binary(_) => "no text file",
            FileError::TooLarge(_) => "too large",
            FileError::BadRange { .. } | FileError::BehindEnd { .. } => "no such lines",
            FileError::TooManyLines(_) => "too many lines",
        }
    }
}

/// Result of a file action, or the reason why it is refused.
pub type Checked<T> = std::result::Result<T, FileError>;

/// The files that an action can see: the agent's own and the task's data.
#[derive(Debug, Clone, Copy)]
pub struct Workspace<'a> {
    /// The agent's own text files.
    pub files: &'a Files,
    /// The task, for its data.
    pub prepared: &'a PreparedTask,
}

impl Workspace<'_> {
    /// Lists the entries of a folder, sorted; folders end in `/`.
    pub fn list_files(&self, dir_path: &str) -> Checked<Vec<String>> {
        let folder = resolve(dir_path)?;
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let inside = self.names().filter_map(|name| name.strip_prefix(&prefix));
        let entries: BTreeSet<String> = inside
            .map(|rest| rest.split_once('/').map_or_else(|| rest.to_string(), |(folder, _)| format!("{folder}/")))
            .collect();
        if entries.is_empty() && !folder.is_empty() {
            return Err(FileError::NoFolder(dir_path.to_string()));
        }
        Ok(entries.into_iter().collect())
    }

    /// Copies `source` to `destination`: returns the files after that, and the resolved name of the copy.
    pub fn copy_file(&self, source: &str, destination: &str) -> Checked<(Files, String)> {
        let from = resolve_file(source)?;
        let text = match self.files.get(&from) {
            Some(text) => text.clone(),
            None => {
                let path = self.data_path(&from).ok_or_else(|| FileError::NoFile(source.to_string()))?;
                let (size, most) =
                    (fs::metadata(path).map_or(u64::MAX, |m| m.len()), self.prepared.task.limits.file_bytes);
                if size > most {
                    return Err(FileError::TooLarge(source.to_string()));
                }
                Arc::from(regular::read_text(path, most).map_err(|_| FileError::Binary(source.to_string()))?)
            }
        };
        let to = self.writable(destination)?;
        let mut files = self.files.clone();
        files.insert(to.clone(), text);
        Ok((files, to))
    }

    /// Returns lines `start` to `end` (from 1, inclusive, `end` capped at the file's last line) and the number of the
    /// last line.
    pub fn inspect_lines(&self, script: &str, start: u64, end: u64) -> Checked<(String, u64)> {
        if start == 0 || end < start {
            return Err(FileError::BadRange { start, end });
        }
        if end - start >= MAX_LINES {
            return Err(FileError::TooManyLines(end - start + 1));
        }
        let name = resolve_file(script)?;
        let binary = || FileError::Binary(script.to_string());
        let reader: Box<dyn BufRead> = match (self.files.get(&name), self.data_path(&name)) {
            (Some(text), _) => Box::new(text.as_bytes()),
            (None, Some(path)) => Box::new(BufReader::new(fs::File::open(path).map_err(|_| binary())?)),
            (None, None) => return Err(FileError::NoFile(script.to_string())),
        };
        let (mut shown, mut last) = (String::new(), 0);
        for line in reader.lines() {
            let line = line.ok().filter(|line| !line.contains('\0')).ok_or_else(binary)?;
            last += 1;
            if (start..=end).contains(&last) {
                shown.push_str(&line);
                shown.push('\n');
            }
        }
        if start > last.max(1) {
            return Err(FileError::BehindEnd { start, last });
        }
        Ok((shown, last))
    }

    /// Returns the resolved name and the text of one of the agent's scripts.
    pub fn script(&self, name: &str) -> Checked<(String, Arc<str>)> {
        let resolved = resolve_file(name)?;
        match self.files.get(&resolved) {
            Some(text) => Ok((resolved, text.clone())),
            None if self.data_path(&resolved).is_some() => Err(FileError::ReadOnly(name.to_string())),
            None => Err(FileError::NoFile(name.to_string())),
        }
    }

    /// Resolves a name. Error: the agent may not write a file there.
    fn writable(&self, name: &str) -> Checked<String> {
        let resolved = resolve_file(name)?;
        if self.data_path(&resolved).is_some() {
            return Err(FileError::ReadOnly(name.to_string()));
        }
        // The file must not have the name of a folder, and none of its folders may be a file.
        let below = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        if self.names().any(|other| below(other, &resolved) || below(&resolved, other)) {
            return Err(FileError::IsFolder(name.to_string()));
        }
        Ok(resolved)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).chain(self.prepared.data.iter().map(|(name, _)| name.as_str()))
    }

    fn data_path(&self, name: &str) -> Option<&Path> {
        self.prepared.data.iter().find(|(data, _)| data == name).map(|(_, path)| path.as_path())
    }
}

/// Turns a path from the agent into a name inside the workspace: `.`, `..` and empty parts are resolved one by one. The
/// empty name is the workspace itself. The virtual files have no links, so this is exact.
fn resolve(path: &str) -> Checked<String> {
    if path.starts_with('/') {
        return Err(FileError::Outside(path.to_string()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or_else(|| FileError::Outside(path.to_string()))?),
            // `materialise` must not get a name that Linux cannot create.
            _ if part.len() > 255 || part.contains('\0') => return Err(FileError::NotAName(path.to_string())),
            _ => parts.push(part),
        }
    }
    let name = parts.join("/");
    if name.len() > 1024 { Err(FileError::NotAName(path.to_string())) } else { Ok(name) }
}

fn resolve_file(path: &str) -> Checked<String> {
    let name = resolve(path)?;
    if name.is_empty() || path.ends_with('/') { Err(FileError::NotAName(path.to_string())) } else { Ok(name) }
}

/// Writes the agent's files into `folder`, which exists and is empty. The task's submission is left out: a run starts
/// without one. The sandbox puts the task's data beside them.
pub fn materialise(files: &Files, prepared: &PreparedTask, folder: &Path) -> Result<()> {
    for (name, text) in files.iter().filter(|(name, _)| **name != prepared.task.submission) {
        let path = place(folder, name)?;
        fs::write(&path, text.as_bytes()).map_err(|e| Error::io("cannot write", &path, &e))?;
    }
    Ok(())
}

/// Returns the path of `name` inside `folder` and creates its folders. Error: it leads outside `folder`.
fn place(folder: &Path, name: &str) -> Result<PathBuf> {
    let outside =
        || Error::content(format!("the file name {name:?} leads outside its workspace; give a relative name"));
    if resolve_file(name).ok().as_deref() != Some(name) {
        return Err(outside());
    }
    let path = folder.join(name);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(|e| Error::io("cannot create", parent, &e))?;
    if is_inside(folder, parent) { Ok(path) } else { Err(outside()) }
}

/// True when `path`, with every link resolved, lies in `folder` or is `folder`.
fn is_inside(folder: &Path, path: &Path) -> bool {
    // Path::starts_with compares whole components.
    matches!((folder.canonicalize(), path.canonicalize()), (Ok(folder), Ok(path)) if path.starts_with(&folder))
}

/// Returns the path of the file `name` that a finished run left in `folder`. None unless it is a regular file, reached
/// through no symbolic link and with no second name (hard link): a script could link to a file that it must not read,
/// and have it graded.
pub fn left_behind(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    let metadata = fs::symlink_metadata(&path).ok()?;
    (metadata.is_file() && metadata.nlink() == 1 && is_inside(folder, &path)).then_some(path)
}
