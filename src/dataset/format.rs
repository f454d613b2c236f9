//! Parses an item into a conversation. Its keys tell the format: ShareGPT, OpenAI `messages` or Alpaca. What becomes of
//! other keys is left to keys.rs.

use super::item::{ALPACA, Format, brief};
use super::keys::{self, FLAGS, Level, ROLES, THOUGHTS, Use, says_nothing};
use super::tools;
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::message::{CALLS, Conversation, Message, THOUGHT};
use serde_json::{Map, Value, json};

/// A conversation, and notes on what it leaves out of its item.
pub struct Parsed {
    /// Conversation to learn from.
    pub conversation: Conversation,
    /// Notes on keys and arguments that nobody reads, each once.
    pub notes: Vec<String>,
}

/// Parses the conversation in `object`. Errors name the message and the key.
pub fn parse(format: Format, object: &Map<String, Value>, template: &ChatTemplate) -> Result<Parsed> {
    let mut reader = ItemReader { format, template, notes: vec![] };
    for (key, value) in object {
        match Level::Item(format).sort(key, value, template)? {
            Use::Understood => {}
            Use::Rendered | Use::Ignored => reader.note(unused(key, Level::Item(format).holder())),
        }
    }
    let mut messages: Vec<Message> = system(object)?.into_iter().collect();
    let before = messages.len();
    let mut flags = vec![None; before];
    match format {
        Format::Alpaca => messages.extend(reader.alpaca(object)?),
        Format::ShareGpt => reader.turns(&object["conversations"], &mut messages, &mut flags)?,
        Format::Messages | Format::Trajectory => reader.turns(&object["messages"], &mut messages, &mut flags)?,
    }
    flags.resize(messages.len(), None);
    let is_learnt = reader.learnt(object, &messages, &flags, before)?;
    let empty = |(i, message): (usize, &Message)| {
        is_learnt[i] && message.content.trim().is_empty() && message.calls().is_empty()
    };
    if let Some(i) = messages.iter().enumerate().position(empty) {
        return Err(wrong(&format!("message {}: the agent's reply is empty", i - before), format.valid()));
    }
    let context = tools::context(object, template, &mut reader.notes)?;
    Ok(Parsed { conversation: Conversation { messages, is_learnt, context }, notes: reader.notes })
}

struct ItemReader<'a> {
    format: Format,
    template: &'a ChatTemplate,
    notes: Vec<String>,
}

/// Makes the note on a key that neither the reader nor the template uses.
pub fn unused(key: &str, holder: &str) -> String {
    format!("key `{key}` of {holder} is not used")
}

fn wrong(what: &str, valid: &str) -> Error {
    Error::content(format!("{what}; expected {valid}"))
}

/// Reads a system text beside the messages, as LLaMA-Factory writes it.
fn system(object: &Map<String, Value>) -> Result<Option<Message>> {
    match object.get("system") {
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(Message::new("system", text))),
        Some(value) if !says_nothing(value) => {
            Err(Error::content(format!("system: {} is no text; expected {{\"system\": \"...\"}}", brief(value))))
        }
        _ => Ok(None),
    }
}

