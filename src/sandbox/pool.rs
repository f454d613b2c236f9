//! Many workers executing jobs in parallel, forked from one small helper process. Owns their lives; runs no script itself.

use super::protocol::{Isolation, Job, Outcome, Protection, Reply, Verdict, Wanted};
use super::worker::{self, Start};
use super::{Limits, Python, seccomp, system};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the helper may take to end by itself when the pool is dropped.
const SHUTDOWN: Duration = Duration::from_secs(10);
const PROBE: &str = include_str!("probe.py");

/// Sandbox workers of one trainer. Dropping it ends the helper and everything below it; so does the death of this
/// process, however it comes.
pub struct Pool {
    /// None only while being dropped.
    control: Option<Mutex<OwnedFd>>,
    helper: Child,
    idle: Mutex<Vec<Slot>>,
    freed: Condvar,
    workers: usize,
    protection: Protection,
}

/// A worker as this process sees it; None when it has died and was not needed since.
#[derive(Default)]
struct Slot(Option<BufReader<UnixStream>>);

impl Pool {
    /// Starts `helper` (our own binary, whose main calls [`worker::helper_main`]) and `workers` workers (at least 1), waits
    /// until their libraries are loaded, and tries out the protection.
    ///
    /// Call it early, before threads, weights and devices: the helper is made by fork and exec of this process.
    pub fn start(helper: &Path, workers: usize, python: &Python, wanted: Wanted) -> Result<Self> {
        let workers = workers.max(1);
        let start = Start {
            interpreter: python.interpreter.clone(),
            folders: python.folders()?,
            filters: seccomp::filters()?,
            best: wanted.best,
            unsafe_without: wanted.unsafe_without,
        };
        let start =
            serde_json::to_string(&start).map_err(|error| Error::system(format!("sandbox settings: {error}")))?;
        let doing =
            |error: io::Error| Error::system(format!("starting the sandbox helper {}: {error}", helper.display()));
        let (control, theirs) = system::socket_pair().map_err(doing)?;
        let child = Command::new(helper)
            .arg(worker::HELPER_ARGUMENT)
            .arg(start)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(doing)?;
        let protection = Protection {
            tier: 0,
            network_closed: false,
            pid_namespace: false,
            files_closed: false,
            files_hidden: false,
            notes: Vec::new(),
        };
        let mut pool = Self {
            control: Some(Mutex::new(control)),
            helper: child,
            idle: Mutex::new(Vec::new()),
            freed: Condvar::new(),
            workers,
            protection,
        };
        // All are forked first, so that they load their libraries side by side.
        let links = (0..workers).map(|_| pool.fork_worker()).collect::<Result<Vec<_>>>()?;
        let mut isolation = Isolation::default();
        for mut link in links {
            isolation = await_ready(&mut link).map_err(start_error)?;
            lock(&pool.idle).push(Slot(Some(link)));
        }
        pool.protection = pool.probe(isolation)?;
        Ok(pool)
    }

    /// The protection in force, found by trying it in a sandbox of this pool.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// How many jobs run side by side.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The helper's process id: the root of all processes of this pool.
    pub fn helper_pid(&self) -> u32 {
        self.helper.id()
    }

    /// Runs one job and waits for it. See [`Pool::run_many`].
    pub fn run(&self, job: Job) -> Result<Verdict> {
        let job = validated(job)?;
        let mut slot = self.take();
        let result = self.run_on(&mut slot, &job);
        lock(&self.idle).push(slot);
        self.freed.notify_one();
        result
    }

