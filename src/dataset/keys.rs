//! Decides what becomes of each key of an item and of a message: understood here, handed to the template that reads it,
//! refused if it would change what is learnt, or else reported. The one place that knows all keys.

use super::item::{Format, brief};
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::message::{CALLS, THOUGHT};
use serde_json::{Map, Value};

/// Keys under which data has an assistant's thoughts. Templates get them under the first, and under the names that
/// transformers adds.
pub const THOUGHTS: [&str; 3] = [THOUGHT, "thinking", "reasoning"];

/// Keys of loss flags, which say whether a reply is learnt: true, 1 or 1.0, and false, 0 or 0.0.
pub const FLAGS: [&str; 8] =
    ["loss_mask", "train", "trainable", "training", "loss", "weight", "loss_weight", "loss_scale"];

/// Roles and the words for them in all formats.
pub const ROLES: [(&str, &[&str]); 5] = [
    ("system", &["system"]),
    ("user", &["user", "human"]),
    ("assistant", &["assistant", "gpt", "model", "chatgpt", "bot"]),
    ("tool", &["tool", "observation", "ipython", "tool_response"]),
    (CALLS, &["function_call", "tool_call"]),
];

/// Keys of an item for what a conversation is rendered with.
const RENDERED_WITH: [&str; 4] = ["system", "tools", "chat_template_kwargs", "enable_thinking"];

/// Place of a key: an item, one of its messages, or an object in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A key of the item.
    Item(Format),
    /// A key of a message.
    Message,
    /// A key of a part of a message's content.
    Part,
    /// A key of a tool call, or of its function.
    Call,
}

/// Fate of a key that has a value.
pub enum Use {
    /// Understood by the reader.
    Understood,
    /// The template reads it: it is handed over as it is.
    Rendered,
    /// Neither: it is reported.
    Ignored,
}

