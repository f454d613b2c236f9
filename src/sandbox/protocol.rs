//! What travels between the trainer, the helper process and its workers.

use super::limits::Limits;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a script sees as its folder, where it has a root of its own.
pub const WORKSPACE: &str = "/onestep";

/// One script to run in a folder of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// An existing folder, private to this job; the script's working folder.
    pub folder: PathBuf,
    /// The Python file inside it.
    pub script: String,
    /// What it may use.
    pub limits: Limits,
    /// Read-only files beside the script: a plain name inside the folder, and where each lies. Shown by a mount where the script has a
    /// root of its own, else copied.
    #[serde(default)]
    pub data: Vec<(String, PathBuf)>,
    /// What the job's content hashes to, or empty: jobs of one id are one job, and one that keeps killing its worker is given up for
    /// all of them.
    #[serde(default)]
    pub id: String,
    /// Whom it is for: the slots are shared evenly between groups that want them at the same time.
    #[serde(default)]
    pub group: String,
}

impl Job {
    /// A job without data, id and group.
    pub fn new(folder: &Path, script: &str, limits: Limits) -> Self {
        let (folder, script) = (folder.to_path_buf(), script.to_string());
        Self { folder, script, limits, data: vec![], id: String::new(), group: String::new() }
    }
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
    /// Had more processes than allowed.
    ProcessLimit,
    /// Took its worker with it three times: it is not run again.
    Quarantined,
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
    /// The most bytes of memory: of the group where a memory cgroup counts it, else of its largest process.
    pub peak_bytes: u64,
    /// True when output beyond the limit was left out.
    pub is_truncated: bool,
}

/// A worker's answers to the trainer: `Alive` when it is there, one `Ready` or `Failed` when it has started, then one of the others for each
/// job; `Alive` in between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// It can take jobs: what it found, and its process id.
    Ready(Isolation, u32),
    /// It is at work.
    Alive,
    /// The job ended.
    Done(Verdict),
    /// The job (or the start) was not possible, and why: the script has not run.
    Failed(String),
}

/// What a worker found possible.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Isolation {
    /// 3: namespaces and cgroups; 2: namespaces; 1: Landlock and seccomp alone; 0: nothing.
    pub tier: u8,
    /// True when each worker's scripts have a user of their own.
    pub own_user: bool,
    /// A line for each tier that is not possible here, and why, and one for that in force.
    pub notes: Vec<String>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// The best tier that is tried.
    pub best: u8,
    /// Scripts run without protection where none is possible; otherwise starting is refused there.
    pub unsafe_without: bool,
    /// Python modules that are loaded before the first script; `None`: numpy, SciPy and the parts of scikit-learn that scripts use.
    /// A script may import others, which then costs it what importing costs.
    pub preload: Option<Vec<String>>,
}

/// The protection in force, found by trying it, not the one asked for.
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
    /// One line a fact, for the user.
    pub notes: Vec<String>,
}
