//! The processes of a run, by what they do; what a run leaves behind when it is over.

use crate::stage::{PROGRAM, Room};
use crate::support::tree;
use onestep::sandbox::worker::HELPER_ARGUMENT;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a process of a run does. A script and its keeper are not here: what becomes of them is the script's own result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Trainer,
    Helper,
    Worker,
    ForkServer,
    Loader,
    /// Every process of the run.
    All,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Trainer => "trainer",
            Role::Helper => "helper",
            Role::Worker => "worker",
            Role::ForkServer => "fork-server",
            Role::Loader => "loader",
            Role::All => "all",
        }
    }

    /// True when the run ends with it.
    pub fn ends_the_run(self) -> bool {
        matches!(self, Role::Trainer | Role::All)
    }
}

/// A line of the process table: it cannot be mistaken for a later process of the same number.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    pub pid: u32,
    parent: u32,
    session: u32,
    started: u64,
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |i: usize| fields.get(i)?.parse::<u64>().ok();
    let (parent, session) = (number(1)? as u32, number(3)? as u32);
    (fields[0] != "Z" && fields[0] != "X").then_some(Process { pid, parent, session, started: number(19)? })
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// True for the helper and what it forks: workers, fork-servers, keepers.
fn is_helper_or_below(pid: u32) -> bool {
    command_line(pid).starts_with(&format!("{PROGRAM} {HELPER_ARGUMENT}"))
}

/// The processes of the run with this trainer, those that are there by now.
pub fn roles(trainer: u32) -> BTreeMap<Role, Vec<Process>> {
    let all = processes();
    let children = |parents: &[Process], is_ours: bool| -> Vec<Process> {
        let below = all.iter().filter(|p| parents.iter().any(|parent| parent.pid == p.parent));
        below.filter(|p| is_helper_or_below(p.pid) == is_ours).cloned().collect()
    };
    let own: Vec<Process> = all.iter().filter(|p| p.pid == trainer).cloned().collect();
    let helper = children(&own, true);
    let workers = children(&helper, true);
    let servers = children(&workers, true);
    let loaders = children(&servers, false);
    let named = [
        (Role::Trainer, own),
        (Role::Helper, helper),
        (Role::Worker, workers),
        (Role::ForkServer, servers),
        (Role::Loader, loaders),
    ];
    named.into_iter().filter(|(_, processes)| !processes.is_empty()).collect()
}

/// The trainer and everything below it.
pub fn everything(trainer: u32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = all.iter().filter(|p| p.pid == trainer).cloned().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|p| p.pid) {
        found.extend(all.iter().filter(|p| p.parent == parent).cloned());
        next += 1;
    }
    found
}

/// Sends `signal` to each; how many were still there.
pub fn send_all(to: &[Process], signal: Signal) -> usize {
    to.iter().filter(|process| send(process, signal)).count()
}

fn send(to: &Process, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(to.pid as i32) else { return false };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    // Of what the handle means now.
    process(to.pid).is_some_and(|now| now.started == to.started) && pidfd_send_signal(handle, signal).is_ok()
}

/// What must be gone when a run is over, however often it was killed. What a version of the program is known to leave can be allowed.
pub struct Leftovers {
    cgroups: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
    /// Sessions that helpers of the run have made.
    sessions: BTreeSet<u32>,
}

/// How long what is below a killed trainer may take to end.
const AFTERMATH: Duration = Duration::from_secs(30);

impl Leftovers {
    /// What is there before the run.
    pub fn before() -> Self {
        Self { cgroups: empty_cgroups(), mounts: mounts(), sessions: BTreeSet::new() }
    }

    /// Remembers the session of the run's helper.
    pub fn look(&mut self, room: &Room) {
        self.sessions.extend(helpers(room).iter().map(|process| process.session));
    }

    /// What the run that is over has left, by kind: nothing.
    pub fn count(&mut self, room: &Room) -> BTreeMap<&'static str, usize> {
        let deadline = Instant::now() + AFTERMATH;
        let mut living = self.living(room);
        while !living.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            living = self.living(room);
        }
        let lines: Vec<String> = living.iter().map(|p| format!("{p:?} {}", command_line(p.pid))).collect();
        assert!(living.is_empty(), "processes are left:\n{}", lines.join("\n"));
        let mounts: Vec<String> = mounts().difference(&self.mounts).cloned().collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        let out = fs::File::open(&room.out).unwrap();
        assert!(out.try_lock().is_ok(), "{} is still locked", room.out.display());
        let cgroups: Vec<PathBuf> = empty_cgroups().difference(&self.cgroups).cloned().collect();
        let in_tmpdir = names(&room.temporary);
        let in_out: Vec<PathBuf> = tree(&room.out).into_keys().filter(|path| is_temporary(path)).collect();
        assert!(cgroups.is_empty(), "control groups are left: {cgroups:?}");
        assert!(in_tmpdir.is_empty(), "left in TMPDIR: {in_tmpdir:?}");
        assert!(in_out.is_empty(), "temporary files are left: {in_out:?}");
        BTreeMap::from([
            ("processes", 0),
            ("mounts", 0),
            ("locks", 0),
            ("control groups", cgroups.len()),
            ("in TMPDIR", in_tmpdir.len()),
            ("in --out", in_out.len()),
        ])
    }

    fn living(&self, room: &Room) -> Vec<Process> {
        let helpers = helpers(room);
        let all = processes().into_iter();
        all.filter(|p| self.sessions.contains(&p.session) || helpers.contains(p)).collect()
    }
}

/// A name that only a file has which is being written.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains(".tmp") || name.ends_with(".old") || name.ends_with(".gone")
}

/// Processes of the program that say what they say where this room's runs do.
fn helpers(room: &Room) -> Vec<Process> {
    let says_here = |pid: u32| fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|to| to.starts_with(room.path()));
    processes().into_iter().filter(|p| is_helper_or_below(p.pid) && says_here(p.pid)).collect()
}

/// Control groups of sandboxes in which no process lives.
fn empty_cgroups() -> BTreeSet<PathBuf> {
    let is_empty = |path: &Path| fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
    let is_ours = |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("onestep-"));
    folders(Path::new("/sys/fs/cgroup"), 6).into_iter().filter(|path| is_ours(path) && is_empty(path)).collect()
}

fn folders(top: &Path, depth: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    let own: Vec<PathBuf> =
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect();
    let further: Vec<PathBuf> =
        own.iter().filter(|_| depth > 0).flat_map(|folder| folders(folder, depth - 1)).collect();
    [own, further].concat()
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter(|line| line.contains("onestep")).map(str::to_string).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
