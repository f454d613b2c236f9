//! Runs jobs in parallel on many workers, forked from one small helper process. Owns their lives; runs no script.

use super::cgroup::Cgroup;
use super::protocol::{Isolation, Job, Outcome, Protection, Reply, Start, Verdict, Wanted};
use super::pulse::SILENCE;
use super::worker::{self};
use super::{Limits, Python, seccomp, system};
use crate::error::{Error, Result, check_interrupt};
use crate::files::scratch::Scratch;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the helper may take to end by itself when the pool is dropped.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How often a waiting thread checks whether to go on.
const LOOK: Duration = Duration::from_millis(100);
/// A job is not tried again after this many workers died or hung on it.
const STRIKES: usize = 3;
const PROBE: &str = include_str!("probe.py");
const PROBE_LIMITS: Limits = Limits {
    cpu_seconds: 10.0,
    wall_seconds: 60.0,
    memory_bytes: 1 << 28,
    output_bytes: 1 << 16,
    file_bytes: 1 << 20,
    disk_bytes: 1 << 20,
    processes: 16,
};

/// Sandbox workers of one trainer. Dropping it ends the helper and everything below it; so does the death of this
/// process, whatever its cause.
pub struct Pool {
    /// `None` only while being dropped.
    control: Option<Mutex<OwnedFd>>,
    helper: Child,
    queue: Mutex<Queue>,
    freed: Condvar,
    workers: usize,
    protection: Protection,
    /// Isolation that all workers had at the start.
    begun: Isolation,
    /// Ids of jobs that are given up.
    quarantine: Mutex<HashSet<String>>,
    cancelled: Arc<AtomicBool>,
    /// Folder for temporary files of this pool, its helper and its workers.
    scratch: Scratch,
}

/// Idle slots, running jobs and waiting jobs.
#[derive(Default)]
struct Queue {
    idle: Vec<Slot>,
    /// Running jobs by group.
    running: HashMap<String, usize>,
    /// Number and group of each waiting job, in order of arrival.
    waiting: Vec<(u64, String)>,
    next_number: u64,
}

impl Queue {
    /// Returns the number of the next job: the one that has waited longest in the groups with the fewest running jobs.
    fn next(&self) -> Option<u64> {
        let running = |group: &String| self.running.get(group).copied().unwrap_or(0);
        self.waiting.iter().min_by_key(|(number, group)| (running(group), *number)).map(|(number, _)| *number)
    }
}

/// A place for one job at a time. It has no worker when that has died and has not been needed since.
struct Slot {
    number: usize,
    worker: Option<Worker>,
}

/// A worker as this process sees it. It ends when its link is closed, unless it hangs.
struct Worker {
    link: BufReader<UnixStream>,
    process: Option<OwnedFd>,
}

/// Why a job has no verdict.
enum Lost {
    /// The job failed, or no worker could be started for it.
    Failed(String),
    /// Its worker died or hung.
    Worker(String),
    /// No job can be run any more: the run was interrupted, or there is no helper to make workers.
    Over(Error),
}

impl Lost {
    fn into_error(self) -> Error {
        match self {
            Self::Failed(why) | Self::Worker(why) => Error::system(why),
            Self::Over(error) => error,
        }
    }
}

