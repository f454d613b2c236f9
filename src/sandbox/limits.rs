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

/// The longest time, in seconds: eleven days.
pub const MOST_SECONDS: u64 = 1_000_000;
/// The least memory, in bytes: a Python that runs an empty script holds 5 MB of its own, as a control group counts it.
pub const LEAST_MEMORY: u64 = 8 << 20;
/// The most bytes: 1 PiB, more than any machine has.
pub const MOST_BYTES: u64 = 1 << 50;
/// The most processes and threads that a Linux system can have.
pub const MOST_PROCESSES: u64 = 1 << 22;

impl Limits {
    /// Which limit is out of its range, and its value with the range; none when all are in theirs.
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
