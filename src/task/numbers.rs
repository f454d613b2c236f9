//! Reads tables of numbers from CSV text, strictly (RFC 4180, by the crate csv). It is the only reader of both
//! submissions and labels.

use super::Table;
use csv::{Reader, ReaderBuilder, StringRecord};

/// Name of the id column in the header.
pub const ID: &str = "id";
/// Field separators of files that are not CSV.
const OTHER_SEPARATORS: [char; 3] = [';', '\t', '|'];

/// A table as a file states it.
#[derive(Debug, Clone, PartialEq)]
pub struct CsvTable {
    /// The id column, when there is one; else empty.
    pub ids: Vec<String>,
    /// The header's names of the table's columns; empty without a header.
    pub names: Vec<String>,
    /// The numbers of the rows that are kept.
    pub table: Table,
    /// Rows in the file, including those that are not kept.
    pub rows: usize,
}

/// Parses comma-separated finite numbers, one row per line. Fields may be quoted, lines end in LF or CRLF, and blank
/// lines and a byte order mark are skipped. With `columns`, the first line is a header with a column `id` anywhere, and
/// the numbers are read from the columns of these names, in this order; if the header has none of them, from all other
/// columns in the file's order. Only the first `max_rows` rows are read; the rest are counted.
///
/// # Errors
/// A text that continues a sentence whose subject is the file: a field is not a finite number, rows have different
/// lengths, or the header lacks some of the columns or has one twice.
pub fn parse_csv(text: &str, max_rows: usize, columns: Option<&[String]>) -> Result<CsvTable, String> {
    let (mut reader, mut record) = (reader(text), StringRecord::new());
    let header = match columns {
        Some(_) if !next(&mut reader, &mut record)? => return Err("is empty".into()),
        Some(columns) => Some(Header::new(&record, columns)?),
        None => None,
    };
    let mut ids = Vec::new();
    let mut table = Table { rows: 0, columns: 0, values: Vec::new() };
    let mut rows = 0;
    while next(&mut reader, &mut record)? {
        rows += 1;
        if rows > max_rows {
            continue;
        }
        let before = table.values.len();
        match &header {
            Some(header) if record.len() != header.fields => {
                return Err(format!("row {rows} has {} columns, its first line {}", record.len(), header.fields));
            }
            Some(header) => {
                ids.push(cell(&record[header.id]).to_string());
                for &column in &header.numbers {
                    table.values.push(number(rows, &record[column])?);
                }
            }
            None => {
                for field in &record {
                    table.values.push(number(rows, field)?);
                }
            }
        }
        let columns = table.values.len() - before;
        if rows == 1 {
            table.columns = columns;
        } else if columns != table.columns {
            return Err(format!("row {rows} has {columns} columns, row 1 has {}", table.columns));
        }
        table.rows = rows;
    }
    if rows == 0 {
        return Err("is empty".into());
    }
    Ok(CsvTable { ids, names: header.map_or_else(Vec::new, |header| header.names), table, rows })
}

/// True when the first line names an id column.
pub fn has_ids(text: &str) -> bool {
    let mut record = StringRecord::new();
    next(&mut reader(text), &mut record).is_ok_and(|is_there| is_there && record.iter().any(|field| cell(field) == ID))
}

/// Returns `number` if it is finite. Error: a text that names `row`, counted from 1.
pub fn finite(row: usize, number: f64) -> Result<f64, String> {
    if number.is_finite() { Ok(number) } else { Err(format!("row {row}: {number} is not finite")) }
}

/// Shortens a text to what an error message quotes.
pub fn shown(text: &str, length: usize) -> String {
    text.chars().take(length).collect()
}

/// The first line of a file that names its columns.
struct Header {
    fields: usize,
    /// Index of the id column.
    id: usize,
    /// Indices of the columns of numbers.
    numbers: Vec<usize>,
    /// Names of the columns of numbers.
    names: Vec<String>,
}

impl Header {
    fn new(record: &StringRecord, columns: &[String]) -> Result<Self, String> {
        let found: Vec<&str> = record.iter().map(cell).collect();
        let place = |name: &str| match found.iter().filter(|field| **field == name).count() {
            0 => Ok(None),
            1 => Ok(found.iter().position(|field| *field == name)),
            _ => Err(format!("has the column {name} twice")),
        };
        let Some(id) = place(ID)? else {
            if let Some(problem) = separated_otherwise(&record[0]) {
                return Err(problem);
            }
            let line = shown(&found.join(","), 40);
            return Err(format!("has no column id in its first line ({line:?}); expected one like id,prediction"));
        };
        let places = columns.iter().map(|name| place(name)).collect::<Result<Vec<_>, _>>()?;
        let numbers: Vec<usize> = match places.iter().position(Option::is_none) {
            Some(missing) if places.iter().any(Option::is_some) => {
                return Err(format!(
                    "lacks the column {:?}; expected the columns {ID},{}",
                    columns[missing],
                    columns.join(",")
                ));
            }
            None if !columns.is_empty() => places.into_iter().flatten().collect(),
            _ => (0..found.len()).filter(|column| *column != id).collect(),
        };
        if numbers.is_empty() {
            return Err("has no numbers beside its ids".into());
        }
        let names = numbers.iter().map(|column| found[*column].to_string()).collect();
        Ok(Self { fields: found.len(), id, numbers, names })
    }
}

fn reader(text: &str) -> Reader<&[u8]> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes())
}

/// Reads the next line that is not blank; false at the end.
fn next(reader: &mut Reader<&[u8]>, record: &mut StringRecord) -> Result<bool, String> {
    loop {
        if !reader.read_record(record).map_err(|e| format!("cannot be read: {e}"))? {
            return Ok(false);
        }
        if record.len() > 1 || record.iter().any(|field| !field.trim().is_empty()) {
            return Ok(true);
        }
    }
}

/// Returns the content of a field: without the spaces around it, and without quotes that a space before them kept the
/// parser from recognising.
fn cell(field: &str) -> &str {
    let text = field.trim();
    match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
        Some(quoted) if field.starts_with(char::is_whitespace) => quoted,
        _ => text,
    }
}

fn number(row: usize, field: &str) -> Result<f64, String> {
    match cell(field).parse() {
        Ok(value) => finite(row, value),
        Err(_) => Err(match separated_otherwise(field) {
            Some(problem) => problem,
            None => format!("row {row}: {:?} is not a number", shown(cell(field), 20)),
        }),
    }
}

/// Describes the file's mistake when a field is several fields with another separator.
fn separated_otherwise(field: &str) -> Option<String> {
    let is_several = |separator: &char| {
        let mut parts = field.split(*separator).map(|part| part.trim().trim_matches('"'));
        field.contains(*separator)
            && (parts.clone().all(|part| part.parse::<f64>().is_ok()) || parts.any(|part| part == ID))
    };
    let separator = OTHER_SEPARATORS.into_iter().find(is_several)?;
    Some(format!("has its fields separated by {separator:?}; expected commas"))
}
