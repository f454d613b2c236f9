//! The hidden helper process and the workers it forks: a worker owns one Python fork-server, runs one job at a time, and
//! enforces from outside what the kernel does not: wall clock, output, CPU time and memory of the whole group.

use super::limits::Limits;
use super::protocol::{Job, Outcome, Reply, Verdict};
use super::system;
use serde::Deserialize;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The first argument that turns our binary into the helper.
pub const HELPER_ARGUMENT: &str = "__sandbox-helper";

const FORK_SERVER: &str = include_str!("fork_server.py");
/// How often a running group's CPU time and memory are added up.
const SCAN: Duration = Duration::from_millis(100);
/// How long a killed group may take to be gone before its worker is given up.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long workers may take to clean up after the trainer has gone before they are killed.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// What the fork-server's environment is cleared to. One thread a script, and nothing that differs between two runs.
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

/// The helper's whole life; returns its exit code. Called by main when the first argument is [`HELPER_ARGUMENT`], before
/// anything else: it forks, so it must have one thread. The second argument is the Python interpreter; stdin is the
/// trainer's control socket, which carries one message for each worker to fork: its end of the worker's socket.
pub fn helper_main() -> i32 {
    let Some(interpreter) = std::env::args_os().nth(2) else {
        eprintln!("{HELPER_ARGUMENT} is started by onestep itself");
        return 2;
    };
    system::new_session();
    system::adopt_orphans();
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned() else { return 1 };
    let mut workers: Vec<i32> = Vec::new();
    loop {
        let message = system::receive(control.as_fd(), &mut [0; 16]);
        system::reap();
        kill_strays(&workers);
        match message {
            Ok((length, Some(link))) if length > 0 => {
                // SAFETY: nothing has started a thread in this process.
                match unsafe { system::fork() } {
                    Ok(None) => {
                        drop(control);
                        // Nor may stdin, which is the same socket, stay open.
                        if system::null_stdin().is_err() {
                            return 1;
                        }
                        return worker_main(UnixStream::from(link), &interpreter);
                    }
                    Ok(Some(pid)) => workers.push(pid),
                    // The trainer sees the link close and says what it could not do.
                    Err(error) => eprintln!("cannot fork a sandbox worker: {error}"),
                }
            }
            Ok((length, None)) if length > 0 => {}
            _ => break,
        }
    }
    // The trainer is gone. Workers see it too, end their jobs and exit; whatever stays is killed.
    let deadline = Instant::now() + SHUTDOWN_GRACE;
    while system::reap() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    workers.iter().for_each(|&worker| system::kill(worker));
    while system::reap() && Instant::now() < deadline + SHUTDOWN_GRACE {
        kill_strays(&[]);
        std::thread::sleep(Duration::from_millis(2));
    }
    0
}

/// Kills every process below this one, at any depth, that is neither kept nor below a kept one.
fn kill_strays(keep: &[i32]) {
    let own = std::process::id() as i32;
    let children = system::descendants(own).into_iter().filter(|process| process.parent == own);
    for child in children.filter(|child| !keep.contains(&child.pid)) {
        system::descendants(child.pid).iter().for_each(|process| system::kill(process.pid));
        system::kill(child.pid);
    }
}

/// A worker's whole life: starts its fork-server, then answers jobs until the trainer closes the link.
fn worker_main(mut link: UnixStream, interpreter: &OsStr) -> i32 {
    system::die_with_parent();
    system::adopt_orphans();
    let ended = Worker::start(interpreter).and_then(|(mut worker, ready)| {
        send_reply(&mut link, &ready)?;
        worker.serve(&mut link)
    });
    if let Err(error) = &ended {
        // Heard at the start only; later a closed link says it, and the trainer forks another worker.
        let _ = send_reply(&mut link, &Reply::Failed(error.to_string()));
    }
    drop(link);
    let deadline = Instant::now() + KILL_GRACE;
    kill_strays(&[]);
    while system::reap() && Instant::now() < deadline {
        kill_strays(&[]);
        std::thread::sleep(Duration::from_millis(1));
    }
    i32::from(ended.is_err())
}

fn send_reply(link: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    link.write_all(&line)
}

/// What the fork-server says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ready { pid_namespace: bool, notes: Vec<String> },
    Error(String),
    Pid(i32),
    Ended(Ended),
}

