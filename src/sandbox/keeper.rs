//! The keeper of one job: the first process of its namespaces; everything in them dies with it. It lays out the job's
//! files before the script begins and carries out what the script has made afterwards.

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

/// Namespaces of a job. Those of network and host name belong to its slot, since nothing in them outlives a job.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
/// Bytes from which a data file is shown to the script by a mount instead of a copy.
const LARGE: u64 = 1 << 16;
/// Most entries, and most levels of nested folders, that are carried out of what a script leaves behind.
pub(super) const MOST_ENTRIES: usize = 2000;
pub(super) const MOST_DEPTH: usize = 16;
const INODES: u32 = 20_000;
/// Errors in carrying out that are the host's. Any other comes from what the script left: a name too long, a file in a
/// folder's place.
const HOST_ERRORS: [Errno; 6] = [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::ROFS, Errno::MFILE, Errno::NFILE];

/// Settings for a job that has not arrived yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead<'a> {
    /// User of the script, where it is not ours.
    pub user: Option<u32>,
    /// The folder for its temporary files.
    pub scratch: &'a Path,
    /// Disk limit of the previous job, which the next one usually has too.
    pub disk_bytes: u64,
}

/// A running keeper, as the process that forked it sees it.
pub(super) struct Keeper {
    pub pid: i32,
    /// CPU seconds that it has used, once it is gone; from then on `pid` may be another process's.
    gone: Option<f64>,
    link: OwnedFd,
    listener: Listener,
    /// Message that was not asked for: why it has ended.
    last: Option<Said>,
}

impl Keeper {
    /// Forks a keeper. The calling process must have one thread and a root made by [`super::root`]. `script` is the
    /// socket to the script's process, which waits to be told what to run. Also returns descriptors of the keeper's
    /// namespaces (pid, ipc, mount) and of the script's Landlock rules.
    pub fn start(ahead: Ahead, script: OwnedFd) -> io::Result<(Self, Vec<OwnedFd>)> {
        let (link, theirs) = system::socket_pair()?;
        // SAFETY: no process of a worker has a second thread.
        let Some(pid) = unsafe { system::fork_into(NAMESPACES) }.map_err(doing("namespaces of a job"))? else {
            // SAFETY: control never returns to any owner of a descriptor in this copy of the process.
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

    /// Tells it to lay out the job's files and then to start the script with its `outputs`, stdout and stderr.
    pub fn begin(&mut self, job: &Job, outputs: [BorrowedFd; 2]) -> io::Result<()> {
        self.listener.heard();
        system::send(self.link.as_fd(), &serde_json::to_vec(job)?, &outputs)
    }

    /// Ends all other processes in its namespaces and has the files carried out. Returns CPU seconds (the keeper's own
    /// and of what it has waited for), and what could not be laid or carried out, or that it was killed. Calls `beat`
    /// meanwhile. Error: it is silent for too long.
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

    /// Returns its link, to be listened to during the job; `None` once it has sent its last message.
    pub fn speaking(&self) -> Option<BorrowedFd<'_>> {
        self.last.is_none().then(|| self.link.as_fd())
    }

    /// Receives its message during the job, if there is one. Error: it has been silent for too long.
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

    /// Kills it and waits until it is gone, with all processes of its namespaces and its mounts. Call it when no more
    /// messages are expected. Returns the CPU seconds that they have used. Calls `beat` meanwhile. Error: it does not
    /// end.
    pub fn wait(&mut self, beat: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
        // A stopped keeper would never end by itself.
        self.kill();
        let seconds = match self.gone {
            Some(seconds) => seconds,
            None => system::wait_meanwhile(self.pid, KILL_GRACE, LOOK, beat)?,
        };
        self.gone = Some(seconds);
        Ok(seconds)
    }

    /// Waits for a message that is no heartbeat. Calls `beat` meanwhile. Error: it is silent for too long.
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

    /// Receives one message; `None` for a heartbeat.
    fn message(&self) -> Option<(Said, Vec<OwnedFd>)> {
        let (message, fds) = system::receive(self.link.as_fd()).unwrap_or_default();
        let killed = |_| Err("the keeper was killed".to_string());
        (message != ALIVE).then(|| (serde_json::from_slice(&message).unwrap_or_else(killed), fds))
    }
}

/// A keeper's message: CPU seconds (its own and of what it has waited for), or what it could not do.
type Said = Result<f64, String>;

/// The keeper's heartbeat.
const ALIVE: &[u8] = b"alive";

fn say(link: BorrowedFd, said: &Said, fds: &[BorrowedFd]) -> io::Result<()> {
    system::send(link, &serde_json::to_vec(said)?, fds)
}

/// Runs the keeper, from its fork to its last message.
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

