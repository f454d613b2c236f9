//! The values a setting may have: checks, and their wording for the user.

use crate::machine;
use crate::model::lora::Module;
use crate::run::Device;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::RangeBounds;
use toml::Value;

/// Maximum characters of a value or an override that a message repeats.
const SHOWN: usize = 80;

/// The values that a setting may have.
#[derive(Debug, Clone, Copy)]
pub enum Range {
    /// true or false.
    Flag,
    /// A whole number; both ends are valid.
    Whole(i64, i64),
    /// 0 for one per core, or a whole number up to `most` per core, as long as each has `bytes` of memory.
    PerCore {
        /// Maximum for each core of this machine.
        most: i64,
        /// Minimum bytes of memory that each takes.
        bytes: i64,
    },
    /// A number between two bounds, compared as f32, the type in which most are used.
    Number(Bound<f64>, Bound<f64>),
    /// 0, with what it means, or a number between two bounds.
    ZeroOr(&'static str, Bound<f64>, Bound<f64>),
    /// One of these words.
    Word(&'static [&'static str]),
    /// auto, cpu, cuda or cuda:N.
    Device,
    /// Text of a minimum to a maximum of bytes, without control characters.
    Text(usize, usize),
    /// One or more names, each once, each of at most this many bytes.
    Names(usize),
    /// One or more linear layers of a block, each once.
    Modules,
    /// Arguments by name.
    Table,
}

/// From `low` to `high`, both valid.
pub(super) const fn within(low: f64, high: f64) -> Range {
    Range::Number(Included(low), Included(high))
}

/// Above `low`, up to `high`.
pub(super) const fn above(low: f64, high: f64) -> Range {
    Range::Number(Excluded(low), Included(high))
}

/// From `low`, which is valid, to below `high`.
pub(super) const fn below(low: f64, high: f64) -> Range {
    Range::Number(Included(low), Excluded(high))
}

impl Range {
    /// Converts `value` to the type of this range if it was written in another that means the same: whole numbers to
    /// numbers, `a,b` to a list, JSON to a table.
    pub(super) fn converted(&self, value: Value) -> Value {
        match (self, value) {
            (Range::Number(..) | Range::ZeroOr(..), Value::Integer(n)) => Value::Float(n as f64),
            (Range::Names(_) | Range::Modules, Value::String(s)) => {
                Value::Array(s.split(',').map(|name| name.trim().into()).collect())
            }
            // Other programs write arguments of chat templates in JSON.
            (Range::Table, Value::String(s)) => serde_json::from_str(&s).map_or(Value::String(s), Value::Table),
            (_, value) => value,
        }
    }

    /// What is wrong with a converted `value`, to be read after its key: ` = -1`, or ` has \`w\``; `None` when it is
    /// valid.
    pub(super) fn fault(&self, value: &Value) -> Option<String> {
        let whole = |low: i64, high: i64| value.as_integer().is_some_and(|n| (low..=high).contains(&n));
        let number = |low: Bound<f64>, high: Bound<f64>, x: f64| (low, high).contains(&f64::from(x as f32));
        let text = |least: usize, most: usize| {
            value.as_str().is_some_and(|s| (least..=most).contains(&s.len()) && !s.contains(char::is_control))
        };
        let is_valid = match *self {
            Range::Flag => value.is_bool(),
            Range::Whole(low, high) => whole(low, high),
            Range::PerCore { most, bytes } => whole(0, most_here(most, bytes)),
            Range::Number(low, high) => value.as_float().is_some_and(|x| number(low, high, x)),
            Range::ZeroOr(_, low, high) => value.as_float().is_some_and(|x| x == 0.0 || number(low, high, x)),
            Range::Word(words) => value.as_str().is_some_and(|s| words.contains(&s)),
            Range::Device => value.as_str().is_some_and(|s| Device::try_from(s.to_string()).is_ok()),
            Range::Text(least, most) => text(least, most),
            Range::Names(most) => return fault_of_list(value, |name| is_name(name, most).then(|| name.to_string())),
            Range::Modules => return fault_of_list(value, Module::named),
            Range::Table => value.is_table(),
        };
        match value {
            _ if is_valid => None,
            Value::Float(x) if !x.is_finite() => Some(format!(" = {value}, which is not finite")),
            value => Some(format!(" = {}", shown(value))),
        }
    }

