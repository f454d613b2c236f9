//! The error type of the whole program. Its message says what was being done, to what, and what to do; its kind sets
//! the exit code.

use std::cell::Cell;
use std::panic::UnwindSafe;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// The kind of a failure, which sets the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The command line is wrong (exit 2).
    Usage,
    /// A file, key or line that was given is wrong (exit 2).
    Content,
    /// The system refused: disk full, permission, a process that died (exit 1).
    System,
    /// A number that training computed is NaN or infinite (exit 1).
    NotFinite,
    /// Stopped by the user, with no checkpoint to resume from (exit 130; after SIGTERM the command line gives other
    /// codes).
    Interrupted,
    /// Stopped by the user, with a checkpoint to resume from (the same codes).
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
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    /// A given file, key or line is wrong.
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

    /// An input or output error while `doing` something to `path`. Its kind is `Content` for a path that does not exist
    /// or is a folder in place of a file (or the reverse), and for text that is not UTF-8; else `System`.
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

    /// The user wants the program to stop, and there is a checkpoint to resume from.
    pub fn stopped(message: impl Into<String>) -> Self {
        Self { kind: Kind::Stopped, message: message.into() }
    }

    /// Puts what was being done in front of the message.
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The kind of the failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The exit code of the program: 2 for usage and content, 1 for the system and for numbers that are not finite, 130
    /// when interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage | Kind::Content => 2,
            Kind::System | Kind::NotFinite => 1,
            Kind::Interrupted | Kind::Stopped => 130,
        }
    }
}

/// Checks whether the user wants to stop. Error: `interrupted` is set.
pub fn check_interrupt(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Ordering::SeqCst) { Err(Error::interrupted("interrupted")) } else { Ok(()) }
}

/// Calls into a library that panics on some malformed input. Returns `None` after a panic, which is not printed.
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
