//! Computes ten metrics from two small tables of numbers, labels and predictions. Reads no files and knows no tasks.
//!
//! Definitions are those of scikit-learn and scipy where they have one; tests/tasks compares each with their values.

use serde::{Deserialize, Serialize};

/// A row-major table of numbers: labels or predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Number of rows: one per example.
    pub rows: usize,
    /// Numbers in each row.
    pub columns: usize,
    /// `rows * columns` numbers, row after row.
    pub values: Vec<f64>,
}

impl Table {
    /// The rows in order, each of `columns` numbers.
    pub fn iter_rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.columns.max(1))
    }

    /// Selects the rows with these indices, in their order; each must be below the number of rows.
    pub fn select(&self, rows: &[usize]) -> Table {
        let values = rows.iter().flat_map(|row| &self.values[row * self.columns..(row + 1) * self.columns]);
        Table { rows: rows.len(), columns: self.columns, values: values.copied().collect() }
    }
}

/// Metric that the grader computes from labels and predictions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Metric {
    /// Share of rows whose prediction, rounded to the nearest integer, equals the label.
    Accuracy,
    /// Area under the ROC curve for labels 0 and 1; tied scores count half. Predictions are one score per row, or two
    /// columns of which the second counts.
    Auc,
    /// Mean negative log probability of the label. One column is P(label 1); otherwise there is one column per class,
    /// and each row is divided by its sum. Probabilities are then clipped to [1e-15, 1 - 1e-15].
    LogLoss,
    /// Mean absolute error.
    Mae,
    /// Root mean squared error.
    Rmse,
    /// Root mean squared error of log(1 + x).
    Rmsle,
    /// Mean over the columns of each column's root mean squared error.
    Mcrmse,
    /// Mean average precision of at most five ranked guesses per row. Every column of the labels is a right answer.
    /// Repeated answers and repeated guesses count once.
    MapAt5,
    /// Cohen's kappa with quadratic weights, on values rounded to integers. Distances are between the values
    /// themselves, so it equals scikit-learn's with `labels` = the whole range of integers.
    QuadraticKappa,
    /// Pearson's correlation.
    Pearson,
}

/// A probability at most this far outside [0, 1] is taken for rounding, not for a mistake.
const PROBABILITY_SLACK: f64 = 1e-9;
const LOG_LOSS_CLIP: f64 = 1e-15;

impl Metric {
    /// Every metric, in the order error messages list them.
    pub const ALL: [Metric; 10] = [
        Metric::Accuracy,
        Metric::Auc,
        Metric::LogLoss,
        Metric::Mae,
        Metric::Rmse,
        Metric::Rmsle,
        Metric::Mcrmse,
        Metric::MapAt5,
        Metric::QuadraticKappa,
        Metric::Pearson,
    ];

    /// The name in task.toml and in prompts.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::Auc => "auc",
            Metric::LogLoss => "logloss",
            Metric::Mae => "mae",
            Metric::Rmse => "rmse",
            Metric::Rmsle => "rmsle",
            Metric::Mcrmse => "mcrmse",
            Metric::MapAt5 => "map@5",
            Metric::QuadraticKappa => "qwk",
            Metric::Pearson => "pearson",
        }
    }

    /// True when a larger value is a better one.
    pub fn higher_is_better(self) -> bool {
        match self {
            Metric::Accuracy | Metric::Auc | Metric::MapAt5 | Metric::QuadraticKappa | Metric::Pearson => true,
            Metric::LogLoss | Metric::Mae | Metric::Rmse | Metric::Rmsle | Metric::Mcrmse => false,
        }
    }

    /// Returns the best possible value.
    pub fn perfect(self) -> f64 {
        if self.higher_is_better() { 1.0 } else { 0.0 }
    }

    /// Computes the metric of `predictions` (B, columns) against `labels` (B, columns). Error: a short text for the
    /// agent about a wrong shape, a value the metric does not take, or an undefined metric (constant predictions, one
    /// class only).
    pub fn compute(&self, labels: &Table, predictions: &Table) -> Result<f64, String> {
        if predictions.rows != labels.rows {
            return Err(format!("submission has {} rows, expected {}", predictions.rows, labels.rows));
        }
        let metric = match self {
            Metric::Accuracy => {
                same_columns(labels, predictions)?;
                mean(pairs(labels, predictions).map(|(y, p)| f64::from(u8::from(p.round() == y.round()))))
            }
            Metric::Auc => auc(labels, predictions)?,
            Metric::LogLoss => log_loss(labels, predictions)?,
            Metric::Mae => {
                same_columns(labels, predictions)?;
                mean(pairs(labels, predictions).map(|(y, p)| (y - p).abs()))
            }
            Metric::Rmse => {
                same_columns(labels, predictions)?;
                mean(pairs(labels, predictions).map(|(y, p)| (y - p).powi(2))).sqrt()
            }
            Metric::Rmsle => {
                same_columns(labels, predictions)?;
                if let Some(p) = predictions.values.iter().find(|p| **p <= -1.0) {
                    return Err(format!("submission holds {p}, rmsle needs values above -1"));
                }
                mean(pairs(labels, predictions).map(|(y, p)| (y.ln_1p() - p.ln_1p()).powi(2))).sqrt()
            }
            Metric::Mcrmse => {
                same_columns(labels, predictions)?;
                mean((0..labels.columns).map(|c| {
                    mean(labels.iter_rows().zip(predictions.iter_rows()).map(|(y, p)| (y[c] - p[c]).powi(2))).sqrt()
                }))
            }
            Metric::MapAt5 => {
                if predictions.columns > 5 {
                    return Err(format!("submission has {} columns, expected at most 5", predictions.columns));
                }
                mean(labels.iter_rows().zip(predictions.iter_rows()).map(|(y, p)| average_precision(y, p)))
            }
            Metric::QuadraticKappa => quadratic_kappa(labels, predictions)?,
            Metric::Pearson => pearson(labels, predictions)?,
        };
        if metric.is_finite() { Ok(metric) } else { Err(format!("{} of the submission is not finite", self.name())) }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for Metric {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| {
            format!("unknown metric \"{name}\", expected one of: {}", Self::ALL.map(Metric::name).join(", "))
        })
    }
}

