//! Exports models for other programs: writes a whole Hugging Face folder and verifies it against its source (GGUF:
//! gguf.rs). Holds one tensor in memory at a time, beside the maps. Trains nothing.

pub mod gguf;
mod header;

mod pre_tokenizer;
mod vocabulary;

use crate::backend::Backend;
use crate::backend::ops::{self};
use crate::chat::{CHATML, ChatTemplate};
use crate::checkpoint::{self};
use crate::error::{Error, Result};
use crate::files::json;
use crate::files::{self, write_whole};
use crate::model::{self, Activations, Batch, Model, Policy, Segment};
use crate::rng::Philox;
use crate::tensor::DType;
use crate::tokenizer::Tokenizer;
use crate::weights::{self, Entry, Given, WeightMap};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The model to export.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The weights, and the adapter to fold into them.
    pub policy: Policy<'a>,
    /// The folder of the base; its configuration, tokenizer and chat template are exported too.
    pub folder: &'a Path,
}

impl<'a> Source<'a> {
    /// The parameter at `index` of the flat list: as in the base, or W + scale B A in the accumulator type, not yet
    /// rounded. Error: it holds numbers that are not finite.
    fn parameter(&self, backend: &dyn Backend, index: usize) -> Result<Given<'a>> {
        let Policy { model, adapter } = self.policy;
        let merged = match adapter {
            Some(adapter) => model.merged_weight(backend, adapter, index)?,
            None => None,
        };
        let given = merged.map_or(Given::Held(&model.weights[index]), Given::Made);
        let copy = given.tensor().host_copy()?;
        match copy.as_ref().unwrap_or(given.tensor()).not_finite() {
            0 => Ok(given),
            count => Err(Error::content(format!(
                "tensor {} holds {count} of {} numbers that are not finite: the model is broken; get it again, or take another",
                model.names[index],
                given.tensor().len()
            ))),
        }
    }
}

/// Writes the whole folder `out`: shards of at most `shard_bytes` (a larger tensor has one to itself) in `dtype` (f32,
/// f16, bf16), the configuration with that type and all other keys unchanged, generation settings, tokenizer and chat
/// template. Returns the number of shards, and notes for the user. Errors: `out` is not empty; `dtype` cannot hold a
/// weight. An error leaves nothing behind.
pub fn hugging_face(
    backend: &dyn Backend,
    source: Source,
    out: &Path,
    dtype: DType,
    shard_bytes: usize,
) -> Result<(usize, Vec<String>)> {
    let model = source.policy.model;
    let shards = split(model, dtype, shard_bytes);
    let mut notes = vec![];
    files::publish_folder(out, |folder| {
        let mut weight_map = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            let name = match shards.len() {
                1 => "model.safetensors".to_string(),
                count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let entries: Vec<Entry> = shard.iter().map(|&index| entry(model, index, dtype)).collect();
            weights::save_made(&folder.join(&name), &entries, &|place| source.parameter(backend, shard[place]))?;
            weight_map.extend(entries.into_iter().map(|entry| (entry.name, name.clone())));
        }
        if shards.len() > 1 {
            let total: usize = model.weights.iter().map(|w| w.len() * dtype.size()).sum();
            let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
            json::write(&folder.join("model.safetensors.index.json"), &index)?;
        }
        notes = describe(folder, source.folder, model, dtype)?;
        Ok(())
    })?;
    Ok((shards.len(), notes))
}

/// Writes a model whose weights were trained to the folder `dir` (made when missing), complete as by `hugging_face`:
/// the other files come from `folder`, where training began. Returns notes for the user.
pub fn trained(dir: &Path, model: &Model, dtype: DType, folder: &Path) -> Result<Vec<String>> {
    let tensors: Vec<_> = model.names.iter().cloned().zip(&model.weights).collect();
    weights::save(&dir.join("model.safetensors"), &tensors, Some(dtype))?;
    describe(dir, folder, model, dtype)
}

fn entry(model: &Model, index: usize, dtype: DType) -> Entry {
    Entry { name: model.names[index].clone(), shape: model.weights[index].shape().to_vec(), dtype }
}

/// The parameters of each shard, in order.
fn split(model: &Model, dtype: DType, shard_bytes: usize) -> Vec<Vec<usize>> {
    let (mut shards, mut room) = (vec![], 0);
    for (index, weight) in model.weights.iter().enumerate() {
        let bytes = weight.len() * dtype.size();
        if shards.is_empty() || bytes > room {
            shards.push(vec![]);
            room = shard_bytes;
        }
        room = room.saturating_sub(bytes);
        shards.last_mut().into_iter().for_each(|shard: &mut Vec<usize>| shard.push(index));
    }
    shards
}

/// Writes all files beside the weights. Returns notes for the user.
fn describe(to: &Path, from: &Path, model: &Model, dtype: DType) -> Result<Vec<String>> {
    checkpoint::copy_text_files(from, to)?;
    write_whole(&to.join("config.json"), configuration(from, model, dtype)?.as_bytes())?;
    if !from.join("tokenizer.json").exists() {
        return Ok(vec![]); // a model without a tokenizer
    }
    let tokenizer = Tokenizer::open(from)?;
    if tokenizer.chat_template().is_none() {
        // This program falls back to ChatML; another one would refuse to chat without a template.
        write_whole(&to.join("chat_template.jinja"), CHATML.as_bytes())?;
    }
    let (stop, note) = stop_ids(&tokenizer);
    let path = to.join("generation_config.json");
    let mut settings: Map<String, Value> = match path.exists() {
        true => json::read(&path)?,
        false => Map::new(),
    };
    if settings.is_empty() {
        for (key, id) in
            [("bos_token_id", tokenizer.bos().and_then(|t| tokenizer.id(t))), ("pad_token_id", tokenizer.pad_id())]
        {
            id.into_iter().for_each(|id| drop(settings.insert(key.into(), id.into())));
        }
    }
    if !stop.is_empty() {
        settings.insert("eos_token_id".into(), stop.into());
    }
    json::write(&path, &settings)?;
    Ok(note.into_iter().collect())
}

