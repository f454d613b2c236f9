//! Looks for a task's labels in what its agent can see: public data, starter files, description. It finds labels that
//! lie in the open, or under other names or in other units; it cannot find what takes a model to work out.

mod public;
mod runs;

use super::{PreparedTask, Table};
use crate::error::{Error, Result};
use public::{Column, PublicTable, read};
use runs::Runs;
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// A correlation above this is taken for the labels in another unit, not for a prediction.
const CORRELATION: f64 = 0.999;

/// Findings about one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// The task's name.
    pub task: String,
    /// Where labels can be read, and how.
    pub leaks: Vec<String>,
    /// Test rows that are training rows too, with their count: a warning, because copies may be natural in the data.
    pub duplicates: Vec<String>,
    /// Files that could not be read as a table, and were searched as text only.
    pub unread: Vec<String>,
}

/// Audits a task whose data have been made.
///
/// - Every column of every table (members of .npz, .npy, .csv), and the rows of every table as wholes, are compared
///   with every column of the labels. A column as long as the labels is compared as it is; of a longer one, these rows
///   are compared: the first, the last, those that an array of as many distinct row numbers names, and those with the
///   same ids. A column leaks when it equals the labels, is a one-to-one relabelling of labels that repeat (at most
///   half as many values as rows), or correlates with them at |r| > 0.999.
/// - Every column and every text (public files, starter files, the description) is searched for runs of labels in
///   order: 16 labels, or more where it takes more to hold 64 bits.
///
/// # Errors
/// A file that cannot be read, or labels that are not valid.
pub fn audit(prepared: &PreparedTask) -> Result<Audit> {
    let labels = prepared.load_labels()?;
    let (mut leaks, mut unread, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    let mut texts = vec![("description".to_string(), prepared.task.description.clone().into_bytes())];
    texts.extend(prepared.task.starter.iter().map(|(name, text)| (name.clone(), text.clone().into_bytes())));
    for (name, path) in &prepared.data {
        let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
        match read(name, &bytes) {
            Ok(found) => tables.extend(found),
            Err(problem) => unread.push(format!("{name} {problem}")),
        }
        texts.push((name.clone(), bytes));
    }
    let by_row = Runs::of(&labels.all.values);
    leaks.extend(
        texts.iter().filter_map(|(name, bytes)| Some(format!("{name}: {} labels in a row", by_row.in_text(bytes)?))),
    );
    let columns: Vec<Vec<f64>> = (0..labels.all.columns).map(|j| column_of(&labels.all, j)).collect();
    let indices: Vec<Vec<usize>> =
        tables.iter().flat_map(|t| &t.columns).filter_map(|c| row_numbers(c, labels.all.rows)).collect();
    for (j, label) in columns.iter().enumerate().filter(|(_, label)| label.iter().any(|y| *y != label[0])) {
        let of = if columns.len() > 1 { format!(" (label column {})", j + 1) } else { String::new() };
        let runs = Runs::of(label);
        for table in &tables {
            let choices = choices(table, &labels.ids, label.len(), &indices);
            let whole = table.as_one(&table.names()).filter(|_| table.columns.len() > 1);
            for column in table.columns.iter().chain(&whole) {
                if let Some(how) = leaks_by(column, label, &choices, &runs) {
                    let name = format!("{} {}", table.name, column.name);
                    leaks.push(format!("{}: {how}{of}", name.trim_end()));
                }
            }
        }
    }
    let duplicates = duplicates(&tables, labels.all.rows, &indices);
    Ok(Audit { task: prepared.task.name.clone(), leaks, duplicates, unread })
}

fn column_of(table: &Table, j: usize) -> Vec<f64> {
    table.iter_rows().map(|row| row[j]).collect()
}

/// Choices of rows of a table that may be the test rows.
fn choices(table: &PublicTable, ids: &[String], rows: usize, indices: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let all = table.rows();
    let mut choices = Vec::new();
    if all >= rows {
        choices.push((0..rows).collect());
    }
    if all > rows {
        choices.push((all - rows..all).collect());
        choices.extend(indices.iter().filter(|index| index.iter().all(|i| *i < all)).cloned());
    }
    if let Some(of_table) = table.ids.as_ref().filter(|_| !ids.is_empty()) {
        let place: HashMap<&str, usize> = of_table.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect();
        choices.extend(ids.iter().map(|id| place.get(id.as_str()).copied()).collect::<Option<Vec<usize>>>());
    }
    choices
}

/// How a column gives the labels away, if it does.
fn leaks_by(column: &Column, label: &[f64], choices: &[Vec<usize>], runs: &Runs) -> Option<String> {
    for rows in choices {
        if let Some(numbers) = &column.numbers {
            let chosen: Vec<f64> = rows.iter().map(|row| numbers[*row]).collect();
            if chosen == label {
                return Some("the labels".into());
            }
            let r = correlation(&chosen, label);
            if r.abs() > CORRELATION {
                return Some(format!("correlates with the labels, r = {r:.5}"));
            }
        }
        let tokens: Vec<u64> = rows.iter().map(|row| column.tokens[*row]).collect();
        if is_relabelling(&tokens, label) {
            return Some("the labels under other names".into());
        }
    }
    let found = column.numbers.as_ref().and_then(|numbers| runs.within(numbers))?;
    Some(format!("{found} labels in a row"))
}

/// True when each label value has one token of its own and labels repeat. Without repeats, any list of distinct values
/// would match.
fn is_relabelling(tokens: &[u64], label: &[f64]) -> bool {
    let (mut forth, mut back) = (HashMap::new(), HashMap::new());
    let agrees = tokens.iter().zip(label).all(|(token, y)| {
        *forth.entry(y.to_bits()).or_insert(*token) == *token
            && *back.entry(*token).or_insert(y.to_bits()) == y.to_bits()
    });
    agrees && forth.len() * 2 <= label.len()
}

/// Computes Pearson's r; 0 where it is not defined.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let table = |values: &[f64]| Table { rows: values.len(), columns: 1, values: values.to_vec() };
    super::Metric::Pearson.compute(&table(a), &table(b)).unwrap_or(0.0)
}