impl Pool {
    /// Starts `helper` (our own binary, whose main calls [`worker::helper_main`]) and `workers` workers (at least 1),
    /// waits until their libraries are loaded, and tests the protection. With no more workers than processors, each
    /// worker has a processor of its own.
    ///
    /// Call it early, before threads, weights and devices: the helper is made by fork and exec of this process.
    ///
    /// While `cancelled` is set, no call waits or begins a job, and running jobs are ended: all calls, including this
    /// one, return an error (interrupted).
    pub fn start(
        helper: &Path,
        workers: usize,
        python: &Python,
        wanted: &Wanted,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Self> {
        let workers = workers.max(1);
        let (processors, scratch) = (system::processors(), Scratch::new()?);
        let start = Start {
            interpreter: python.interpreter.clone(),
            folders: python.folders()?,
            filters: seccomp::filters()?,
            wanted: wanted.clone(),
            processors: if workers <= processors.len() { processors } else { vec![] },
            scratch: scratch.path().to_path_buf(),
        };
        let start = serde_json::to_vec(&start).map_err(|error| Error::system(format!("sandbox settings: {error}")))?;
        if start.len() > system::MAX_MESSAGE {
            return Err(Error::system("the interpreter reads too many folders: sandbox settings are too long"));
        }
        let doing =
            |error: io::Error| Error::system(format!("starting the sandbox helper {}: {error}", helper.display()));
        let (control, theirs) = system::socket_pair().map_err(doing)?;
        let child = Command::new(helper)
            .arg(worker::HELPER_ARGUMENT)
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
            queue: Mutex::default(),
            freed: Condvar::new(),
            workers,
            protection,
            begun: Isolation::default(),
            quarantine: Mutex::default(),
            cancelled,
            scratch,
        };
        if let Some(control) = &pool.control {
            system::send(lock(control).as_fd(), &start, &[]).map_err(doing)?;
        }
        // Fork all first, so that they load their libraries in parallel.
        let links = (0..workers).map(|number| pool.fork_worker(number)).collect::<Result<Vec<_>>>()?;
        let mut weakest: Option<Isolation> = None;
        let mut all_have_users = true;
        for (number, link) in links.into_iter().enumerate() {
            let (worker, found) = pool.await_ready(link).map_err(Lost::into_error)?;
            // Only what all workers have is in force.
            all_have_users &= found.own_user;
            if weakest.as_ref().is_none_or(|weakest| (found.tier, found.own_user) < (weakest.tier, weakest.own_user)) {
                weakest = Some(found);
            }
            lock(&pool.queue).idle.push(Slot { number, worker: Some(worker) });
        }
        pool.begun = Isolation { own_user: all_have_users, ..weakest.unwrap_or_default() };
        pool.protection = pool.probe(pool.begun.clone())?;
        Ok(pool)
    }

    /// Returns the protection in force, found by testing it in a sandbox of this pool.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Returns how many jobs run in parallel.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// Returns the process id of the helper, the root of all processes of this pool.
    pub fn helper_pid(&self) -> u32 {
        self.helper.id()
    }

    /// Runs one job and waits for it. See [`Pool::run_many`].
    pub fn run(&self, job: Job) -> Result<Verdict> {
        let job = validated(job)?;
        let mut slot = self.take(&job.group)?;
        let result = self.run_on(&mut slot, &job);
        self.give_back(slot, &job.group);
        result
    }

    /// Runs jobs on all workers in parallel and returns the verdicts in the order of the jobs. Callers on several
    /// threads share the workers; groups of jobs share them evenly.
    ///
    /// A worker or fork-server that dies or hangs is replaced, and its job is run again in the folder as it is then. If
    /// three of them die or hang on a job while another job runs well, it ends as [`Outcome::Quarantined`], and so does
    /// every later job with its id.
    ///
    /// # Errors
    /// Content: the folder or data does not exist, the name of the script or of data is not valid, a limit is outside
    /// its range. System: no worker can be started, or a job could not be run. Interrupted: see [`Pool::start`]. After
    /// the first error no further job is begun.
    pub fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
        let order = round_robin(&jobs);
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Verdict>>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            while let Some(&i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
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
        // Missing results are of jobs that were not begun after an error, which is among the results.
        results.flatten().collect()
    }

