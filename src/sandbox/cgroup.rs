//! Limits memory and processes of one slot by control groups (version 2 or 1), where this process may make them.

use super::Limits;
use crate::files::scratch::{Held, sweep};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

/// The control groups of one slot: one folder in version 2, one per controller in version 1. Removed when dropped, or
/// by a sweep after the worker's death.
#[derive(Debug)]
pub(super) struct Cgroup {
    memory: Held,
    /// `None` in version 2, where `memory` has both controllers.
    pids: Option<Held>,
    /// Limits in force: bytes and processes. `None` where they are not known to be written.
    allowed: Cell<Option<(u64, u64)>>,
}

/// Processes in the groups that belong to no script: the loader, which forks the scripts.
const OWN: u64 = 1;
/// Bytes added to a job's limit for what the script's process holds while it waits for the job (some 3 MB).
const OWN_BYTES: u64 = 8 << 20;

impl Cgroup {
    /// Makes groups below this process's own. Error: why that is not possible here.
    pub fn create() -> Result<Self, String> {
        Self::create_v2()
            .or_else(|why_not_2| Self::create_v1().map_err(|why_not_1| format!("{why_not_2}; {why_not_1}")))
    }

    fn create_v2() -> Result<Self, String> {
        let parent = place(None).ok_or("no cgroup v2 is mounted")?;
        let text = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        if !["memory", "pids"].iter().all(|c| text.split_ascii_whitespace().any(|found| found == *c)) {
            return Err(format!("{}: the controllers memory and pids are not delegated", parent.display()));
        }
        // Works where no process lives in the parent itself; changes nothing where it is already done.
        let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory +pids");
        let group = Self { memory: make(&parent)?, pids: None, allowed: Cell::default() };
        match group.memory.path.join("memory.max").exists() && group.memory.path.join("pids.max").exists() {
            true => Ok(group),
            false => Err(format!("{}: memory and pids cannot be switched on for children", parent.display())),
        }
    }

    fn create_v1() -> Result<Self, String> {
        let parent = |controller: &str| {
            place(Some(controller)).ok_or_else(|| format!("no cgroup v1 of {controller} is mounted"))
        };
        let (memory, pids) = (parent("memory")?, parent("pids")?);
        let memory = make(&memory)?;
        let pids = make(&pids).inspect_err(|_| remove(&memory.path))?;
        Ok(Self { memory, pids: Some(pids), allowed: Cell::default() })
    }

    /// Removes groups left by dead workers of this pool or any other.
    pub fn sweep() {
        let parents = [None, Some("memory"), Some("pids")].into_iter().filter_map(place);
        parents.for_each(|parent| sweep(&parent, remove));
    }

    fn is_v2(&self) -> bool {
        self.pids.is_none()
    }

    /// The folder of the group that limits processes.
    fn pids(&self) -> &Path {
        &self.pids.as_ref().unwrap_or(&self.memory).path
    }

    /// Puts a process into the groups. Its children are born there; moving each script would take some 10 ms in v1.
    pub fn join(&self, pid: i32) -> std::io::Result<()> {
        for group in [Some(&self.memory), self.pids.as_ref()].into_iter().flatten() {
            fs::write(group.path.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// Sets the limits of the next job.
    pub fn limit(&self, limits: &Limits) -> std::io::Result<()> {
        if !self.is_v2() {
            let _ = fs::write(self.memory.path.join("memory.max_usage_in_bytes"), "0"); // resets the peak
        }
        let allowed = (limits.memory_bytes.saturating_add(OWN_BYTES), limits.processes.saturating_add(OWN));
        // Unknown until everything is written.
        if self.allowed.replace(None) != Some(allowed) {
            fs::write(self.pids().join("pids.max"), allowed.1.to_string())?;
            if self.is_v2() {
                let _ = fs::write(self.memory.path.join("memory.swap.max"), "0"); // absent without swap
            }
            let most = if self.is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
            fs::write(self.memory.path.join(most), allowed.0.to_string())?;
        }
        self.allowed.set(Some(allowed));
        Ok(())
    }

    /// Returns how many processes the kernel has killed for memory so far.
    pub fn out_of_memory_kills(&self) -> u64 {
        let name = if self.is_v2() { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory.path.join(name)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Returns the peak memory of the last job in bytes; `None` where the kernel does not report it.
    pub fn peak_bytes(&self) -> Option<u64> {
        // In version 2 the peak cannot be reset, so it would cover all jobs.
        let text = (!self.is_v2()).then(|| fs::read_to_string(self.memory.path.join("memory.max_usage_in_bytes")));
        text?.ok()?.trim().parse().ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        [Some(&self.memory), self.pids.as_ref()].into_iter().flatten().for_each(|group| remove(&group.path));
    }
}

/// Makes a new group in the folder of another.
fn make(parent: &Path) -> Result<Held, String> {
    Held::make(parent).map_err(|e| format!("a group in {}: {e}", parent.display()))
}

/// Removes an empty group. Tries again for up to 1 s, since a dying process may hold it for a moment.
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

/// Finds the folder of this process's own group: in version 1 for a `controller`, in version 2 for `None`.
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