    /// The whole number that a value with a point or an exponent means, if it is valid.
    pub(super) fn meant(&self, value: &Value) -> Option<i64> {
        let n = value.as_float().filter(|x| x.fract() == 0.0 && x.abs() < 1e15)? as i64;
        self.fault(&Value::Integer(n)).is_none().then_some(n)
    }

    /// The valid values in words, the same on every machine.
    pub fn words(&self) -> String {
        match *self {
            Range::Flag => "true or false".to_string(),
            Range::Whole(low, high) => format!("a whole number from {low} to {high}"),
            Range::PerCore { most, .. } => format!("a whole number from 0 to {most} for each core"),
            Range::Number(low, high) => format!("a number {}", between(low, high)),
            Range::ZeroOr(what, low, high) => format!("0, which {what}, or a number {}", between(low, high)),
            Range::Word(words) => format!("one of {}", words.join(", ")),
            Range::Device => "auto, cpu, cuda or cuda:N with a GPU's number N".to_string(),
            Range::Text(least, most) => format!("text of {least} to {most} bytes on one line"),
            Range::Names(most) => format!("a list of names of at most {most} bytes, each once"),
            Range::Modules => format!("a list of {}, each once", Module::ALL.map(short).join(", ")),
            Range::Table => "a table, for example { enable_thinking = false }".to_string(),
        }
    }

    /// The valid values in words, with this machine's limit.
    pub fn words_here(&self) -> String {
        match *self {
            Range::PerCore { most, bytes } => format!("{}, here to {}", self.words(), most_here(most, bytes)),
            _ => self.words(),
        }
    }
}

/// The name of a module in settings.
fn short(module: Module) -> &'static str {
    module.name().trim_end_matches("_proj")
}

fn most_here(most: i64, bytes: i64) -> i64 {
    let by_cores = most.saturating_mul(machine::cores() as i64);
    let by_memory = machine::memory().map_or(i64::MAX, |memory| memory as i64 / bytes);
    by_cores.min(by_memory).max(1)
}

fn between(low: Bound<f64>, high: Bound<f64>) -> String {
    match (low, high) {
        (Included(low), Included(high)) => format!("from {low} to {high}"),
        (Included(low), Excluded(high)) => format!("in [{low}, {high})"),
        (Excluded(low), Included(high) | Excluded(high)) => format!("above {low}, at most {high}"),
        (Unbounded, _) | (_, Unbounded) => "of any size".to_string(),
    }
}

fn is_name(name: &str, most: usize) -> bool {
    (1..=most).contains(&name.len()) && !name.contains(char::is_control)
}

/// What is wrong with a list of names: it is no list or empty, `named` does not know a name, or two names mean the
/// same.
fn fault_of_list<T: PartialEq>(value: &Value, named: impl Fn(&str) -> Option<T>) -> Option<String> {
    let names = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let Some(names) = names.filter(|names| !names.is_empty()) else { return Some(format!(" = {}", shown(value))) };
    let mut known = vec![];
    for name in names {
        let quoted = shortened(name);
        match named(name) {
            None => return Some(format!(" has `{quoted}`")),
            Some(found) if known.contains(&found) => return Some(format!(" has `{quoted}` twice")),
            Some(found) => known.push(found),
        }
    }
    None
}

/// A value as a message repeats it: long numbers with an exponent.
fn shown(value: &Value) -> String {
    match value {
        Value::Float(x) => format!("{x:?}"),
        value => shortened(&value.to_string()),
    }
}

/// `text` on one line, cut off when it is long.
pub(super) fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() { format!("{line}...") } else { line }
}
