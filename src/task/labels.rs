//! Labels of a task as the grader holds them: by row or by id, divided into the split that gives rewards and the split
//! that is reported.

use super::numbers::{CsvTable, has_ids, parse_csv, shown};
use super::split::split_rows;
use super::{Metric, Table, Task};
use std::collections::{HashMap, HashSet};

/// Labels, one row per example.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    /// Ids of the examples, one per row; empty when a submission has no ids and its rows are in the order of the
    /// labels.
    pub ids: Vec<String>,
    /// Names of the columns of a submission with ids, one for each column of the labels. Empty where a metric takes
    /// other columns than the labels have, such as a probability for each class.
    pub columns: Vec<String>,
    /// All labels.
    pub all: Table,
    /// The labels that give rewards.
    pub reward: Half,
    /// The labels that are reported.
    pub report: Half,
}

/// The labels of one split.
#[derive(Debug, Clone, PartialEq)]
pub struct Half {
    rows: Vec<usize>,
    labels: Table,
}

impl Half {
    /// Computes the metric on the rows of this split; `predictions` has all rows.
    pub fn metric(&self, metric: Metric, predictions: &Table) -> Result<f64, String> {
        metric.compute(&self.labels, &predictions.select(&self.rows))
    }
}

impl Labels {
    /// Parses the labels of `task` from the text of its labels.csv: numbers only, or a header with a column `id`.
    /// Error: no numbers, a repeated id or column, or too few rows to be divided in two; the text continues a sentence
    /// whose subject is the file.
    pub fn parse(task: &Task, text: &str) -> Result<Self, String> {
        let has_ids = has_ids(text);
        let CsvTable { ids, names, table: all, .. } = parse_csv(text, usize::MAX, has_ids.then_some(&[]))?;
        let mut known = HashSet::new();
        if let Some(name) = names.iter().find(|name| !known.insert(*name)) {
            return Err(format!("has the column {name} twice"));
        }
        let takes_others = matches!(task.metric, Metric::LogLoss | Metric::MapAt5);
        let columns = if takes_others { vec![] } else { names };
        if has_ids && task.submission.ends_with(".npy") {
            return Err(format!("has ids, but {} cannot have them; expected a .csv submission", task.submission));
        }
        let mut seen = HashMap::new();
        if let Some(id) = ids.iter().find(|id| seen.insert(*id, ()).is_some()) {
            return Err(format!("has id {id:?} twice"));
        }
        let (reward, report) = split_rows(&task.name, all.rows);
        let half = |rows: Vec<usize>| Half { labels: all.select(&rows), rows };
        let (reward, report) = (half(reward), half(report));
        check_halves(task.metric, &reward.labels, &report.labels)?;
        Ok(Self { ids, columns, reward, report, all })
    }

    /// Puts the rows of a submission in the order of the labels. Error: the first id that is unknown, repeated or
    /// missing; the text continues a sentence whose subject is the file.
    pub fn in_order(&self, submitted: CsvTable) -> Result<Table, String> {
        let place: HashMap<&str, usize> = self.ids.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect();
        let mut rows = vec![None; self.ids.len()];
        for (i, id) in submitted.ids.iter().enumerate() {
            let shown = shown(id, 40);
            let Some(&row) = place.get(id.as_str()) else {
                let hint = self.meant(id).map_or_else(String::new, |own| {
                    format!("; the id is {own:?}: read and write ids as text, so that they stay as they are")
                });
                return Err(format!("row {}: unknown id {shown:?}{hint}", i + 1));
            };
            if rows[row].replace(i).is_some() {
                return Err(format!("row {}: id {shown:?} is repeated", i + 1));
            }
        }
        let found = |(row, i): (usize, Option<usize>)| i.ok_or_else(|| format!("lacks id {:?}", self.ids[row]));
        let order = rows.into_iter().enumerate().map(found).collect::<Result<Vec<usize>, String>>()?;
        Ok(submitted.table.select(&order))
    }

    /// Finds the id that is the same number as an unknown one, which may have lost leading zeros or become a float.
    fn meant(&self, unknown: &str) -> Option<&str> {
        let value = unknown.parse::<f64>().ok()?;
        self.ids.iter().map(String::as_str).find(|id| id.parse() == Ok(value))
    }
}

/// Checks that a metric means the same on both halves.
fn check_halves(metric: Metric, reward: &Table, report: &Table) -> Result<(), String> {
    let rows = reward.rows + report.rows;
    if report.rows == 0 {
        return Err(format!("has {rows} row; expected at least 2, for rewards and for the report"));
    }
    let most = |half: &Table| half.values.iter().copied().fold(0.0_f64, f64::max);
    let holds = match metric {
        // The highest label sets the number of classes.
        Metric::LogLoss => most(reward) == most(report),
        // Undefined on one class, or on labels that do not vary.
        Metric::Auc | Metric::Pearson => [reward, report].iter().all(|half| metric.compute(half, half).is_ok()),
        _ => true,
    };
    match holds {
        true => Ok(()),
        false => Err(format!("cannot be divided: a half of its {rows} rows lacks a class; expected more rows")),
    }
}
