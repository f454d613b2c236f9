//! Checks that a template renders everything that is learnt: texts, thoughts, tools and calls. If it leaves something
//! out, the conversation is refused with an error that names it.

use super::ChatTemplate;
use crate::error::{Error, Result};
use crate::message::{CALLS, Context, Conversation, FIELDS, Message, THOUGHT};
use serde_json::{Map, Value, json};

impl ChatTemplate {
    /// Refuses a conversation if the template leaves out its tools or a part of reply `i`, which is rendered as the
    /// part of `whole` after `prompt`.
    pub(super) fn check_reply(&self, conversation: &Conversation, i: usize, prompt: &str, whole: &str) -> Result<()> {
        let Conversation { messages, context, .. } = conversation;
        let reply = &messages[i];
        let is_lost = |text: &str, change: &dyn Fn(&mut Message)| {
            let ignores = || self.ignores(&messages[..=i], i, context, false, whole, change);
            !carries(prompt, whole, text) || (!is_blank(text) && ignores())
        };
        let has_lost = |thought: &&str| {
            is_lost(thought, &|message| drop(message.more.insert(THOUGHT.to_string(), json!(changed(thought)))))
        };
        if let Some(thought) = reply.thought().filter(has_lost) {
            let key = "thought (reasoning_content, thinking or reasoning)";
            return Err(left_out(i, reply, key, thought, "write it into content"));
        }
        if is_lost(&reply.content, &|message| message.content = changed(&message.content)) {
            let hint =
                "the template keeps a part of it back, as some do with thoughts or with text beside calls of tools";
            return Err(left_out(i, reply, "content", &reply.content, hint));
        }
        self.check_calls(messages, context, i, whole)?;
        let has_tools = context.tools.as_ref().is_some_and(|tools| !tools.is_empty());
        let without = Context { tools: None, ..context.clone() };
        if has_tools && self.render_with(&messages[..=i], &without, false).is_ok_and(|text| text == whole) {
            return Err(Error::content(
                "key `tools`: this chat template does not render tools, so the model would not see them: use a model whose template \
                 does, or take the key out",
            ));
        }
        Ok(())
    }

    /// Refuses a conversation if the template leaves out the text or calls of a message before reply `last`. Texts of
    /// earlier replies are not checked: a template may shorten them.
    pub(super) fn check_prompt(&self, conversation: &Conversation, last: usize) -> Result<()> {
        let Conversation { messages, context, is_learnt } = conversation;
        let prompt = self.render_with(&messages[..last], context, true)?;
        for (i, message) in messages[..last].iter().enumerate() {
            if message.role == "assistant" {
                if !is_learnt[i] && !message.calls().is_empty() {
                    let whole = self.render_with(&messages[..=i], context, false)?;
                    self.check_calls(messages, context, i, &whole)?;
                }
            } else if !is_blank(&message.content)
                && self.ignores(&messages[..last], i, context, true, &prompt, |message| {
                    message.content = changed(&message.content);
                })
            {
                // Checked only by changing the text: some templates quote it, so it need not appear as it is.
                return Err(left_out(i, message, "content", &message.content, "take the message out"));
            }
        }
        Ok(())
    }

    /// Fields of messages that were passed on because the template's source names them, but that do not change what it
    /// renders. A tool's `name` does not count: it serves to match answers to calls.
    pub fn unread_fields(&self, conversation: &Conversation) -> Vec<String> {
        let Conversation { messages, context, .. } = conversation;
        let is_own = |key: &str, message: &Message| match key {
            "name" => message.role == "tool",
            key => FIELDS.contains(&key),
        };
        let mut keys: Vec<&String> = vec![];
        for message in messages {
            keys.extend(message.more.keys().filter(|key| !is_own(key, message)));
        }
        keys.sort_unstable();
        keys.dedup();
        let mut unread = vec![];
        for key in keys {
            let mut without = messages.clone();
            without.iter_mut().for_each(|message| drop(message.more.remove(key)));
            let text = self.render_with(&without, context, false);
            if text.is_ok() && text.ok() == self.render_with(messages, context, false).ok() {
                unread.push(key.clone());
            }
        }
        unread
    }

    /// Whether `messages`, rendered as `text`, render the same after `change` to message `i`. A template that fails on
    /// the change does read it.
    fn ignores(
        &self,
        messages: &[Message],
        i: usize,
        context: &Context,
        add_generation_prompt: bool,
        text: &str,
        change: impl FnOnce(&mut Message),
    ) -> bool {
        let mut messages = messages.to_vec();
        change(&mut messages[i]);
        self.render_with(&messages, context, add_generation_prompt).is_ok_and(|other| other == text)
    }

    /// Refuses message `i` if one of its tool calls, or a call's arguments, makes no difference to the text `whole`.
    fn check_calls(&self, messages: &[Message], context: &Context, i: usize, whole: &str) -> Result<()> {
        let calls = messages[i].calls();
        let is_same = |calls: Vec<Value>| {
            self.ignores(&messages[..=i], i, context, false, whole, |message| {
                match calls.is_empty() {
                    true => message.more.remove(CALLS),
                    false => message.more.insert(CALLS.to_string(), calls.into()),
                };
            })
        };
        for (c, call) in calls.iter().enumerate() {
            let mut fewer = calls.to_vec();
            fewer.remove(c);
            let mut emptied = calls.to_vec();
            let function = if call.get("function").is_some() { &mut emptied[c]["function"] } else { &mut emptied[c] };
            let arguments = function.get_mut("arguments").filter(|arguments| !is_empty(arguments));
            let had_arguments = arguments.map(|arguments| {
                *arguments = if arguments.is_string() { json!("{}") } else { Value::Object(Map::new()) };
            });
            if is_same(fewer) || (had_arguments.is_some() && is_same(emptied)) {
                let hint = "write them into content";
                return Err(left_out(i, &messages[i], CALLS, &call.to_string(), hint));
            }
        }
        Ok(())
    }
}

fn is_empty(arguments: &Value) -> bool {
    match arguments {
        Value::String(text) => text.trim().is_empty() || text.split_whitespace().collect::<String>() == "{}",
        Value::Object(object) => object.is_empty(),
        _ => true,
    }
}

/// Another text, to test whether the template renders it. An empty one would not do: some templates put a default in
/// its place, which may be the very text, and some fail on it.
fn changed(text: &str) -> String {
    format!("{text}x")
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Whether the last occurrence of `text` in `whole` ends behind `prompt`. White space is ignored (templates strip it).
fn carries(prompt: &str, whole: &str, text: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<String>();
    let (text, whole) = (squeezed(text), squeezed(whole));
    text.is_empty() || whole.rfind(&text).is_some_and(|at| at + text.len() > squeezed(prompt).len())
}

fn left_out(i: usize, message: &Message, key: &str, value: &str, hint: &str) -> Error {
    let value: String = value.chars().take(40).collect();
    Error::content(format!(
        "message {i} ({}): this chat template does not render its {key} ({value:?}), so it would be lost: {hint}, or use a model whose \
         template renders it",
        message.role
    ))
}
