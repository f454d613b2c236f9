//! The fork-server of one slot: enters the isolation of a tier, keeps the loader (loader.py) inside it, and takes each
//! job through its steps. From tier 2 on, the next job's keeper (in new namespaces) and the script's process (which the
//! loader forks into them) wait for the job. Then the keeper lays out the files and starts the script, and ends what is
//! left afterwards.
//!
//! Fork-server and loader are two processes because most of a job's cost is the fork of the loaded Python: this process
//! is small, so its fork of the keeper is cheap.

use super::keeper::{Ahead, Keeper, begin_script, copy_data};
use super::limits::Limits;
use super::protocol::{Job, Start};
use super::pulse::{HEARTBEAT, LOADING, LOOK, Listener, Pulse, SILENCE};
use super::root::{self, OLD};
use super::system::doing;
use super::{WORKSPACE, landlock, system};
use rustix::fs::{AtFlags, CWD, Uid, chownat};
use rustix::thread::{CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LOADER: &str = include_str!("loader.py");
/// The loader's whole environment: one thread per script, and nothing that differs between two runs.
const ENVIRONMENT: [(&str, &str); 10] = [
    ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ("LANG", "C.UTF-8"),
    ("PYTHONUTF8", "1"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("OMP_NUM_THREADS", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("MKL_NUM_THREADS", "1"),
    ("LOKY_MAX_CPU_COUNT", "1"),
    ("JOBLIB_MULTIPROCESSING", "0"),
];
/// Room for new processes of the user while a script runs, where they count together with the script's.
const SPARE_TASKS: u64 = 256;
/// Name and source of the script that tests a tier. It reads the interpreter's files, as a user of its own may not
/// reach them below a home folder.
pub(super) const TRIAL_SCRIPT: (&str, &str) =
    ("trial.py", "import os, sys\nos.stat(sys.prefix)\nopen(os.__file__).close()\n");
const TRIAL: Limits = Limits {
    cpu_seconds: 1.0,
    wall_seconds: 60.0,
    memory_bytes: 1 << 30,
    output_bytes: 0,
    file_bytes: 1 << 20,
    disk_bytes: 1 << 20,
    processes: 8,
};

/// Messages of the loader to the fork-server, and of the fork-server to the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// The loader's process id, sent once the isolation is in force and again once the libraries are loaded.
    Ready(i32),
    /// The sender ends, and why.
    Error(String),
    /// Heartbeat.
    Alive,
    /// Process to kill to end the job: its keeper or, without namespaces, the script.
    Pid(i32),
    Ended(Ended),
    /// From tier 2 on, after each job: nothing of it is left. With the next job's keeper, if one already waits.
    Free(Option<i32>),
}

/// How the script's process ended, as the loader's wait saw it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub exit: Option<i32>,
    pub signal: Option<i32>,
    pub memory_error: bool,
    pub cpu_seconds: f64,
    /// Peak memory of its largest process, in bytes.
    pub peak_bytes: u64,
    /// Why no script has run, or why its files were not carried out.
    pub failure: Option<String>,
}

impl Ended {
    /// Makes the result of a script that has not run, and why.
    fn not_run(why: &io::Error) -> Self {
        let (signal, failure) = (Some(libc::SIGKILL), Some(why.to_string()));
        Self { exit: None, signal, memory_error: false, cpu_seconds: 0.0, peak_bytes: 0, failure }
    }
}

/// The heartbeat: [`Answer::Alive`] as JSON.
const ALIVE: &[u8] = b"\"alive\"";

/// Waits for an answer that is no heartbeat, and calls `beat` meanwhile. Error: the other process has ended or is
/// silent for too long.
pub(super) fn await_answer(
    from: BorrowedFd,
    mut listener: Listener,
    mut beat: impl FnMut() -> io::Result<()>,
) -> io::Result<Answer> {
    loop {
        if let [true] = system::wait_readable([Some(from)], LOOK)? {
            match receive_answer(from)? {
                Answer::Alive => listener.heard(),
                answer => return Ok(answer),
            }
        }
        listener.check()?;
        beat()?;
    }
}

/// Receives one answer. Error: the other process has ended.
pub(super) fn receive_answer(from: BorrowedFd) -> io::Result<Answer> {
    let (message, _) = system::receive(from)?;
    if message.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the fork-server or its loader has ended"));
    }
    Ok(serde_json::from_slice(&message)?)
}