impl ItemReader<'_> {
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Reads the messages of a list, each with its own loss flag.
    fn turns(&mut self, value: &Value, messages: &mut Vec<Message>, flags: &mut Vec<Option<bool>>) -> Result<()> {
        let list = value.as_array();
        let list =
            list.ok_or_else(|| wrong(&format!("{} is no list of messages", brief(value)), self.format.valid()))?;
        for (i, item) in list.iter().enumerate() {
            let at = |e: Error| wrong(&format!("message {i}: {e}"), self.format.valid());
            let Value::Object(item) = item else {
                return Err(at(Error::content(format!("{} is no object", brief(item)))));
            };
            let (message, notes) = self.message(item).map_err(at)?;
            flags.push(keys::flag(item).map_err(at)?);
            messages.push(message);
            notes.into_iter().for_each(|note| self.note(note));
        }
        Ok(())
    }

    fn message(&self, item: &Map<String, Value>) -> Result<(Message, Vec<String>)> {
        let names = if self.format == Format::Messages { ["role", "content"] } else { ["from", "value"] };
        let (role_key, role) = one_of(item, ["role", "from"], names[0])?;
        let role = role.as_str().ok_or_else(|| Error::content(format!("no text under {role_key:?}")))?;
        let Some((role, _)) = ROLES.iter().find(|(_, names)| names.contains(&role)) else {
            let known: Vec<&str> = ROLES.iter().flat_map(|(_, names)| names.iter().copied()).collect();
            return Err(Error::content(format!("{role_key} is {role:?}, not one of {}", known.join(", "))));
        };
        let is_assistant = ["assistant", CALLS].contains(role);
        let (mut more, mut notes) = (Map::new(), vec![]);
        for (key, value) in item {
            match Level::Message.sort(key, value, self.template)? {
                Use::Rendered => drop(more.insert(key.clone(), value.clone())),
                Use::Ignored => notes.push(unused(key, Level::Message.holder())),
                Use::Understood if key == "tool_call_id" && !value.is_null() => {
                    drop(more.insert(key.clone(), value.clone()))
                }
                Use::Understood => {}
            }
        }
        let thought = thought(item)?.filter(|thought| is_assistant || !thought.is_empty());
        more.extend(thought.map(|thought| (THOUGHT.to_string(), json!(thought))));
        let mut calls = tools::calls(item.get(CALLS).unwrap_or(&Value::Null))?;
        let content = if *role == CALLS {
            if !calls.is_empty() {
                return Err(Error::content(format!(
                    "a function_call message with {CALLS} beside its own call; give one of them"
                )));
            }
            calls = match one_of(item, ["content", "value"], names[1])?.1 {
                Value::String(text) => tools::calls_of_text(text)?,
                value => tools::calls(value)?,
            };
            String::new()
        } else if !calls.is_empty() && ["content", "value"].iter().all(|key| item.get(*key).is_none_or(Value::is_null))
        {
            String::new()
        } else {
            let (key, value) = one_of(item, ["content", "value"], names[1])?;
            let text = text_of(value).map_err(|e| e.context(format!("no text under {key:?}")))?;
            notes.extend(self.unread(Level::Part, value.as_array().into_iter().flatten())?);
            text
        };
        notes.extend(self.unread(Level::Call, calls.iter().flat_map(tools::objects))?);
        let role = if *role == CALLS { "assistant" } else { role };
        for (key, is_there) in [(CALLS, !calls.is_empty()), (THOUGHT, more.contains_key(THOUGHT))] {
            if is_there && role != "assistant" {
                return Err(Error::content(format!("{key} of a {role} message; only an assistant's message has any")));
            }
        }
        if !calls.is_empty() {
            if calls.iter().any(|call| self.template.converts(tools::arguments(call))) {
                notes.push(
                    "arguments of tool calls are handed to the chat template as it reads them (object or JSON text), not as written"
                        .to_string(),
                );
            }
            more.insert(CALLS.to_string(), calls.into());
        }
        Ok((Message { role: role.to_string(), content, more }, notes))
    }

    /// Returns notes on keys, in these objects of a message, that nobody reads.
    fn unread<'v>(&self, level: Level, objects: impl Iterator<Item = &'v Value>) -> Result<Vec<String>> {
        let mut notes = vec![];
        for (key, value) in objects.filter_map(Value::as_object).flatten() {
            match level.sort(key, value, self.template).map_err(|e| e.context(level.holder()))? {
                Use::Understood | Use::Rendered => {}
                Use::Ignored => notes.push(unused(key, level.holder())),
            }
        }
        Ok(notes)
    }

    /// Reads the turns of `history`, which have a loss too, then the instruction with the input on a line below it, and
    /// the output.
    fn alpaca(&self, object: &Map<String, Value>) -> Result<Vec<Message>> {
        let text = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(text)) => Ok(text.as_str()),
            Some(other) => Err(wrong(&format!("{key}: {} is no text", brief(other)), ALPACA)),
        };
        let mut messages = vec![];
        let mut turn = |user: &str, agent: &str| {
            messages.extend([Message::new("user", user), Message::new("assistant", agent)]);
        };
        match object.get("history") {
            None | Some(Value::Null) => {}
            Some(Value::Array(turns)) => {
                for pair in turns {
                    match (pair.as_array().map(Vec::len), pair[0].as_str(), pair[1].as_str()) {
                        (Some(2), Some(user), Some(agent)) => turn(user, agent),
                        _ => {
                            return Err(wrong(
                                &format!("history: {} is no pair", brief(pair)),
                                "[[\"user\", \"agent\"]]",
                            ));
                        }
                    }
                }
            }
            Some(other) => {
                return Err(wrong(&format!("history: {} is no list", brief(other)), "[[\"user\", \"agent\"]]"));
            }
        }
        let (instruction, input) = (text("instruction")?, text("input")?);
        let user = if input.is_empty() { instruction.to_string() } else { format!("{instruction}\n{input}") };
        turn(&user, text("output")?);
        if let (Some(thought), Some(last)) = (thought(object)?, messages.last_mut()) {
            last.more.insert(THOUGHT.to_string(), json!(thought));
        }
        Ok(messages)
    }

    /// Decides for each message whether it is learnt: by its own flag and the item's or, without any, by its role. A
    /// list of flags in the item has one for each message of the data, which is all but the first `before`.
    fn learnt(
        &self,
        object: &Map<String, Value>,
        messages: &[Message],
        flags: &[Option<bool>],
        before: usize,
    ) -> Result<Vec<bool>> {
        let mut said: Vec<Vec<bool>> = flags.iter().map(|flag| flag.iter().copied().collect()).collect();
        for key in FLAGS {
            let at = |e: Error| e.context(format!("key `{key}`"));
            match object.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(list)) if self.format != Format::Alpaca => {
                    let turns = messages.len() - before;
                    if list.len() != turns {
                        return Err(Error::content(format!(
                            "key `{key}` has {} flags for {turns} messages; expected one for each message, 0 for those of users",
                            list.len()
                        )));
                    }
                    for (said, flag) in said[before..].iter_mut().zip(list).filter(|(_, flag)| !flag.is_null()) {
                        said.push(keys::as_flag(flag).map_err(at)?);
                    }
                }
                Some(flag) => {
                    let flag = keys::as_flag(flag).map_err(at)?;
                    let replies = said.iter_mut().zip(messages).filter(|(_, message)| message.role == "assistant");
                    replies.for_each(|(said, _)| said.push(flag));
                }
            }
        }
        let decide = |(i, (said, message)): (usize, (&Vec<bool>, &Message))| {
            let is_reply = message.role == "assistant";
            let at = |what: &str| Err(Error::content(format!("message {} ({}): {what}", i - before, message.role)));
            match (said.contains(&true), said.contains(&false)) {
                (true, true) => at("its loss flags differ; expected one flag, of the message or of the item"),
                (true, false) if !is_reply => at(
                    "its loss flag asks to learn it, and only an assistant's messages are learnt; expected 0 or no flag",
                ),
                (learnt, unlearnt) => Ok(is_reply && (learnt || !unlearnt)),
            }
        };
        let is_learnt: Vec<bool> = said.iter().zip(messages).enumerate().map(decide).collect::<Result<_>>()?;
        let replies = messages.iter().filter(|message| message.role == "assistant").count();
        if replies > 0 && !is_learnt.contains(&true) {
            return Err(Error::content(
                "its loss flags leave no reply to learn from; take the item out, or set the flag of a reply to 1",
            ));
        }
        Ok(is_learnt)
    }
}

