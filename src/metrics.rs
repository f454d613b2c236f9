//! Writes and reads a run's log: metrics.jsonl, one JSON object a line, and the same numbers as a TensorBoard event
//! file. Needs no service; report/ draws the charts.

use crate::error::{Error, Result};
use crate::files::regular;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

/// Name of the log inside a run's folder.
pub const FILE: &str = "metrics.jsonl";
/// Name of the TensorBoard event file inside a run's folder (TensorBoard looks for "tfevents").
pub const EVENTS: &str = "events.out.tfevents.onestep";

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    lines: File,
    lines_path: PathBuf,
    events: Events,
}

impl MetricsLog {
    /// Starts a new log in `dir`; an old one there is emptied.
    pub fn create(dir: &Path) -> Result<Self> {
        Self::open(dir, &[])
    }

    /// Goes on with the log in `dir`, for example in a run's next phase.
    pub fn append(dir: &Path) -> Result<Self> {
        Self::open(dir, &logged(dir)?.all()?)
    }

    /// Starts `phase` anew after what earlier phases wrote: drops everything from the phase's first line on.
    pub fn restart(dir: &Path, phase: &str) -> Result<Self> {
        let logged = logged(dir)?;
        match logged.records.iter().position(|record| record["phase"] == phase) {
            Some(first) => Self::open(dir, &logged.records[..first]),
            None => Self::open(dir, &logged.all()?),
        }
    }

    /// Goes on from a checkpoint made at the end of `step` of `phase`: drops everything from this phase's first line
    /// with a later step on, and a last line that was not finished. A line that cannot be read is dropped, with all
    /// after it, if the lines of all steps up to `step` come before it. Also returns how many of those steps have no
    /// line. Error: a line cannot be read, and steps are missing before it.
    pub fn resume(dir: &Path, phase: &str, step: u64) -> Result<(Self, u64)> {
        let logged = logged(dir)?;
        let at = |record: &Value| record["step"].as_u64().filter(|_| record["phase"] == phase);
        let is_past = |record: &Value| at(record).is_some_and(|at| at > step);
        let kept = logged.records.iter().position(is_past).unwrap_or(logged.records.len());
        let steps: BTreeSet<u64> = logged.records[..kept].iter().filter_map(at).filter(|at| *at > 0).collect();
        let missing = step.saturating_sub(steps.len() as u64);
        if missing > 0 && kept == logged.records.len() {
            return Ok((Self::open(dir, &logged.all()?)?, missing));
        }
        Ok((Self::open(dir, &logged.records[..kept])?, missing))
    }

    /// Syncs the lines to disk, so that what was written so far survives a power cut.
    pub fn sync(&self) -> Result<()> {
        self.lines.sync_all().map_err(|e| Error::io("syncing", &self.lines_path, &e))
    }

    /// Opens the log in `dir` and cuts it after its first records, `kept`.
    fn open(dir: &Path, kept: &[Value]) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("making", dir, &e))?;
        let path = dir.join(FILE);
        let io = |e: std::io::Error| Error::io("writing", &path, &e);
        let text = if path.exists() { regular::read(&path, u64::MAX)? } else { Vec::new() };
        let mut lines = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        let end = text.split_inclusive(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let length: usize = end.take(kept.len()).map(<[u8]>::len).sum();
        lines.set_len(length as u64).and_then(|()| lines.seek(std::io::SeekFrom::End(0))).map_err(io)?;
        // The event file is made again from the lines kept, so that the two always agree.
        let mut events = Events::create(&dir.join(EVENTS))?;
        for record in kept {
            events.write(record)?;
        }
        events.flush()?;
        Ok(Self { lines, lines_path: path, events })
    }

    /// Appends one record: `phase`, `step`, then the fields of `values` (an object). The line is in the file when this
    /// returns. A number that is not finite becomes null, as JSON has none.
    pub fn write(&mut self, phase: &str, step: u64, values: &Value) -> Result<()> {
        let mut record = Map::new();
        record.insert("phase".into(), phase.into());
        record.insert("step".into(), step.into());
        for (key, value) in values.as_object().into_iter().flatten() {
            record.insert(key.clone(), value.clone());
        }
        let record = Value::Object(record);
        let line = format!("{record}\n");
        self.lines.write_all(line.as_bytes()).map_err(|e| Error::io("writing", &self.lines_path, &e))?;
        self.events.write(&record)?;
        self.events.flush()
    }
}

