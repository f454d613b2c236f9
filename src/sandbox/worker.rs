//! The hidden helper process and the workers it forks. A worker owns one fork-server, runs one job at a time, and
//! enforces from outside what the kernel does not: wall clock, output, CPU time and memory of the whole group.

use super::cgroup::Cgroup;
use super::leftovers;
use super::limits::Limits;
use super::output::Output;
use super::protocol::{Isolation, Job, Outcome, Reply, Start, Verdict};
use super::pulse::{KILL_GRACE, LOADING, Listener, Pulse, SILENCE};
use super::server::{self, Answer, Ended, Tried, await_answer, receive_answer};
use super::system::{self, Process};
use crate::console::errln;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The first argument that turns our binary into the helper.
pub const HELPER_ARGUMENT: &str = "__sandbox-helper";

/// User id of a slot's scripts, when we are root: this plus the worker's process id. No system assigns these numbers.
const FIRST_UID: u32 = 2_000_000_000;
/// Processes of a job beside the script's: the keeper of its namespaces.
const OWN_PROCESSES: u64 = 1;
/// Bytes that the loader may grow by before its worker ends and another takes its place.
const MOST_GROWTH: u64 = 64 << 20;
/// How long after a request for a worker the helper looks every [`SCAN`] for processes that a lost one has left; after
/// that it looks every [`PATROL`].
const AFTERMATH: Duration = Duration::from_secs(10);
const PATROL: Duration = Duration::from_secs(1);
/// How often a running group's CPU time and memory are added up.
const SCAN: Duration = Duration::from_millis(100);
/// How long workers may take to clean up after the trainer has gone before they are killed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// Name of the process that a worker listens to.
const SERVER: &str = "the fork-server";
/// Description of each tier.
const TIERS: [&str; 4] = [
    "tier 0: nothing, as asked for",
    "tier 1: Landlock and seccomp on the host's own tree",
    "tier 2: namespaces, Landlock, seccomp",
    "tier 3: namespaces, Landlock, seccomp, memory and pids cgroups",
];

/// Runs the helper and returns its exit code. Main calls it before anything else when the first argument is
/// [`HELPER_ARGUMENT`]: it forks, so the process must have one thread. Stdin is the trainer's control socket, which
/// carries a `Start` as JSON and then one message for each worker to fork: its slot's number and its end of its socket.
pub fn helper_main() -> i32 {
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let (message, _) = system::receive(control.as_fd()).unwrap_or_default();
    let Ok(start) = serde_json::from_slice::<Start>(&message) else {
        errln!("{HELPER_ARGUMENT} is started by onestep itself");
        return 2;
    };
    system::new_session();
    system::heed_requests(false);
    system::adopt_orphans();
    // Processes of a dead worker become our children. If we are the first process of a pid namespace, we cannot end
    // before all others are reaped.
    system::reap_at_once(true);
    Cgroup::sweep();
    let mut workers: Vec<Process> = Vec::new();
    let mut disturbed = Instant::now();
    loop {
        // Processes below a lost worker become our children one after another, late on a busy machine.
        loop {
            let pause = if disturbed.elapsed() < AFTERMATH { SCAN } else { PATROL };
            match system::wait_readable([Some(control.as_fd())], pause) {
                Ok([false]) => drop(kill_strays(Keep::Trees(&workers), &mut || Ok(()))),
                _ => break,
            }
        }
        let message = system::receive(control.as_fd());
        disturbed = Instant::now();
        system::reap();
        let _ = kill_strays(Keep::Trees(&workers), &mut || Ok(()));
        bury(&mut workers);
        match message.map(|(text, mut fds)| (text, fds.pop())) {
            // What a dead trainer has asked for is not wanted any more.
            _ if system::peer_is_gone(control.as_fd()) => break,
            Ok((text, Some(link))) => {
                // SAFETY: nothing has started a thread in this process.
                match unsafe { system::fork() } {
                    Ok(None) => {
                        drop(control);
                        // Stdin is the same socket and may not stay open either.
                        if system::null_stdin().is_err() {
                            return 1;
                        }
                        let slot = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<usize>().ok());
                        if let Some(&processor) = slot.and_then(|slot| start.processors.get(slot)) {
                            system::stay_on(processor);
                        }
                        return worker_main(UnixStream::from(link), &start);
                    }
                    // A worker that has already ended needs no entry.
                    Ok(Some(pid)) => workers.extend(system::process(pid)),
                    // The trainer sees the link close and reports the failure.
                    Err(error) => errln!("cannot fork a sandbox worker: {error}"),
                }
            }
            Ok((text, None)) if !text.is_empty() => {}
            _ => break,
        }
    }
    // The trainer is gone. Workers see it too, end their jobs and exit; whatever stays is killed.
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    while system::reap() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    workers.iter().for_each(system::kill);
    while system::reap() && Instant::now() < deadline + SHUTDOWN_GRACE {
        let _ = kill_strays(Keep::Only(&[]), &mut || Ok(()));
        std::thread::sleep(Duration::from_millis(2));
    }
    bury(&mut workers);
    0
}

