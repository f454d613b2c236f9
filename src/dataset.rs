//! Supervised data: ShareGPT, OpenAI `messages` or trajectories in; token ids with their loss mask, splits and packs out.
//! Reads whole files into memory; runs no model.

use crate::chat::{ChatTemplate, Masked};
use crate::error::{Error, Result};
use crate::rng::Philox;
use crate::tokenizer::Tokenizer;
use crate::trajectory::{self, Message, Step};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids (T).
    pub ids: Vec<u32>,
    /// (T): true where the agent produced the token, which is where there is a loss. At least one is true.
    pub is_sampled: Vec<bool>,
    /// Where it came from: `file:line`, or `file: item N` inside a JSON array. Steps of one trajectory share it.
    pub source: String,
}

const SHAREGPT: &str = r#"{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}"#;
const NO_REPLY: &str = "no reply of the agent, so nothing to learn from; expected at least one assistant message";
const MESSAGES: &str = r#"{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}"#;

/// Reads supervised data. The format shows in the content, item by item: ShareGPT (`conversations`), OpenAI (`messages`) or
/// trajectories (`steps`, each step an example, from its own ids where it has some); one JSON object a line, or one JSON array.
/// A conversation is one example, or several where the template rewrites earlier messages (see `ChatTemplate::render_with_mask`).
///
/// Refused, with file and line (or item): anything malformed, an empty file, an example without a reply of the agent, and one
/// longer than `max_tokens`: cutting it would teach replies to prompts that were never seen whole.
pub fn load(path: &Path, tokenizer: &Tokenizer, template: &ChatTemplate, max_tokens: usize) -> Result<Vec<Example>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::content(format!("{}:{line}: not UTF-8 text; expected JSON such as {MESSAGES}", path.display()))
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let reader = Reader { tokenizer, template, stop_ids: template.stop_ids(tokenizer)?, max_tokens };
    let mut examples = Vec::new();
    if text.trim_start().starts_with('[') {
        let items: Vec<Value> = serde_json::from_str(text).map_err(|e| {
            Error::content(format!("{}:{}: {e}; expected a JSON array of {SHAREGPT}", path.display(), e.line()))
        })?;
        for (i, item) in items.into_iter().enumerate() {
            reader.read(item, &format!("{}: item {}", path.display(), i + 1), &mut examples)?;
        }
    } else {
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = format!("{}:{}", path.display(), i + 1);
            let item = serde_json::from_str(line).map_err(|e| {
                Error::content(format!("{place}: {e}; expected one JSON object a line, such as {MESSAGES}"))
            })?;
            reader.read(item, &place, &mut examples)?;
        }
    }
    if examples.is_empty() {
        return Err(Error::content(format!(
            "{}: no examples in it; expected at least one line such as {MESSAGES}",
            path.display()
        )));
    }
    Ok(examples)
}

struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    stop_ids: Vec<u32>,
    max_tokens: usize,
}

