//! The binary: runs as the sandboxes' helper when asked to, else as the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: the helper forks, so it must have one thread.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == onestep::sandbox::worker::HELPER_ARGUMENT) {
        std::process::exit(onestep::sandbox::worker::helper_main());
    }
    onestep::cli::main()
}