/// How the script's process ended, as the fork-server's wait saw it.
#[derive(Debug, Deserialize)]
struct Ended {
    exit: Option<i32>,
    signal: Option<i32>,
    memory_error: bool,
    cpu_seconds: f64,
    /// Why it could not be sealed: then no script has run.
    failure: Option<String>,
}

fn receive_answer(server: &OwnedFd) -> io::Result<Answer> {
    let mut buffer = [0; 16 * 1024];
    let (length, _) = system::receive(server.as_fd(), &mut buffer)?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the Python fork-server has ended"));
    }
    Ok(serde_json::from_slice(&buffer[..length])?)
}

/// One worker: the serial executor.
struct Worker {
    server: OwnedFd,
    process: Child,
    /// Everything of a job dies with its first process; without it, what is left over must be looked for.
    pid_namespace: bool,
    /// Memory of the idle fork-server, which a job shares and is not charged for.
    idle_bytes: u64,
}

impl Worker {
    /// Starts the fork-server and waits until its libraries are loaded.
    fn start(interpreter: &OsStr) -> io::Result<(Self, Reply)> {
        let (server, theirs) = system::socket_pair()?;
        let mut command = Command::new(interpreter);
        command.args(["-s", "-c", FORK_SERVER]).env_clear().envs(ENVIRONMENT).current_dir("/");
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: the closure only makes system calls.
        unsafe {
            command.pre_exec(|| {
                system::die_with_parent();
                system::fix_addresses();
                Ok(())
            })
        };
        let process = command.spawn()?;
        // The command keeps our copy of the fork-server's end; it must go, or its death is never seen.
        drop(command);
        match receive_answer(&server)? {
            Answer::Ready { pid_namespace, notes } => {
                let idle_bytes = system::proportional_bytes(process.id() as i32).unwrap_or(0);
                Ok((Self { server, process, pid_namespace, idle_bytes }, Reply::Ready(notes)))
            }
            Answer::Error(text) => Err(io::Error::other(text)),
            answer => Err(io::Error::other(format!("the fork-server began with {answer:?}"))),
        }
    }

    /// Until the trainer closes the link, or the fork-server dies (an error).
    fn serve(&mut self, link: &mut UnixStream) -> io::Result<()> {
        let mut requests = BufReader::new(link.try_clone()?);
        let mut line = String::new();
        loop {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let reply = self.run(&serde_json::from_str(&line)?, link.as_fd())?;
            if !self.pid_namespace {
                kill_strays(&[self.process.id() as i32]);
                system::reap();
            }
            send_reply(link, &reply)?;
        }
    }