/// Returns the value under one of two keys that mean the same, with the key. Error: neither is there (the message names
/// `expected`), or both are and differ.
fn one_of<'v>(
    item: &'v Map<String, Value>,
    keys: [&'static str; 2],
    expected: &str,
) -> Result<(&'static str, &'v Value)> {
    let mut found: Option<(&str, &Value)> = None;
    for key in keys {
        let Some(value) = item.get(key).filter(|value| !value.is_null()) else { continue };
        match found {
            Some((other, before)) if before != value => {
                return Err(Error::content(format!("{other:?} and {key:?} differ")));
            }
            Some(_) => {}
            None => found = Some((key, value)),
        }
    }
    found.ok_or_else(|| Error::content(format!("no text under {expected:?}")))
}

/// Reads the thought under the keys that may hold one. Error: it is not text, or two differ.
fn thought(object: &Map<String, Value>) -> Result<Option<&str>> {
    let mut found: Option<(&str, &str)> = None;
    for key in THOUGHTS {
        match object.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => match found {
                Some((other, before)) if before != text => {
                    return Err(Error::content(format!(
                        "{other:?} and {key:?} hold different thoughts; expected one of them"
                    )));
                }
                _ => found = Some((key, text)),
            },
            Some(value) => {
                let value = brief(value);
                return Err(Error::content(format!("{key}: {value} is no text; expected \"{key}\": \"...\"")));
            }
        }
    }
    Ok(found.map(|(_, text)| text))
}

/// Reads text, or OpenAI's list of text parts.
fn text_of(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let text = |part: &Value| match part["text"].as_str().filter(|_| part["type"] == "text") {
                Some(text) => Ok(text.to_string()),
                None => Err(Error::content(format!("{} is no part of type text", brief(part)))),
            };
            parts.iter().map(text).collect()
        }
        other => Err(Error::content(brief(other))),
    }
}
