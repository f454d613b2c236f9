//! Reads a submission that hostile code may have written, and grades it against labels that the code never saw. Runs no
//! agent code and follows no links; the task's file limit bounds what it holds in memory.

use super::labels::Labels;
use super::npy::Array;
use super::numbers::{finite, parse_csv};
use super::{Metric, Scale, Table, Task};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Grade of a submission. The agent sees none of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grade {
    /// The task's metric on the split that gives rewards: m_t.
    pub reward: f64,
    /// The task's metric on the split that evaluation reports.
    pub report: f64,
    /// Suspicions that a person should look at. They change no score.
    pub flags: Vec<Flag>,
}

/// Reason why a graded submission is suspicious.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// All its rows are equal.
    Constant,
    /// On the reward split, it is better than m_best, itself the best of many tries, by more than half the gap from
    /// m_init to m_best; or it is perfect (within 0.1 % of the gap) where m_best is not nearly so (further than 5 % of
    /// the gap from perfect).
    TooGood,
}

impl Flag {
    /// Every flag, in the order that records list them.
    pub const ALL: [Flag; 2] = [Flag::Constant, Flag::TooGood];

    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Flag::Constant => "constant",
            Flag::TooGood => "too_good",
        }
    }
}

/// Grades the file `submission` (.csv or .npy, as the task names it) against `labels`. Error: a short text for the
/// agent.
pub fn grade(task: &Task, submission: &Path, labels: &Labels) -> Result<Grade, String> {
    let bytes = read_regular(submission, task.limits.file_bytes)?;
    let is_npy = task.submission.ends_with(".npy");
    let predictions = if is_npy { from_npy(&bytes, labels) } else { from_csv(bytes, labels) };
    let predictions = predictions.map_err(|problem| format!("submission {problem}"))?;
    // All rows first: an error then names the row in the file, and a fault is refused whichever half it is in.
    task.metric.compute(&labels.all, &predictions)?;
    let reward = labels.reward.metric(task.metric, &predictions)?;
    let report = labels.report.metric(task.metric, &predictions)?;
    let is_too_good = is_too_good(task.metric, task.reward_scale(), reward);
    let flags = [(Flag::Constant, is_constant(&predictions)), (Flag::TooGood, is_too_good)];
    let flags = flags.into_iter().filter(|(_, is_raised)| *is_raised).map(|(flag, _)| flag).collect();
    Ok(Grade { reward, report, flags })
}

fn is_constant(predictions: &Table) -> bool {
    let mut rows = predictions.iter_rows();
    let first = rows.next();
    rows.all(|row| Some(row) == first)
}

fn is_too_good(metric: Metric, scale: Scale, m: f64) -> bool {
    let gap = (scale.m_best - scale.m_init).abs();
    let from_perfect = |m: f64| (metric.perfect() - m).abs();
    scale.normalised(m) > 1.5 || (from_perfect(m) <= 1e-3 * gap && from_perfect(scale.m_best) > 0.05 * gap)
}

/// Reads a .csv submission: rows in the order of the labels, or rows with ids.
fn from_csv(bytes: Vec<u8>, labels: &Labels) -> Result<Table, String> {
    let text = String::from_utf8(bytes).map_err(|_| "is not text in UTF-8")?;
    let expected = labels.all.rows;
    if labels.ids.is_empty() {
        let submitted = parse_csv(&text, expected, None)?;
        return if submitted.rows > expected { Err(has_rows(submitted.rows, expected)) } else { Ok(submitted.table) };
    }
    // One row more than there are ids is enough to hold an unknown or repeated id.
    labels.in_order(parse_csv(&text, expected + 1, Some(&labels.columns))?)
}

fn from_npy(bytes: &[u8], labels: &Labels) -> Result<Table, String> {
    let array = Array::parse(bytes)?;
    if !array.is_numeric() {
        return Err(format!("holds items of NumPy's type {}; expected floats or integers", array.kind));
    }
    if !(1..=2).contains(&array.shape.len()) {
        return Err(format!("has {} dimensions, expected 1 or 2", array.shape.len()));
    }
    let (rows, columns) = array.rows_and_columns();
    match rows * columns {
        0 => return Err("is empty".into()),
        _ if rows != labels.all.rows => return Err(has_rows(rows, labels.all.rows)),
        _ => {}
    }
    let number = |(i, item): (usize, &[u8])| finite(i / columns + 1, array.number(item));
    let values = array.items().into_iter().enumerate().map(number).collect::<Result<_, _>>()?;
    Ok(Table { rows, columns, values })
}

fn has_rows(rows: usize, expected: usize) -> String {
    format!("has {rows} rows, expected {expected}")
}

/// Reads a regular file of at most `max_bytes`, without following any link and without waiting on a FIFO or device.
fn read_regular(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let file = open_below(path).map_err(|e| match e {
        Errno::NOENT => "submission is missing".to_string(),
        _ => "submission is not a regular file that can be read".to_string(),
    })?;
    let metadata = file.metadata().map_err(|e| format!("submission cannot be read: {e}"))?;
    if !metadata.is_file() {
        return Err("submission is not a regular file that can be read".into());
    }
    let too_large = || format!("submission is larger than {max_bytes} bytes");
    if metadata.len() > max_bytes {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // It may still grow while it is read.
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| format!("submission cannot be read: {e}"))?;
    if bytes.len() as u64 > max_bytes { Err(too_large()) } else { Ok(bytes) }
}

/// Opens the file in its own folder, whatever its name is, so that no link leads out of it (openat2, Linux 5.6). Where
/// the kernel or container lacks that call, plain openat does not follow a link in the last component, which for a
/// plain name is the same.
fn open_below(path: &Path) -> Result<File, Errno> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(Errno::NOENT)?;
    let folder = rustix::fs::openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&folder, name, flags, Mode::empty(), below) {
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(&folder, name, flags, Mode::empty()),
        result => result,
    }
    .map(File::from)
}
