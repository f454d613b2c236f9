//! What a policy, or a script it has written, can send: replies, patches, submissions, and the trajectories that keep them.

use onestep::environment::action::{Action, ReplyFormat, parse, render};
use onestep::environment::patch::{apply, line_start_patch};
use onestep::error::{Error, Result};
use onestep::task::grader::grade;
use onestep::task::{Labels, Task};
use onestep::trajectory;
use std::path::Path;
use std::sync::OnceLock;

const REPLY: &str = "Reflection: the last edit failed\nResearch Plan and Status: 1. scale\n2. fit\nFact Check: \u{e9} = 1\nThought: \
                     widen\nAction: Edit Script\nAction Input: {\"script_name\": \"train.py\", \"search\": \"n =\", \"replace\": \"n = \\u00e9 1\"}\n";
/// The parts of a patch in a file: the script, what is searched, what takes its place.
const PART: &str = "\n====\n";
const PATCH: &str = "n = 10\nn = 1\nk = \u{e9}\n\n====\nn = 1\nk\n====\nn = 2\nk";
/// Labels of a submission without ids, and of one with.
const LABELS: &str = "1\n2\n3\n4\n";
const LABELS_BY_ID: &str = "id,y\na,1\nb,2\nc,3\nd,4\n";

/// Writes the files of these doors.
pub fn furnish(folder: &Path) {
    let npy = |header: &str, data: &[u8]| {
        let header = format!("{header:<117}\n");
        [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), data].concat()
    };
    let numbers: Vec<u8> = [1f64, 2.0, 3.5, -4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let files: [(&str, Vec<u8>); 5] = [
        ("reply.txt", REPLY.into()),
        ("patch.txt", PATCH.into()),
        ("submission.csv", "1\n 2.5\n\"3\"\n4e0\n".into()),
        ("by_id/submission.csv", "\u{feff}id,y\r\nb,1\r\na,2\r\n\"c\",3\r\nd,4\r\n".into()),
        ("submission.npy", npy("{'descr': '<f8', 'fortran_order': True, 'shape': (4, 1), }", &numbers)),
    ];
    std::fs::create_dir(folder.join("by_id")).unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes).unwrap());
}

/// The text of a file as the policy's tokens are decoded.
fn sent(folder: &Path, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(folder.join(name)).unwrap()).into_owned()
}

/// Says of an error where its input lies: the agent is told without.
fn refused(folder: &Path, said: &impl ToString) -> Error {
    let said = said.to_string();
    assert!(!said.is_empty() && said.len() < 2000, "{said}");
    Error::content(format!("{}: it is refused: {said}", folder.display()))
}

/// A reply in either format: an action, which is the same when it is written and read again, or an error.
pub fn reply(folder: &Path) -> Result<()> {
    let text = sent(folder, "reply.txt");
    let action_alone = text.find("Action:").map_or("", |at| &text[at..]);
    let short = parse(action_alone, ReplyFormat::NoThought);
    let whole = parse(&text, ReplyFormat::Thought);
    short.iter().chain(&whole).for_each(|action: &Action| {
        assert_eq!(parse(&render(action), ReplyFormat::NoThought).as_ref(), Ok(action), "{text:?}");
    });
    whole.map(drop).map_err(|e| refused(folder, &e))
}

/// A patch: either a text that differs from the script in one place, or an error.
pub fn patch(folder: &Path) -> Result<()> {
    let text = sent(folder, "patch.txt");
    let mut parts = text.splitn(3, PART);
    let mut part = || parts.next().unwrap_or_default();
    let (script, search, replace) = (part(), part(), part());
    for (index, line) in script.split('\n').enumerate() {
        assert!(apply(script, line, line).is_err(), "{text:?}: a line in its own place is no change");
        if let Some((search, replace)) = line_start_patch(script, index, replace) {
            let patched = apply(script, &search, &replace).expect("a patch of its own making");
            assert_eq!(patched.split('\n').nth(index), replace.split('\n').next(), "{text:?}");
        }
    }
    let patched = apply(script, search, replace).map_err(|e| refused(folder, &e))?;
    let is_one_place = script.match_indices(search).any(|(start, _)| {
        let end = match search.contains('\n') {
            true => start + search.len(),
            false => script[start..].find('\n').map_or(script.len(), |length| start + length),
        };
        patched == [&script[..start], replace, &script[end..]].concat()
    });
    assert!(patched != script && is_one_place, "{text:?} became {patched:?}");
    Ok(())
}

fn graded(folder: &Path, submission: &str, labels: &str) -> Result<()> {
    static TASK: OnceLock<Task> = OnceLock::new();
    let task =
        TASK.get_or_init(|| Task::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks/sales")).unwrap());
    let task = Task { submission: submission.to_string(), ..task.clone() };
    let labels = Labels::parse(&task, labels).unwrap();
    let grade = grade(&task, &folder.join(submission), &labels).map_err(|e| refused(folder, &e))?;
    assert!(grade.reward.is_finite() && grade.report.is_finite(), "{grade:?}");
    Ok(())
}

pub fn csv(folder: &Path) -> Result<()> {
    graded(folder, "submission.csv", LABELS)
}

pub fn csv_by_id(folder: &Path) -> Result<()> {
    graded(&folder.join("by_id"), "submission.csv", LABELS_BY_ID)
}

pub fn npy(folder: &Path) -> Result<()> {
    graded(folder, "submission.npy", LABELS)
}

/// A trajectory file as rl reads it: what is let in is written and read again.
pub fn trajectories(folder: &Path) -> Result<()> {
    let read = trajectory::read_jsonl(&folder.join("played.jsonl"))?;
    let copy = folder.join("copy.jsonl");
    trajectory::write_jsonl(&copy, &read)?;
    assert_eq!(format!("{:?}", trajectory::read_jsonl(&copy)?), format!("{read:?}"));
    Ok(())
}
