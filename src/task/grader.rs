//! Reads a submission that hostile code may have written, and grades it against labels that code never saw.
//! Runs no agent code and follows no links; what it holds in memory is bounded by the task's file limit.

use super::{Table, Task};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The task's metric of the CSV file `submission` against `labels`. The error is a short text for the agent.
pub fn grade(task: &Task, submission: &Path, labels: &Table) -> Result<f64, String> {
    let text = read_regular(submission, task.limits.file_bytes)?;
    let predictions = parse_csv(&text, labels.rows).map_err(|problem| format!("submission {problem}"))?;
    task.metric.compute(labels, &predictions)
}

/// Opens without following a link in the last component and without waiting on a FIFO or device; reads at most `max_bytes`.
fn read_regular(path: &Path, max_bytes: u64) -> Result<String, String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = file.map_err(|e| match e.kind() {
        ErrorKind::NotFound => "submission is missing".to_string(),
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
    if bytes.len() as u64 > max_bytes {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|_| "submission is not text".into())
}

/// Comma-separated finite numbers, one row a line, no header; blank lines are skipped. Rows beyond `max_rows` are counted, and
/// are an error. The error continues a sentence whose subject is the file.
pub(super) fn parse_csv(text: &str, max_rows: usize) -> Result<Table, String> {
    let mut table = Table { rows: 0, columns: 0, values: Vec::new() };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        table.rows += 1;
        if table.rows > max_rows {
            continue;
        }
        let before = table.values.len();
        for field in line.split(',').map(str::trim) {
            let number = field.parse::<f64>().map_err(|_| {
                let shown: String = field.chars().take(20).collect();
                format!("row {}: {shown:?} is not a number", table.rows)
            })?;
            if !number.is_finite() {
                return Err(format!("row {}: {number} is not finite", table.rows));
            }
            table.values.push(number);
        }
        let columns = table.values.len() - before;
        if table.rows == 1 {
            table.columns = columns;
        } else if columns != table.columns {
            return Err(format!("row {} has {columns} columns, row 1 has {}", table.rows, table.columns));
        }
    }
    match table.rows {
        0 => Err("is empty".into()),
        rows if rows > max_rows => Err(format!("has {rows} rows, expected {max_rows}")),
        _ => Ok(table),
    }
}