impl Level {
    /// Returns what has the key, in words.
    pub fn holder(self) -> &'static str {
        match self {
            Level::Item(_) => "an item",
            Level::Message => "a message",
            Level::Part => "a content part",
            Level::Call => "a tool call",
        }
    }

    fn understood(self) -> Vec<&'static str> {
        let own: &[&str] = match self {
            Level::Message => &["role", "from", "content", "value", CALLS, "tool_call_id"],
            Level::Part => return vec!["type", "text"],
            Level::Call => return vec!["id", "type", "index", "function", "name", "arguments"],
            Level::Item(Format::ShareGpt) => &["conversations"],
            Level::Item(Format::Messages) => &["messages"],
            Level::Item(Format::Alpaca) => &["instruction", "input", "output", "history"],
            Level::Item(Format::Trajectory) => return vec![], // its reader refuses whatever it does not know
        };
        let shared: &[&str] = match self {
            Level::Item(_) => &RENDERED_WITH,
            _ => &[],
        };
        let thoughts: &[&str] =
            if matches!(self, Level::Message | Level::Item(Format::Alpaca)) { &THOUGHTS } else { &[] };
        [own, shared, &FLAGS, thoughts].concat()
    }

    /// Decides what becomes of `key`. Error: it would change what is learnt, and is not supported.
    pub fn sort(self, key: &str, value: &Value, template: &ChatTemplate) -> Result<Use> {
        if says_nothing(value) || self.understood().contains(&key) {
            return Ok(Use::Understood);
        }
        // The template names these keys for messages, which does not mean that it reads them in calls.
        let is_handed_over = match self {
            Level::Message => true,
            Level::Call => !Level::Message.understood().contains(&key),
            Level::Item(_) | Level::Part => false,
        };
        if is_handed_over && template.reads_field(key) && !is_refused_by_name(key) {
            return Ok(Use::Rendered);
        }
        match self.objection(key, value, template) {
            None => Ok(Use::Ignored),
            Some(why) => Err(Error::content(format!("key `{key}` ({}) {why}", brief(value)))),
        }
    }

    /// Returns the reason why a key that is not understood cannot be ignored, if there is one.
    fn objection(self, key: &str, value: &Value, template: &ChatTemplate) -> Option<String> {
        let words = words(key);
        let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
        let is_flag = |value: &Value| value.is_boolean() || value.is_number();
        let is_flags = is_flag(value) || value.as_array().is_some_and(|list| list.iter().all(is_flag));
        let flags = FLAGS.join(", ");
        if has(&["chosen", "rejected", "kto"]) {
            return Some("is of preference data, which is not learnt from here: keep one conversation an item".into());
        }
        if has(&["image", "images", "video", "videos", "audio", "audios"]) {
            return Some("holds what a text model cannot read: take the item out, or the key".into());
        }
        if ["input_ids", "attention_mask", "labels", "assistant_masks", "completion_mask", "prompt_ids"].contains(&key)
        {
            return Some("holds tokens, which are made here from the text: take the key out".into());
        }
        if ["functions", "function_call", "tool_choice", "functions_call"].contains(&key) {
            return Some(
                "is not supported: write tools as `tools` of the item and calls as `tool_calls` of the message".into(),
            );
        }
        if ["system_prompt", "system_message", "sys_prompt"].contains(&key) {
            return Some(
                "is not understood: write the system text as `system` of the item, or as the first message".into(),
            );
        }
        if key == "refusal" || key == "documents" {
            return Some("is not supported: write it into the content, or take the key out".into());
        }
        if has(&[
            "mask",
            "masks",
            "masked",
            "loss",
            "train",
            "trainable",
            "training",
            "trained",
            "weight",
            "weights",
            "learn",
        ]) && (is_flags || !matches!(self, Level::Item(_)) || words.len() == 1)
        {
            return Some(format!(
                "is not understood: say whether a reply is learnt by one of {flags} (0 or 1) of its message, or take the key out"
            ));
        }
        let thought = ["reasoning", "thinking", "thought", "thoughts", "think", "cot", "rationale"];
        if has(&thought) && (!matches!(self, Level::Item(_)) || value.is_string()) {
            let names = THOUGHTS.join(", ");
            return Some(format!(
                "is not understood: a reply's thoughts are text under {names} of its message; take the key out otherwise"
            ));
        }
        if self == Level::Message && has(&["tool", "tools", "call", "calls", "function", "functions"]) {
            return Some(
                "is not understood: calls of tools are `tool_calls`, their answers messages of role tool".into(),
            );
        }
        let answers = ["context", "query", "question", "prompt", "response", "answer", "completion"];
        if self == Level::Item(Format::Alpaca) && answers.contains(&key) {
            return Some(
                "is not understood beside `instruction`: its texts are instruction, input, output, system, history"
                    .into(),
            );
        }
        if matches!(self, Level::Item(_)) && template.variables().contains(key) {
            return Some(format!(
                "is an argument of the chat template: write it as {{\"chat_template_kwargs\": {{\"{key}\": ...}}}}"
            ));
        }
        None
    }
}

/// True for keys that are refused even if the template reads them.
fn is_refused_by_name(key: &str) -> bool {
    ["function_call", "refusal", "images", "image", "audio", "video"].contains(&key)
}

/// Splits a key into words: `isTrainable` and `is_trainable` both have `is` and `trainable`.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in key.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && before.is_lowercase()) {
            words.push(String::new());
        }
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// True for null and for empty values: table columns that only other rows fill.
pub fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Combines the loss flags of an item or a message; `None` without any. Error: a flag is neither 0 nor 1, or two
/// differ.
pub fn flag(object: &Map<String, Value>) -> Result<Option<bool>> {
    let mut found: Option<(&str, bool)> = None;
    for key in FLAGS {
        let Some(value) = object.get(key).filter(|value| !value.is_null()) else { continue };
        let learnt = as_flag(value).map_err(|e| e.context(format!("key `{key}`")))?;
        match found {
            Some((other, before)) if before != learnt => {
                return Err(Error::content(format!("keys `{other}` and `{key}` differ; expected one of them")));
            }
            _ => found = Some((key, learnt)),
        }
    }
    Ok(found.map(|(_, learnt)| learnt))
}

/// Reads one loss flag: whether a reply is learnt.
pub fn as_flag(value: &Value) -> Result<bool> {
    match value {
        Value::Bool(learnt) => Ok(*learnt),
        Value::Number(number) if number.as_f64() == Some(0.0) => Ok(false),
        Value::Number(number) if number.as_f64() == Some(1.0) => Ok(true),
        other => Err(Error::content(format!(
            "{} is not supported: a reply is learnt whole or not at all; expected 0, 1, true or false",
            brief(other)
        ))),
    }
}