/// The contents of a log.
struct Logged {
    /// The records up to a line that cannot be read.
    records: Vec<Value>,
    /// The error about that line, if there is one.
    bad: Option<Error>,
}

impl Logged {
    /// The records. Error: a line cannot be read.
    fn all(self) -> Result<Vec<Value>> {
        self.bad.map_or(Ok(self.records), Err)
    }
}

/// Reads the log in `dir`; empty when there is none.
fn logged(dir: &Path) -> Result<Logged> {
    let path = dir.join(FILE);
    if path.exists() { scan(&path) } else { Ok(Logged { records: vec![], bad: None }) }
}

/// Reads the records of a metrics.jsonl, in order. A last line without its line break is left out: it was being written
/// when the run stopped. Error: any other line is not a JSON object; gives its number.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    scan(path)?.all()
}

fn scan(path: &Path) -> Result<Logged> {
    let bytes = regular::read(path, u64::MAX)?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
    let mut records = Vec::new();
    for (i, line) in bytes[..whole].split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty())
    {
        let what = match serde_json::from_slice(line) {
            Ok(record @ Value::Object(_)) => {
                records.push(record);
                continue;
            }
            Ok(_) => "no object".to_string(),
            Err(e) => e.to_string(),
        };
        let expected = r#"expected one JSON object a line, such as {"phase": "rl", "step": 1, "reward": 0.1}"#;
        let bad = Error::content(format!("{}:{}: {what}; {expected}", path.display(), i + 1));
        return Ok(Logged { records, bad: Some(bad) });
    }
    Ok(Logged { records, bad: None })
}

/// A TensorBoard event file: TFRecord framing (tensorflow/core/lib/io/record_writer.h) around `Event` messages of
/// protocol buffers (tensorflow/core/util/event.proto and framework/summary.proto), scalars only.
#[derive(Debug)]
struct Events {
    file: std::io::BufWriter<File>,
    path: PathBuf,
}

impl Events {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|e| Error::io("writing", path, &e))?;
        let mut events = Self { file: std::io::BufWriter::new(file), path: path.to_path_buf() };
        let mut version = event_head(0);
        field_bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        Ok(events)
    }

    /// Writes every number of a record, nested ones too, under its path: `rl/cases/edit`.
    fn write(&mut self, record: &Value) -> Result<()> {
        let step = record["step"].as_u64().unwrap_or_default();
        let mut values = Vec::new();
        let phase = record["phase"].as_str().unwrap_or("run");
        for (key, value) in record.as_object().into_iter().flatten().filter(|(key, _)| key.as_str() != "step") {
            scalars(&format!("{phase}/{key}"), value, &mut values);
        }
        let mut summary = Vec::new();
        for (tag, number) in &values {
            let mut value = Vec::new();
            field_bytes(&mut value, 1, tag.as_bytes());
            value.push(2 << 3 | 5); // simple_value, 32 bits
            value.extend((*number as f32).to_le_bytes());
            field_bytes(&mut summary, 1, &value);
        }
        let mut event = event_head(step);
        field_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(&frame(data)).map_err(|e| Error::io("writing", &self.path, &e))
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io("writing", &self.path, &e))
    }
}

fn scalars(tag: &str, value: &Value, out: &mut Vec<(String, f64)>) {
    match value {
        Value::Number(number) => out.extend(number.as_f64().map(|n| (tag.to_string(), n))),
        Value::Object(object) => object.iter().for_each(|(key, value)| scalars(&format!("{tag}/{key}"), value, out)),
        _ => {}
    }
}

/// The fields every event has: wall_time (1, a double) and step (2, a varint; proto3 leaves a 0 out).
fn event_head(step: u64) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut event = vec![1 << 3 | 1];
    event.extend(now.to_le_bytes());
    if step > 0 {
        event.push(2 << 3);
        varint(&mut event, step);
    }
    event
}

fn field_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// One TFRecord: length, masked CRC of the length, data, masked CRC of the data; little-endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

