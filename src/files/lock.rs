//! Locks between processes. A wait for one names the process that has it, and ends after some time.

use crate::error::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait for a lock that another process has.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time after which the wait is reported.
    pub notice: Duration,
    /// Time after which the wait is an error.
    pub end: Duration,
}

/// For locks that other processes have for far less than a second.
pub const BRIEF: Patience = Patience { notice: Duration::from_secs(1), end: Duration::from_secs(60) };
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(10);

/// Takes the lock of the file `path`, which is made if it is missing, and keeps it until the returned file is dropped.
/// While another process has it, `say` gets one line that names the file and that process.
///
/// # Errors
/// System: the file cannot be opened, or another process has kept the lock for longer than `patience`; names that
/// process and what to do.
pub fn take(path: &Path, patience: Patience, say: impl FnOnce(&str)) -> Result<File> {
    let file = File::create(path).map_err(|e| Error::io("creating", path, &e))?;
    wait(file, path, patience, say)
}

/// Like [`take`], for a file or folder that was opened at `path`.
pub fn wait(file: File, path: &Path, patience: Patience, say: impl FnOnce(&str)) -> Result<File> {
    let start = Instant::now();
    let mut say = Some(say);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(Error::io("locking", path, &e)),
            Err(TryLockError::WouldBlock) => {}
        }
        let (waited, shown) = (start.elapsed(), path.display());
        if waited >= patience.end {
            let (who, seconds) = (holder(&file), patience.end.as_secs());
            return Err(Error::system(format!(
                "locking {shown}: {who} has kept it for {seconds} s; if that process is stopped or hangs, let it go on or end it"
            )));
        }
        if waited >= patience.notice
            && let Some(say) = say.take()
        {
            say(&format!("waiting for {}, which has locked {shown}", holder(&file)));
        }
        std::thread::sleep(RETRY);
    }
}

/// Describes the process that has the lock of a file: "process PID (its command line)", and whether it is stopped. Says
/// "perhaps" when only the file's inode agrees and not its device, and "another process" when the kernel does not say.
pub fn holder(file: &File) -> String {
    let Ok(info) = file.metadata() else { return "another process".to_string() };
    let device = format!("{:02x}:{:02x}:{}", libc::major(info.dev()), libc::minor(info.dev()), info.ino());
    let number = format!(":{}", info.ino());
    let text = fs::read_to_string("/proc/locks").unwrap_or_default();
    // 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF; a process that waits has an arrow in the second place. On
    // some file systems the device is not that of the file.
    let held = |place: &dyn Fn(&str) -> bool| {
        let fields = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let mut own = fields.filter(|f| f.get(1) == Some(&"FLOCK") && f.get(5).is_some_and(|at| place(at)));
        own.find_map(|fields| fields.get(4)?.parse::<u32>().ok().filter(|&pid| pid > 0))
    };
    let sure = held(&|place| place == device);
    let Some(pid) = sure.or_else(|| held(&|place| place.ends_with(&number))) else {
        return "another process".to_string();
    };
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = command.split(|&b| b == 0).filter(|w| !w.is_empty()).map(String::from_utf8_lossy).collect();
    let perhaps = if sure.is_some() { "" } else { "perhaps " };
    let command = if words.is_empty() { String::new() } else { format!(" ({})", words.join(" ")) };
    let stopped =
        if is_stopped(pid) { format!(", which is stopped (kill -CONT {pid} lets it go on)") } else { String::new() };
    format!("{perhaps}process {pid}{command}{stopped}")
}

/// True when a signal has stopped the process, as Ctrl-Z does.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_lock_is_said_with_its_holder_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let held = take(&path, BRIEF, |_| panic!("nobody has it")).unwrap();
        let own = format!("process {}", std::process::id());
        let brief = Patience { notice: Duration::ZERO, end: Duration::from_millis(50) };
        let mut said = String::new();
        let error = take(&path, brief, |line| said = line.to_string()).unwrap_err().to_string();
        for text in [&said, &error] {
            assert!(text.contains(&own) && text.contains(&path.display().to_string()), "{text}");
        }
        // A lock of another program, which has been stopped.
        let mut other = std::process::Command::new("flock")
            .arg("--no-fork")
            .arg(folder.path())
            .args(["sleep", "600"])
            .spawn()
            .unwrap();
        let lock = File::open(folder.path()).unwrap();
        while lock.try_lock().is_ok() {
            lock.unlock().unwrap();
        }
        let stop = rustix::process::Pid::from_child(&other);
        rustix::process::kill_process(stop, rustix::process::Signal::STOP).unwrap();
        while !is_stopped(other.id()) {}
        assert!(holder(&lock).ends_with(&format!("which is stopped (kill -CONT {} lets it go on)", other.id())));
        other.kill().unwrap();
        other.wait().unwrap();
        // A lock that is released meanwhile is waited for.
        let far = Patience { notice: Duration::ZERO, end: Duration::from_secs(600) };
        let mut held = Some(held);
        take(&path, far, |_| drop(held.take())).unwrap();
    }
}