/// Forgets workers that have ended, and removes the control groups that they could not remove themselves.
fn bury(workers: &mut Vec<Process>) {
    let living: BTreeSet<_> = system::descendants(std::process::id() as i32).iter().map(identity).collect();
    let before = workers.len();
    workers.retain(|worker| living.contains(&identity(worker)));
    if workers.len() < before {
        Cgroup::sweep();
    }
}

/// Returns what tells a process from a later one with the same number: number and start time.
fn identity(process: &Process) -> (i32, u64) {
    (process.pid, process.started)
}

/// Kills every process below this one, at any depth, that is not in `keep`. Stops all of them first: while some are
/// killed, others could go on forking. Returns true when there was any. Error: one of `alive`.
fn kill_strays(keep: Keep, alive: &mut impl FnMut() -> io::Result<()>) -> io::Result<bool> {
    let own = std::process::id() as i32;
    let mut stopped = BTreeSet::new();
    loop {
        let mut strays = system::descendants(own);
        let kept: BTreeSet<i32> = match keep {
            Keep::Only(pids) => pids.iter().copied().collect(),
            Keep::Trees(roots) => {
                let roots: BTreeSet<_> = roots.iter().map(identity).collect();
                let living = strays.iter().filter(|process| roots.contains(&identity(process)));
                let living: Vec<i32> = living.map(|process| process.pid).collect();
                system::below(&strays, &living).iter().map(|process| process.pid).chain(living).collect()
            }
        };
        strays.retain(|process| !kept.contains(&process.pid));
        let new: Vec<&Process> = strays.iter().filter(|process| stopped.insert(identity(process))).collect();
        if new.is_empty() {
            // Others may have killed some of the stopped processes since; the table has those that still live.
            strays.iter().for_each(system::kill);
            return Ok(!stopped.is_empty());
        }
        new.into_iter().for_each(system::stop);
        alive()?;
    }
}

