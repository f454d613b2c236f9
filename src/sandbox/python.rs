//! The private Python environment of the tasks: pinned packages in a venv under the cache folder, made on first use.

use std::path::PathBuf;

/// An interpreter that can import what the tasks need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// What is executed.
    pub interpreter: PathBuf,
    /// Names and versions, `python` first.
    pub versions: Vec<(String, String)>,
    /// Hash of the versions: part of the cache key of a graded run.
    pub id: String,
}