impl Reader<'_> {
    /// Appends the examples of one item: one of a conversation, one a step of a trajectory.
    fn read(&self, item: Value, place: &str, examples: &mut Vec<Example>) -> Result<()> {
        let Value::Object(object) = &item else {
            return Err(Error::content(format!("{place}: {} is no object; expected {MESSAGES}", brief(&item))));
        };
        if object.contains_key("steps") {
            let trajectory = trajectory::from_line(&item.to_string(), place)?;
            for (i, step) in trajectory.steps.iter().enumerate() {
                examples.push(self.example(self.step(step), place, &format!("{place}, step {i}"))?);
            }
            return Ok(());
        }
        let messages = conversation(object, place)?;
        let sequences = self.conversation(&messages).map_err(|e| e.context(place))?;
        if sequences.is_empty() {
            return Err(Error::content(format!("{place}: {NO_REPLY}")));
        }
        for masked in sequences {
            examples.push(self.example(Ok(masked), place, place)?);
        }
        Ok(())
    }

    fn conversation(&self, messages: &[Message]) -> Result<Vec<Masked>> {
        self.template.render_with_mask(messages, self.tokenizer, &self.stop_ids)
    }

    /// The tokens a step was played with, or those of its text where it has none.
    fn step(&self, step: &Step) -> Result<Masked> {
        if step.ids.is_empty() {
            let mut messages = step.prompt.clone();
            messages.push(Message::new("assistant", step.reply.as_str()));
            // Earlier replies are part of what the agent saw, not of this step.
            let Some(mut masked) = self.conversation(&messages)?.pop() else { return Err(Error::content(NO_REPLY)) };
            let reply = masked.is_sampled.iter().rposition(|&s| !s).map_or(0, |end| end + 1);
            masked.is_sampled[..reply].fill(false);
            return Ok(masked);
        }
        let sampled: Vec<u32> = step.ids.iter().zip(&step.is_sampled).filter(|(_, s)| **s).map(|(&id, _)| id).collect();
        if !self.tokenizer.decode(&sampled).trim_start().starts_with(step.reply.trim()) {
            return Err(Error::content(
                "its ids do not spell its reply with this tokenizer; use the tokenizer it was collected with, or empty \
                 `ids` and `is_sampled` to have them made from the text",
            ));
        }
        Ok(Masked { ids: step.ids.clone(), is_sampled: step.is_sampled.clone() })
    }

    fn example(&self, masked: Result<Masked>, source: &str, place: &str) -> Result<Example> {
        let Masked { ids, is_sampled } = masked.map_err(|e| e.context(place))?;
        let wrong = |what: String| Err(Error::content(format!("{place}: {what}")));
        if !is_sampled.contains(&true) {
            return wrong(NO_REPLY.into());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.tokenizer.vocab_size()) {
            return wrong(format!("token id {id}; this tokenizer's ids end at {}", self.tokenizer.vocab_size() - 1));
        }
        if ids.len() > self.max_tokens {
            return wrong(format!(
                "{} tokens, more than max_tokens = {}; shorten it, take it out, or set sft.max_tokens={}",
                ids.len(),
                self.max_tokens,
                ids.len()
            ));
        }
        Ok(Example { ids, is_sampled, source: source.to_string() })
    }
}

/// The messages of a ShareGPT or OpenAI item.
fn conversation(object: &Map<String, Value>, place: &str) -> Result<Vec<Message>> {
    let (list, role_key, text_key, valid) = match (object.get("conversations"), object.get("messages")) {
        (Some(list), None) => (list, "from", "value", SHAREGPT),
        (None, Some(list)) => (list, "role", "content", MESSAGES),
        _ => {
            let keys: Vec<&String> = object.keys().collect();
            return Err(Error::content(format!(
                "{place}: its keys are {keys:?}; expected one of \"conversations\", \"messages\" and \"steps\", such as {MESSAGES}"
            )));
        }
    };
    let wrong = |what: String| Error::content(format!("{place}: {what}; expected {valid}"));
    let list = list.as_array().ok_or_else(|| wrong(format!("{} is no list of messages", brief(list))))?;
    let mut messages = Vec::with_capacity(list.len() + 1);
    if let Some(system) = object.get("system").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        messages.push(Message::new("system", system));
    }
    for (i, item) in list.iter().enumerate() {
        for key in ["tool_calls", "function_call", "weight"] {
            if item.get(key).is_some_and(|v| !v.is_null()) {
                return Err(wrong(format!("message {i} has {key:?}, which is not supported")));
            }
        }
        let role = match item.get(role_key).and_then(Value::as_str) {
            Some("human" | "user") => "user",
            Some("gpt" | "assistant") => "assistant",
            Some("system") => "system",
            Some("tool" | "observation") => "tool",
            Some(other) => {
                return Err(wrong(format!(
                    "message {i}: {role_key} is {other:?}, not one of human, user, gpt, assistant, system, tool"
                )));
            }
            None => return Err(wrong(format!("message {i}: no text under {role_key:?}"))),
        };
        let text = text_of(&item[text_key]).ok_or_else(|| wrong(format!("message {i}: no text under {text_key:?}")))?;
        if role == "assistant" && text.trim().is_empty() {
            return Err(wrong(format!("message {i}: the agent's reply is empty")));
        }
        messages.push(Message::new(role, text));
    }
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
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain("...".chars()).collect() } else { text }
}

