//! Messages between the trainer, the helper process and its workers.

use super::limits::Limits;
use super::python::Folders;
use super::seccomp::Filters;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Path of the script's folder as the script sees it, where it has a root of its own.
pub const WORKSPACE: &str = "/onestep";

/// One script to run in a folder of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// An existing folder, private to this job; the script's working folder.
    pub folder: PathBuf,
    /// Name of the Python file in the folder.
    pub script: String,
    /// Its limits.
    pub limits: Limits,
    /// Read-only files beside the script: a plain name inside the folder, and the path of the source. A large file is
    /// shown by a mount where the script has a root of its own; others are copied.
    #[serde(default)]
    pub data: Vec<(String, PathBuf)>,
    /// Hash of the job's content, or empty. Jobs with the same id are the same job: one that keeps killing its worker
    /// is given up for all of them.
    #[serde(default)]
    pub id: String,
    /// Group of the job: groups that want slots at the same time share them evenly.
    #[serde(default)]
    pub group: String,
}

impl Job {
    /// Makes a job without data, id and group.
    pub fn new(folder: &Path, script: &str, limits: Limits) -> Self {
        let (folder, script) = (folder.to_path_buf(), script.to_string());
        Self { folder, script, limits, data: vec![], id: String::new(), group: String::new() }
    }
}

/// How a script ended, judged by how its process ended and never by its text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit code; 0 is success. An uncaught Python exception is 1.
    Exited(i32),
    /// Ended by this signal, which was not ours.
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
    /// Had more processes than allowed.
    ProcessLimit,
    /// Killed or hung its worker three times: it is not run again.
    Quarantined,
}

/// Result of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How it ended.
    pub outcome: Outcome,
    /// Stdout as lossy UTF-8; with stderr at most the output limit.
    pub stdout: String,
    /// Stderr: for an exception, the traceback as `python script.py` would print it.
    pub stderr: String,
    /// CPU seconds of the whole group.
    pub cpu_seconds: f64,
    /// Wall seconds.
    pub wall_seconds: f64,
    /// Peak memory in bytes: of the group where a memory cgroup counts it, else of its largest process.
    pub peak_bytes: u64,
    /// True when output beyond the limit was left out.
    pub is_truncated: bool,
}

/// A worker's messages to the trainer: `Alive` once it is forked, one `Ready` or `Failed` when it has started, then one
/// `Done` or `Failed` for each job; `Alive` in between as heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// It can take jobs: the isolation it found, and its process id.
    Ready(Isolation, u32),
    /// Heartbeat.
    Alive,
    /// The job ended.
    Done(Verdict),
    /// The start or the job failed, and why: no script has run, or its files could not be carried out.
    Failed(String),
}

/// Isolation that a worker found possible.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Isolation {
    /// 3: namespaces and cgroups; 2: namespaces; 1: Landlock and seccomp alone; 0: nothing.
    pub tier: u8,
    /// True when each worker's scripts have a user of their own.
    pub own_user: bool,
    /// One line for each tier that is not possible here, with the reason, and one for the tier in force.
    pub notes: Vec<String>,
}

/// Isolation and libraries that are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Highest tier that is tried.
    pub best: u8,
    /// True when scripts run without protection where none is possible; otherwise starting is refused there.
    pub unsafe_without: bool,
    /// Python modules to load before the first script; `None`: numpy, SciPy and the parts of scikit-learn that scripts
    /// use. A script may import others, but pays for their import.
    pub preload: Option<Vec<String>>,
}

/// Protection in force, found by testing it, which may differ from the one asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protection {
    /// See [`Isolation`].
    pub tier: u8,
    /// True when scripts cannot read files outside their folder that the user can.
    pub files_hidden: bool,
    /// True when scripts have no network.
    pub network_closed: bool,
    /// True when a script's processes live in a pid namespace and die with it.
    pub pid_namespace: bool,
    /// True when scripts cannot change files outside their folder.
    pub files_closed: bool,
    /// Notes for the user, one line per fact.
    pub notes: Vec<String>,
}

/// Settings that the helper is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Start {
    /// The Python interpreter.
    pub interpreter: PathBuf,
    /// Folders that its scripts may read.
    pub folders: Folders,
    pub filters: Filters,
    pub wanted: Wanted,
    /// Processor of each slot; empty when slots have none of their own.
    pub processors: Vec<usize>,
    /// The pool's folder for temporary files.
    pub scratch: PathBuf,
}
