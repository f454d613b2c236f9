//! Checks a data file before training: reports everything that `load` would refuse, not only the first problem, and
//! what is odd although it loads.

use super::item::Format;
use super::notes::Notes;
use super::{Limit, Reader, file};
use crate::chat::ChatTemplate;
use crate::error::Result;
use crate::message::Message;
use crate::tokenizer::Tokenizer;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

/// Severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// `sft` refuses the file.
    Error,
    /// The file loads, but may not be what was meant.
    Warning,
}

/// Report on a data file.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Number of items of each format, in the order of the formats.
    pub formats: Vec<(&'static str, usize)>,
    /// Lengths in tokens of the examples that can be read, ascending.
    pub lengths: Vec<usize>,
    /// Number of their tokens with a loss.
    pub learned: usize,
    /// Problems in the order of the file, then unused keys; each text begins with its place.
    pub problems: Vec<(Severity, String)>,
}

/// Reads every item of `path` as `load` does. Error: the file cannot be read at all.
pub fn validate(path: &Path, tokenizer: &Tokenizer, template: &ChatTemplate, limit: Limit) -> Result<Report> {
    let reader = Reader::new(tokenizer, template, limit)?;
    let mut formats: BTreeMap<Format, usize> = BTreeMap::new();
    let mut report = Report { formats: vec![], lengths: vec![], learned: 0, problems: vec![] };
    let mut seen: HashMap<Vec<u32>, String> = HashMap::new();
    let mut notes = Notes::default();
    for (at, item) in file::items(path)? {
        let place = at.to_string();
        let item = match item.and_then(|item| reader.read(&item, &place)) {
            Ok(item) => item,
            Err(error) => {
                report.problems.push((Severity::Error, error.to_string()));
                continue;
            }
        };
        notes.add(&at, item.notes);
        *formats.entry(item.format).or_default() += 1;
        let odd = disorder(&item.messages).map(|what| format!("{place}: {what}"));
        report.problems.extend(odd.map(|text| (Severity::Warning, text)));
        for example in item.examples {
            report.lengths.push(example.ids.len());
            report.learned += example.is_sampled.iter().filter(|&&sampled| sampled).count();
            if let Some(first) = seen.get(&example.ids) {
                report.problems.push((Severity::Warning, format!("{place}: the same tokens as {first}")));
            } else {
                seen.insert(example.ids, place.clone());
            }
        }
    }
    report.problems.extend(notes.listed().into_iter().map(|note| (Severity::Warning, note)));
    report.formats = formats.into_iter().map(|(format, count)| (format.name(), count)).collect();
    report.lengths.sort_unstable();
    if report.lengths.is_empty() && report.problems.is_empty() {
        report.problems.push((Severity::Error, format!("{}: no examples in it", path.display())));
    }
    Ok(report)
}

/// Describes the first message that is out of order. The order: a system text comes first; the agent answers a user or
/// a tool; a user speaks first, or after the system text or the agent; a tool answers after the agent or another tool.
fn disorder(messages: &[Message]) -> Option<String> {
    let mut before = "";
    for (i, message) in messages.iter().enumerate() {
        let follows = match message.role.as_str() {
            "system" => i == 0,
            "assistant" => matches!(before, "user" | "tool"),
            "tool" => matches!(before, "assistant" | "tool"),
            _ => matches!(before, "" | "system" | "assistant"),
        };
        if !follows {
            let before = if before.is_empty() { "the beginning" } else { before };
            return Some(format!("roles out of order: message {i} ({}) follows {before}", message.role));
        }
        before = &message.role;
    }
    None
}

impl Report {
    /// Counts the problems of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|(found, _)| *found == severity).count()
    }

    /// Returns the length that a share of the examples (0 to 1) does not exceed (nearest rank).
    fn percentile(&self, share: f64) -> usize {
        let rank = (share * self.lengths.len() as f64).ceil() as usize;
        self.lengths.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (severity, text) in &self.problems {
            let word = if *severity == Severity::Error { "error" } else { "warning" };
            writeln!(f, "{word}: {text}")?;
        }
        let formats: Vec<String> = self.formats.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(f, "items: {}", if formats.is_empty() { "none".to_string() } else { formats.join(", ") })?;
        let total: usize = self.lengths.iter().sum();
        let masked = 100.0 * (1.0 - self.learned as f64 / total.max(1) as f64);
        let n = self.lengths.len();
        writeln!(f, "examples: {n}, {total} tokens, {masked:.1} % of them masked (no loss)")?;
        let [least, half, nine, ninety_nine, most] = [0.0, 0.5, 0.9, 0.99, 1.0].map(|share| self.percentile(share));
        writeln!(f, "tokens each: {least} least, {half} median, {nine} 90 %, {ninety_nine} 99 %, {most} most")?;
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        writeln!(f, "{errors} errors, {warnings} warnings")
    }
}
