//! Tables of numbers as text, strict: what a submission and the labels are written in.

use super::Table;

/// A table as a file states it.
#[derive(Debug, Clone, PartialEq)]
pub struct CsvTable {
    /// The first column when there are ids; else empty.
    pub ids: Vec<String>,
    /// The numbers of the rows that are kept.
    pub table: Table,
    /// Rows in the file, those that are not kept too.
    pub rows: usize,
}

/// Comma-separated finite numbers, one row a line; blank lines are skipped. With `has_ids` the first line is a header whose first column is
/// `id`, and so is each row's. Only the first `max_rows` are read; the rest is counted. The error continues a sentence whose subject is
/// the file.
pub fn parse_csv(text: &str, max_rows: usize, has_ids: bool) -> Result<CsvTable, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut ids = Vec::new();
    let mut table = Table { rows: 0, columns: 0, values: Vec::new() };
    let mut rows = 0;
    if has_ids {
        let header = lines.next().ok_or("is empty")?;
        if header.split(',').next().map(str::trim) != Some("id") {
            return Err("has no header whose first column is id; expected a first line like id,prediction".into());
        }
    }
    for line in lines {
        rows += 1;
        if rows > max_rows {
            continue;
        }
        let mut fields = line.split(',').map(str::trim);
        if has_ids {
            ids.extend(fields.next().map(str::to_string));
        }
        let before = table.values.len();
        for field in fields {
            let number = field.parse::<f64>().map_err(|_| {
                let shown: String = field.chars().take(20).collect();
                format!("row {rows}: {shown:?} is not a number")
            })?;
            table.values.push(finite(rows, number)?);
        }
        let columns = table.values.len() - before;
        if columns == 0 {
            return Err(format!("row {rows} has no number behind its id"));
        }
        if rows == 1 {
            table.columns = columns;
        } else if columns != table.columns {
            return Err(format!("row {rows} has {columns} columns, row 1 has {}", table.columns));
        }
        table.rows = rows;
    }
    if rows == 0 { Err("is empty".into()) } else { Ok(CsvTable { ids, table, rows }) }
}

/// The number of a row that counts from 1, or what is wrong about it.
pub fn finite(row: usize, number: f64) -> Result<f64, String> {
    if number.is_finite() { Ok(number) } else { Err(format!("row {row}: {number} is not finite")) }
}
