//! The keeper of one job: the first process of its namespaces, with which everything in them dies. It lays out the job's files before the
//! script and carries out afterwards what the script has made.

use super::protocol::Job;
use super::pulse::{KILL_GRACE, LOOK, Listener, Pulse, SILENCE};
use super::root::{DEVICES, OLD, mount_tmpfs, old};
use super::system::doing;
use super::{WORKSPACE, landlock, system};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, chownat, fchown, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// The namespaces of a job; those of network and host name are its slot's, since nothing in them outlives a job.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
/// Bytes from which a data file is shown to the script in place of being copied for it.
const LARGE: u64 = 1 << 16;
/// Of what a script leaves behind: entries, and folders inside each other, that are carried out.
pub(super) const MOST_ENTRIES: usize = 2000;
pub(super) const MOST_DEPTH: usize = 16;
const INODES: u32 = 20_000;
/// Errors in carrying out that are the host's; any other is of what the script left, a name too long, a file in a folder's place.
const HOST_ERRORS: [Errno; 6] = [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::ROFS, Errno::MFILE, Errno::NFILE];

/// What is known of a job ahead of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// The script's, where it is another than ours.
    pub user: Option<u32>,
    /// The folder for its temporary files.
    pub scratch: &'a Path,
    /// The limit of the job before: the next one's is most often the same.
    pub disk_bytes: u64,
}

/// A running keeper, as the process that forked it sees it.
pub(super) struct Keeper {
    pub pid: i32,
    /// The CPU seconds that it has used, once it is gone: then `pid` may be another's.
    gone: Option<f64>,
    link: OwnedFd,
    listener: Listener,
    /// What it said that was not asked for: why it has ended.
    last: Option<Said>,
}

impl Keeper {
    /// Forks it, from a process with one thread in a root of [`super::root`]. `script` leads to the process that waits for what it is to run.
    /// Returns also descriptors of its namespaces (of processes, of messages, of mounts) and of the script's Landlock rules.
    pub fn start(ahead: Ahead, script: OwnedFd) -> io::Result<(Self, Vec<OwnedFd>)> {
        let (link, theirs) = system::socket_pair()?;
        // SAFETY: no process of a worker has a second thread.
        let Some(pid) = unsafe { system::fork_into(NAMESPACES) }.map_err(doing("namespaces of a job"))? else {
            // SAFETY: whoever owns a descriptor in this copy of the process is never come back to.
            unsafe { system::close_all_but([theirs.as_fd(), script.as_fd()]) };
            if let Err(error) = keep(ahead, theirs.as_fd(), script) {
                let _ = say(theirs.as_fd(), &Err(error.to_string()), &[]);
            }
            system::exit_now(0)
        };
        drop(theirs);
        let mut keeper = Self { pid, gone: None, link, listener: Listener::new("the keeper", SILENCE), last: None };
        match keeper.said(|| Ok(())) {
            Ok((Ok(_), roads)) if roads.len() == 4 => Ok((keeper, roads)),
            Ok((said, _)) => {
                keeper.wait(|| Ok(()))?;
                Err(io::Error::other(said.err().unwrap_or("no descriptors are left".to_string())))
            }
            Err(error) => {
                keeper.wait(|| Ok(()))?;
                Err(error)
            }
        }
    }

    /// Has it lay out the job's files and then send the script with its `outputs`, stdout and stderr, on its way.
    pub fn begin(&mut self, job: &Job, outputs: [BorrowedFd; 2]) -> io::Result<()> {
        self.listener.heard();
        system::send(self.link.as_fd(), &serde_json::to_vec(job)?, &outputs)
    }

    /// Ends everything in its namespaces, with the files carried out: nothing but the keeper itself lives then. CPU seconds of what it has
    /// waited for, and its own; what could not be laid or carried out, or that it was killed. Calls `beat` meanwhile. An error when it says
    /// nothing for too long.
    pub fn end(&mut self, mut beat: impl FnMut() -> io::Result<()>) -> io::Result<(f64, Option<String>)> {
        let _ = system::send(self.link.as_fd(), b"end", &[]);
        let said = match self.last.take() {
            Some(said) => said,
            None => self.said(&mut beat)?.0,
        };
        Ok(match said {
            Ok(seconds) => (seconds, None),
            Err(why) => (self.wait(beat)?, Some(why)),
        })
    }