/// Sets a share of the sources aside for validation: (training, validation), each in the order of `examples`. Examples of one
/// source (the steps of a trajectory) stay together. With a share above 0 and two sources, each side gets at least one.
pub fn split_validation(examples: Vec<Example>, share: f64, seed: u64) -> (Vec<Example>, Vec<Example>) {
    let mut seen = BTreeSet::new();
    let mut sources: Vec<String> =
        examples.iter().filter(|e| seen.insert(&e.source)).map(|e| e.source.clone()).collect();
    let count = match (share * sources.len() as f64).round() as usize {
        _ if share <= 0.0 || sources.len() < 2 => 0,
        count => count.clamp(1, sources.len() - 1),
    };
    Philox::named(seed, "validation split").shuffle(&mut sources);
    let chosen: BTreeSet<&String> = sources[..count].iter().collect();
    examples.into_iter().partition(|example| !chosen.contains(&example.source))
}

/// Packs sequences of the given lengths into rows of at most `max_tokens`: best-fit decreasing (the longest first, each into the
/// fullest row that still takes it), O(n log n). A sequence longer than a row gets one of its own. The same lengths give the same
/// packs: indices ascend inside one, and packs come in the order of their first index.
pub fn pack(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // tokens left to the packs that have them
    for i in order {
        let fit = room.range_mut(lengths[i]..).find_map(|(&left, packs)| packs.pop().map(|pack| (left, pack)));
        let (left, pack) = fit.unwrap_or_else(|| {
            packs.push(Vec::new());
            (max_tokens.max(lengths[i]), packs.len() - 1)
        });
        packs[pack].push(i);
        if room.get(&left).is_some_and(Vec::is_empty) {
            room.remove(&left);
        }
        room.entry(left - lengths[i]).or_default().push(pack);
    }
    packs.iter_mut().for_each(|pack| pack.sort_unstable());
    packs.sort_unstable();
    packs
}

/// The first `n` examples as text that shows the loss mask: what the agent learns is green on a terminal (`coloured`), between
/// ⟦ and ⟧ elsewhere; the rest is dim. Control characters of the data are shown as escapes: they cannot act on the terminal.
pub fn preview(examples: &[Example], tokenizer: &Tokenizer, n: usize, coloured: bool) -> String {
    let mut out = String::new();
    for example in &examples[..n.min(examples.len())] {
        let learned = example.is_sampled.iter().filter(|&&s| s).count();
        out += &format!("{}: {} tokens, {learned} with a loss\n", example.source, example.ids.len());
        let pairs: Vec<(u32, bool)> = example.ids.iter().copied().zip(example.is_sampled.iter().copied()).collect();
        for run in pairs.chunk_by(|a, b| a.1 == b.1) {
            let ids: Vec<u32> = run.iter().map(|pair| pair.0).collect();
            let text: String = tokenizer.decode(&ids).chars().map(visible).collect();
            out += &match (coloured, run[0].1) {
                (true, true) => format!("\x1b[32m{text}\x1b[0m"),
                (true, false) => format!("\x1b[2m{text}\x1b[0m"),
                (false, true) => format!("⟦{text}⟧"),
                (false, false) => text,
            };
        }
        out += "\n\n";
    }
    out
}

fn visible(c: char) -> String {
    if c.is_control() && c != '\n' && c != '\t' { c.escape_default().to_string() } else { c.to_string() }
}