    // Nobody listens until a job comes, so there are no heartbeats before.
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
    // Ignored: whoever waits for the script's process knows whether it still exists.
    let _ = begin_script(script, &job, &outputs.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    drop(outputs);

    // Orphans of the script become our children, and their CPU time is counted when they are waited for.
    while let [false, has_ended] = system::wait_readable([Some(link), Some(ended.as_fd())], LOOK)? {
        files.pulse.beat()?;
        if has_ended {
            let _ = (&ended).read(&mut [0; 1024]);
            system::reap();
        }
    }
    // Closing the socket with an unread message would lose the answer.
    system::receive(link)?;
    system::end_namespace();
    // Many processes take long to end.
    while system::reap() {
        if let [true] = system::wait_readable([Some(ended.as_fd())], LOOK)? {
            let _ = (&ended).read(&mut [0; 1024]);
        }
        files.pulse.beat()?;
    }
    files.carry_out(&job, host.as_fd())?;
    // Answer before closing anything: closing `host` releases the last of the host's mounts, which takes time.
    say(link, &Ok(system::cpu_seconds()), &[])
}

/// Tells a waiting script's process what to run and within which limits.
pub(super) fn begin_script(script: OwnedFd, job: &Job, outputs: &[BorrowedFd]) -> io::Result<()> {
    system::send(script.as_fd(), &serde_json::to_vec(&(&job.script, &job.limits))?, outputs)
}

/// Mounts the job's own file systems in the slot's root, makes the root read-only and enters the script's folder.
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

/// Values that tell whether a file was changed: bytes, and the time of the last change in seconds and nanoseconds.
type Stamp = (u64, i64, i64);

fn stamp(info: &fs::Metadata) -> Stamp {
    (info.len(), info.mtime(), info.mtime_nsec())
}

/// The script's folder inside the sandbox.
struct Files<'a, 'b> {
    pulse: &'a mut Pulse<'b>,
    user: Option<u32>,
    /// Stamps of the files as they were laid out.
    laid: HashMap<PathBuf, Stamp>,
}

impl Files<'_, '_> {
    /// Lays out the job's files and detaches the host's root. Returns a descriptor of the job's folder on the host.
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

    /// Shows a read-only file that all jobs share: by a mount, or by a copy if it is small or shut to the script's
    /// user.
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

    /// Copies the regular files that the script made or changed into the job's folder `host`. Leaves behind everything
    /// else: links, pipes, devices, and what is too large, too deep or not readable. A file that is changed meanwhile
    /// may be copied in part.
    fn carry_out(self, job: &Job, host: BorrowedFd) -> io::Result<()> {
        let device = fs::symlink_metadata(WORKSPACE)?.dev();
        let (entries, bytes) = (MOST_ENTRIES, job.limits.disk_bytes);
        let (file_bytes, laid) = (job.limits.file_bytes, &self.laid);
        let mut carrier = Carrier { pulse: self.pulse, device, entries, bytes, file_bytes, laid };
        match carrier.folder(Path::new(WORKSPACE), host, 0) {
            // The script has made its own folder unreadable.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => result.map_err(doing(format!("carrying out what was written to {}", job.folder.display()))),
        }
    }
}

/// Copies files out of the sandbox and counts what may still be copied.
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
            // Leave no partial file.
            let _ = unlinkat(outside, name, AtFlags::empty());
        })
    }
}

/// Makes a read-only copy for one job, which shares blocks with the source where the file system can.
pub(super) fn copy_data(source: &Path, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error), // left by a job whose worker died
        _ => {}
    }
    let whole = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(source)?;
    let info = whole.metadata()?;
    if !info.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    // No more than its length now: it may grow meanwhile.
    io::copy(&mut whole.take(info.len()), &mut copy).map(drop)
}

/// Opens a file without following a link or waiting for a pipe, as it may have become one.
fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}
