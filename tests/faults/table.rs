//! Tables of what a whole run of these tests has counted, for people: tests/faults/results/KIND.md.

use crate::io;
use crate::kill::Tally;
use crate::stage::Verb;
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

/// The page of a verb's calls that failed.
pub fn faults(verb: Verb, tally: &io::Tally, time: Duration, is_full: bool) {
    let (sites, all) = (tally.sites.values().sum::<usize>(), tally.faults.values().sum::<usize>());
    let mut text = format!("# Calls on files that failed in {}: {sites} call sites, {all} faults\n\n", verb.name());
    writeln!(text, "| call | sites | ENOSPC | EIO | half a write |\n|---|---|---|---|---|").unwrap();
    for (call, sites) in &tally.sites {
        let count = |how| tally.faults.get(&(call.clone(), how)).copied().unwrap_or(0);
        let [full, broken, short] = [io::How::Full, io::How::Broken, io::How::Short].map(count);
        writeln!(text, "| {call} | {sites} | {full} | {broken} | {short} |").unwrap();
    }
    writeln!(text, "\n| | |\n|---|---|").unwrap();
    for (code, count) in &tally.codes {
        writeln!(text, "| exit code {code} | {count} |").unwrap();
    }
    writeln!(text, "| sites whose calls fail in another run, one that takes less time | {} |", tally.elsewhere)
        .unwrap();
    writeln!(text, "| ended equal to the bit, at once or once more without the fault | {} |", tally.ends).unwrap();
    writeln!(text, "| calls that did not come again | {} |", tally.missed).unwrap();
    writeln!(text, "| findings | {} |", tally.findings.len()).unwrap();
    writeln!(text, "| minutes | {:.1} |", time.as_secs_f64() / 60.0).unwrap();
    tally.findings.iter().for_each(|finding| writeln!(text, "\n- {finding}").unwrap());
    write(&format!("io-{verb:?}").to_lowercase(), &text, is_full);
}

/// The page of runs at once.
pub fn together(folders: usize, caches: usize, time: Duration, is_full: bool) {
    let text = format!(
        "# Two and four runs at once\n\n| | times |\n|---|---|\n\
         | in one folder: one ran, the others were refused by name | {folders} |\n\
         | with one cache and store, twice in a row: all equal to the bit to one alone | {caches} |\n\
         | minutes | {:.1} |\n",
        time.as_secs_f64() / 60.0
    );
    write("together", &text, is_full);
}
