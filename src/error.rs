//! One error type for the whole program: what was being done, to what, what to do, and the exit code that follows.

use std::cell::Cell;
use std::panic::UnwindSafe;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why something failed, as far as the exit code is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was typed is wrong (exit 2).
    Usage,
    /// A file, key or line that was given is wrong (exit 2).
    Content,
    /// The system refused: disk full, permission, a process that died (exit 1).
    System,
    /// A number that training computed is NaN or infinite (exit 1).
    NotFinite,
    /// Stopped by the user, with nothing to go on from (exit 130; the command line has others after SIGTERM).
    Interrupted,
    /// Stopped by the user, with a checkpoint to go on from (the same).
    Stopped,
}

/// An error whose message names what was being done, to what, and what to do about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: Kind,
    message: String,
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Something that was typed is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    /// Content that was given (a file, key, line) is wrong.
    pub fn content(message: impl Into<String>) -> Self {
        Self { kind: Kind::Content, message: message.into() }
    }

    /// The system refused something that should have worked.
    pub fn system(message: impl Into<String>) -> Self {
        Self { kind: Kind::System, message: message.into() }
    }

    /// A number that training computed is NaN or infinite.
    pub fn not_finite(message: impl Into<String>) -> Self {
        Self { kind: Kind::NotFinite, message: message.into() }
    }

    /// An input or output error while `doing` something to `path`. A path given by the user that does not exist is
    /// content, and so is a file of text that is no UTF-8.
    pub fn io(doing: &str, path: &Path, source: &std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound
            | std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::NotADirectory
            | std::io::ErrorKind::InvalidData => Kind::Content,
            _ => Kind::System,
        };
        Self { kind, message: format!("{doing} {}: {source}", path.display()) }
    }

    /// The user wants the program to stop.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { kind: Kind::Interrupted, message: message.into() }
    }

    /// The same, when a checkpoint is there.
    pub fn stopped(message: impl Into<String>) -> Self {
        Self { kind: Kind::Stopped, message: message.into() }
    }

    /// What was being done when this error came up, put in front of the message.
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Why it failed.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The exit code of the program: 2 for usage and content, 1 for the system and for numbers that are not finite, 130 when interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage | Kind::Content => 2,
            Kind::System | Kind::NotFinite => 1,
            Kind::Interrupted | Kind::Stopped => 130,
        }
    }
}

/// An error when the user wants to stop: when `interrupted` is set.
pub fn check_interrupt(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Ordering::SeqCst) { Err(Error::interrupted("interrupted")) } else { Ok(()) }
}

/// Calls into a library that panics on some malformed input: `None` when it did. Nothing is printed of that panic.
pub fn caught<T>(call: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    thread_local!(static IS_QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                loud(panic);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = std::panic::catch_unwind(call);
    IS_QUIET.set(false);
    result.ok()
}