    /// Its link, to be listened to during the job, until it has ended.
    pub fn speaking(&self) -> Option<BorrowedFd<'_>> {
        self.last.is_none().then(|| self.link.as_fd())
    }

    /// Hears what it says during the job, when there is something. An error when it has said nothing for too long.
    pub fn listen(&mut self, has_said: bool) -> io::Result<()> {
        if has_said {
            self.listener.heard();
            self.last = self.message().map(|(said, _)| said);
        }
        if self.last.is_none() { self.listener.check() } else { Ok(()) }
    }

    /// Kills it.
    pub fn kill(&self) {
        if self.gone.is_none() {
            system::kill_child(self.pid);
        }
    }

    /// Waits until it is gone, which has said its last, and all processes of its namespaces and its mounts with it: the CPU seconds that they
    /// have used. Calls `beat` meanwhile. An error when they do not go.
    pub fn wait(&mut self, beat: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
        // Or it would stay if it is stopped.
        self.kill();
        let seconds = match self.gone {
            Some(seconds) => seconds,
            None => system::wait_meanwhile(self.pid, KILL_GRACE, LOOK, beat)?,
        };
        self.gone = Some(seconds);
        Ok(seconds)
    }

    /// Waits for what it says.
    fn said(&mut self, mut beat: impl FnMut() -> io::Result<()>) -> io::Result<(Said, Vec<OwnedFd>)> {
        self.listener.heard();
        loop {
            if let [true] = system::wait_readable([Some(self.link.as_fd())], LOOK)? {
                self.listener.heard();
                if let Some(said) = self.message() {
                    return Ok(said);
                }
            }
            self.listener.check()?;
            beat()?;
        }
    }

    /// One message; none when it only says that the keeper lives.
    fn message(&self) -> Option<(Said, Vec<OwnedFd>)> {
        let (message, fds) = system::receive(self.link.as_fd()).unwrap_or_default();
        let killed = |_| Err("the keeper was killed".to_string());
        (message != ALIVE).then(|| (serde_json::from_slice(&message).unwrap_or_else(killed), fds))
    }
}

/// What a keeper says: CPU seconds, its own and those of what it has waited for, or what it could not do.
type Said = Result<f64, String>;

/// Says that the keeper lives.
const ALIVE: &[u8] = b"alive";

fn say(link: BorrowedFd, said: &Said, fds: &[BorrowedFd]) -> io::Result<()> {
    system::send(link, &serde_json::to_vec(said)?, fds)
}

/// The keeper's life.
fn keep(ahead: Ahead, link: BorrowedFd, script: OwnedFd) -> io::Result<()> {
    system::die_with_parent();
    system::new_session();
    system::handle_no_faults();
    rustix::process::umask(Mode::empty());
    let ended = system::child_ends()?;
    enter(ahead)?;
    let mut roads = vec![];
    for name in ["pid", "ipc", "mnt"] {
        roads.push(OwnedFd::from(File::open(format!("/proc/self/ns/{name}")).map_err(doing("naming its namespaces"))?));
    }
    let writable: Vec<&Path> =
        [WORKSPACE, "/dev/shm"].into_iter().chain(DEVICES).map(Path::new).chain([ahead.scratch]).collect();
    roads.push(landlock::ruleset(&["/"], &writable, &[])?);
    say(link, &Ok(0.0), &roads.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    drop(roads);

    // Until a job comes nobody listens.
    let (message, outputs) = system::receive(link)?;
    let mut pulse = Pulse::new(link, ALIVE);
    let job: Job = serde_json::from_slice(&message)?;
    if job.limits.disk_bytes != ahead.disk_bytes {
        for folder in [Path::new(WORKSPACE), ahead.scratch] {
            let size = CString::new(format!("size={}", job.limits.disk_bytes))?;
            mount_remount(folder, MountFlags::NOSUID | MountFlags::NODEV, size.as_c_str())
                .map_err(doing("its size"))?;
        }
    }
    let mut files = Files { user: ahead.user, laid: HashMap::new(), pulse: &mut pulse };
    let host = files.lay_out_all(&job)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let kept = if ahead.user.is_some() {
        CapabilitySet::DAC_READ_SEARCH | CapabilitySet::KILL
    } else {
        CapabilitySet::empty()
    };
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })?;
    set_no_new_privs(true)?;
    // Whoever waits for the script knows whether it is there.
    let _ = begin_script(script, &job, &outputs.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    drop(outputs);

    // Orphans of the script become ours, and what they have used is counted when they are waited for.
    while let [false, has_ended] = system::wait_readable([Some(link), Some(ended.as_fd())], LOOK)? {
        files.pulse.beat()?;
        if has_ended {
            let _ = (&ended).read(&mut [0; 1024]);
            system::reap();
        }
    }
    // Read, or the answer would be lost with what is not.
    system::receive(link)?;
    system::end_namespace();
    // Many take long to be gone.
    while system::reap() {
        if let [true] = system::wait_readable([Some(ended.as_fd())], LOOK)? {
            let _ = (&ended).read(&mut [0; 1024]);
        }
        files.pulse.beat()?;
    }
    files.carry_out(&job, host.as_fd())?;
    // Before anything is closed: with `host` goes the last of the host's mounts, which takes its time.
    say(link, &Ok(system::cpu_seconds()), &[])
}

