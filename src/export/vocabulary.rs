//! Converts a byte-level BPE vocabulary from tokenizer.json to GGUF metadata. Other kinds of tokenizer are refused.

use super::header::Header;
use super::pre_tokenizer;
use super::stop_ids;
use crate::error::{Error, Result};
use crate::files::json;
use crate::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// llama.cpp's numbers for the kinds of token.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

/// The parts of a tokenizer that llama.cpp needs.
pub struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    merges: Vec<String>,
    pre: &'static str,
    bos: Option<u32>,
    /// The token that ends a reply.
    eos: Option<u32>,
    pad: Option<u32>,
    adds_bos: bool,
    /// `None` if the folder does not say; llama.cpp adds none then.
    adds_eos: Option<bool>,
    template: Option<String>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Tokens, by their text, that end a reply in llama.cpp whatever the file says.
const KNOWN_ENDS: [&str; 6] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>"];

impl Vocabulary {
    /// Reads the tokenizer in `folder`, filled up with unused tokens to the `rows` of the model's embedding. Errors
    /// name the file and key.
    pub fn read(folder: &Path, rows: usize) -> Result<Self> {
        let tokenizer = Tokenizer::open(folder)?;
        tokenizer.check(rows)?;
        let path = folder.join("tokenizer.json");
        let json: Value = json::read(&path)?;
        let wrong = |what: &str| Error::content(format!("{}: {what}", path.display()));
        let model = &json["model"];
        if model["type"] != "BPE" || !json.pointer("/decoder").is_some_and(is_byte_level) {
            return Err(wrong(
                "GGUF export takes byte-level BPE (\"model\": {\"type\": \"BPE\"}, \"decoder\": {\"type\": \"ByteLevel\"}), \
                 which this tokenizer is not; convert the folder with llama.cpp's own converter",
            ));
        }
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![kind::UNUSED; rows];
        let mut set = |id: Option<u64>, text: &str, kind: i32| match id.and_then(|id| usize::try_from(id).ok()) {
            Some(id) if id < rows => {
                (tokens[id], kinds[id]) = (text.to_string(), kind);
                Ok(())
            }
            _ => Err(wrong(&format!("token {text:?} has no id below {rows}"))),
        };
        for (text, id) in model["vocab"].as_object().ok_or_else(|| wrong("model.vocab: expected an object"))? {
            set(id.as_u64(), text, kind::NORMAL)?;
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().ok_or_else(|| wrong("added_tokens: a token without content"))?;
            let kind = if token["special"] == true { kind::CONTROL } else { kind::USER_DEFINED };
            set(token["id"].as_u64(), text, kind)?;
        }
        // Also the tokens that only the files beside tokenizer.json name, and the kinds that these files give to
        // others.
        for (id, text) in tokenizer.added_tokens() {
            let kind = if tokenizer.is_special(id) { kind::CONTROL } else { kind::USER_DEFINED };
            set(Some(id.into()), text, kind)?;
        }
        let merge = |merge: &Value| match merge {
            Value::String(pair) => Some(pair.clone()),
            Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        };
        let merges = model["merges"].as_array().into_iter().flatten().map(merge).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| wrong("model.merges: expected pairs such as [\"a\", \"b\"]"))?;
        let mut notes: Vec<String> = vec![];
        let (pre, unlike) = pre_tokenizer::name(&json);
        notes.extend(unlike.into_iter().map(|what| format!("{}: {what}", path.display())));
        let (stop, note) = stop_ids(&tokenizer);
        notes.extend(note);
        let beyond: Vec<&str> = stop.iter().skip(1).filter_map(|&id| Some(tokens.get(id as usize)?.as_str())).collect();
        let unknown: Vec<&str> = beyond.into_iter().filter(|token| !KNOWN_ENDS.contains(token)).collect();
        if !unknown.is_empty() {
            notes.push(format!(
                "{}: a GGUF file names one end token; llama.cpp will not end a reply at {}",
                folder.display(),
                unknown.join(", ")
            ));
        }
        let bos = tokenizer.bos().and_then(|token| tokenizer.id(token));
        let config_path = folder.join("tokenizer_config.json");
        let config: Value = if config_path.exists() { json::read(&config_path)? } else { Value::Null };
        let adds = |key: &str| match &config[key] {
            Value::Null => Ok(None),
            Value::Bool(on) => Ok(Some(*on)),
            other => {
                Err(Error::content(format!("{}: {key}: found {other}, expected true or false", config_path.display())))
            }
        };
        let opens = tokenizer.bos().is_some_and(|bos| opens_with(&json["post_processor"], bos));
        let mut adds_bos = adds("add_bos_token")?.unwrap_or(opens);
        if adds_bos && bos.is_none() {
            notes.push(format!(
                "{}: add_bos_token is true, but no bos_token is named; none is added",
                config_path.display()
            ));
            adds_bos = false;
        }
        Ok(Self {
            tokens,
            kinds,
            merges,
            pre,
            bos,
            eos: stop.first().copied(),
            pad: tokenizer.pad_id(),
            adds_bos,
            adds_eos: adds("add_eos_token")?,
            template: tokenizer.chat_template().map(str::to_string),
            notes,
        })
    }

    pub(super) fn describe(&self, header: &mut Header) {
        header.text("tokenizer.ggml.model", "gpt2");
        header.text("tokenizer.ggml.pre", self.pre);
        header.texts("tokenizer.ggml.tokens", &self.tokens);
        header.integers("tokenizer.ggml.token_type", &self.kinds);
        header.texts("tokenizer.ggml.merges", &self.merges);
        for (key, id) in [("bos", self.bos), ("eos", self.eos), ("eot", self.eos), ("padding", self.pad)] {
            id.into_iter().for_each(|id| header.u32(&format!("tokenizer.ggml.{key}_token_id"), id));
        }
        header.flag("tokenizer.ggml.add_bos_token", self.adds_bos);
        self.adds_eos.into_iter().for_each(|adds| header.flag("tokenizer.ggml.add_eos_token", adds));
        header.text("tokenizer.chat_template", self.template.as_deref().unwrap_or(crate::chat::CHATML));
    }
}

/// Whether a component is of type ByteLevel or a sequence that has one.
fn is_byte_level(component: &Value) -> bool {
    let parts = ["decoders", "pretokenizers"].iter().filter_map(|key| component[key].as_array()).flatten();
    component["type"] == "ByteLevel" || parts.into_iter().any(is_byte_level)
}

/// Whether a post-processor puts `bos` in front of a text.
fn opens_with(processor: &Value, bos: &str) -> bool {
    processor["single"][0]["SpecialToken"]["id"] == bos
        || processor["processors"].as_array().is_some_and(|list| list.iter().any(|one| opens_with(one, bos)))
}