fn answer(worker: BorrowedFd, answer: &Answer) -> io::Result<()> {
    system::send(worker, &serde_json::to_vec(answer)?, &[])
}

/// The isolation that a fork-server is to enter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tried {
    /// See [`super::Isolation`].
    pub tier: u8,
    /// User of the slot's scripts, where it is not ours.
    pub user: Option<u32>,
}

/// Runs the fork-server, in a fork of the worker. `trial` is a folder of its own with [`TRIAL_SCRIPT`].
pub(super) fn serve(worker: OwnedFd, start: &Start, tried: Tried, trial: &Path) -> ! {
    system::die_with_parent();
    // SAFETY: control never returns to any owner of a descriptor in this copy of the process.
    unsafe { system::close_all_but([worker.as_fd()]) };
    let ended = Server::start(start, tried, trial).and_then(|server| {
        answer(worker.as_fd(), &Answer::Ready(server.loader))?;
        let modules = serde_json::json!({ "load": start.wanted.preload });
        system::send(server.link.as_fd(), modules.to_string().as_bytes(), &[])?;
        server.await_loader().and_then(ready)?;
        answer(worker.as_fd(), &Answer::Ready(server.loader))?;
        server.serve(worker.as_fd())
    });
    if let Err(error) = ended {
        let _ = answer(worker.as_fd(), &Answer::Error(error.to_string()));
    }
    system::exit_now(0)
}

struct Server {
    tier: u8,
    user: Option<u32>,
    /// In tier 1, paths that scripts may list, and paths that they may read.
    seen: (Vec<PathBuf>, Vec<PathBuf>),
    /// Folder for temporary files, from tier 2 on.
    scratch: &'static Path,
    loader: i32,
    link: OwnedFd,
}

impl Server {
    /// Enters the isolation, starts the loader in it and tests both.
    fn start(start: &Start, Tried { tier, user }: Tried, trial: &Path) -> io::Result<Self> {
        let mut seen = (vec![], vec![]);
        if tier == 1 {
            seen = landlock::around(&start.folders.read, &start.folders.hidden)?;
            seen.1.extend(["/etc/ld.so.cache", "/dev/urandom"].map(PathBuf::from));
        }
        let scratch = if tier >= 2 { root::scratch(&start.folders)? } else { Path::new("/") };
        if tier >= 2 && root::enter(&start.folders, scratch)? && user.is_some() {
            return Err(io::Error::other("only a user namespace is possible, in which there is one user"));
        }
        let (link, theirs) = system::socket_pair()?;
        let loader = start_loader(start, Tried { tier, user }, scratch, theirs)?;
        let server = Self { tier, user, seen, scratch, loader, link };
        server.await_loader().and_then(ready).map_err(doing("the loader"))?;
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(doing("opening /dev/null"))?;
        let trial = Job::new(trial, TRIAL_SCRIPT.0, TRIAL);
        let mut keeper = None;
        let ended = server.run(trial, [null.as_fd(); 2], &mut keeper, None)?;
        keeper.map_or(Ok(0.0), |mut keeper| keeper.wait(|| Ok(())))?;
        match ended {
            Ended { exit: Some(0), failure: None, .. } => Ok(server),
            Ended { failure: Some(failure), .. } => Err(io::Error::other(failure)),
            Ended { exit: Some(1), .. } => Err(io::Error::other("a script cannot read the interpreter's files")),
            ended => Err(io::Error::other(format!("a trial ended with {ended:?}"))),
        }
    }

    /// Serves jobs until the worker closes its end. Error: the loader has ended.
    fn serve(&self, worker: BorrowedFd) -> io::Result<()> {
        let mut keeper = None;
        loop {
            let (message, outputs) = system::receive(worker)?;
            let [stdout, stderr] = outputs.as_slice() else { return Ok(()) };
            let job: Job = serde_json::from_slice(&message)?;
            let (outputs, disk_bytes) = ([stdout.as_fd(), stderr.as_fd()], job.limits.disk_bytes);
            let ended = self.run(job, outputs, &mut keeper, Some(worker))?;
            // Whatever waits for the next job lives within this job's limits until then, so it is made ahead only after
            // a job that ended well.
            let was_well = ended.signal.is_none() && ended.failure.is_none();
            answer(worker, &Answer::Ended(ended))?;
            if let Some(mut ended) = keeper.take() {
                let mut pulse = Pulse::new(worker, ALIVE);
                ended.wait(|| pulse.beat())?;
            }
            if self.tier >= 2 {
                keeper = was_well.then(|| self.keeper(disk_bytes).ok()).flatten();
                answer(worker, &Answer::Free(keeper.as_ref().map(|keeper| keeper.pid)))?;
            }
        }
    }

