//! The contents of a run's folder.

use crate::error::{Error, Result};
use crate::evaluate::Evaluations;
use crate::metrics;
use crate::trajectory::{self, Trajectory};
use serde_json::Value;
use std::path::Path;

/// The contents of a run's folder.
pub(super) struct Run {
    pub metrics: Vec<Value>,
    pub summary: Value,
    pub evaluations: Option<Evaluations>,
    pub config: Option<String>,
    pub trajectories: Vec<Trajectory>,
}

impl Run {
    /// Reads what there is. Error: nothing of a run, or a file that does not parse.
    pub fn read(dir: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(dir).map_err(|e| Error::io("reading the run in", dir, &e))?;
        let files = ["metrics.jsonl", "summary.json", "evaluation.json", "config.toml", "trajectories"];
        if !entries.flatten().any(|entry| files.iter().any(|f| entry.file_name() == *f)) {
            return Err(Error::content(format!(
                "{}: no run in it; expected a folder that quickstart, sft, rl or eval wrote, with one of {}",
                dir.display(),
                files.join(", ")
            )));
        }
        let lines = dir.join(metrics::FILE);
        let mut trajectories = Vec::new();
        if dir.join("trajectories").is_dir() {
            let folder = dir.join("trajectories");
            let io = |e: std::io::Error| Error::io("reading", &folder, &e);
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(&folder).map_err(io)? {
                paths.push(entry.map_err(io)?.path());
            }
            paths.sort();
            for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "jsonl")) {
                trajectories.extend(trajectory::read_jsonl(path)?);
            }
        }
        Ok(Self {
            metrics: if lines.exists() { metrics::read(&lines)? } else { Vec::new() },
            summary: json(&dir.join("summary.json"))?.unwrap_or(Value::Null),
            evaluations: json(&dir.join("evaluation.json"))?,
            config: optional(&dir.join("config.toml"))?,
            trajectories,
        })
    }
}

/// The text of a file; `None` when there is no such file.
fn optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path, &e)),
    }
}

/// Parses a JSON file; `None` when there is no such file.
fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = optional(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::content(format!("{}: {e}; expected the file as the run wrote it", path.display())))
}
