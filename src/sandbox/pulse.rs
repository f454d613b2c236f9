//! Heartbeats: who is waited for says from time to time that it lives, each process for itself and by its own doing, so that one that is
//! stopped or hangs falls silent, whatever the others do.

use super::system;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// How often a process that is waited for says that it lives.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often one that waits for others looks whether it is time to say so: far more often.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// A process that has said nothing for two heartbeats is stopped or hangs.
pub(super) const SILENCE: Duration = Duration::from_secs(2 * HEARTBEAT.as_secs());
/// How long what is killed may take to be gone before it is given up: more than anything may be silent, so who waits says meanwhile that it lives.
pub(super) const KILL_GRACE: Duration = Duration::from_secs(60);
/// How long an isolation may take to be entered, and libraries to be loaded: the loader says nothing meanwhile, unless
/// it is stopped, which the worker sees.
pub(super) const LOADING: Duration = Duration::from_secs(300);

/// Says that this process lives, when it is time to.
pub(super) struct Pulse<'a> {
    /// Who waits for this process.
    pub to: BorrowedFd<'a>,
    message: &'static [u8],
    /// When it is time to.
    pub next: Instant,
}

impl<'a> Pulse<'a> {
    /// One that says `message`, a heartbeat from now for the first time.
    pub fn new(to: BorrowedFd<'a>, message: &'static [u8]) -> Self {
        Self { to, message, next: Instant::now() + HEARTBEAT }
    }

    /// Called every LOOK or more often. An error when the other has gone.
    pub fn beat(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + HEARTBEAT;
            system::send(self.to, self.message, &[])?;
        }
        Ok(())
    }
}

/// Listens to a process that is waited for.
pub(super) struct Listener {
    who: &'static str,
    patience: Duration,
    until: Instant,
}

impl Listener {
    /// `who` may be silent for `patience`, most often SILENCE.
    pub fn new(who: &'static str, patience: Duration) -> Self {
        Self { who, patience, until: Instant::now() + patience }
    }

    /// It has said something.
    pub fn heard(&mut self) {
        self.until = Instant::now() + self.patience;
    }

    /// An error when it has been silent for too long.
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
