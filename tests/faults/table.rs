//! Tables of what a whole run of these tests has counted, for people: tests/faults/results/KIND.md.

use crate::kill::Tally;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// Writes the page of a kind of faults; nothing when only a part was run.
pub fn write(kind: &str, text: &str, is_full: bool) {
    println!("{text}");
    if is_full {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/results");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{kind}.md")), text).unwrap();
    }
}

/// The page of signals: `verb` is what was done to a process.
pub fn hits(kind: &str, verb: &str, tally: &Tally, time: Duration, is_full: bool) {
    let mut text = format!("# Processes {verb}\n\n| run | process | times {verb} |\n|---|---|---|\n");
    for ((run, role), count) in &tally.hits {
        writeln!(text, "| {} | {} | {count} |", run.name(), role.name()).unwrap();
    }
    let all: usize = tally.hits.values().sum();
    writeln!(text, "| all | | {all} |\n\n| | |\n|---|---|").unwrap();
    writeln!(text, "| runs that came to their end, each equal to the bit to an uninterrupted one | {} |", tally.ends)
        .unwrap();
    writeln!(text, "| resumed | {} |", tally.resumes).unwrap();
    writeln!(text, "| ended with an error after the loss of a process | {} |", tally.gave_up).unwrap();
    for (kind, count) in &tally.leftovers {
        writeln!(text, "| left behind: {kind} | {count} |").unwrap();
    }
    writeln!(text, "| minutes | {:.1} |", time.as_secs_f64() / 60.0).unwrap();
    write(kind, &text, is_full);
}