/// Tells a script's process that waits what to run, and in which limits.
pub(super) fn begin_script(script: OwnedFd, job: &Job, outputs: &[BorrowedFd]) -> io::Result<()> {
    system::send(script.as_fd(), &serde_json::to_vec(&(&job.script, &job.limits))?, outputs)
}

/// Mounts what is this job's own, in the slot's root.
fn enter(ahead: Ahead) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount("proc", "/proc", "proc", flags, None).map_err(doing("mounting /proc"))?;
    let user = ahead.user.unwrap_or(rustix::process::getuid().as_raw());
    let disk = format!("size={},nr_inodes={INODES},mode=700,uid={user}", ahead.disk_bytes);
    for folder in [Path::new(WORKSPACE), ahead.scratch] {
        mount_tmpfs(folder, MountFlags::empty(), &disk)?;
    }
    let shared = format!("size=16m,nr_inodes=1024,mode=700,uid={user}");
    mount_tmpfs(Path::new("/dev/shm"), MountFlags::empty(), &shared)?;
    system::set_mount(Path::new("/"), system::READ_ONLY, false).map_err(doing("a root that is read only"))?;
    std::env::set_current_dir(WORKSPACE)
}

/// What of a file says that it was changed: bytes, and the time of the last change in seconds and nanoseconds.
type Stamp = (u64, i64, i64);

fn stamp(info: &fs::Metadata) -> Stamp {
    (info.len(), info.mtime(), info.mtime_nsec())
}

/// The script's folder inside the sandbox.
struct Files<'a, 'b> {
    pulse: &'a mut Pulse<'b>,
    user: Option<u32>,
    /// Files as they were laid out.
    laid: HashMap<PathBuf, Stamp>,
}

impl Files<'_, '_> {
    /// Lays out the job's files and leaves the host behind but for the job's folder, which is returned.
    fn lay_out_all(&mut self, job: &Job) -> io::Result<OwnedFd> {
        let folder = old(&job.folder);
        let opening = || doing(format!("opening {}", job.folder.display()));
        let host = openat(CWD, &folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(opening())?;
        let laying = || doing(format!("laying out {}", job.folder.display()));
        self.lay_out(&folder, Path::new(WORKSPACE)).map_err(laying())?;
        for (name, source) in &job.data {
            self.lay_data(&old(source), &Path::new(WORKSPACE).join(name)).map_err(doing(format!("showing {name}")))?;
        }
        unmount(OLD, UnmountFlags::DETACH).map_err(doing("leaving the host"))?;
        Ok(host)
    }

    fn lay_out(&mut self, source: &Path, target: &Path) -> io::Result<()> {
        for entry in fs::read_dir(source)? {
            self.pulse.beat()?;
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, target.join(entry.file_name()));
            if kind.is_symlink() {
                symlink(fs::read_link(entry.path())?, path)?;
            } else if kind.is_dir() {
                DirBuilder::new().mode(0o755).create(&path)?;
                self.lay_out(&entry.path(), &path)?;
                if let Some(user) = self.user {
                    chownat(CWD, &path, Some(Uid::from_raw(user)), None, AtFlags::empty())?;
                }
            } else if kind.is_file() {
                let whole = open_file(&entry.path())?;
                let info = whole.metadata()?;
                let mode = info.mode() & 0o777;
                let mut copy = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
                io::copy(&mut whole.take(info.len()), &mut copy)?;
                if let Some(user) = self.user {
                    fchown(&copy, Some(Uid::from_raw(user)), None::<Gid>)?;
                }
                self.laid.insert(path, stamp(&copy.metadata()?));
            }
        }
        Ok(())
    }

