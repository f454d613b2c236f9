//! The limits of one script and their valid ranges. Others enforce them.

use serde::{Deserialize, Serialize};

/// Limits of one script's process group. CPU time decides; the wall clock is the backstop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Seconds of CPU time.
    pub cpu_seconds: f64,
    /// Seconds of wall time, far above the CPU limit.
    pub wall_seconds: f64,
    /// Bytes of memory beyond those of the idle interpreter with its loaded libraries (shared by all jobs). The kernel
    /// limits the data of each process; a control group (with 8 MiB more, for memory that is no job's) or a check every
    /// 0.1 s limits the sum over the group.
    pub memory_bytes: u64,
    /// Bytes of stdout and stderr together; past it the group is killed.
    pub output_bytes: u64,
    /// Bytes of any one file written.
    pub file_bytes: u64,
    /// Bytes of all files in the script's folder, and separately of those in its /tmp.
    pub disk_bytes: u64,
    /// Processes and threads at one time.
    pub processes: u64,
}

/// Largest limit on time, in seconds: eleven days.
pub const MOST_SECONDS: u64 = 1_000_000;
/// Smallest limit on memory, in bytes: a control group counts 5 MB for a Python that runs an empty script.
pub const LEAST_MEMORY: u64 = 8 << 20;
/// Largest limit in bytes: 1 PiB, more than any machine has.
pub const MOST_BYTES: u64 = 1 << 50;
/// Largest number of processes and threads that a Linux system can have.
pub const MOST_PROCESSES: u64 = 1 << 22;

impl Limits {
    /// Returns the first limit out of range: its name, and its value with the range. `None` when all are in range.
    pub fn out_of_range(&self) -> Option<(&'static str, String)> {
        let seconds = [("cpu_seconds", self.cpu_seconds), ("wall_seconds", self.wall_seconds)].map(|(name, value)| {
            (
                name,
                value > 0.0 && value <= MOST_SECONDS as f64,
                format!("{value}: expected above 0 and at most 1e6, like 10.0"),
            )
        });
        let amounts = [
            ("memory_bytes", self.memory_bytes, LEAST_MEMORY, MOST_BYTES),
            ("output_bytes", self.output_bytes, 0, MOST_BYTES),
            ("file_bytes", self.file_bytes, 0, MOST_BYTES),
            ("disk_bytes", self.disk_bytes, 1, MOST_BYTES),
            ("processes", self.processes, 1, MOST_PROCESSES),
        ]
        .map(|(name, value, least, most)| {
            (name, (least..=most).contains(&value), format!("{value}: expected at least {least} and at most {most}"))
        });
        let mut all = seconds.into_iter().chain(amounts);
        all.find(|(_, is_valid, _)| !is_valid).map(|(name, _, why)| (name, why))
    }
}
