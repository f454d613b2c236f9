//! What values a setting may have: as a check, and in words for the user.

use super::Device;
use crate::machine;
use crate::model::lora::Module;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::ops::RangeBounds;
use toml::Value;

/// The most characters of a value or an override that a message repeats.
const SHOWN: usize = 80;

/// The values that a setting may have.
#[derive(Debug, Clone, Copy)]
pub enum Range {
    /// true or false.
    Flag,
    /// A whole number; both ends are valid.
    Whole(i64, i64),
    /// 0 for one a core, or a whole number up to `most` a core, as long as each has `bytes` of memory.
    PerCore {
        /// How many for each core of this machine.
        most: i64,
        /// Bytes of memory that one takes at least.
        bytes: i64,
    },
    /// A number between two bounds, judged in f32, in which most are used.
    Number(Bound<f64>, Bound<f64>),
    /// 0, with what it means, or a number as above.
    ZeroOr(&'static str, Bound<f64>, Bound<f64>),
    /// One of these words.
    Word(&'static [&'static str]),
    /// auto, cpu, cuda or cuda:N.
    Device,
    /// Text of so many bytes, without control characters.
    Text(usize, usize),
    /// One or more names, each once, each of so many bytes at most.
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

/// From `low` on, below `high`.
pub(super) const fn below(low: f64, high: f64) -> Range {
    Range::Number(Included(low), Excluded(high))
}

impl Range {
    /// `value` in the type of this range where it was written in another that says the same: whole numbers serve as numbers, `a,b` as a
    /// list, JSON as a table.
    pub(super) fn converted(&self, value: Value) -> Value {
        match (self, value) {
            (Range::Number(..) | Range::ZeroOr(..), Value::Integer(n)) => Value::Float(n as f64),
            (Range::Names(_) | Range::Modules, Value::String(s)) => {
                Value::Array(s.split(',').map(|name| name.trim().into()).collect())
            }
            // JSON is what chat templates' arguments are written in elsewhere.
            (Range::Table, Value::String(s)) => serde_json::from_str(&s).map_or(Value::String(s), Value::Table),
            (_, value) => value,
        }
    }

    /// What is wrong with a converted `value`, to be read behind its key: ` = -1`, or ` has \`w\``; `None` when it is valid.
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

    /// A valid value close to `value`: what was meant by a whole number with a point or an exponent.
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

    /// The same with what this machine allows.
    pub fn words_here(&self) -> String {
        match *self {
            Range::PerCore { most, bytes } => format!("{}, here to {}", self.words(), most_here(most, bytes)),
            _ => self.words(),
        }
    }
}

/// The name that a module has in settings.
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

/// What is wrong with a list of names: it is none or empty, `named` does not know one, or two name the same.
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

/// A value as a message repeats it: numbers with an exponent where they are long.
fn shown(value: &Value) -> String {
    match value {
        Value::Float(x) => format!("{x:?}"),
        value => shortened(&value.to_string()),
    }
}

/// `text` on one line, without its end when it is long.
pub(super) fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() { format!("{line}...") } else { line }
}
