//! The formats of an item, told apart by one key.

use crate::error::{Error, Result};
use serde_json::{Map, Value};

const SHAREGPT: &str = r#"{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}"#;
const MESSAGES: &str = r#"{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}"#;
pub(super) const ALPACA: &str = r#"{"instruction": "...", "input": "", "output": "..."}"#;

/// A valid line, which error messages show.
pub const EXPECTED: &str = MESSAGES;

/// Format of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// `conversations` of `from` and `value`.
    ShareGpt,
    /// `messages` of `role` and `content`.
    Messages,
    /// `instruction`, `input`, `output`, with `system` and `history` where LLaMA-Factory has them.
    Alpaca,
    /// `steps`, as `collect` writes them.
    Trajectory,
}

impl Format {
    /// Returns the format's name.
    pub fn name(self) -> &'static str {
        match self {
            Format::ShareGpt => "ShareGPT",
            Format::Messages => "messages",
            Format::Alpaca => "Alpaca",
            Format::Trajectory => "trajectories",
        }
    }

    /// Finds the format by the one key that tells it. Error: none of these keys, or several.
    pub fn of(object: &Map<String, Value>) -> Result<Self> {
        let keys = [
            ("conversations", Format::ShareGpt),
            ("messages", Format::Messages),
            ("instruction", Format::Alpaca),
            ("steps", Format::Trajectory),
        ];
        let mut found = keys.iter().filter(|(key, _)| object.get(*key).is_some_and(|value| !value.is_null()));
        match (found.next(), found.next()) {
            (Some((_, format)), None) => Ok(*format),
            _ => {
                let there: Vec<&String> = object.keys().collect();
                let known = keys.map(|(key, _)| format!("{key:?}")).join(", ");
                Err(Error::content(format!("its keys are {there:?}; expected one of {known}, such as {EXPECTED}")))
            }
        }
    }

    /// Returns a valid item in this format, for error messages.
    pub(super) fn valid(self) -> &'static str {
        match self {
            Format::ShareGpt => SHAREGPT,
            Format::Messages | Format::Trajectory => MESSAGES,
            Format::Alpaca => ALPACA,
        }
    }
}

/// Shortens a value for an error message.
pub fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain("...".chars()).collect() } else { text }
}
