//! The shapes in which conversations are written, told apart by their keys: ShareGPT, OpenAI `messages`, Alpaca.

use crate::error::{Error, Result};
use crate::trajectory::Message;
use serde_json::{Map, Value};

/// A line that is understood; what messages show.
pub const EXPECTED: &str = MESSAGES;

const SHAREGPT: &str = r#"{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}"#;
const MESSAGES: &str = r#"{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}"#;
const ALPACA: &str = r#"{"instruction": "...", "input": "", "output": "..."}"#;

/// How one item is written.
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
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Format::ShareGpt => "ShareGPT",
            Format::Messages => "messages",
            Format::Alpaca => "Alpaca",
            Format::Trajectory => "trajectories",
        }
    }

    /// By the one key that tells. Error: none of them, or several.
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

    /// The conversation in `object`. Errors name the message: a role that is unknown, no text, an empty reply, calls of functions.
    pub fn messages(self, object: &Map<String, Value>) -> Result<Vec<Message>> {
        match self {
            Format::Alpaca => alpaca(object),
            Format::ShareGpt => turns(object, "conversations", SHAREGPT),
            Format::Messages | Format::Trajectory => turns(object, "messages", MESSAGES),
        }
    }
}

fn wrong(what: &str, valid: &str) -> Error {
    Error::content(format!("{what}; expected {valid}"))
}

/// A system text beside the messages, as LLaMA-Factory writes it.
fn system(object: &Map<String, Value>) -> Option<Message> {
    let text = object.get("system")?.as_str()?;
    (!text.is_empty()).then(|| Message::new("system", text))
}

fn turns(object: &Map<String, Value>, key: &str, valid: &str) -> Result<Vec<Message>> {
    let value = &object[key];
    let list = value.as_array().ok_or_else(|| wrong(&format!("{} is no list of messages", brief(value)), valid))?;
    let mut messages = Vec::with_capacity(list.len() + 1);
    messages.extend(system(object));
    for (i, item) in list.iter().enumerate() {
        let wrong = |what: String| wrong(&format!("message {i}{what}"), valid);
        for key in ["tool_calls", "function_call", "weight"] {
            if item.get(key).is_some_and(|v| !v.is_null()) {
                return Err(wrong(format!(" has {key:?}, which is not supported")));
            }
        }
        // Both dialects mix the names.
        let named = |names: [&'static str; 2]| {
            let there = names.into_iter().find(|name| item.get(*name).is_some_and(|v| !v.is_null()));
            there.ok_or_else(|| {
                wrong(format!(": no text under {:?}", if key == "messages" { names[0] } else { names[1] }))
            })
        };
        let (role_key, text_key) = (named(["role", "from"])?, named(["content", "value"])?);
        let role = match item[role_key].as_str() {
            Some("human" | "user") => "user",
            Some("gpt" | "assistant" | "model" | "chatgpt" | "bot") => "assistant",
            Some("system") => "system",
            Some("tool" | "observation" | "ipython") => "tool",
            Some(other) => {
                return Err(wrong(format!(
                    ": {role_key} is {other:?}, not one of human, user, gpt, assistant, system, tool"
                )));
            }
            None => return Err(wrong(format!(": no text under {role_key:?}"))),
        };
        let text = text_of(&item[text_key]).ok_or_else(|| wrong(format!(": no text under {text_key:?}")))?;
        messages.push(said(role, text).map_err(|e| wrong(format!(": {e}")))?);
    }
    Ok(messages)
}

/// A message; the agent's must say something.
fn said(role: &str, text: String) -> std::result::Result<Message, &'static str> {
    if role == "assistant" && text.trim().is_empty() {
        return Err("the agent's reply is empty");
    }
    Ok(Message::new(role, text))
}

/// The instruction with the input on a line below it, after the turns of `history`, which have a loss too.
fn alpaca(object: &Map<String, Value>) -> Result<Vec<Message>> {
    let text = |key: &str| match object.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(wrong(&format!("{key}: {} is no text", brief(other)), ALPACA)),
    };
    let mut messages: Vec<Message> = system(object).into_iter().collect();
    let turn = |user: &str, agent: &str| {
        let agent = said("assistant", agent.to_string()).map_err(|e| wrong(e, ALPACA))?;
        Ok::<_, Error>([Message::new("user", user), agent])
    };
    match object.get("history") {
        None | Some(Value::Null) => {}
        Some(Value::Array(turns)) => {
            for pair in turns {
                match (pair[0].as_str(), pair[1].as_str()) {
                    (Some(user), Some(agent)) => messages.extend(turn(user, agent)?),
                    _ => return Err(wrong(&format!("history: {} is no pair", brief(pair)), "[[\"user\", \"agent\"]]")),
                }
            }
        }
        Some(other) => {
            return Err(wrong(&format!("history: {} is no list", brief(other)), "[[\"user\", \"agent\"]]"));
        }
    }
    let (instruction, input) = (text("instruction")?, text("input")?);
    let user = if input.is_empty() { instruction.to_string() } else { format!("{instruction}\n{input}") };
    messages.extend(turn(&user, text("output")?)?);
    Ok(messages)
}

/// Text, or OpenAI's list of text parts.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part["text"].as_str().filter(|_| part["type"] == "text"))
            .collect::<Option<String>>(),
        _ => None,
    }
}

/// A value short enough for a message.
pub fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain("...".chars()).collect() } else { text }
}