    /// Runs one job to its end. `outputs` are stdout and stderr. `keeper` is the one that waits for a job, if any, and
    /// afterwards the one that has ended this job. `worker` gets heartbeats and, unless the keeper was already waiting,
    /// the process to kill to end the job. A failure before the script begins is in the result. Error: this process
    /// cannot go on.
    fn run(
        &self,
        mut job: Job,
        outputs: [BorrowedFd; 2],
        keeper: &mut Option<Keeper>,
        worker: Option<BorrowedFd>,
    ) -> io::Result<Ended> {
        let mut report = Report(worker.map(|worker| Pulse::new(worker, ALIVE)));
        // In a user namespace of our own, the keeper and our two processes count too. On the host's tree, for an
        // ordinary user, all processes of that user count: there the worker counts the job's, and this limit only keeps
        // a fork bomb small enough to be stopped.
        job.limits.processes += match (self.user, self.tier) {
            (Some(_), _) => 0,
            (None, 2..) => 3,
            (None, _) => SPARE_TASKS + system::tasks_of_user(),
        };
        if self.tier < 2 {
            return match self.prepare(&job) {
                Ok(rules) => {
                    let (script, theirs) = system::socket_pair()?;
                    self.fork_script(&job.folder, theirs, rules.as_slice())?;
                    // Ignored: the loader's answer says whether the script's process still exists.
                    let _ = begin_script(script, &job, &outputs);
                    self.ended(None, &mut report)
                }
                Err(error) => Ok(Ended::not_run(&error)),
            };
        }
        let keeper = match keeper {
            Some(keeper) => keeper,
            None => match self.keeper(job.limits.disk_bytes) {
                Ok(made) => {
                    report.pid(made.pid)?;
                    keeper.insert(made)
                }
                Err(error) => return Ok(Ended::not_run(&error)),
            },
        };
        if keeper.begin(&job, outputs).is_err() {
            keeper.kill();
        }
        let mut ended = self.ended(Some(keeper), &mut report)?;
        let (seconds, failure) = keeper.end(|| report.beat())?;
        ended.cpu_seconds += seconds; // orphans of the script were the keeper's children
        ended.failure = failure.or(ended.failure);
        Ok(ended)
    }

    /// Makes a keeper, and a script's process in its namespaces, that wait for a job.
    fn keeper(&self, disk_bytes: u64) -> io::Result<Keeper> {
        let (script, theirs) = system::socket_pair()?;
        let ahead = Ahead { user: self.user, scratch: self.scratch, disk_bytes };
        let (keeper, roads) = Keeper::start(ahead, script)?;
        self.fork_script(Path::new(WORKSPACE), theirs, &roads)?;
        Ok(keeper)
    }

    /// Prepares a job on the host's own tree: copies the data and gives the folder to the script's user. Returns
    /// Landlock's rules in tier 1.
    fn prepare(&self, job: &Job) -> io::Result<Option<OwnedFd>> {
        for (name, source) in &job.data {
            copy_data(source, &job.folder.join(name)).map_err(doing(format!("copying {name}")))?;
        }
        if let Some(user) = self.user {
            give(&job.folder, user).map_err(doing(format!("giving {} away", job.folder.display())))?;
        }
        let writable = [job.folder.as_path(), Path::new("/dev/null")];
        (self.tier == 1).then(|| landlock::ruleset(&self.seen.1, &writable, &self.seen.0)).transpose()
    }

    /// Tells the loader to fork a script's process, which waits at `link` for its job, and then to wait for its end.
    /// `folder` is the script's folder as the process sees it. `sealed` are descriptors of the namespaces that it joins
    /// and of Landlock's rules.
    fn fork_script(&self, folder: &Path, link: OwnedFd, sealed: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<_> = [&link].into_iter().chain(sealed).map(AsFd::as_fd).collect();
        system::send(self.link.as_fd(), serde_json::json!({ "folder": folder }).to_string().as_bytes(), &fds)
    }

