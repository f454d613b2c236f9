//! What hostile scripts are after: labels in three places, sockets that listen, a process of the trainer's user, and the check
//! that none of it was touched and nothing is left over.

use super::AS_USER;
use onestep::sandbox::{Job, Limits, Python};
use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};
use tempfile::TempDir;

/// Files with this name that scripts try to leave in folders of the machine.
const LEFT: &str = "hostile-left";
/// Large enough to be shown to a script by a mount.
const DATA_BYTES: usize = 100_000;
/// What carries out, and what tier 1 leaves: entries of a folder.
const MOST_ENTRIES: usize = 2100;

macro_rules! calls {
    ($($(#[$on:meta])? $name:ident),* $(,)?) => { [$($(#[$on])? (stringify!($name), libc::$name)),*] };
}

/// Numbers of system calls, for scripts.
fn calls() -> serde_json::Value {
    let calls = calls![
        SYS_memfd_create,
        SYS_memfd_secret,
        SYS_shmget,
        SYS_semget,
        SYS_msgget,
        SYS_shmctl,
        SYS_removexattr,
        SYS_lremovexattr,
        #[cfg(target_arch = "x86_64")]
        SYS_utime,
        #[cfg(target_arch = "x86_64")]
        SYS_utimes,
        #[cfg(target_arch = "x86_64")]
        SYS_futimesat,
        SYS_open_by_handle_at,
        SYS_name_to_handle_at,
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_kcmp,
        SYS_pidfd_open,
        SYS_ioprio_set,
        SYS_unshare,
        SYS_clone,
        SYS_clone3,
        SYS_setns,
        SYS_open_tree,
        SYS_move_mount,
        SYS_fsopen,
        SYS_fspick,
        SYS_mount_setattr,
        SYS_pivot_root,
        SYS_mount,
        SYS_io_uring_setup,
        SYS_io_uring_enter,
        SYS_io_uring_register,
        SYS_add_key,
        SYS_request_key,
        SYS_keyctl,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_fanotify_init,
        SYS_init_module,
        SYS_kexec_load,
        SYS_reboot,
        SYS_swapoff,
        SYS_syslog,
        SYS_acct,
        SYS_personality,
        SYS_vhangup,
        SYS_settimeofday,
        SYS_adjtimex,
        SYS_clock_adjtime,
        SYS_seccomp,
    ];
    calls
        .iter()
        .map(|(name, number)| (name.trim_start_matches("SYS_").to_string(), (*number).into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

pub fn is_root() -> bool {
    // SAFETY: a plain call.
    unsafe { libc::getuid() == 0 }
}

pub fn helper() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_onestep"))
}

/// The interpreter of the pools: one that other users can execute too, where there is one.
pub fn python() -> Python {
    match std::env::var_os(AS_USER) {
        Some(given) => Python::ensure(Some(Path::new(&given)), Path::new("/"), &mut |_| ()).unwrap(),
        None => python_for(super::NOBODY).unwrap_or_else(private),
    }
}

fn private() -> Python {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache");
    Python::ensure(None, &cache, &mut |line| eprintln!("{line}")).unwrap()
}

/// An interpreter with the packages of the tests that the user `uid` can execute: the tests' own, or, where that lies in a closed
/// folder, the system's Python of the same version with the same packages. Only root can ask for another user.
pub fn python_for(uid: u32) -> Option<Python> {
    let own = private();
    if !is_root() || works(&own.interpreter, uid) {
        return Some(own);
    }
    let version = own.versions[0].1.rsplit_once('.').unwrap().0.to_string();
    let packages = own.interpreter.parent()?.parent()?.join(format!("lib/python{version}/site-packages"));
    let base = [format!("/usr/bin/python{version}"), format!("/usr/local/bin/python{version}")]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    static MADE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MADE.lock().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python{version}-for-all"));
    let lib = folder.join(format!("lib/python{version}"));
    let link = |to: &Path, at: PathBuf| match std::os::unix::fs::symlink(to, at) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => panic!("{error}"),
        _ => {}
    };
    fs::create_dir_all(&lib).unwrap();
    fs::create_dir_all(folder.join("bin")).unwrap();
    link(Path::new(&base), folder.join("bin/python"));
    link(&packages, lib.join("site-packages"));
    fs::write(folder.join("pyvenv.cfg"), format!("home = {}\n", Path::new(&base).parent()?.display())).unwrap();
    let interpreter = folder.join("bin/python");
    works(&interpreter, uid).then(|| Python::ensure(Some(&interpreter), Path::new("/"), &mut |_| ()).unwrap())
}

fn works(interpreter: &Path, uid: u32) -> bool {
    let mut command = Command::new(interpreter);
    command.args(["-s", "-c", "import numpy, sklearn"]).env_clear().current_dir("/").uid(uid).gid(uid);
    command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    #[allow(dead_code)] // for messages
    name: String,
    parent: u32,
}

/// Every living process below `root`.
pub fn processes_below(root: u32) -> Vec<Process> {
    let parse = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        (fields[0] != "Z").then(|| Process { pid, name: name.to_string(), parent: fields[1].parse().unwrap() })
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let mut all: Vec<Process> =
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(parse).collect();
    let (mut parents, mut found) = (vec![root], Vec::new());
    while let Some(parent) = parents.pop() {
        let (below, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|process| process.parent == parent);
        parents.extend(below.iter().map(|process| process.pid));
        found.extend(below);
        all = rest;
    }
    found
}

/// Processes of a pool of `slots`, when there are no others than those of an idle one: of each slot the worker, its fork-server and the
/// loader, and at most a keeper and a script's process that wait for a job. What it has instead after a minute is the error.
pub fn idle_processes(helper: u32, slots: usize) -> Result<Vec<Process>, Vec<Process>> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let all = processes_below(helper);
        let below = |pid: u32| all.iter().filter(move |process| process.parent == pid).collect::<Vec<_>>();
        let is_idle = |worker: &Process| {
            let [server] = below(worker.pid)[..] else { return false };
            let (keepers, loaders): (Vec<_>, Vec<_>) =
                below(server.pid).into_iter().partition(|process| process.name.ends_with("(onestep"));
            let [loader] = loaders[..] else { return false };
            let waiting = below(loader.pid);
            keepers.len() <= 1
                && keepers.len() == waiting.len()
                && keepers.iter().chain(&waiting).all(|process| below(process.pid).is_empty())
        };
        let workers = below(helper);
        if workers.len() == slots && workers.into_iter().all(is_idle) {
            return Ok(all);
        }
        if Instant::now() >= deadline {
            return Err(all);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A System V segment that everybody may attach, with a text in it.
struct SharedMemory(i32);

impl SharedMemory {
    fn new(text: &str) -> Self {
        // SAFETY: the new segment is larger than the text that is written to it, and is attached only meanwhile.
        unsafe {
            let id = libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o666);
            let place = libc::shmat(id, std::ptr::null(), 0);
            assert!(id >= 0 && place as isize != -1, "{}", io::Error::last_os_error());
            std::ptr::copy_nonoverlapping(text.as_ptr(), place.cast::<u8>(), text.len());
            libc::shmdt(place);
            Self(id)
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: a plain call.
        unsafe { libc::shmctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

pub struct World {
    folder: TempDir,
    token: String,
    secrets: Vec<PathBuf>,
    in_home: Option<PathBuf>,
    tcp: TcpListener,
    udp: UdpSocket,
    unix: UnixDatagram,
    abstracted: UnixListener,
    name: String,
    /// Of the trainer's user, with the token in its environment.
    decoy: Child,
    mounts: BTreeSet<String>,
    _shared_memory: SharedMemory,
}

impl World {
    pub fn new() -> Self {
        // In memory where that is possible: a disk takes long over trees of 20,000 folders.
        let named = |place: &Path| tempfile::Builder::new().prefix("hostile-").tempdir_in(place);
        let folder = named(Path::new("/dev/shm")).or_else(|_| named(&std::env::temp_dir())).unwrap();
        // Others may look in, as they may in most folders; only the sandbox is in the way.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let token = format!("token{:032x}", rand());
        let tasks = folder.path().join("tasks/digits/private");
        fs::create_dir_all(&tasks).unwrap();
        let in_home =
            std::env::var_os("HOME").map(|home| Path::new(&home).join(format!("hostile-{}.csv", &token[5..15])));
        let in_home = in_home.filter(|path| fs::write(path, &token).is_ok());
        let mut secrets = vec![folder.path().join("labels.csv"), tasks.join("labels.csv")];
        for path in &secrets {
            fs::write(path, format!("{token}\n")).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        secrets.extend(in_home.clone());
        fs::write(folder.path().join("tasks/digits/data.npz"), [7; DATA_BYTES]).unwrap();
        let name = format!("hostile-{}", &token[5..25]);
        let unix = UnixDatagram::bind(folder.path().join("socket")).unwrap();
        fs::set_permissions(folder.path().join("socket"), fs::Permissions::from_mode(0o777)).unwrap();
        let abstracted = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        tcp.set_nonblocking(true).unwrap();
        udp.set_nonblocking(true).unwrap();
        unix.set_nonblocking(true).unwrap();
        abstracted.set_nonblocking(true).unwrap();
        let decoy = Command::new("sleep").arg("100000").env("HOSTILE_TOKEN", &token).spawn().unwrap();
        let _shared_memory = SharedMemory::new(&token);
        Self {
            folder,
            token,
            secrets,
            in_home,
            tcp,
            udp,
            unix,
            abstracted,
            name,
            decoy,
            mounts: mounts(),
            _shared_memory,
        }
    }

    /// A folder with a script as train.py and what is laid beside it.
    pub fn job_folder(&self, script: &str) -> TempDir {
        let folder = tempfile::Builder::new().prefix("job-").tempdir_in(self.folder.path()).unwrap();
        let place = |name: &str| folder.path().join(name);
        let around = serde_json::json!({
            "secrets": self.secrets, "tcp": self.tcp.local_addr().unwrap().port(), "udp": self.udp.local_addr().unwrap().port(),
            "unix": self.folder.path().join("socket"), "abstract": self.name, "decoy": self.decoy.id(), "trainer": std::process::id(),
        });
        fs::write(place("train.py"), script).unwrap();
        fs::write(place("where.json"), around.to_string()).unwrap();
        fs::write(place("calls.json"), calls().to_string()).unwrap();
        fs::copy(Path::new(super::script::FOLDER).join("beside/tried.py"), place("tried.py")).unwrap();
        fs::create_dir(place("inner")).unwrap();
        fs::write(place("inner/file"), "inside").unwrap();
        folder
    }

    /// The job of such a folder, with the data that all jobs share.
    pub fn job(&self, folder: &TempDir, limits: Limits) -> Job {
        Job { data: vec![("data.npz".into(), self.data())], ..Job::new(folder.path(), "train.py", limits) }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("tasks/digits/data.npz")
    }

    pub fn shows_token(&self, text: &[u8]) -> bool {
        text.windows(self.token.len()).any(|window| window == self.token.as_bytes())
    }

    pub fn data_is_whole(&self) -> bool {
        fs::read(self.data()).is_ok_and(|data| data == [7; DATA_BYTES])
    }

    /// What a job's folder should not hold: anything but folders and regular files that can be read, too much, labels, forbidden names.
    pub fn strange_files(&self, folder: &Path, forbidden: &[String]) -> Vec<(PathBuf, String)> {
        let (mut strange, mut count, mut todo) = (Vec::new(), 0, vec![folder.to_path_buf()]);
        while let Some(folder) = todo.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) => {
                    strange.push((folder, format!("cannot be listed: {error}")));
                    continue;
                }
            };
            for path in entries.map(|entry| entry.unwrap().path()) {
                count += 1;
                let info = fs::symlink_metadata(&path).unwrap();
                let problem = match fs::read(&path) {
                    _ if info.is_dir() => {
                        todo.push(path.clone());
                        continue;
                    }
                    _ if !info.is_file() => "is no regular file".to_string(),
                    _ if info.mode() & 0o6000 != 0 => "is setuid".to_string(),
                    _ if forbidden.iter().any(|name| path.ends_with(name)) => "should not be there".to_string(),
                    Err(error) => format!("cannot be read: {error}"),
                    Ok(text) if self.shows_token(&text) => "holds the labels".to_string(),
                    Ok(_) => continue,
                };
                strange.push((path, problem));
            }
        }
        if count > MOST_ENTRIES {
            strange.push((folder.to_path_buf(), format!("holds {count} entries")));
        }
        strange
    }

    /// After the pool is gone. `workers` are the process numbers it used.
    pub fn assert_nothing_is_left(mut self, workers: &BTreeSet<u32>) {
        let refused = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        refused(self.tcp.accept().expect_err("a script reached the TCP port"));
        refused(self.udp.recv(&mut [0; 100]).expect_err("a script reached the UDP port"));
        refused(self.unix.recv(&mut [0; 100]).expect_err("a script reached the socket's path"));
        refused(self.abstracted.accept().expect_err("a script reached the abstract socket"));
        for path in &self.secrets {
            assert_eq!(fs::read_to_string(path).unwrap().trim(), self.token, "{}", path.display());
        }
        // Alive, not stopped, its priority as it was (19th field of proc(5), the 17th after the name).
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.decoy.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        assert!(fields[0] == "S" && fields[16] == own_nice(), "the trainer's process: {stat}");
        self.decoy.kill().unwrap();
        self.decoy.wait().unwrap();

        let groups = |folder: &Path| -> Vec<PathBuf> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            entries.filter(|path| fs::symlink_metadata(path).is_ok_and(|info| info.is_dir())).collect()
        };
        let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(folder) = todo.pop() {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            let ours = name
                .strip_prefix("onestep-")
                .and_then(|rest| rest.split('-').next()?.parse().ok())
                .is_some_and(|pid| workers.contains(&pid));
            assert!(!ours, "a control group is left: {}", folder.display());
            todo.extend(groups(&folder));
        }
        for folder in [
            std::env::temp_dir().as_path(),
            Path::new("/tmp"),
            Path::new("/dev/shm"),
            Path::new("/var/tmp"),
            self.folder.path(),
        ] {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!(!name.starts_with(LEFT) && !name.starts_with("core"), "left in {}: {name}", folder.display());
            }
        }
        let jobs = fs::read_dir(self.folder.path())
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("job-"));
        assert_eq!(
            jobs.map(|entry| entry.path()).collect::<Vec<_>>(),
            Vec::<PathBuf>::new(),
            "folders of jobs that cannot be removed"
        );
        let new: Vec<String> = mounts().difference(&self.mounts).cloned().collect();
        assert!(new.is_empty(), "mounts are left: {new:?}");
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let pid = process.file_name().to_string_lossy().parse().unwrap_or(0);
            assert!(!workers.contains(&pid) || is_reused(pid), "process {pid} of the pool is left");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.decoy.kill();
        let _ = self.decoy.wait();
        let _ = self.in_home.as_ref().map(fs::remove_file);
    }
}

/// True for a process that is no worker or fork-server, or is ending; its number was given away again.
fn is_reused(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    let is_ours = || {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.contains("sandbox") || line.contains("seccomp"))
    };
    while is_ours() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    !is_ours()
}

/// Kinds that sandboxes mount, of this process's own namespace.
fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines()
        .filter(|line| line.contains(" - tmpfs ") || line.contains(" - proc ") || line.contains("/job-"))
        .map(str::to_string)
        .collect()
}

fn own_nice() -> String {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().to_string()
}

fn rand() -> u128 {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    u128::from_ne_bytes(bytes)
}