/// Returns the column as row numbers if it is `rows` distinct whole numbers.
fn row_numbers(column: &Column, rows: usize) -> Option<Vec<usize>> {
    let numbers = column.numbers.as_ref().filter(|numbers| numbers.len() == rows)?;
    let whole = |x: &f64| (x.fract() == 0.0 && (0.0..1e15).contains(x)).then_some(*x as usize);
    let index = numbers.iter().map(whole).collect::<Option<Vec<usize>>>()?;
    (index.iter().collect::<HashSet<_>>().len() == rows).then_some(index)
}

/// Finds test rows that are training rows too. A table with as many rows as there are labels holds test rows, and
/// others with the same columns hold training rows; row numbers divide one table into both. A table of one number a
/// row, or of one word a row that repeats, holds no examples.
fn duplicates(tables: &[PublicTable], rows: usize, indices: &[Vec<usize>]) -> Vec<String> {
    let is_varied = |c: &Column| c.tokens.iter().collect::<HashSet<_>>().len() * 2 > c.tokens.len();
    let is_example = |t: &&PublicTable| match t.columns.as_slice() {
        [only] => only.numbers.is_none() && is_varied(only),
        several => !several.is_empty(),
    };
    let examples: Vec<&PublicTable> = tables.iter().filter(is_example).collect();
    let mut found = Vec::new();
    let mut say = |count: usize, what: String| {
        if count > 0 {
            found.push(format!("{count} rows of {what}"));
        }
    };
    for (i, test) in examples.iter().enumerate().filter(|(_, t)| t.rows() == rows) {
        // When two tables could both be the test rows, only the later one is counted.
        let others = examples.iter().enumerate().filter(|(j, t)| *j != i && (t.rows() != rows || *j < i));
        let Some(whole) = test.as_one(&test.names()) else { continue };
        for (_, training) in others {
            let Some(known) = training.as_one(&test.names()) else { continue };
            let known: HashSet<u64> = known.tokens.into_iter().collect();
            let count = whole.tokens.iter().filter(|token| known.contains(token)).count();
            say(count, format!("{} are in {} too", test.name, training.name));
        }
    }
    for table in examples.iter().filter(|t| t.rows() > rows) {
        let Some(Column { tokens, .. }) = table.as_one(&table.names()) else { continue };
        for index in indices.iter().filter(|index| index.iter().all(|i| *i < tokens.len())) {
            let test: HashSet<usize> = index.iter().copied().collect();
            let known: HashSet<u64> = (0..tokens.len()).filter(|i| !test.contains(i)).map(|i| tokens[i]).collect();
            let count = index.iter().filter(|i| known.contains(&tokens[**i])).count();
            say(count, format!("{} are in its other rows too", table.name));
        }
    }
    found
}