/// TFRecord's mask, so that a CRC of data that holds CRCs stays useful (tensorflow/core/lib/hash/crc32c.h).
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78, bit by bit: a log line is a few hundred bytes.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn crc32c_known_answers() {
        // The check value of CRC-32C, and the vectors of RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46DD_794E);
    }

    #[test]
    fn a_scalar_event_has_the_bytes_of_the_formats() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::create(dir.path()).unwrap();
        log.write("rl", 300, &json!({"reward": 0.5, "name": "x", "none": null})).unwrap();
        let bytes = std::fs::read(dir.path().join(EVENTS)).unwrap();
        // Event files of TensorFlow all open like this: a version event of 24 bytes, and the masked CRC of that length.
        assert_eq!(bytes[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        // Walk the frames, checking both checksums of each.
        let (mut at, mut records) = (0, Vec::new());
        while at < bytes.len() {
            let word = |i: usize| u32::from_le_bytes(bytes[i..i + 4].try_into().unwrap());
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(word(at + 8), masked(crc32c(&bytes[at..at + 8])));
            records.push(&bytes[at + 12..at + 12 + length]);
            assert_eq!(word(at + 12 + length), masked(crc32c(records[records.len() - 1])));
            at += 16 + length;
        }
        assert_eq!(records.len(), 2);
        assert_eq!(records[0][9..], *b"\x1a\x0dbrain.Event:2");
        // step 300 is the varint ac 02; then the summary (17 bytes) with one value (15): tag "rl/reward" wants 9.
        let expected = b"\x10\xac\x02\x2a\x12\x0a\x10\x0a\x09rl/reward\x15\x00\x00\x00\x3f";
        assert_eq!(records[1][9..], *expected);
    }

    #[test]
    fn resuming_drops_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut log = MetricsLog::create(dir.path()).unwrap();
        log.write("sft", 9, &json!({"loss": 1.0})).unwrap();
        for step in 1..=4 {
            log.write("rl", step, &json!({"reward": step, "cases": {"edit": f64::NAN}})).unwrap();
        }
        drop(log);
        let half = format!("{}{{\"phase\":\"rl\",\"st", std::fs::read_to_string(&path).unwrap());
        std::fs::write(&path, half).unwrap();
        assert_eq!(read(&path).unwrap().len(), 5, "a line that was being written is no line");

        let (mut log, missing) = MetricsLog::resume(dir.path(), "rl", 2).unwrap();
        assert_eq!(missing, 0);
        log.write("rl", 3, &json!({"reward": 30})).unwrap();
        let steps: Vec<_> = read(&path).unwrap().iter().map(|r| (r["phase"].clone(), r["step"].clone())).collect();
        assert_eq!(steps, [("sft", 9), ("rl", 1), ("rl", 2), ("rl", 3)].map(|(p, s)| (json!(p), json!(s))));
        assert_eq!(MetricsLog::resume(dir.path(), "rl", 7).unwrap().1, 4, "steps 4 to 7 have no line");
        let events = std::fs::metadata(dir.path().join(EVENTS)).unwrap().len();
        drop(MetricsLog::append(dir.path()).unwrap());
        assert_eq!(read(&path).unwrap().len(), 4);
        assert_eq!(std::fs::metadata(dir.path().join(EVENTS)).unwrap().len(), events, "made again from the same lines");
        drop(MetricsLog::create(dir.path()).unwrap());
        assert!(read(&path).unwrap().is_empty());
    }

    #[test]
    fn a_line_that_cannot_be_read_matters_up_to_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let text = |bad: &str| format!("{{\"phase\":\"rl\",\"step\":1}}\n{bad}{{\"phase\":\"rl\",\"step\":2}}\n");
        std::fs::write(dir.path().join(FILE), text("?\n")).unwrap();
        for result in [MetricsLog::append(dir.path()), MetricsLog::restart(dir.path(), "sft")] {
            assert!(result.unwrap_err().to_string().contains(":2:"));
        }
        assert!(MetricsLog::resume(dir.path(), "rl", 2).unwrap_err().to_string().contains(":2:"));
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), text("?\n"), "untouched");
        assert_eq!(MetricsLog::resume(dir.path(), "rl", 1).unwrap().1, 0);
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), "{\"phase\":\"rl\",\"step\":1}\n");
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for (text, part) in [("{}\n\n{]\n", ":3:"), ("3\n", ":1: no object")] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains(part) && error.exit_code() == 2, "{error}");
        }
        assert_eq!(read(&dir.path().join("absent")).unwrap_err().exit_code(), 2);
    }
}
