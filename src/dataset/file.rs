//! Reads files of items: JSON lines, a JSON array, parquet. What an item means is left to format.rs.

use super::item::{EXPECTED, brief};
use super::json::Unique;
use crate::error::{Error, Result, caught};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};
use std::fmt;
use std::fs::File;
use std::path::Path;

/// An item with its place, or the reason why it cannot be read.
pub type Placed = (Place, Result<Value>);

/// Place of an item: `file:line`, `file: item N` in a JSON array, `file: row N` of parquet.
#[derive(Debug, Clone)]
pub struct Place {
    file: String,
    unit: &'static str,
    /// Line, item or row, from 1.
    pub number: usize,
}

impl Place {
    fn new(path: &Path, unit: &'static str, index: usize) -> Self {
        Self { file: path.display().to_string(), unit, number: index + 1 }
    }

    /// Returns the plural of what is counted, such as `lines`.
    pub fn units(&self) -> String {
        format!("{}s", self.unit)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            "line" => write!(f, "{}:{}", self.file, self.number),
            unit => write!(f, "{}: {unit} {}", self.file, self.number),
        }
    }
}

/// Reads the items of a file in order. Error: the file cannot be read at all. A line that is not JSON is an error of
/// its own.
pub fn items(path: &Path) -> Result<Vec<Placed>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
    if bytes.starts_with(b"PAR1") {
        // The library trusts counts and levels that a damaged page states, and may panic.
        return caught(|| rows(path)).unwrap_or_else(|| {
            Err(Error::content(format!(
                "{}: a page of it contradicts itself; expected a whole parquet file",
                path.display()
            )))
        });
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::content(format!(
            "{}:{line}: not UTF-8 text; expected JSON such as {EXPECTED}, or parquet",
            path.display()
        ))
    })?;
    let text = text.trim_start_matches('\u{feff}');
    if text.trim_start().starts_with('[') {
        let items: Vec<Unique> = serde_json::from_str(text).map_err(|e| {
            Error::content(format!("{}:{}: {e}; expected a JSON array of {EXPECTED}", path.display(), e.line()))
        })?;
        let placed = |(i, Unique(item))| (Place::new(path, "item", i), Ok(item));
        return Ok(items.into_iter().enumerate().map(placed).collect());
    }
    if let Some(items) = spread(text, path) {
        return Ok(items);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let placed = |(i, line): (usize, &str)| {
        let place = Place::new(path, "line", i);
        let item = serde_json::from_str(line)
            .map(|Unique(item)| item)
            .map_err(|e| Error::content(format!("{place}: {e}; expected one JSON object a line, such as {EXPECTED}")));
        (place, item)
    };
    Ok(lines.map(placed).collect())
}

/// Reads JSON objects that spread over several lines, one after the other; the place of each is the line on which it
/// begins. `None` when the first line is complete JSON (a file of lines), or when the text is not such objects.
fn spread(text: &str, path: &Path) -> Option<Vec<Placed>> {
    let first = text.lines().find(|line| !line.trim().is_empty())?;
    if serde_json::from_str::<Value>(first).is_ok() {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Unique>();
    let (mut items, mut line, mut counted) = (vec![], 0, 0);
    loop {
        let blank = text[values.byte_offset()..].bytes().take_while(u8::is_ascii_whitespace).count();
        let start = values.byte_offset() + blank;
        let Some(value) = values.next() else { return Some(items) };
        line += text[counted..start].bytes().filter(|&b| b == b'\n').count();
        counted = start;
        items.push((Place::new(path, "line", line), Ok(value.ok()?.0)));
    }
}

/// Reads the rows of a parquet file, with columns as keys. Compression: none, snappy or zstd.
fn rows(path: &Path) -> Result<Vec<Placed>> {
    let failed = |e: parquet::errors::ParquetError| {
        Error::content(format!(
            "{}: {e}; expected a whole parquet file, uncompressed or with snappy or zstd",
            path.display()
        ))
    };
    let file = File::open(path).map_err(|e| Error::io("opening", path, &e))?;
    let reader = SerializedFileReader::new(file).map_err(failed)?;
    let mut items = vec![];
    for (i, row) in reader.get_row_iter(None).map_err(failed)?.enumerate() {
        let place = Place::new(path, "row", i);
        let row = row.map_err(|e| failed(e).context(format!("row {}", i + 1)))?;
        items.push((place.clone(), object(&row).map_err(|e| e.context(place))));
    }
    Ok(items)
}

fn object(row: &Row) -> Result<Value> {
    let pairs = row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?)));
    Ok(Value::Object(pairs.collect::<Result<Map<_, _>>>()?))
}

fn value(field: &Field) -> Result<Value> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float(x) => (*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(text) => text.clone().into(),
        Field::Bytes(bytes) => {
            let text = std::str::from_utf8(bytes.data());
            text.map_err(|e| Error::content(format!("a column of bytes that are no text: {e}")))?.into()
        }
        Field::Group(row) => object(row)?,
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect::<Result<_>>()?),
        Field::MapInternal(map) => {
            let pair = |(key, item): &(Field, Field)| {
                let key = value(key)?;
                Ok((key.as_str().map_or_else(|| brief(&key), str::to_string), value(item)?))
            };
            Value::Object(map.entries().iter().map(pair).collect::<Result<Map<_, _>>>()?)
        }
        // Dates, times and decimals mean nothing in a conversation.
        other => other.to_string().into(),
    })
}
