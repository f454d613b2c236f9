//! Reads supervised data (ShareGPT, OpenAI `messages`, Alpaca or trajectories) into token ids with their loss mask, and
//! makes splits and packs of them. Reads whole files into memory; runs no model.

mod file;
mod format;
mod item;
mod json;
mod keys;
mod notes;
mod tools;
mod validate;

pub use validate::{Report, Severity, validate};

use crate::chat::{ChatTemplate, Masked};
use crate::error::{Error, Result};
use crate::message::{Conversation, Message};
use crate::rng::Philox;
use crate::tokenizer::Tokenizer;
use crate::trajectory::{self, Step};
use format::Parsed;
use item::{EXPECTED, Format, brief};
use notes::Notes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids (T).
    pub ids: Vec<u32>,
    /// (T): true where the agent produced the token; only these tokens have a loss. At least one is true.
    pub is_sampled: Vec<bool>,
    /// Origin: `file:line`, `file: item N` in a JSON array, `file: row N` of parquet. Steps of one trajectory share it.
    pub source: String,
}

const NO_REPLY: &str = "no reply of the agent, so nothing to learn from; expected at least one assistant message";

/// Limits on the tokens of an example; the smaller one applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// `sft.max_tokens`.
    pub max_tokens: usize,
    /// Positions of the model.
    pub positions: usize,
}

/// Result of reading supervised data.
#[derive(Debug)]
pub struct Loaded {
    /// The examples in the order of the file.
    pub examples: Vec<Example>,
    /// Notes on what the file holds and is not used, one line each: what it is, where it first occurs, and how often.
    pub notes: Vec<String>,
}

/// Reads supervised data. The content shows the format, item by item: ShareGPT (`conversations`), OpenAI (`messages`),
/// Alpaca (`instruction`) or trajectories (`steps`; each step is an example, from its own ids if it has some). The file
/// is one JSON object a line, one JSON array, objects that spread over lines, or the rows of a parquet file. A
/// conversation is one example, or several if the template rewrites earlier messages (see
/// `ChatTemplate::render_with_mask`).
///
/// Error, with file and line (or item, or row): anything malformed, an empty file, an example without a reply to learn,
/// a key that would change what is learnt and is not understood, whatever the template leaves out, and an example
/// beyond `limit`. Cutting it would teach replies to prompts that were never seen whole.
pub fn load(path: &Path, tokenizer: &Tokenizer, template: &ChatTemplate, limit: Limit) -> Result<Loaded> {
    let reader = Reader::new(tokenizer, template, limit)?;
    let (mut examples, mut notes) = (Vec::new(), Notes::default());
    for (place, item) in file::items(path)? {
        let item = reader.read(&item?, &place.to_string())?;
        notes.add(&place, item.notes);
        examples.extend(item.examples);
    }
    if examples.is_empty() {
        return Err(Error::content(format!(
            "{}: no examples in it; expected at least one line such as {EXPECTED}",
            path.display()
        )));
    }
    Ok(Loaded { examples, notes: notes.counted() })
}

struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    stop_ids: Vec<u32>,
    limit: Limit,
}

/// One item of a file, parsed.
struct Item {
    format: Format,
    /// Examples of a conversation, or one for each step of a trajectory.
    examples: Vec<Example>,
    /// Messages of a conversation; none of a trajectory.
    messages: Vec<Message>,
    /// Notes on what is in it and not used.
    notes: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(tokenizer: &'a Tokenizer, template: &'a ChatTemplate, limit: Limit) -> Result<Self> {
        Ok(Self { tokenizer, template, stop_ids: template.stop_ids(tokenizer)?, limit })
    }

    fn read(&self, item: &Value, place: &str) -> Result<Item> {
        let Value::Object(object) = item else {
            return Err(Error::content(format!("{place}: {} is no object; expected {EXPECTED}", brief(item))));
        };
        let format = Format::of(object).map_err(|e| e.context(place))?;
        if format == Format::Trajectory {
            let trajectory = trajectory::from_line(&item.to_string(), place)?;
            let steps = trajectory.steps.iter().enumerate();
            let examples = steps.map(|(i, step)| self.example(self.step(step), place, &format!("{place}, step {i}")));
            return Ok(Item { format, examples: examples.collect::<Result<_>>()?, messages: vec![], notes: vec![] });
        }
        let Parsed { conversation, mut notes } =
            format::parse(format, object, self.template).map_err(|e| e.context(place))?;
        let sequences = self.conversation(&conversation).map_err(|e| e.context(place))?;
        if sequences.is_empty() {
            return Err(Error::content(format!("{place}: {NO_REPLY}")));
        }
        let unread = self.template.unread_fields(&conversation);
        notes.extend(unread.into_iter().map(|key| format::unused(&key, "a message")));
        let examples = sequences.into_iter().map(|masked| self.example(Ok(masked), place, place));
        Ok(Item { format, examples: examples.collect::<Result<_>>()?, messages: conversation.messages, notes })
    }

    fn conversation(&self, conversation: &Conversation) -> Result<Vec<Masked>> {
        self.template.render_with_mask(conversation, self.tokenizer, &self.stop_ids)
    }

    /// Returns the tokens that a step was played with or, if it has none, those of its text.
    fn step(&self, step: &Step) -> Result<Masked> {
        if step.ids.is_empty() {
            let mut conversation = Conversation::from(step.prompt.clone());
            // Earlier replies are part of what the agent saw, not of this step.
            conversation.is_learnt.fill(false);
            conversation.messages.push(Message::new("assistant", step.reply.as_str()));
            conversation.is_learnt.push(true);
            return self.conversation(&conversation)?.pop().ok_or_else(|| Error::content(NO_REPLY));
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
        let Limit { max_tokens, positions } = self.limit;
        if ids.len() > positions {
            return wrong(format!(
                "{} tokens, more than the {positions} positions of this model (max_position_embeddings in its config.json); shorten it, \
                 take it out, or use a model with more positions: a larger sft.max_tokens does not help",
                ids.len()
            ));
        }
        if ids.len() > max_tokens {
            return wrong(format!(
                "{0} tokens, more than sft.max_tokens = {max_tokens}; shorten it, take it out, or set sft.max_tokens={0}",
                ids.len()
            ));
        }
        Ok(Example { ids, is_sampled, source: source.to_string() })
    }
}

/// Sets a share of the sources aside for validation. Returns (training, validation), each in the order of `examples`.
/// Examples of one source (the steps of a trajectory) stay together. With a share above 0 and at least two sources,
/// each side gets at least one.
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

/// Packs sequences of the given lengths into rows of at most `max_tokens`, by best-fit decreasing (the longest first,
/// each into the fullest row that still takes it), in O(n log n). A sequence longer than a row gets a row of its own.
/// The same lengths give the same packs: indices ascend inside a pack, and packs come in the order of their first
/// index.
pub fn pack(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    let mut room: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // free tokens -> packs with so many
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

/// Renders the first `n` examples as text that shows the loss mask. On a terminal (`coloured`), what the agent learns
/// is green and the rest dim; elsewhere it is between ⟦ and ⟧. Control characters of the data are shown as escapes, so
/// that they cannot act on the terminal.
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
