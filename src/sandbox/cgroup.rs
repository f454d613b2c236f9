//! Memory and pids limits of one slot by control groups, of version 2 or 1, where this process may make them.

use super::Limits;
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

/// The groups of one slot: one folder in version 2, one a controller in version 1. Removed when dropped.
#[derive(Debug)]
pub(super) struct Cgroup {
    memory: PathBuf,
    pids: PathBuf,
    is_v2: bool,
    /// Bytes and processes that are allowed by now.
    allowed: Cell<Option<(u64, u64)>>,
}

/// Processes in the groups that are no script's: the loader, which forks them.
const OWN: u64 = 1;
/// At least what a script's process that waits for its job holds of its own: some 3 MB, of which the job has no part.
const OWN_BYTES: u64 = 8 << 20;

impl Cgroup {
    /// Groups called `name` below this process's own. Error: why that is not possible here.
    pub fn create(name: &str) -> Result<Self, String> {
        let v2 = Self::create_v2(name);
        match v2 {
            Ok(group) => Ok(group),
            Err(why_not_2) => Self::create_v1(name).map_err(|why_not_1| format!("{why_not_2}; {why_not_1}")),
        }
    }

    fn create_v2(name: &str) -> Result<Self, String> {
        let parent = place(None).ok_or("no cgroup v2 is mounted")?;
        let folder = parent.join(name);
        let text = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        if !["memory", "pids"].iter().all(|c| text.split_ascii_whitespace().any(|found| found == *c)) {
            return Err(format!("{}: the controllers memory and pids are not delegated", parent.display()));
        }
        // Possible where no process lives in the parent itself; where it is done already, nothing changes.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +pids");
        let group = Self { memory: folder.clone(), pids: folder.clone(), is_v2: true, allowed: Cell::default() };
        fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        match folder.join("memory.max").exists() && folder.join("pids.max").exists() {
            true => Ok(group),
            false => Err(format!("{}: memory and pids cannot be switched on for children", parent.display())),
        }
    }

    fn create_v1(name: &str) -> Result<Self, String> {
        let make = |controller: &str| {
            let folder = place(Some(controller)).ok_or(format!("no cgroup v1 of {controller} is mounted"))?.join(name);
            fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            Ok::<_, String>(folder)
        };
        let memory = make("memory")?;
        let pids = make("pids").inspect_err(|_| drop(fs::remove_dir(&memory)))?;
        Ok(Self { memory, pids, is_v2: false, allowed: Cell::default() })
    }

    /// Removes the groups called `name`, where they are.
    pub fn remove(name: &str) {
        for controller in [None, Some("memory"), Some("pids")] {
            if let Some(parent) = place(controller) {
                remove(&parent.join(name));
            }
        }
    }

    /// Puts a process into the groups. What it forks is born there: moving each script would take some 10 ms in version 1.
    pub fn join(&self, pid: i32) -> std::io::Result<()> {
        fs::write(self.memory.join("cgroup.procs"), pid.to_string())?;
        if self.is_v2 { Ok(()) } else { fs::write(self.pids.join("cgroup.procs"), pid.to_string()) }
    }

    /// The limits of the next job.
    pub fn limit(&self, limits: &Limits) -> std::io::Result<()> {
        if !self.is_v2 {
            let _ = fs::write(self.memory.join("memory.max_usage_in_bytes"), "0"); // the peak begins anew
        }
        let allowed = (limits.memory_bytes.saturating_add(OWN_BYTES), limits.processes.saturating_add(OWN));
        // Unknown until all is written.
        if self.allowed.replace(None) != Some(allowed) {
            fs::write(self.pids.join("pids.max"), allowed.1.to_string())?;
            if self.is_v2 {
                let _ = fs::write(self.memory.join("memory.swap.max"), "0"); // absent without swap
            }
            let most = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
            fs::write(self.memory.join(most), allowed.0.to_string())?;
        }
        self.allowed.set(Some(allowed));
        Ok(())
    }

    /// Processes that the kernel has killed for memory so far.
    pub fn out_of_memory_kills(&self) -> u64 {
        let name = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory.join(name)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// The most bytes of the last job; `None` where the kernel does not say.
    pub fn peak_bytes(&self) -> Option<u64> {
        // In version 2 the peak cannot be set back, and is that of all jobs.
        let text = (!self.is_v2).then(|| fs::read_to_string(self.memory.join("memory.max_usage_in_bytes")));
        text?.ok()?.trim().parse().ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.memory);
        remove(&self.pids);
    }
}

/// A group is empty by now; a dying process may hold it for a moment.
fn remove(folder: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => break,
        }
    }
}

/// The folder of this process's own group: of a version 1 controller, or of version 2.
fn place(controller: Option<&str>) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (root, mounted) = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let (fields, kind): (Vec<&str>, Vec<&str>) = (before.split(' ').collect(), after.split(' ').collect());
        let fits = match controller {
            None => *kind.first()? == "cgroup2",
            Some(name) => *kind.first()? == "cgroup" && kind.get(2)?.split(',').any(|option| option == name),
        };
        fits.then(|| (fields.get(3).copied(), fields.get(4).copied()))
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = controller.map_or(names.is_empty(), |name| names.split(',').any(|found| found == name));
        fits.then_some(path)
    })?;
    // A container may see only a part of the tree.
    let inside = path.strip_prefix(root?).unwrap_or(path);
    Some(Path::new(mounted?).join(inside.trim_start_matches('/')))
}
