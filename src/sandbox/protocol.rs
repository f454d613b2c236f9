//! What travels between the trainer, the helper process and its workers.

use super::limits::Limits;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One script to run in a folder of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// An existing folder, private to this job; the script's working folder.
    pub folder: PathBuf,
    /// The Python file inside it.
    pub script: String,
    /// What it may use.
    pub limits: Limits,
}

/// How a script ended, told by how the process ended, never by its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It returned; 0 is success. An uncaught Python exception is 1.
    Exited(i32),
    /// A signal that was not ours ended it.
    Signaled(i32),
    /// Out of CPU time.
    CpuLimit,
    /// Out of wall time.
    WallLimit,
    /// Out of memory (MemoryError, or killed for it).
    MemoryLimit,
    /// Wrote more output than allowed.
    OutputLimit,
    /// Wrote a larger file than allowed.
    FileLimit,
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// What it printed, lossy UTF-8, at most the output limit.
    pub stdout: String,
    /// What it printed on stderr: for an exception, the traceback as `python script.py` would print it.
    pub stderr: String,
    /// CPU seconds of the whole group.
    pub cpu_seconds: f64,
    /// Wall seconds.
    pub wall_seconds: f64,
}

/// A worker's answers to the trainer: one `Ready` or `Failed` when it has started, then one of the others for each job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// It can take jobs; a line for each isolation that is not possible here, and one for that in force.
    Ready(Vec<String>),
    /// The job ended.
    Done(Verdict),
    /// The job (or the start) was not possible, and why: the script has not run.
    Failed(String),
}

/// The protection in force, found by trying it, not the one asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protection {
    /// True when scripts have no network.
    pub network_closed: bool,
    /// True when a script's processes live in a pid namespace and die with it.
    pub pid_namespace: bool,
    /// True when the rest of the file system is read-only or hidden for the script.
    pub files_closed: bool,
    /// One line a fact, for the user.
    pub notes: Vec<String>,
}
