//! The cores and the memory of this machine that this process may use. Measures nothing and keeps nothing.

use std::path::Path;

/// Processor cores that this process may run on; 1 when the system does not tell.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory that this process may have: the machine's, or less where a control group or `ulimit -v` allows less.
/// `None` when the system does not tell.
pub fn memory() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
    let group = read("/proc/self/cgroup").and_then(|text| group_limit(&text));
    let physical = read("/proc/meminfo").and_then(|text| total(&text));
    [limit, group, physical].into_iter().flatten().min().and_then(|bytes| usize::try_from(bytes).ok())
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The bytes in the line `MemTotal: 24689700 kB` of /proc/meminfo.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest memory limit, in bytes, of this process's control group and those above it; `groups` is the text of
/// /proc/self/cgroup, of version 1 or 2.
fn group_limit(groups: &str) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (root, file) = match parts.next() {
            Some("") => ("/sys/fs/cgroup", "memory.max"),
            Some(names) if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return vec![],
        };
        let group = Path::new(parts.next().unwrap_or_default());
        let folders = group.ancestors().map(|part| Path::new(root).join(part.strip_prefix("/").unwrap_or(part)));
        // "max" is not a number and sets no limit.
        folders.filter_map(|folder| read(folder.join(file))?.trim().parse().ok()).collect::<Vec<u64>>()
    });
    limits.min()
}

/// The CPU's name; `unknown` when the system does not tell.
pub fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    model.unwrap_or("unknown").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_kilobytes() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24689700 kB\n"), Some(24_689_700 * 1024));
        assert_eq!((total("MemTotal: many kB"), total("")), (None, None));
    }

    #[test]
    fn this_machine_has_cores_and_memory() {
        assert!(cores() >= 1);
        assert!(memory().is_some_and(|bytes| bytes > 1 << 24));
    }

    #[test]
    fn groups_that_are_not_there_set_no_limit() {
        assert_eq!(group_limit("12:pids:/x\n0::/no/such/group\n").filter(|&bytes| bytes == 0), None);
        assert_eq!(group_limit("3:cpu,cpuacct:/"), None);
    }
}
