//! Reads public data files (.npz, .npy and .csv) as tables. They are the task's own files, and therefore trusted.

use super::super::npy::Array;
use super::runs::token;
use std::io::{Cursor, Read};

/// A column: one token a row, equal where the values are equal, and the values as numbers if all of them are.
pub struct Column {
    /// Its name in its table; empty when the table has only one column.
    pub name: String,
    /// One token per row.
    pub tokens: Vec<u64>,
    /// One number per row; None when a value is not a finite number.
    pub numbers: Option<Vec<f64>>,
}

/// A table of a public file.
pub struct PublicTable {
    /// Name of the file, with the member's name for .npz.
    pub name: String,
    /// Its columns, including ids.
    pub columns: Vec<Column>,
    /// Texts of the column `id`, if there is one.
    pub ids: Option<Vec<String>>,
    rows: usize,
}

impl PublicTable {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the names of the columns that describe an example: all but `id`.
    pub fn names(&self) -> Vec<&str> {
        self.columns.iter().map(|c| c.name.as_str()).filter(|name| *name != "id").collect()
    }

    /// Joins these columns into one, whose values are whole rows; None when the table lacks one of them.
    pub fn as_one(&self, names: &[&str]) -> Option<Column> {
        let find = |name: &&str| self.columns.iter().find(|c| c.name == *name);
        let columns = names.iter().map(find).collect::<Option<Vec<&Column>>>()?;
        let token = |row: usize| {
            let mut hash = blake3::Hasher::new();
            for column in &columns {
                hash.update(&column.tokens[row].to_le_bytes());
            }
            first_eight(&hash.finalize())
        };
        Some(Column { name: "whole rows".into(), tokens: (0..self.rows).map(token).collect(), numbers: None })
    }
}

/// Reads the tables of a file. Error: another format or a malformed file; the text continues a sentence whose subject
/// is the file.
pub fn read(name: &str, bytes: &[u8]) -> Result<Vec<PublicTable>, String> {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "npy" => Ok(vec![of_array(name, bytes)?]),
        "npz" => {
            let failed = |e: zip::result::ZipError| format!("is no .npz file: {e}");
            let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).map_err(failed)?;
            let mut tables = Vec::new();
            for index in 0..archive.len() {
                let mut member = archive.by_index(index).map_err(failed)?;
                let inside = member.name().map_err(failed)?.trim_end_matches(".npy").to_string();
                let mut bytes = Vec::new();
                member.read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
                let array = of_array(&format!("{name} {inside}"), &bytes);
                tables.push(array.map_err(|problem| format!("{inside} {problem}"))?);
            }
            Ok(tables)
        }
        "csv" => Ok(vec![of_csv(name, bytes)?]),
        _ => Err("is of no format that is read as a table".into()),
    }
}

fn of_array(name: &str, bytes: &[u8]) -> Result<PublicTable, String> {
    let array = Array::parse(bytes)?;
    let (rows, width) = array.rows_and_columns();
    let items = array.items();
    let names = (1..=width).map(|j| if width == 1 { String::new() } else { format!("column {j}") });
    let text = |i: usize, j: usize| array.text(items[i * width + j]);
    Ok(table(name, names.collect(), rows, text))
}

fn of_csv(name: &str, bytes: &[u8]) -> Result<PublicTable, String> {
    let mut reader = ::csv::ReaderBuilder::new().has_headers(false).from_reader(bytes);
    let records = reader.byte_records().collect::<Result<Vec<_>, _>>().map_err(|e| format!("is no .csv file: {e}"))?;
    let text = |record: &::csv::ByteRecord, j: usize| String::from_utf8_lossy(&record[j]).trim().to_string();
    let Some(first) = records.first() else { return Err("is empty".into()) };
    let is_header = (0..first.len()).any(|j| text(first, j).parse::<f64>().is_err());
    let names =
        (0..first.len()).map(|j| if is_header { text(first, j) } else { format!("column {}", j + 1) }).collect();
    let rows = &records[usize::from(is_header)..];
    Ok(table(name, names, rows.len(), |i, j| text(&rows[i], j)))
}

/// Makes a table whose cell in row i and column j is `text(i, j)`.
fn table(name: &str, names: Vec<String>, rows: usize, text: impl Fn(usize, usize) -> String) -> PublicTable {
    let mut ids = None;
    let mut columns = Vec::with_capacity(names.len());
    for (j, name) in names.into_iter().enumerate() {
        let texts: Vec<String> = (0..rows).map(|i| text(i, j)).collect();
        let number = |text: &String| text.parse::<f64>().ok().filter(|x| x.is_finite());
        let numbers: Option<Vec<f64>> = texts.iter().map(number).collect();
        let tokens = match &numbers {
            Some(numbers) => numbers.iter().map(|x| token(*x)).collect(),
            None => texts.iter().map(|text| first_eight(&blake3::hash(text.as_bytes()))).collect(),
        };
        if name == "id" {
            ids = Some(texts);
        }
        columns.push(Column { name, tokens, numbers });
    }
    PublicTable { name: name.to_string(), columns, ids, rows }
}

fn first_eight(hash: &blake3::Hash) -> u64 {
    hash.as_bytes()[..8].iter().fold(0, |all, byte| (all << 8) | u64::from(*byte))
}
