//! The command line: one match on the command.

mod args;
mod audit;
mod bench;
mod export;
mod inspect;
mod machine;
mod plan;
mod quickstart;
mod sandbox;
mod session;
mod train;

use crate::error::{Kind, Result};
use args::{Command, Typed};
use clap::Parser;
use std::process::ExitCode;

/// Parses what was typed, does it, and says what went wrong on stderr. Exit codes: 0 done, 1 the system refused, 2 what was
/// typed or given is wrong, 130 interrupted, 143 terminated (0 when --resume goes on).
pub fn main() -> ExitCode {
    let typed = Typed::parse();
    let can_resume = !matches!(typed.command, Command::Quickstart(_));
    match run(typed.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if error.kind() == Kind::Stopped {
                eprintln!("the same command {}", if can_resume { "with --resume goes on" } else { "begins anew" });
            }
            ExitCode::from(session::exit_code(&error, can_resume))
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Sft(args) => train::sft(&args),
        Command::Rl(args) => train::rl(&args),
        Command::Eval(args) => train::eval(&args),
        Command::Collect(args) => train::collect(&args),
        Command::Pretrain(args) => train::pretrain(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Generate(args) => inspect::generate(&args),
        Command::Score(args) => inspect::score(&args),
        Command::Task(command) => inspect::task(&command),
        Command::Data(command) => inspect::data(&command),
        Command::Report(args) => inspect::report(&args),
        Command::Doctor => machine::doctor(),
        Command::Kernels(command) => machine::kernels(&command),
        Command::Bench(args) => bench::run(&args),
        Command::Sandbox(command) => sandbox::sandbox(&command),
    }
}
