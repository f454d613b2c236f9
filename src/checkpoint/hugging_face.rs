//! Loads a model from a Hugging Face folder: config.json and safetensors, under any of the names that programs write.
//! Notes tell what is in the folder but not used.

use super::folder::{check_model, listed};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::json;
use crate::model::Model;
use crate::model::config::ModelConfig;
use crate::tensor::{DType, Tensor};
use crate::weights::{self, WeightMap};
use std::path::Path;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
/// A tensor that every model has; the text before it is the prefix of all names.
const ANCHOR: &str = "layers.0.input_layernorm.weight";
/// The prefix of this program's names, except the head's.
const PREFIX: &str = "model.";

/// Loads the Hugging Face folder `dir`: config.json and safetensors. Weights stay in the map, in the type they are
/// stored in. Also returns notes for the user: keys and tensors that are not used, tensors that had to be copied, a
/// stored head that differs from the embedding it should be tied to. Errors name the file, key or tensor.
pub fn load_model(be: &dyn Backend, dir: &Path) -> Result<(Model, Vec<String>)> {
    check_model(dir)?;
    let (mut config, mut notes) = read_config_with_notes(dir)?;
    let map = WeightMap::open(dir)?;
    let names = Names::of(&map);
    if names.prefix != PREFIX && !names.prefix.is_empty() {
        notes.push(format!("{}: {:?} before the names of its tensors is left out", dir.display(), names.prefix));
    }
    let tied = tied_head(&map, &names, &mut config, dir)?;
    notes.extend(tied.note);
    let mut get = |name: &str, shape: &[usize]| {
        let name = if name == EMBEDDING { tied.embedding.clone() } else { names.stored(name) };
        be.place(map.get(&name, shape)?)
    };
    let model = Model::new(be, config, &mut get)?;
    notes.extend(map.notes());
    notes.extend(unused(&map, dir));
    Ok((model, notes))
}

/// The configuration in `dir`/config.json.
pub fn read_config(dir: &Path) -> Result<ModelConfig> {
    Ok(read_config_with_notes(dir)?.0)
}

/// As `read_config`, with a note for the user on each key that is not understood or has no effect.
pub fn read_config_with_notes(dir: &Path) -> Result<(ModelConfig, Vec<String>)> {
    let path = dir.join("config.json");
    if !path.exists() {
        check_model(dir)?; // says what is there instead
    }
    ModelConfig::read(&json::read_text(&path)?, &path)
}

/// The type in which a model trained from the folder `dir` is written so that it loses nothing against its base: the
/// type of most of the base's elements if that is f16 or bf16, else f32. Returns a note if the folder mixes types or
/// has f64.
pub fn stored_dtype(dir: &Path) -> Result<(DType, Option<String>)> {
    let counts = WeightMap::open(dir)?.dtypes();
    let most = counts.iter().max_by_key(|(_, elements)| *elements).map_or(DType::F32, |(dtype, _)| *dtype);
    let dtype = if matches!(most, DType::F16 | DType::BF16) { most } else { DType::F32 };
    let is_plain = counts.len() == 1 && most == dtype;
    let types: Vec<String> = counts.iter().map(|(dtype, _)| format!("{dtype:?}")).collect();
    let note = || format!("{}: its weights are stored in {}; {dtype:?} is written", dir.display(), types.join(" and "));
    Ok((dtype, (!is_plain).then(note)))
}

/// How the tensor names in a folder differ from this program's.
struct Names {
    /// Prefix in place of `model.`: empty in a base saved without its head, longer in one saved inside a wrapper.
    prefix: String,
    /// Prefix of the head's name.
    before_head: String,
}

impl Names {
    fn of(map: &WeightMap) -> Self {
        let found: Vec<&str> = map
            .names()
            .filter_map(|name| name.strip_suffix(ANCHOR))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            .collect();
        let prefix = match found[..] {
            [one] => one,
            _ => PREFIX,
        };
        let outer = prefix.strip_suffix(PREFIX).unwrap_or(prefix);
        let before_head = if map.contains(&format!("{outer}{HEAD}")) { outer } else { "" };
        Self { prefix: prefix.to_string(), before_head: before_head.to_string() }
    }

    /// The folder's name for the parameter that this program calls `name`.
    fn stored(&self, name: &str) -> String {
        match name.strip_prefix(PREFIX) {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => format!("{}{name}", self.before_head),
        }
    }
}

/// Name of the tensor used as the embedding, and a note on it for the user.
struct Tied {
    embedding: String,
    note: Option<String>,
}

/// Resolves a head that config.json ties to the embedding, as transformers 5 does (`tie_weights`): a stored head that
/// differs is used, and `config` is no longer tied; if only the head is stored, it is the embedding too. Error: the
/// head is neither tied nor stored.
fn tied_head(map: &WeightMap, names: &Names, config: &mut ModelConfig, dir: &Path) -> Result<Tied> {
    let (embedding, head) = (names.stored(EMBEDDING), names.stored(HEAD));
    if !config.tied && !map.contains(&head) {
        return Err(Error::content(format!(
            "{}: no tensor {head}, and tie_word_embeddings in config.json is not true; set it to true if the head is the embedding",
            dir.display()
        )));
    }
    if !config.tied || !map.contains(&head) {
        return Ok(Tied { embedding, note: None });
    }
    if !map.contains(&embedding) {
        let note = format!("{}: {embedding} is not stored; {head} is used in its place", dir.display());
        return Ok(Tied { embedding: head, note: Some(note) });
    }
    let shape = [config.vocab, config.hidden];
    if are_equal(&map.get(&embedding, &shape)?, &map.get(&head, &shape)?) {
        return Ok(Tied { embedding, note: None });
    }
    config.tied = false;
    let note = format!(
        "{}: tie_word_embeddings is true, but {head} is stored and differs from {embedding}; it is used as the head, and what is \
         written from this model says tie_word_embeddings false",
        dir.display()
    );
    Ok(Tied { embedding, note: Some(note) })
}

/// Whether two tensors of one shape hold the same numbers.
fn are_equal(a: &Tensor, b: &Tensor) -> bool {
    if a.dtype() == b.dtype() {
        return a.as_bytes() == b.as_bytes();
    }
    weights::converted(a, DType::F64).as_bytes() == weights::converted(b, DType::F64).as_bytes()
}

/// Notes on the tensors and files of a model's folder that were not read.
fn unused(map: &WeightMap, dir: &Path) -> Vec<String> {
    let mut notes = vec![];
    // Rotary tables, which older programs stored, are computed from config.json.
    let names: Vec<String> = map.unread().into_iter().filter(|name| !name.contains("rotary_emb.")).collect();
    if !names.is_empty() {
        notes.push(format!(
            "{}: tensors that the model of config.json does not have are not used: {}",
            dir.display(),
            listed(&names)
        ));
    }
    if dir.join("model.safetensors").exists() && dir.join("model.safetensors.index.json").exists() {
        notes.push(format!("{}: model.safetensors is read; model.safetensors.index.json is not", dir.display()));
    }
    if dir.join("adapter_config.json").exists() {
        let dir = dir.display();
        notes
            .push(format!("{dir}: it holds an adapter beside the weights, which is applied only with --adapter {dir}"));
    }
    notes
}