    fn take(&self, group: &str) -> Result<Slot> {
        let mut queue = lock(&self.queue);
        let own = queue.next_number;
        queue.next_number += 1;
        queue.waiting.push((own, group.to_string()));
        loop {
            let taken = match check_interrupt(&self.cancelled) {
                Err(error) => Some(Err(error)),
                Ok(()) if queue.next() == Some(own) => queue.idle.pop().map(Ok),
                Ok(()) => None,
            };
            if let Some(taken) = taken {
                queue.waiting.retain(|(number, _)| *number != own);
                if taken.is_ok() {
                    *queue.running.entry(group.to_string()).or_default() += 1;
                }
                // Another job may be next now, and a second slot idle.
                self.freed.notify_all();
                return taken;
            }
            queue = self.freed.wait_timeout(queue, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn give_back(&self, slot: Slot, group: &str) {
        let mut queue = lock(&self.queue);
        queue.idle.push(slot);
        if let Some(running) = queue.running.get_mut(group) {
            *running -= 1;
        }
        self.freed.notify_all();
    }

    fn run_on(&self, slot: &mut Slot, job: &Job) -> Result<Verdict> {
        if !job.id.is_empty() && lock(&self.quarantine).contains(&job.id) {
            return Ok(quarantined());
        }
        let (mut strikes, mut last) = (0, String::new());
        for _attempt in 0..STRIKES {
            // A worker may be gone because all processes were told to stop.
            let stop = |lost| check_interrupt(&self.cancelled).map_or_else(Lost::Over, |()| lost);
            match self.attempt(slot, job).map_err(stop) {
                Ok(verdict) => return Ok(verdict),
                Err(Lost::Failed(why)) => last = why,
                Err(Lost::Worker(why)) => (strikes, last) = (strikes + 1, why),
                Err(Lost::Over(error)) => {
                    slot.worker = None; // closing its link makes it end the job and itself
                    return Err(error);
                }
            }
            if let Some(Worker { process: Some(process), .. }) = slot.worker.take() {
                system::kill_handle(process.as_fd());
            }
        }
        let failed = |why: &str| {
            let (script, folder) = (&job.script, job.folder.display());
            Error::system(format!("sandbox job {script} in {folder}: it could not be run {STRIKES} times: {why}"))
        };
        if strikes < STRIKES {
            return Err(failed(&last));
        }
        // The job is at fault if another one runs.
        let folder = self.folder().map_err(|error| failed(&error.to_string()))?;
        std::fs::write(folder.path().join("empty.py"), "").map_err(|error| failed(&error.to_string()))?;
        let empty = validated(Job::new(folder.path(), "empty.py", PROBE_LIMITS))?;
        match self.attempt(slot, &empty) {
            Ok(Verdict { outcome: Outcome::Exited(0), .. }) => {
                lock(&self.quarantine).insert(job.id.clone());
                Ok(quarantined())
            }
            _ => Err(failed(&last)),
        }
    }

    /// Runs a job once, on the slot's worker or a new one.
    fn attempt(&self, slot: &mut Slot, job: &Job) -> std::result::Result<Verdict, Lost> {
        let mut line = serde_json::to_vec(job).map_err(|error| Lost::Failed(error.to_string()))?;
        // The job gets longer by some digits on its way.
        let most = system::MAX_MESSAGE - 64;
        if line.len() > most {
            return Err(Lost::Failed(format!("its names and paths have {} bytes, at most {most}", line.len())));
        }
        line.push(b'\n');
        let worker = match &mut slot.worker {
            Some(worker) => worker,
            None => {
                let link = self.fork_worker(slot.number).map_err(Lost::Over)?;
                let (worker, found) = self.await_ready(link)?;
                is_no_weaker(&found, &self.begun).map_err(Lost::Failed)?;
                slot.worker.insert(worker)
            }
        };
        worker.link.get_mut().write_all(&line).map_err(|error| Lost::Worker(error.to_string()))?;
        loop {
            self.await_reply(&worker.link)?;
            match read_reply(&mut worker.link).map_err(|error| Lost::Worker(error.to_string()))? {
                Reply::Alive => {}
                Reply::Done(verdict) => {
                    // Whoever stopped this process may have stopped the script too.
                    check_interrupt(&self.cancelled).map_err(Lost::Over)?;
                    return Ok(verdict);
                }
                Reply::Failed(why) => return Err(Lost::Failed(why)),
                Reply::Ready(..) => return Err(Lost::Worker("it answered out of turn".to_string())),
            }
        }
    }

    /// Waits until a worker says something. Error: interrupted, or it is silent for longer than [`SILENCE`].
    fn await_reply(&self, link: &BufReader<UnixStream>) -> std::result::Result<(), Lost> {
        let silent_until = Instant::now() + SILENCE;
        while link.buffer().is_empty() {
            check_interrupt(&self.cancelled).map_err(Lost::Over)?;
            match system::wait_readable([Some(link.get_ref().as_fd())], LOOK) {
                Ok([false]) if Instant::now() >= silent_until => {
                    return Err(Lost::Worker("the worker hangs".to_string()));
                }
                Ok([false]) => {}
                Ok([true]) => break,
                Err(error) => return Err(Lost::Worker(error.to_string())),
            }
        }
        Ok(())
    }

    /// Asks the helper for a worker and returns the link to it. It cannot take jobs before it is ready.
    fn fork_worker(&self, slot: usize) -> Result<UnixStream> {
        let Some(control) = &self.control else { return Err(Error::system("the sandbox pool has ended")) };
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::system(format!("starting a sandbox worker: {error}")))?;
        system::send(lock(control).as_fd(), slot.to_string().as_bytes(), &[theirs.as_fd()])
            .map_err(|error| self.helper_error(&format!("has ended ({error})")))?;
        Ok(ours)
    }

    /// Waits until a requested worker is ready. It sends heartbeats meanwhile, the first when it is forked.
    fn await_ready(&self, link: UnixStream) -> std::result::Result<(Worker, Isolation), Lost> {
        let failed = |error: io::Error| Lost::Failed(start_error(&error));
        link.set_read_timeout(Some(SILENCE)).map_err(failed)?;
        let mut link = BufReader::new(link);
        let mut is_forked = false;
        loop {
            match self.await_reply(&link) {
                Ok(()) => {}
                Err(Lost::Worker(why)) if is_forked => return Err(failed(io::Error::other(why))),
                Err(Lost::Worker(_)) => {
                    let why = format!("has not made a worker for {} s: it is stopped or hangs", SILENCE.as_secs());
                    return Err(Lost::Over(self.helper_error(&why)));
                }
                Err(lost) => return Err(lost),
            }
            let reply = read_reply(&mut link);
            if reply.is_err() {
                // Whoever stopped this process may have stopped the helper too.
                check_interrupt(&self.cancelled).map_err(Lost::Over)?;
            }
            match reply.map_err(failed)? {
                Reply::Alive => is_forked = true,
                Reply::Ready(isolation, pid) if is_forked => {
                    let process = system::process_handle(pid);
                    // While it holds its end of the link it lives, and its number belongs to no other process.
                    let process = process.filter(|_| !system::peer_is_gone(link.get_ref().as_fd()));
                    return Ok((Worker { link, process }, isolation));
                }
                Reply::Failed(why) if is_forked => return Err(failed(io::Error::other(why))),
                _ => return Err(failed(out_of_turn())),
            }
        }
    }

    /// Makes an error that says what is wrong with the helper, without which no workers can be made, and what to do.
    fn helper_error(&self, what: &str) -> Error {
        Error::system(format!(
            "the sandbox helper (process {}) {what}; no job can be run any more: start the same command again, a run of training with --resume",
            self.helper.id()
        ))
    }

    /// Makes a folder for one of the pool's own jobs.
    fn folder(&self) -> io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("job-").tempdir_in(self.scratch.path())
    }

    /// Runs probe.py and derives the protection from its answer and from whether its file was written outside.
    fn probe(&self, isolation: Isolation) -> Result<Protection> {
        let doing = |error: io::Error| Error::system(format!("trying out the sandbox: {error}"));
        let making = |path: &Path| {
            let path = path.to_path_buf();
            move |error: io::Error| Error::io("trying out the sandbox: making", &path, &error)
        };
        let folder = self.folder().map_err(making(self.scratch.path()))?;
        let inside = folder.path().join("job");
        std::fs::create_dir(&inside).map_err(making(&inside))?;
        let outside = folder.path().join("outside");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(doing)?;
        let port = listener.local_addr().map_err(doing)?.port();
        let readable = folder.path().join("readable");
        std::fs::write(&readable, "text").map_err(making(&readable))?;
        let request = serde_json::json!({ "port": port, "readable": readable, "outside": outside });
        for (name, text) in [("request.json", request.to_string().as_str()), ("probe.py", PROBE)] {
            let path = inside.join(name);
            std::fs::write(&path, text).map_err(making(&path))?;
        }
        let verdict = self.run(Job::new(&inside, "probe.py", PROBE_LIMITS))?;
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
            // The script is one of the first two processes of a pid namespace; elsewhere the system has these numbers.
            pid_namespace: answer.pid <= 2,
            files_closed: !answer.wrote && !outside.exists(),
            notes: isolation.notes,
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Workers see their links close, the helper sees the control socket close.
        let idle = std::mem::take(&mut lock(&self.queue).idle);
        let workers: Vec<OwnedFd> = idle.into_iter().filter_map(|slot| slot.worker?.process).collect();
        self.control = None;
        let deadline = Instant::now() + SHUTDOWN;
        let ended = loop {
            match self.helper.try_wait() {
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                Ok(None) => {
                    // Its workers have asked the kernel to die with it.
                    let _ = self.helper.kill();
                    break self.helper.wait().ok();
                }
                ended => break ended.ok().flatten(),
            }
        };
        if !ended.is_some_and(|status| status.success()) {
            // It cannot have removed what its workers left.
            for worker in &workers {
                let _ = system::wait_readable([Some(worker.as_fd())], SHUTDOWN);
            }
            Cgroup::sweep();
        }
    }
}

/// Locks a mutex even after a panic elsewhere, which leaves the lists of sockets valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_reply(link: &mut BufReader<UnixStream>) -> io::Result<Reply> {
    let mut line = String::new();
    match link.read_line(&mut line) {
        Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the worker died")),
        Err(error) if is_silence(&error) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the worker hangs")),
        result => result?,
    };
    Ok(serde_json::from_str(&line)?)
}