    /// One job. An error when the fork-server dies or the trainer goes: then the worker ends.
    fn run(&self, job: &Job, trainer: BorrowedFd) -> io::Result<Reply> {
        let limits = &job.limits;
        let started = Instant::now();
        let wall_limit = started + Duration::from_secs_f64(limits.wall_seconds);
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        let mut output = Output::new(stdout, stderr, limits.output_bytes)?;
        let writers = [stdout_writer.as_fd(), stderr_writer.as_fd()];
        system::send(self.server.as_fd(), &serde_json::to_vec(job)?, &writers)?;
        drop((stdout_writer, stderr_writer));

        let mut group = None; // the pid of the job's first process, once known
        let mut stopped: Option<(Outcome, Instant)> = None; // why we killed it, and when it must be gone
        let mut next_scan = started + SCAN;
        let ended = loop {
            let wake = stopped.as_ref().map_or(wall_limit.min(next_scan), |(_, gone)| *gone);
            let timeout = wake.saturating_duration_since(Instant::now());
            let [out, err] = output.readers();
            let [server_ready, _, _, trainer_gone] =
                system::wait_readable([Some(self.server.as_fd()), out, err, Some(trainer)], timeout)?;
            if trainer_gone {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the trainer has gone"));
            }
            output.read()?;
            if server_ready {
                match receive_answer(&self.server)? {
                    Answer::Pid(pid) => {
                        group = Some(pid);
                        if stopped.is_some() {
                            kill_group(pid);
                        }
                    }
                    Answer::Ended(ended) => break ended,
                    answer => return Err(io::Error::other(format!("the fork-server answered {answer:?}"))),
                }
            }
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
                stop = self.over_limit(limits);
            }
            if output.is_over() {
                stop = Some(Outcome::OutputLimit);
            } else if now >= wall_limit {
                stop = stop.or(Some(Outcome::WallLimit));
            }
            if let Some(reason) = stop {
                group.into_iter().for_each(kill_group);
                stopped = Some((reason, now + KILL_GRACE));
            }
        };
        // What is in the pipes is read; their end is not waited for.
        output.read()?;
        if let (Some(failure), None) = (ended.failure.clone(), &stopped) {
            return Ok(Reply::Failed(failure));
        }
        let outcome = outcome(&ended, stopped.map(|(reason, _)| reason), output.is_over(), limits);
        Ok(Reply::Done(Verdict {
            outcome,
            stdout: output.stdout.text(),
            stderr: output.stderr.text(),
            cpu_seconds: ended.cpu_seconds,
            wall_seconds: started.elapsed().as_secs_f64(),
        }))
    }

    /// CPU time and memory of the running group, added up over its processes.
    fn over_limit(&self, limits: &Limits) -> Option<Outcome> {
        let server = self.process.id() as i32;
        let all = system::descendants(std::process::id() as i32);
        let group = || all.iter().filter(|process| process.pid != server);
        if group().map(|process| process.cpu_seconds).sum::<f64>() > limits.cpu_seconds {
            return Some(Outcome::CpuLimit);
        }
        // Resident bytes count a shared page in each process: they only say whether the exact, slower sum is worth reading.
        // That goes over the fork-server too, with which pages are shared, less what it holds when it is alone.
        let at_most: u64 = group().map(|process| process.resident_bytes).sum();
        let exact = || -> u64 { all.iter().filter_map(|process| system::proportional_bytes(process.pid)).sum() };
        (at_most > limits.memory_bytes && exact() > limits.memory_bytes.saturating_add(self.idle_bytes))
            .then_some(Outcome::MemoryLimit)
    }
}

/// Kills a job: its first process, with which a pid namespace dies, and its process group.
fn kill_group(pid: i32) {
    system::kill(-pid);
    system::kill(pid);
}

/// How a job ended. Output and CPU time are decided by amounts, however the process ended, so that the same script gets
/// the same outcome wherever the kill happened to hit it.
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

/// One captured stream.
struct Stream {
    reader: Option<PipeReader>,
    kept: Vec<u8>,
}

impl Stream {
    /// Lossy UTF-8. A character cut in two by the limit is left out.
    fn text(&self) -> String {
        let complete = match std::str::from_utf8(&self.kept) {
            Err(error) if error.error_len().is_none() => &self.kept[..error.valid_up_to()],
            _ => &self.kept,
        };
        String::from_utf8_lossy(complete).into_owned()
    }
}

/// Both streams, read as far as the limit on their sum.
struct Output {
    stdout: Stream,
    stderr: Stream,
    left: u64,
    over: bool,
}

impl Output {
    fn new(stdout: PipeReader, stderr: PipeReader, limit: u64) -> io::Result<Self> {
        system::set_nonblocking(stdout.as_fd())?;
        system::set_nonblocking(stderr.as_fd())?;
        let stream = |reader| Stream { reader: Some(reader), kept: Vec::new() };
        Ok(Self { stdout: stream(stdout), stderr: stream(stderr), left: limit, over: false })
    }

    fn readers(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.stdout, &self.stderr].map(|stream| stream.reader.as_ref().map(AsFd::as_fd))
    }

    fn is_over(&self) -> bool {
        self.over
    }

    /// Reads what is there, without waiting. Past the limit both pipes are closed.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 * 1024];
        for stream in [&mut self.stdout, &mut self.stderr] {
            while let Some(reader) = &mut stream.reader {
                match reader.read(&mut buffer) {
                    Ok(0) => stream.reader = None,
                    Ok(length) => {
                        let kept = (length as u64).min(self.left) as usize;
                        stream.kept.extend_from_slice(&buffer[..kept]);
                        self.left -= kept as u64;
                        if kept < length {
                            self.over = true;
                            stream.reader = None;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if self.over {
            (self.stdout.reader, self.stderr.reader) = (None, None);
        }
        Ok(())
    }
}
