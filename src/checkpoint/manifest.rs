//! The list of a checkpoint's files with their hashes, written last: a checkpoint that does not match its list is
//! damaged.

use crate::error::{Error, Result};
use crate::files;
use crate::files::json;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the list inside a checkpoint.
pub const FILE: &str = "manifest.json";

/// Maximum bytes of a list.
const MOST: u64 = 64 << 20;

/// The list of a checkpoint's files.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// The step after which it was written; a folder named after another step is not this checkpoint.
    step: u64,
    /// Every file, by its path below the checkpoint.
    files: BTreeMap<String, Entry>,
}

/// A file as it was written.
#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    blake3: String,
}

/// Writes the list of everything in `folder`, the checkpoint of `step`.
pub fn write(folder: &Path, step: u64) -> Result<()> {
    let entry = |path: PathBuf| {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        let (hash, bytes) = files::hash(&path)?;
        Ok((name, Entry { bytes, blake3: hash.to_hex().to_string() }))
    };
    let files = files::below(folder, |_| true)?.into_iter().map(entry).collect::<Result<_>>()?;
    json::write(&folder.join(FILE), &Manifest { step, files })
}

/// Checks every file of the checkpoint of `step` in `folder` against the list. Errors say what is wrong: a file is
/// missing, has other bytes, cannot be read or is not on the list; the list is of another step; there is no list.
pub fn check(folder: &Path, step: u64) -> Result<()> {
    let path = folder.join(FILE);
    if !path.is_file() {
        return Err(Error::content(format!("it has no {FILE}: it is not whole, or an earlier version wrote it")));
    }
    let text = files::regular::read_text(&path, MOST)?;
    let manifest: Manifest =
        serde_json::from_str(&text).map_err(|e| Error::content(format!("{}: {e}", path.display())))?;
    if manifest.step != step {
        return Err(Error::content(format!("its {FILE} is that of step {}", manifest.step)));
    }
    let wrong = |name: &str, what: &str| Err(Error::content(format!("{name} {what}")));
    for (name, entry) in &manifest.files {
        let path = folder.join(name);
        if !path.is_file() {
            return wrong(name, "is missing");
        }
        let (hash, bytes) = files::hash(&path)?;
        if bytes != entry.bytes {
            return wrong(name, &format!("has {bytes} bytes, {} were written", entry.bytes));
        }
        if hash.to_hex().as_str() != entry.blake3 {
            return wrong(name, "has other bytes than were written");
        }
    }
    for path in files::below(folder, |_| true)? {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        if name != FILE && !manifest.files.contains_key(&name) {
            return wrong(&name, "was added later");
        }
    }
    Ok(())
}