impl From<Metric> for &'static str {
    fn from(metric: Metric) -> Self {
        metric.name()
    }
}

fn pairs<'a>(labels: &'a Table, predictions: &'a Table) -> impl Iterator<Item = (f64, f64)> {
    labels.values.iter().copied().zip(predictions.values.iter().copied())
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), v| (sum + v, count + 1.0));
    sum / count
}

fn same_columns(labels: &Table, predictions: &Table) -> Result<(), String> {
    if predictions.columns == labels.columns {
        Ok(())
    } else {
        Err(format!("submission has {} columns, expected {}", predictions.columns, labels.columns))
    }
}

/// Computes Mann-Whitney U divided by the number of pairs, with average ranks for ties.
fn auc(labels: &Table, predictions: &Table) -> Result<f64, String> {
    if predictions.columns > 2 {
        return Err(format!("submission has {} columns, expected 1 or 2", predictions.columns));
    }
    let scores = predictions.iter_rows().map(|row| row[row.len() - 1]);
    let mut scored: Vec<(f64, bool)> = scores.zip(labels.values.iter().map(|y| *y > 0.5)).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut positive_ranks = 0.0;
    let mut below = 0;
    for tied in scored.chunk_by(|a, b| a.0 == b.0) {
        let rank = below as f64 + (tied.len() + 1) as f64 / 2.0;
        positive_ranks += rank * tied.iter().filter(|s| s.1).count() as f64;
        below += tied.len();
    }
    let positives = scored.iter().filter(|s| s.1).count() as f64;
    let negatives = scored.len() as f64 - positives;
    Ok((positive_ranks - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

fn log_loss(labels: &Table, predictions: &Table) -> Result<f64, String> {
    let classes = (labels.values.iter().fold(1.0_f64, |most, y| most.max(*y)) as usize).saturating_add(1);
    if predictions.columns != classes && (predictions.columns, classes) != (1, 2) {
        return Err(format!("submission has {} columns, expected {classes} probabilities", predictions.columns));
    }
    let range = -PROBABILITY_SLACK..=1.0 + PROBABILITY_SLACK;
    if let Some(p) = predictions.values.iter().find(|p| !range.contains(p)) {
        return Err(format!("submission holds {p}, expected probabilities from 0 to 1"));
    }
    let mut sum = 0.0;
    for (row, (y, p)) in labels.values.iter().zip(predictions.iter_rows()).enumerate() {
        let of_label = match (p, *y as usize) {
            ([p], 0) => 1.0 - p,
            ([p], _) => *p,
            (p, y) => {
                let total: f64 = p.iter().sum();
                if total <= 0.0 {
                    return Err(format!("submission row {} has no probability above 0", row + 1));
                }
                p[y] / total
            }
        };
        sum -= of_label.clamp(LOG_LOSS_CLIP, 1.0 - LOG_LOSS_CLIP).ln();
    }
    Ok(sum / labels.rows as f64)
}

/// Computes AP@5 as Kaggle defines it: the sum over the hits of (hits so far / rank), divided by the number of right
/// answers, at most 5.
fn average_precision(answers: &[f64], guesses: &[f64]) -> f64 {
    let is_repeated = |list: &[f64], i: usize| list[..i].contains(&list[i]);
    let mut hits = 0.0;
    let mut sum = 0.0;
    for (i, guess) in guesses.iter().enumerate() {
        if answers.contains(guess) && !is_repeated(guesses, i) {
            hits += 1.0;
            sum += hits / (i + 1) as f64;
        }
    }
    let distinct = (0..answers.len()).filter(|i| !is_repeated(answers, *i)).count();
    sum / distinct.min(5) as f64
}

/// Computes 1 - E[(y - p)^2] / E[(y - p')^2], with p' independent of y, from moments, so that no submission can choose
/// the size of a matrix.
fn quadratic_kappa(labels: &Table, predictions: &Table) -> Result<f64, String> {
    same_columns(labels, predictions)?;
    let y_mean = mean(labels.values.iter().map(|y| y.round()));
    let centred = || pairs(labels, predictions).map(move |(y, p)| (y.round() - y_mean, p.round() - y_mean));
    let disagreement = mean(centred().map(|(y, p)| (y - p).powi(2)));
    let by_chance = mean(centred().map(|(y, p)| y * y + p * p));
    Ok(1.0 - disagreement / by_chance)
}

fn pearson(labels: &Table, predictions: &Table) -> Result<f64, String> {
    same_columns(labels, predictions)?;
    let y_mean = mean(labels.values.iter().copied());
    let p_mean = mean(predictions.values.iter().copied());
    let (mut yy, mut yp, mut pp) = (0.0, 0.0, 0.0);
    for (y, p) in pairs(labels, predictions) {
        let (y, p) = (y - y_mean, p - p_mean);
        (yy, yp, pp) = (yy + y * y, yp + y * p, pp + p * p);
    }
    Ok((yp / (yy.sqrt() * pp.sqrt())).clamp(-1.0, 1.0))
}
