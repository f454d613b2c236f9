//! JSON files.

use super::{regular, write_whole};
use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Writes `value` as indented JSON, whole or not at all.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::system(format!("writing {}: {e}", path.display())))?;
    write_whole(path, format!("{text}\n").as_bytes())
}

/// Reads a JSON file. Errors name the file, line and column.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::content(format!("{}: {e}", path.display())))
}

/// Reads the text of a small file, such as a configuration. Errors name the file.
pub fn read_text(path: &Path) -> Result<String> {
    /// Maximum bytes; configurations and states have a few kilobytes.
    const MOST: u64 = 64 << 20;
    regular::read_text(path, MOST)
}