    /// Waits until the script's process has ended and returns how. Passes what the loader says of its start to
    /// `report`. Error: the loader or the keeper, which both send heartbeats, is silent for too long.
    fn ended(&self, mut keeper: Option<&mut Keeper>, report: &mut Report) -> io::Result<Ended> {
        let mut loader = Listener::new("the loader", SILENCE);
        loop {
            let kept = keeper.as_ref().and_then(|keeper| keeper.speaking());
            let [answered, has_kept] = system::wait_readable([Some(self.link.as_fd()), kept], LOOK)?;
            if answered {
                loader.heard();
                match receive_answer(self.link.as_fd())? {
                    Answer::Alive => {}
                    Answer::Pid(pid) => report.pid(pid)?,
                    Answer::Ended(ended) => return Ok(ended),
                    Answer::Error(error) => return Err(io::Error::other(error)),
                    other => return Err(io::Error::other(format!("the loader answered {other:?}"))),
                }
            }
            if let Some(keeper) = &mut keeper {
                keeper.listen(has_kept)?;
            }
            loader.check()?;
            report.beat()?;
        }
    }

    /// Waits for the loader's answer, which may take as long as loading takes.
    fn await_loader(&self) -> io::Result<Answer> {
        await_answer(self.link.as_fd(), Listener::new("the loader", LOADING), || Ok(()))
    }
}

/// Reports to the worker during a job; `None` during a trial.
struct Report<'a>(Option<Pulse<'a>>);

impl Report<'_> {
    /// Says which process to kill to end the job.
    fn pid(&self, pid: i32) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |pulse| answer(pulse.to, &Answer::Pid(pid)))
    }

    /// Sends this process's heartbeat when it is due.
    fn beat(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Pulse::beat)
    }
}

/// Returns the process id of [`Answer::Ready`]. Error: any other answer.
pub(super) fn ready(answer: Answer) -> io::Result<i32> {
    match answer {
        Answer::Ready(pid) => Ok(pid),
        Answer::Error(error) => Err(io::Error::other(error)),
        other => Err(io::Error::other(format!("it began with {other:?}"))),
    }
}

/// Starts the loader with this process's capabilities: without root it would lose them on exec. Returns its process id.
fn start_loader(start: &Start, Tried { tier, user }: Tried, scratch: &Path, stdin: OwnedFd) -> io::Result<i32> {
    let filters = match tier {
        0 => vec![],
        1 if system::landlock_version() < 6 => {
            [&start.filters.all, &start.filters.host, &start.filters.signals].to_vec()
        }
        1 => [&start.filters.all, &start.filters.host].to_vec(),
        _ => vec![&start.filters.all],
    };
    let none = vec![];
    let settings = serde_json::json!({
        "tier": tier,
        "heartbeat": HEARTBEAT.as_secs_f64(),
        "user": user,
        "scratch": scratch,
        "old": if tier >= 2 { OLD } else { "" },
        "filters": filters.into_iter().flatten().collect::<Vec<_>>(),
        "last": if tier >= 1 { &start.filters.last } else { &none },
    });
    let own = capabilities(None)?.permitted;
    set_capabilities(None, CapabilitySets { effective: own, permitted: own, inheritable: own })?;
    for capability in own.iter().filter(|one| one.bits().count_ones() == 1) {
        // Fails for a capability that this kernel does not have.
        let _ = configure_capability_in_ambient_set(capability, true);
    }
    let mut command = Command::new(&start.interpreter);
    command.args(["-s", "-c", LOADER]).arg(settings.to_string());
    command.env_clear().envs(ENVIRONMENT).current_dir("/");
    command.stdin(Stdio::from(stdin)).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure only makes system calls.
    unsafe {
        command.pre_exec(|| {
            system::die_with_parent();
            system::heed_requests(true);
            system::fix_addresses();
            Ok(())
        })
    };
    let loader = command.spawn().map_err(doing(format!("executing {}", start.interpreter.display())))?;
    Ok(loader.id() as i32)
}

/// Gives a folder and everything in it to the slot's user.
fn give(folder: &Path, user: u32) -> io::Result<()> {
    let mut todo = vec![folder.to_path_buf()];
    while let Some(path) = todo.pop() {
        chownat(CWD, &path, Some(Uid::from_raw(user)), None, AtFlags::SYMLINK_NOFOLLOW)?;
        if std::fs::symlink_metadata(&path)?.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                todo.push(entry?.path());
            }
        }
    }
    Ok(())
}