/// True for the error of a read that has timed out.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn out_of_turn() -> io::Error {
    io::Error::other("a worker answered out of turn")
}

/// Checks that a new worker protects no less than the run was told. Error: what it lacks.
fn is_no_weaker(found: &Isolation, begun: &Isolation) -> std::result::Result<(), String> {
    let (now, tier, notes) = (found.tier, begun.tier, found.notes.join("; "));
    if now < tier {
        return Err(format!("a new sandbox worker has only tier {now}, and this run began in tier {tier}: {notes}"));
    }
    if begun.own_user && !found.own_user {
        return Err(format!(
            "the scripts of a new sandbox worker have no user of their own, as this run began with: {notes}"
        ));
    }
    Ok(())
}

/// Makes the verdict of a job that is given up.
fn quarantined() -> Verdict {
    let outcome = Outcome::Quarantined;
    let text = String::new;
    let (cpu_seconds, wall_seconds, peak_bytes, is_truncated) = (0.0, 0.0, 0, false);
    Verdict { outcome, stdout: text(), stderr: text(), cpu_seconds, wall_seconds, peak_bytes, is_truncated }
}

/// Returns the order in which jobs begin, as indices: the first of each group, then the second of each, ...
fn round_robin(jobs: &[Job]) -> Vec<usize> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(jobs.len());
    for (i, job) in jobs.iter().enumerate() {
        let count = counts.entry(&job.group).or_default();
        order.push((*count, i));
        *count += 1;
    }
    order.sort_unstable();
    order.into_iter().map(|(_, i)| i).collect()
}

