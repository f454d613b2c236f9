//! Prints to stdout and stderr. A reader that has gone away (`onestep ... | head -1`) is not an error: the work goes on
//! and its results are written. Any other failure is kept, so that the program can end with it. No other file uses
//! `println!` and the like.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

/// The first failure to print, other than a closed pipe.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);

/// Prints to stdout, in one write.
pub fn print(text: Arguments) {
    let mut stdout = std::io::stdout().lock();
    keep("stdout", stdout.write_all(text.to_string().as_bytes()).and_then(|()| stdout.flush()));
}

/// Prints to stderr, in one write.
pub fn print_error(text: Arguments) {
    keep("stderr", std::io::stderr().lock().write_all(text.to_string().as_bytes()));
}

fn keep(stream: &str, result: std::io::Result<()>) {
    let Err(error) = result else { return };
    if error.kind() != ErrorKind::BrokenPipe {
        FAILURE.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(format!("writing to {stream}: {error}"));
    }
}

/// The first failure to print, for example because of a full disk; `None` when everything was printed or the reader has
/// gone away.
pub fn failure() -> Option<String> {
    FAILURE.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// `print!` that survives a closed stdout.
macro_rules! out {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}
/// `println!` that survives a closed stdout.
macro_rules! outln {
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}
/// `eprint!` that survives a closed stderr.
macro_rules! err {
    ($($argument:tt)*) => { $crate::console::print_error(format_args!($($argument)*)) };
}
/// `eprintln!` that survives a closed stderr.
macro_rules! errln {
    ($($argument:tt)*) => { $crate::console::print_error(format_args!("{}\n", format_args!($($argument)*))) };
}
pub(crate) use {err, errln, out, outln};