/// The ids that end a reply, for other programs: first the one with which the chat template closes it (many programs
/// use only the first, and a base tuned for chat would not stop without it), then the others that the folder names. If
/// the template does not render, only those that the folder names, and a note.
fn stop_ids(tokenizer: &Tokenizer) -> (Vec<u32>, Option<String>) {
    let named = tokenizer.eos_ids().to_vec();
    match ChatTemplate::of(tokenizer).and_then(|template| template.closing_id(tokenizer)) {
        Ok(closing) => {
            let others = named.into_iter().filter(|&id| id != closing);
            (std::iter::once(closing).chain(others).collect(), None)
        }
        Err(error) => {
            (named, Some(format!("{error}; the end tokens that are written are those that the folder names")))
        }
    }
}

/// The source's config.json with the type of the weights that were written, and whether the head is the embedding. Made
/// from the model if the source has none.
fn configuration(from: &Path, model: &Model, dtype: DType) -> Result<String> {
    let torch_dtype = checkpoint::torch_dtype(dtype)?;
    let path = from.join("config.json");
    if !path.exists() {
        return Ok(model.config.to_json(torch_dtype));
    }
    let mut map: Map<String, Value> = json::read(&path)?;
    // transformers 5 writes `dtype`, earlier ones `torch_dtype`; all read the latter.
    let key = if map.contains_key("dtype") && !map.contains_key("torch_dtype") { "dtype" } else { "torch_dtype" };
    map.shift_remove(if key == "dtype" { "torch_dtype" } else { "dtype" });
    map.insert(key.into(), torch_dtype.into());
    if map.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false) != model.config.tied {
        map.insert("tie_word_embeddings".into(), model.config.tied.into());
    }
    Ok(format!("{:#}\n", Value::Object(map)))
}

/// Result of `verify`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verified {
    /// Number of tokens compared.
    pub tokens: usize,
    /// Greatest magnitude of a logit of base and adapter.
    pub greatest: f64,
    /// Greatest difference between those logits and the exported folder's.
    pub difference: f64,
    /// Greatest difference that rounding the merged weights alone makes, computed with the source's configuration.
    pub rounding: f64,
}

/// Tokens of each of the two texts that `verify` compares.
const VERIFIED_TOKENS: usize = 16;

/// Reads the exported folder back and compares it with its source. Every tensor must equal the merged and rounded
/// weight bit for bit; the logits of random tokens may differ from those of base and adapter by at most twice what
/// rounding the weights explains (the rule for any result in fewer bits: at most twice the error of the plain
/// computation). Errors name the tensor, or both figures.
pub fn verify(backend: &dyn Backend, source: Source, out: &Path, dtype: DType) -> Result<Verified> {
    let (found, _) = checkpoint::load_model(backend, out)?;
    let map = WeightMap::open(out)?;
    let names = &source.policy.model.names;
    let places: HashMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
    // Rounded weights equal the folder's bit for bit, so they share its memory.
    let rounded = Model::new(backend, source.policy.model.config.clone(), &mut |name, shape| {
        let made = weights::converted(source.parameter(backend, places[name])?.tensor(), dtype);
        let read = map.get(name, shape)?;
        if read.dtype() != dtype || read.as_bytes() != made.as_bytes() {
            return Err(Error::system(format!(
                "{}: tensor {name} is not the merged weight rounded to {dtype:?}; export it again",
                out.display()
            )));
        }
        backend.place(read)
    })?;
    let expected = logits(backend, source.policy)?;
    let plain = |model| Policy { model, adapter: None };
    let difference = |policy| -> Result<f64> {
        let found = logits(backend, policy)?;
        // NaN counts as the worst.
        let apart = |(a, b): (&f32, &f32)| f64::from(a - b).abs();
        Ok(found.iter().zip(&expected).map(apart).fold(0.0, |worst, x| if x <= worst { worst } else { x }))
    };
    let verified = Verified {
        tokens: 2 * VERIFIED_TOKENS,
        greatest: expected.iter().fold(0.0, |worst, x| f64::max(worst, x.abs().into())),
        difference: difference(plain(&found))?,
        rounding: difference(plain(&rounded))?,
    };
    if verified.difference <= 2.0 * verified.rounding {
        return Ok(verified);
    }
    Err(Error::system(format!(
        "{}: its logits differ from those of base and adapter by {:e}, where rounding to {dtype:?} explains {:e}",
        out.display(),
        verified.difference,
        verified.rounding
    )))
}

/// Logits of two random texts; the texts are the same for every model with the same vocabulary size.
fn logits(backend: &dyn Backend, policy: Policy) -> Result<Vec<f32>> {
    let config = &policy.model.config;
    let mut rng = Philox::named(0, "verify");
    let length = VERIFIED_TOKENS.min(config.max_positions);
    let ids: Vec<u32> = (0..2 * length).map(|_| rng.below(config.vocab) as u32).collect();
    let segments = [&ids[..length], &ids[length..]].map(|ids| Segment { ids, start_position: 0, parent: None });
    let batch = Batch::new(backend, config, &segments)?;
    let mut acts = Activations::default();
    model::forward(backend, policy, &batch, false, &mut acts)?;
    let mut out = backend.alloc(&[ids.len(), config.vocab], backend.accumulator())?;
    ops::Logits { x: acts.hidden(), w: policy.model.lm_head(), out: &mut out }.run(backend)?;
    backend.read(&out)
}