fn start_error(error: &io::Error) -> String {
    format!(
        "starting the fork-server of a sandbox worker: {error}; start the same command again, a run of training with --resume"
    )
}

/// Checks that a job can be run, and returns it with the paths of its folder and data resolved.
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
    for (name, source) in &mut job.data {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(Error::content(format!("data {name:?}: expected a plain file name, like data.npz")));
        }
        *source = source.canonicalize().map_err(|error| Error::io("opening the data", source, &error))?;
    }
    if let Some((name, why)) = job.limits.out_of_range() {
        return Err(Error::content(format!("limit {name} = {why}")));
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_slot_goes_to_the_group_that_has_fewest() {
        let waiting =
            [(3, "many"), (4, "many"), (5, "few"), (6, "few")].map(|(n, group)| (n, group.to_string())).to_vec();
        let running = |many, few| HashMap::from([("many".to_string(), many), ("few".to_string(), few)]);
        let next =
            |many, few| Queue { running: running(many, few), waiting: waiting.clone(), ..Queue::default() }.next();
        assert_eq!([next(0, 0), next(1, 0), next(2, 2), next(1, 2)], [Some(3), Some(5), Some(3), Some(3)]);
        assert_eq!(Queue::default().next(), None);
    }

    #[test]
    fn a_worker_that_takes_anothers_place_has_what_that_had() {
        let isolation = |tier, own_user| Isolation { tier, own_user, notes: vec!["why not".to_string()] };
        for (found, begun, expected) in [
            ((3, true), (3, true), None),
            ((3, true), (2, false), None),
            ((2, true), (3, true), Some("only tier 2")),
            ((3, false), (3, true), Some("no user of their own")),
            ((3, false), (2, true), Some("no user of their own")),
            ((3, false), (3, false), None),
        ] {
            let error = is_no_weaker(&isolation(found.0, found.1), &isolation(begun.0, begun.1)).err();
            let fits = |part: &str| error.as_ref().is_some_and(|text| text.contains(part) && text.contains("why not"));
            assert!(expected.map_or(error.is_none(), fits), "{found:?} for {begun:?}: {error:?}");
        }
    }

    #[test]
    fn groups_of_one_batch_take_turns() {
        let jobs = ["a", "a", "a", "b", "c", "b"]
            .map(|group| Job { group: group.to_string(), ..Job::new(Path::new("/"), "x.py", PROBE_LIMITS) });
        assert_eq!(round_robin(&jobs), [0, 3, 4, 1, 5, 2]);
    }
}
