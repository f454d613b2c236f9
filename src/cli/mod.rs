//! The command line: parses it, runs the verb, and turns the result into an exit code.

mod args;
mod audit;
mod bench;
mod evaluation;
mod export;
mod given;
mod inspect;
mod machine;
mod numbers;
mod plan;
mod quickstart;
mod sandbox;
mod session;
mod settings;
mod train;
mod unknown;

use crate::console::errln;
use crate::error::{Kind, Result};
use args::{Command, Typed};
use clap::Parser;
use std::process::ExitCode;

/// Parses the command line, runs the verb, and prints errors on stderr. Exit codes: 0 done, 1 the system refused, 2 the
/// command line or its input is wrong, 130 interrupted, 143 terminated (0 when --resume can go on).
pub fn main() -> ExitCode {
    let words: Vec<String> = crate::version::command_line().into_iter().skip(1).collect();
    let typed = match Typed::try_parse() {
        Ok(typed) => typed,
        Err(error) => match unknown::hint(&error, &words) {
            Some(hint) => {
                errln!("error: {hint}");
                return ExitCode::from(2);
            }
            None => error.exit(),
        },
    };
    let can_resume = matches!(typed.command, Command::Sft(_) | Command::Rl(_) | Command::Pretrain(_));
    match run(typed.command) {
        Ok(()) => match crate::console::failure() {
            None => ExitCode::SUCCESS,
            Some(why) => {
                errln!("error: {why}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            errln!("error: {error}");
            if error.kind() == Kind::Stopped {
                errln!("the same command {}", if can_resume { "with --resume goes on" } else { "begins anew" });
            }
            ExitCode::from(session::exit_code(&error, can_resume))
        }
    }
}

/// Checks a command line (without the program's name), settings included, and runs nothing. For tests of the
/// documentation. Error: what is wrong with it.
pub fn check_words(words: &[&str]) -> std::result::Result<(), String> {
    let all = std::iter::once("onestep").chain(words.iter().copied());
    let typed = Typed::try_parse_from(all).map_err(|error| error.to_string())?;
    let overrides = match &typed.command {
        Command::Quickstart(args) => &args.overrides,
        Command::Sft(args) => &args.run.overrides,
        Command::Rl(args) => &args.run.overrides,
        Command::Eval(args) => &args.run.overrides,
        Command::Collect(args) => &args.run.overrides,
        Command::Pretrain(args) => &args.run.overrides,
        Command::Plan(args) => &args.overrides,
        Command::Generate(args) => &args.overrides,
        _ => return Ok(()),
    };
    let section = words.first().and_then(|verb| unknown::section(verb)).unwrap_or("run");
    crate::config::Config::load(&[], overrides, section).map(drop).map_err(|error| error.to_string())
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Quickstart(args) => quickstart::run(&args),
        Command::Sft(args) => train::sft(&args),
        Command::Rl(args) => train::rl(&args),
        Command::Eval(args) => evaluation::eval(&args),
        Command::Collect(args) => train::collect(&args),
        Command::Pretrain(args) => train::pretrain(&args),
        Command::Config(args) => settings::run(&args),
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
