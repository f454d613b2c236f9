//! What one script may use.

use serde::{Deserialize, Serialize};

/// Limits of one script's process group. CPU time decides; the wall clock is the backstop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Seconds of CPU time.
    pub cpu_seconds: f64,
    /// Seconds of wall time, far above the CPU limit.
    pub wall_seconds: f64,
    /// Bytes of memory beyond what the idle interpreter with its loaded libraries holds (shared by all jobs): data of each
    /// process by the kernel, the sum over the group by its control group (with 8 MiB for what is no job's) or a watch every 0.1 s.
    pub memory_bytes: u64,
    /// Bytes of stdout and stderr together; past it the group is killed.
    pub output_bytes: u64,
    /// Bytes of any one file written.
    pub file_bytes: u64,
    /// Bytes of all files in the script's folder, and of those in its /tmp.
    pub disk_bytes: u64,
    /// Processes and threads at one time.
    pub processes: u64,
}
