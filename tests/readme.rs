//! Every command line of the documentation is one that the program takes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// README.md and the pages under docs/.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md"), root.join("weights/README.md")];
    let docs = fs::read_dir(root.join("docs")).into_iter().flatten().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|e| e == "md")));
    pages
}

/// The words behind the program's name in each command of a line: `onestep X`, `target/release/onestep X`, `cargo run --release -- X`. What
/// stands behind a # is a comment; &&, |, ; and > end a command.
fn commands(line: &str) -> Vec<Vec<&str>> {
    let line = line.split(" #").next().unwrap_or_default();
    let mut found = vec![];
    for command in line.split([';', '|', '>']).flat_map(|part| part.split("&&")) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let program = words.iter().position(|word| *word == "onestep" || word.ends_with("/onestep"));
        let cargo = words.windows(2).position(|pair| pair == ["cargo", "run"]);
        let at = match (program, cargo) {
            // The program as another program's argument, as in `run.sh out target/release/onestep`, is followed by nothing.
            (Some(at), _) => at,
            (None, Some(from)) => match words.iter().skip(from).position(|word| *word == "--") {
                Some(dashes) => from + dashes,
                None => continue,
            },
            (None, None) => continue,
        };
        if at + 1 < words.len() {
            found.push(words[at + 1..].to_vec());
        }
    }
    found
}

/// A piece of a page and the number of its line.
type Piece<'a> = (usize, &'a str);

/// The lines of code blocks (indented or fenced), and what stands between backticks in the others.
fn code(text: &str) -> (Vec<Piece<'_>>, Vec<Piece<'_>>) {
    let (mut blocks, mut inline, mut is_fenced) = (vec![], vec![], false);
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else if is_fenced || line.starts_with("    ") {
            blocks.push((i + 1, line));
        } else {
            inline.extend(line.split('`').skip(1).step_by(2).map(|part| (i + 1, part)));
        }
    }
    (blocks, inline)
}

#[test]
fn every_command_line_is_taken() {
    let (mut seen, mut wrong) = (0, vec![]);
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let (blocks, inline) = code(&text);
        let place = |line: usize| format!("{}:{line}", page.display());
        for (line, words) in
            blocks.iter().flat_map(|(n, text)| commands(text).into_iter().map(move |words| (*n, words)))
        {
            seen += 1;
            if let Err(why) = onestep::cli::check_words(&words) {
                wrong.push(format!("{}: onestep {}\n{why}", place(line), words.join(" ")));
            }
        }
        // In a sentence a command may lack what it needs or stand for several, but not have what is unknown.
        for (line, words) in
            inline.iter().flat_map(|(n, text)| commands(text).into_iter().map(move |words| (*n, words)))
        {
            seen += 1;
            if let Err(why) = onestep::cli::check_words(&words)
                && (why.contains("unexpected argument") || why.contains("unrecognized subcommand"))
                && !words.iter().any(|word| word.contains(['|', '.']))
            {
                wrong.push(format!("{}: onestep {}\n{why}", place(line), words.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 15, "only {seen} commands were seen");
}

/// Tables of figures are made from the committed results, never typed.
#[test]
fn tables_are_those_of_the_results() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results/tables.py");
    let output = Command::new("python3").arg("-B").arg(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn commands_are_found_in_lines() {
    let all = |line| commands(line);
    assert_eq!(all("    onestep sft a=1   # onestep eval"), [["sft", "a=1"]]);
    assert_eq!(all("    X=1 cargo build && target/release/onestep bench --all > out"), [["bench", "--all"]]);
    assert_eq!(all("    cargo run --release -- quickstart"), [["quickstart"]]);
    assert!(all("    run.sh results target/release/onestep").is_empty());
    assert!(onestep::cli::check_words(&["quickstart", "--devices", "cuda"]).is_err());
    assert!(onestep::cli::check_words(&["eval", "tasks.name=all"]).is_err());
}