    /// A file that all jobs share, to be read only: by a mount, unless it is small or shut to the script's user.
    fn lay_data(&mut self, source: &Path, path: &Path) -> io::Result<()> {
        let info = fs::metadata(source)?;
        let own = self.user.unwrap_or(rustix::process::getuid().as_raw());
        if info.len() >= LARGE && (info.mode() & 0o004 != 0 || info.uid() == own) {
            File::create(path)?;
            mount_bind(source, path)?;
            system::set_mount(path, system::READ_ONLY, false)?;
        } else {
            copy_data(source, path)?;
        }
        self.laid.insert(path.to_path_buf(), stamp(&fs::symlink_metadata(path)?));
        Ok(())
    }

    /// Copies the regular files that the script made or changed into the job's folder `host`. What is none is left behind: links, pipes,
    /// devices, what is too large, too deep or shut. A file that is changed meanwhile is the script's own affair.
    fn carry_out(self, job: &Job, host: BorrowedFd) -> io::Result<()> {
        let device = fs::symlink_metadata(WORKSPACE)?.dev();
        let (entries, bytes) = (MOST_ENTRIES, job.limits.disk_bytes);
        let (file_bytes, laid) = (job.limits.file_bytes, &self.laid);
        let mut carrier = Carrier { pulse: self.pulse, device, entries, bytes, file_bytes, laid };
        match carrier.folder(Path::new(WORKSPACE), host, 0) {
            // The script has shut its own folder.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => result.map_err(doing(format!("carrying out what was written to {}", job.folder.display()))),
        }
    }
}

/// What may still be carried out.
struct Carrier<'a, 'b> {
    pulse: &'a mut Pulse<'b>,
    device: u64,
    entries: usize,
    bytes: u64,
    file_bytes: u64,
    laid: &'a HashMap<PathBuf, Stamp>,
}

impl Carrier<'_, '_> {
    fn folder(&mut self, inside: &Path, outside: BorrowedFd, depth: usize) -> io::Result<()> {
        let mut names =
            fs::read_dir(inside)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<OsString>>>()?;
        names.sort();
        for name in names {
            self.pulse.beat()?;
            let Some(left) = self.entries.checked_sub(1) else { return Ok(()) };
            self.entries = left;
            match self.entry(&inside.join(&name), Path::new(&name), outside, depth) {
                Err(error) if HOST_ERRORS.iter().any(|host| error.raw_os_error() == Some(host.raw_os_error())) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &Path, outside: BorrowedFd, depth: usize) -> io::Result<()> {
        let info = fs::symlink_metadata(path)?;
        if info.is_dir() && depth < MOST_DEPTH {
            match mkdirat(outside, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let within = openat(outside, name, flags, Mode::empty())?;
            self.folder(path, within.as_fd(), depth + 1)
        } else if info.is_file() && info.dev() == self.device && self.laid.get(path) != Some(&stamp(&info)) {
            self.file(path, name, outside)
        } else {
            Ok(())
        }
    }

    fn file(&mut self, path: &Path, name: &Path, outside: BorrowedFd) -> io::Result<()> {
        let file = open_file(path)?;
        let info = file.metadata()?;
        if !info.is_file() || info.len() > self.file_bytes.min(self.bytes) {
            return Ok(());
        }
        self.bytes -= info.len();
        match unlinkat(outside, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut copy = File::from(openat(outside, name, flags, Mode::from_raw_mode(0o644))?);
        io::copy(&mut file.take(info.len()), &mut copy).map(drop).inspect_err(|_| {
            // A part of it is no file.
            let _ = unlinkat(outside, name, AtFlags::empty());
        })
    }
}

/// A copy of its own for one job, which shares the blocks where the file system can, and cannot be written.
pub(super) fn copy_data(source: &Path, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error), // left by a job that lost its worker
        _ => {}
    }
    let whole = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(source)?;
    let info = whole.metadata()?;
    if !info.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    // No more than it had: it may grow meanwhile.
    io::copy(&mut whole.take(info.len()), &mut copy).map(drop)
}

/// Opens a file that may meanwhile be a link or a pipe: without following or waiting.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}