    /// Runs jobs on all workers in parallel; verdicts in the order of the jobs. Callers on several threads share the workers.
    ///
    /// A worker or fork-server that dies is replaced and its job is run once more, in the folder as it is then.
    ///
    /// # Errors
    /// Content: a folder that is none, a script outside it, a limit that is no positive number. System: a worker died
    /// twice over one job, or a job could not be sealed. After the first error no further job is begun.
    pub fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Verdict>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < jobs.len()) {
                let result = self.run(jobs[i].clone());
                if result.is_err() {
                    next.store(jobs.len(), Ordering::Relaxed);
                }
                *lock(&results[i]) = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.workers.min(jobs.len()) {
                scope.spawn(work);
            }
            work();
        });
        let results = results.into_iter().map(|cell| cell.into_inner().unwrap_or_else(PoisonError::into_inner));
        // Jobs begin in order, so the first error comes before any job that was not begun.
        results.map_while(|result| result).collect()
    }

    fn take(&self) -> Slot {
        let idle = self.freed.wait_while(lock(&self.idle), |idle| idle.is_empty());
        idle.unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn run_on(&self, slot: &mut Slot, job: &Job) -> Result<Verdict> {
        let what = || format!("sandbox job {} in {}", job.script, job.folder.display());
        let mut line = serde_json::to_vec(job).map_err(|error| Error::system(format!("{}: {error}", what())))?;
        line.push(b'\n');
        let mut last = String::new();
        for _attempt in 0..2 {
            let link = match &mut slot.0 {
                Some(link) => link,
                None => {
                    let mut link = self.fork_worker()?;
                    await_ready(&mut link).map_err(start_error)?;
                    slot.0.insert(link)
                }
            };
            match link.get_mut().write_all(&line).and_then(|()| read_reply(link)) {
                Ok(Reply::Done(verdict)) => return Ok(verdict),
                Ok(Reply::Failed(why)) => last = why,
                Ok(Reply::Ready(_)) => last = "a worker answered out of turn".to_string(),
                Err(error) => last = error.to_string(),
            }
            slot.0 = None;
        }
        Err(Error::system(format!("{}: it could not be run twice in a row: {last}", what())))
    }

    /// Asks the helper for a worker. It cannot take jobs before it is ready.
    fn fork_worker(&self) -> Result<BufReader<UnixStream>> {
        let doing = |error: io::Error| Error::system(format!("starting a sandbox worker: {error}"));
        let Some(control) = &self.control else { return Err(Error::system("the sandbox pool has ended")) };
        let (ours, theirs) = UnixStream::pair().map_err(doing)?;
        system::send(lock(control).as_fd(), b"worker", &[theirs.as_fd()]).map_err(doing)?;
        Ok(BufReader::new(ours))
    }

    /// Runs probe.py and checks from this side what it says.
    fn probe(&self, isolation: Isolation) -> Result<Protection> {
        let doing = |error: io::Error| Error::system(format!("trying out the sandbox: {error}"));
        let folder = tempfile::tempdir().map_err(doing)?;
        let inside = folder.path().join("job");
        std::fs::create_dir(&inside).map_err(doing)?;
        let outside = folder.path().join("outside");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(doing)?;
        let port = listener.local_addr().map_err(doing)?.port();
        let readable = folder.path().join("readable");
        std::fs::write(&readable, "text").map_err(doing)?;
        let request = serde_json::json!({ "port": port, "readable": readable, "outside": outside });
        std::fs::write(inside.join("request.json"), request.to_string()).map_err(doing)?;
        std::fs::write(inside.join("probe.py"), PROBE).map_err(doing)?;
        let limits = Limits {
            cpu_seconds: 10.0,
            wall_seconds: 60.0,
            memory_bytes: 1 << 28,
            output_bytes: 1 << 16,
            file_bytes: 1 << 20,
            disk_bytes: 1 << 20,
            processes: 16,
        };
        let verdict = self.run(Job { folder: inside, script: "probe.py".to_string(), limits })?;
        #[derive(Deserialize)]
        struct Answer {
            connected: bool,
            read: bool,
            wrote: bool,
            pid: u32,
        }
        let failed = || Error::system(format!("trying out the sandbox: {:?}, {}", verdict.outcome, verdict.stderr));
        let answer: Answer = match verdict.outcome {
            Outcome::Exited(0) => serde_json::from_str(&verdict.stdout).map_err(|_| failed())?,
            _ => return Err(failed()),
        };
        Ok(Protection {
            tier: isolation.tier,
            files_hidden: !answer.read,
            network_closed: !answer.connected,
            // The first two processes of a namespace; outside of one these numbers belong to the system.
            pid_namespace: answer.pid <= 2,
            files_closed: !answer.wrote && !outside.exists(),
            notes: isolation.notes,
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Workers see their links close, the helper sees the control socket close.
        lock(&self.idle).clear();
        self.control = None;
        let deadline = Instant::now() + SHUTDOWN;
        while matches!(self.helper.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                // Its workers ask the kernel to die with it.
                let _ = self.helper.kill();
                let _ = self.helper.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A panic elsewhere leaves lists of sockets as valid as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_reply(link: &mut BufReader<UnixStream>) -> io::Result<Reply> {
    let mut line = String::new();
    if link.read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the worker died"));
    }
    Ok(serde_json::from_str(&line)?)
}

fn await_ready(link: &mut BufReader<UnixStream>) -> io::Result<Isolation> {
    match read_reply(link)? {
        Reply::Ready(isolation) => Ok(isolation),
        Reply::Failed(why) => Err(io::Error::other(why)),
        Reply::Done(_) => Err(io::Error::other("a worker answered out of turn")),
    }
}

fn start_error(error: io::Error) -> Error {
    Error::system(format!("starting the Python fork-server of a sandbox worker: {error}"))
}

/// The job with its folder resolved, when it can be run.
fn validated(mut job: Job) -> Result<Job> {
    let folder = &job.folder;
    job.folder = folder.canonicalize().map_err(|error| Error::io("opening the job's folder", folder, &error))?;
    if !job.folder.is_dir() {
        return Err(Error::content(format!("{}: a job needs a folder", job.folder.display())));
    }
    if job.script.is_empty() || job.script.contains('\0') || job.script.starts_with('/') {
        return Err(Error::content(format!(
            "{:?}: expected a script's name inside {}",
            job.script,
            job.folder.display()
        )));
    }
    let Limits { cpu_seconds, wall_seconds, .. } = job.limits;
    for (name, seconds) in [("cpu_seconds", cpu_seconds), ("wall_seconds", wall_seconds)] {
        if !(seconds > 0.0 && seconds <= 1e6) {
            return Err(Error::content(format!(
                "limit {name} = {seconds}: expected above 0 and at most 1e6, like 10.0"
            )));
        }
    }
    Ok(job)
}
