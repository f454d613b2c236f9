//! Task folders: a description, a runnable baseline script, data made by a seeded script, a metric, and where it starts and ends.

pub mod grader;
pub mod metric;

use crate::sandbox::Limits;
pub use metric::Metric;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A task as its task.toml states it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Unique name: the folder's.
    pub name: String,
    /// One sentence for the agent (short: the small model reads it).
    pub description: String,
    /// tabular, image, text, series or graph.
    pub modality: String,
    /// What the grader computes; its direction comes with it.
    pub metric: Metric,
    /// The baseline script's metric.
    pub m_init: f64,
    /// The best metric reached by composing ideas (stated in task.toml).
    pub m_best: f64,
    /// Changes smaller than this count as none.
    pub noise_floor: f64,
    /// True when neither training nor the base model may see it.
    pub held_out: bool,
    /// The script that is run and graded.
    pub entry: String,
    /// The file the grader reads.
    pub submission: String,
    /// What a run may use.
    pub limits: Limits,
    /// Files the agent starts with and may edit: name to text.
    pub starter: BTreeMap<String, String>,
    /// The folder task.toml lies in.
    pub folder: PathBuf,
}

/// A task with its data made: what the environment needs.
#[derive(Debug, Clone)]
pub struct PreparedTask {
    /// The task.
    pub task: Task,
    /// Read-only data files laid into every workspace: name inside it, and where it lies.
    pub data: Vec<(String, PathBuf)>,
    /// The labels, outside every workspace.
    pub labels: PathBuf,
    /// Hash of data and labels: part of the cache key of a graded run.
    pub data_id: String,
}