/// Processes that are not strays.
#[derive(Clone, Copy)]
enum Keep<'a> {
    Only(&'a [i32]),
    /// These and everything below them.
    Trees(&'a [Process]),
}

/// Kills strays until there are none. Error: some do not end.
fn clear_strays(keep: Keep, mut alive: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + KILL_GRACE;
    while kill_strays(keep, &mut alive)? {
        if Instant::now() >= deadline {
            return Err(io::Error::other("killed processes do not end"));
        }
        alive()?;
        std::thread::sleep(Duration::from_millis(1));
        system::reap();
    }
    Ok(())
}

/// Runs a worker: starts its fork-server, then answers jobs until the trainer closes the link. Returns the exit code.
fn worker_main(mut link: UnixStream, start: &Start) -> i32 {
    system::die_with_parent();
    system::adopt_orphans();
    system::reap_at_once(false);
    // Tells the trainer that the helper has done its part.
    let ended = send_reply(&mut link, &Reply::Alive).and_then(|()| match Worker::start(start, link.as_fd()) {
        Ok((mut worker, ready)) => send_reply(&mut link, &ready).and_then(|()| worker.serve(&mut link)),
        Err(error) => send_reply(&mut link, &Reply::Failed(error.to_string())).and(Err(error)),
    });
    // The trainer takes a link that closes without a reply for the worker's death, and has another one forked.
    drop(link);
    i32::from(ended.and(clear_strays(Keep::Only(&[]), || Ok(()))).is_err())
}

/// `Reply::Alive` as a line.
const ALIVE: &[u8] = b"\"alive\"\n";

fn send_reply(link: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    link.write_all(&line)
}

/// One worker, which runs its jobs one at a time.
struct Worker {
    server: OwnedFd,
    process: i32,
    /// The child of `process` that has the libraries loaded.
    loader: i32,
    /// From tier 2 on, everything of a job dies with its keeper; below, leftover processes must be searched for.
    tier: u8,
    /// Limits of memory and processes, in tier 3.
    cgroup: Option<Cgroup>,
    /// Bytes of the idle fork-server and loader, which a job shares and is not charged for.
    idle_bytes: u64,
    /// Resident bytes of the loader when it was first idle.
    loader_bytes: u64,
    /// The keeper that waits for the next job.
    waiting: Option<Process>,
}

impl Worker {
    /// Starts a worker in the highest wanted tier that works here, and loads the libraries. Error: why no tier works.
    fn start(start: &Start, trainer: BorrowedFd) -> io::Result<(Self, Reply)> {
        let mut pulse = Pulse::new(trainer, ALIVE);
        let (own, mut notes) = (std::process::id(), vec![]);
        for tier in (0..=start.wanted.best.min(3)).rev().filter(|&tier| tier > 0 || start.wanted.unsafe_without) {
            let own_user = (tier > 0 && rustix::process::getuid().is_root()).then_some(Some(FIRST_UID + own));
            for user in own_user.into_iter().chain([None]) {
                let name = TIERS[usize::from(tier)];
                let users = if user.is_some() { ", a user of its own for each worker" } else { "" };
                let mut not_possible = |why| notes.push(format!("not possible here: {name}{users} ({why})"));
                let mut worker = match Self::in_force(start, Tried { tier, user }, &mut pulse) {
                    Ok(worker) => worker,
                    Err(why) => {
                        not_possible(why);
                        continue;
                    }
                };
                worker.load(&mut pulse)?;
                // Not earlier, or the memory of the libraries would be charged to scripts.
                match worker.cgroup.as_ref().map_or(Ok(()), |group| group.join(worker.loader)) {
                    Ok(()) => {
                        notes.push(format!("in force: {name}{users}"));
                        return Ok((worker, Reply::Ready(Isolation { tier, own_user: user.is_some(), notes }, own)));
                    }
                    Err(why) => {
                        not_possible(why);
                        end(worker.process);
                    }
                }
            }
        }
        notes.push(
            "scripts are not run without protection; run.unsafe_no_sandbox=true runs them all the same".to_string(),
        );
        Err(io::Error::other(notes.join("; ")))
    }

    /// Makes a worker whose fork-server has entered and tested an isolation, without the libraries.
    fn in_force(start: &Start, tried: Tried, pulse: &mut Pulse) -> io::Result<Self> {
        let cgroup = match tried.tier {
            3.. => Some(Cgroup::create().map_err(io::Error::other)?),
            _ => None,
        };
        let trial = tempfile::Builder::new().prefix("trial-").tempdir_in(&start.scratch)?;
        let trial = trial.path().canonicalize()?;
        std::fs::write(trial.join(server::TRIAL_SCRIPT.0), server::TRIAL_SCRIPT.1)?;
        let (server, theirs) = system::socket_pair()?;
        // SAFETY: nothing has started a thread in this process.
        let Some(process) = unsafe { system::fork() }? else { server::serve(theirs, start, tried, &trial) };
        drop(theirs);
        let entered = await_answer(server.as_fd(), Listener::new(SERVER, LOADING), || pulse.beat());
        let loader = entered.and_then(server::ready).inspect_err(|_| end(process))?;
        Ok(Self { server, process, loader, tier: tried.tier, cgroup, idle_bytes: 0, loader_bytes: 0, waiting: None })
    }

    /// Waits until the libraries are loaded. The loader may be silent for long in a single call, so this checks from
    /// outside that neither it nor the fork-server is stopped.
    fn load(&mut self, pulse: &mut Pulse) -> io::Result<()> {
        let mut watched = Listener::new("a stopped fork-server or loader", SILENCE);
        let beat = || {
            let is_stopped = |pid| system::process(pid).is_some_and(|process| process.is_stopped);
            if ![self.process, self.loader].into_iter().any(is_stopped) {
                watched.heard();
            }
            watched.check()?;
            pulse.beat()
        };
        await_answer(self.server.as_fd(), Listener::new(SERVER, LOADING), beat).and_then(server::ready)?;
        let idle = [self.process, self.loader].map(|pid| system::proportional_bytes(pid).unwrap_or(0));
        self.idle_bytes = idle.iter().sum();
        self.loader_bytes = system::resident_bytes(self.loader);
        Ok(())
    }

    /// Runs jobs until the trainer closes the link. Error: the fork-server died or has grown too much.
    fn serve(&mut self, link: &mut UnixStream) -> io::Result<()> {
        let mut requests = BufReader::new(link.try_clone()?);
        let mut line = String::new();
        loop {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let job: Job = serde_json::from_str(&line)?;
            let trainer = link.try_clone()?;
            let mut pulse = Pulse::new(trainer.as_fd(), ALIVE);
            let reply = self.run(&job, link.as_fd(), &mut pulse)?;
            if self.tier < 2 {
                clear_strays(Keep::Only(&[self.process, self.loader]), || pulse.beat())?;
                leftovers::tidy(&job.folder);
            }
            send_reply(link, &reply)?;
            if self.tier >= 2 {
                self.waiting = self.free(&mut pulse)?;
            }
            if system::resident_bytes(self.loader) > self.loader_bytes.saturating_add(MOST_GROWTH) {
                return Err(io::Error::other("the fork-server has grown"));
            }
        }
    }

    /// Waits until nothing of the last job is left, as its files count against the next job's memory until then.
    /// Returns the keeper that waits for the next job, if any.
    fn free(&self, pulse: &mut Pulse) -> io::Result<Option<Process>> {
        match await_answer(self.server.as_fd(), Listener::new(SERVER, SILENCE), || pulse.beat())? {
            Answer::Free(keeper) => Ok(keeper.and_then(|pid| self.below(pid))),
            answer => Err(io::Error::other(format!("the fork-server answered {answer:?}"))),
        }
    }

    /// Returns the process with this number if it is a child of the fork-server or the loader; another process may have
    /// taken the number of one that has ended.
    fn below(&self, pid: i32) -> Option<Process> {
        system::process(pid).filter(|process| [self.process, self.loader].contains(&process.parent))
    }

    /// Runs one job. Error: the fork-server died or the trainer has gone, and the worker ends.
    fn run(&mut self, job: &Job, trainer: BorrowedFd, pulse: &mut Pulse) -> io::Result<Reply> {
        let limits = &job.limits;
        let started = Instant::now();
        let wall_limit = started + Duration::from_secs_f64(limits.wall_seconds);
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let mut output = Output::new(stdout, stderr, limits.output_bytes)?;
        let writers = [stdout_writer.as_fd(), stderr_writer.as_fd()];
        let kills_before = match &self.cgroup {
            Some(cgroup) => {
                cgroup.limit(limits)?;
                cgroup.out_of_memory_kills()
            }
            None => 0,
        };
        system::send(self.server.as_fd(), &serde_json::to_vec(job)?, &writers)?;
        drop((stdout_writer, stderr_writer));

        // The keeper or, without namespaces, the script, once known. Once its parent has waited for it, its number may
        // be another process's.
        let mut group = self.waiting.take();
        let mut stopped: Option<(Outcome, Instant)> = None; // why we killed it, and when it must be gone
        let (mut next_scan, mut shares) = (started + SCAN, Shares::default());
        let mut listener = Listener::new(SERVER, SILENCE);
        let ended = loop {
            let wake = stopped.as_ref().map_or(wall_limit.min(next_scan), |(_, gone)| *gone);
            let timeout = wake.min(pulse.next).saturating_duration_since(Instant::now());
            let [out, err] = output.readers();
            let [server_ready, _, _, trainer_gone] =
                system::wait_readable([Some(self.server.as_fd()), out, err, Some(trainer)], timeout)?;
            if trainer_gone {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the trainer has gone"));
            }
            pulse.beat()?;
            output.read()?;
            if server_ready {
                listener.heard();
                match receive_answer(self.server.as_fd())? {
                    Answer::Pid(pid) => {
                        group = self.below(pid);
                        if stopped.is_some() {
                            group.iter().for_each(system::kill);
                        }
                    }
                    Answer::Ended(ended) => break ended,
                    Answer::Alive => {}
                    answer => return Err(io::Error::other(format!("the fork-server answered {answer:?}"))),
                }
            }
            listener.check()?;
            let now = Instant::now();
            if let Some((_, gone)) = &stopped {
                if now >= *gone {
                    return Err(io::Error::other("a killed job does not end"));
                }
                continue;
            }
            let mut stop = None;
            if now >= next_scan {
                next_scan = now + SCAN;
                // The kernel has killed one process of the group for memory; the rest might live on, below the limit.
                let is_out_of_memory = self.cgroup.as_ref().is_some_and(|c| c.out_of_memory_kills() > kills_before);
                stop = self.over_limit(limits, &mut shares).or(is_out_of_memory.then_some(Outcome::MemoryLimit));
            }
            if output.is_over() {
                stop = Some(Outcome::OutputLimit);
            } else if now >= wall_limit {
                stop = stop.or(Some(Outcome::WallLimit));
            }
            if let Some(reason) = stop {
                group.iter().for_each(system::kill);
                stopped = Some((reason, now + KILL_GRACE));
            }
        };
        // Read what is in the pipes, without waiting for their end.
        output.read()?;
        let kills = self.cgroup.as_ref().map_or(0, Cgroup::out_of_memory_kills);
        let stopped = if kills > kills_before { Some(Outcome::MemoryLimit) } else { stopped.map(|(reason, _)| reason) };
        if let (Some(failure), None) = (&ended.failure, &stopped) {
            return Ok(Reply::Failed(failure.clone()));
        }
        let outcome = outcome(&ended, stopped, output.is_over(), limits);
        let peak_bytes = self.cgroup.as_ref().and_then(Cgroup::peak_bytes).unwrap_or(ended.peak_bytes);
        Ok(Reply::Done(Verdict {
            peak_bytes,
            is_truncated: output.is_over(),
            outcome,
            stdout: output.stdout.text(),
            stderr: output.stderr.text(),
            cpu_seconds: ended.cpu_seconds,
            wall_seconds: started.elapsed().as_secs_f64(),
        }))
    }

    /// Returns the limit that the running group exceeds, if any: number of processes, CPU time or memory in all.
    fn over_limit(&self, limits: &Limits, shares: &mut Shares) -> Option<Outcome> {
        let all = system::descendants(std::process::id() as i32);
        let group = || all.iter().filter(|process| process.pid != self.process && process.pid != self.loader);
        if group().count() as u64 > limits.processes + OWN_PROCESSES {
            return Some(Outcome::ProcessLimit);
        }
        if group().map(|process| process.cpu_seconds).sum::<f64>() > limits.cpu_seconds {
            return Some(Outcome::CpuLimit);
        }
        // A control group counts memory itself. To read a process's memory here would delay its release after a kill.
        if self.cgroup.is_some() {
            return None;
        }
        // Resident bytes count a shared page in each process, so they only tell whether the exact, slower sum is worth
        // reading. That sum includes the fork-server and loader, which share pages with the group, minus what they hold
        // when idle.
        let at_most: u64 = group().map(|process| process.resident_bytes).sum();
        (at_most > limits.memory_bytes && shares.sum(&all) > limits.memory_bytes.saturating_add(self.idle_bytes))
            .then_some(Outcome::MemoryLimit)
    }
}

/// Memory of processes in bytes, as last read; each counts its share of shared pages. Reading one takes milliseconds,
/// or seconds if it forks all the time. Many are therefore read over several scans, so that the number of processes of
/// a fork bomb is checked in between.
#[derive(Default)]
struct Shares {
    known: BTreeMap<i32, u64>,
    /// Process id that was read last.
    last: i32,
}

impl Shares {
    /// Returns the sum over `all`, as far as it is known. Reads those first that have waited longest, until the time of
    /// one [`SCAN`] is over.
    fn sum(&mut self, all: &[system::Process]) -> u64 {
        let until = Instant::now() + SCAN;
        let mut pids: Vec<i32> = all.iter().map(|process| process.pid).collect();
        pids.sort_unstable();
        self.known.retain(|pid, _| pids.binary_search(pid).is_ok());
        let next = pids.partition_point(|pid| *pid <= self.last);
        pids.rotate_left(next);
        for pid in pids {
            if let Some(bytes) = system::proportional_bytes(pid) {
                self.known.insert(pid, bytes);
            }
            self.last = pid;
            if Instant::now() >= until {
                break;
            }
        }
        self.known.values().sum()
    }
}

/// Ends a fork-server that is not needed, with its loader.
fn end(process: i32) {
    system::kill_child(process);
    // The helper finds whatever stays.
    let _ = system::wait(process).and_then(|_| clear_strays(Keep::Only(&[]), || Ok(())));
}

/// Decides how a job ended. The amounts of output and CPU time count more than how the process ended, so that the same
/// script gets the same outcome wherever the kill happened to hit it.
fn outcome(ended: &Ended, stopped: Option<Outcome>, output_over: bool, limits: &Limits) -> Outcome {
    if output_over {
        return Outcome::OutputLimit;
    }
    if ended.cpu_seconds > limits.cpu_seconds {
        return Outcome::CpuLimit;
    }
    if let Some(reason) = stopped {
        return reason;
    }
    match (ended.exit, ended.signal) {
        _ if ended.memory_error => Outcome::MemoryLimit,
        (_, Some(libc::SIGXCPU)) => Outcome::CpuLimit,
        (_, Some(libc::SIGXFSZ)) => Outcome::FileLimit,
        (_, Some(signal)) => Outcome::Signaled(signal),
        (exit, None) => Outcome::Exited(exit.unwrap_or(1)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn amounts_decide_before_the_way_it_ended() {
        let bytes = 1;
        let (cpu_seconds, wall_seconds, processes) = (1.0, 9.0, 1);
        let (memory_bytes, output_bytes, file_bytes, disk_bytes) = (bytes, bytes, bytes, bytes);
        let limits =
            Limits { cpu_seconds, wall_seconds, memory_bytes, output_bytes, file_bytes, disk_bytes, processes };
        let ended = |cpu_seconds, memory_error, exit, signal| Ended {
            exit,
            signal,
            memory_error,
            cpu_seconds,
            peak_bytes: 0,
            failure: None,
        };
        let wall = || Some(Outcome::WallLimit);
        let killed = ended(0.5, false, None, Some(9));
        let cases = [
            (ended(0.5, false, Some(0), None), None, false, Outcome::Exited(0)),
            (ended(1.5, false, Some(0), None), None, false, Outcome::CpuLimit),
            (ended(1.5, true, Some(1), None), wall(), false, Outcome::CpuLimit),
            (ended(1.5, false, Some(0), None), wall(), true, Outcome::OutputLimit),
            (ended(0.5, true, Some(1), None), None, false, Outcome::MemoryLimit),
            (ended(0.5, false, None, Some(libc::SIGXFSZ)), None, false, Outcome::FileLimit),
            (ended(0.5, false, None, Some(libc::SIGXCPU)), None, false, Outcome::CpuLimit),
            (ended(0.5, false, None, Some(11)), None, false, Outcome::Signaled(11)),
            (killed, wall(), false, Outcome::WallLimit),
        ];
        for (ended, stopped, over, expected) in cases {
            assert_eq!(outcome(&ended, stopped, over, &limits), expected, "{ended:?}");
        }
    }
}
