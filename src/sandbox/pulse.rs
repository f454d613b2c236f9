//! Heartbeats: each process that others wait for says from time to time that it lives. Each does so by itself, so that
//! one that is stopped or hangs falls silent, whatever the others do.

use super::system;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How often a process that others wait for sends a heartbeat.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often a process that itself waits checks whether its heartbeat is due: far more often.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// Silence after which a process counts as stopped or hanging: two heartbeats.
pub(super) const SILENCE: Duration = Duration::from_secs(2 * HEARTBEAT.as_secs());
/// How long a killed process may take to end before it is given up. Longer than [`SILENCE`], so whoever waits for it
/// must send heartbeats meanwhile.
pub(super) const KILL_GRACE: Duration = Duration::from_secs(60);
/// How long entering an isolation may take, and loading the libraries. The loader sends no heartbeats meanwhile, but
/// the worker sees whether it is stopped.
pub(super) const LOADING: Duration = Duration::from_secs(300);

/// Sends this process's heartbeats when they are due.
pub(super) struct Pulse<'a> {
    /// Socket to the process that waits for this one.
    pub to: BorrowedFd<'a>,
    message: &'static [u8],
    /// When the next heartbeat is due.
    pub next: Instant,
}

impl<'a> Pulse<'a> {
    /// Makes a pulse that sends `message` to `to`, the first time after one [`HEARTBEAT`].
    pub fn new(to: BorrowedFd<'a>, message: &'static [u8]) -> Self {
        Self { to, message, next: Instant::now() + HEARTBEAT }
    }

    /// Sends the heartbeat if it is due. Must be called every [`LOOK`] or more often. Error: the other has gone.
    pub fn beat(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + HEARTBEAT;
            system::send(self.to, self.message, &[])?;
        }
        Ok(())
    }
}

/// Watches whether a process falls silent.
pub(super) struct Listener {
    who: &'static str,
    patience: Duration,
    until: Instant,
}

impl Listener {
    /// Starts to watch `who`, which may be silent for `patience`, usually [`SILENCE`].
    pub fn new(who: &'static str, patience: Duration) -> Self {
        Self { who, patience, until: Instant::now() + patience }
    }

    /// Records that the process has said something.
    pub fn heard(&mut self) {
        self.until = Instant::now() + self.patience;
    }

    /// Error: the process has been silent for too long.
    pub fn check(&self) -> io::Result<()> {
        if Instant::now() < self.until {
            return Ok(());
        }
        let (who, seconds) = (self.who, self.patience.as_secs());
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{who} has said nothing for {seconds} s: it is stopped or hangs"),
        ))
    }
}
