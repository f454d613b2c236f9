//! A byte-level BPE vocabulary as GGUF metadata, from tokenizer.json. Other kinds of tokenizer are refused.

use super::gguf::Header;
use crate::checkpoint::read_json;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// llama.cpp's numbers of the kinds of token.
mod kind {
    pub const NORMAL: i32 = 1;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
}

/// What llama.cpp needs of a tokenizer.
pub struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    merges: Vec<String>,
    pre: &'static str,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    adds_bos: bool,
    template: Option<String>,
    /// For the user.
    pub notes: Vec<String>,
}

/// Rules by which llama.cpp cuts a text before BPE, by the regular expression of tokenizer.json.
const PRE: [(&str, &str); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
    ),
];

impl Vocabulary {
    /// Of the tokenizer in `folder`, filled up to the `rows` of the model's embedding with unused tokens. Errors name the file and key.
    pub fn read(folder: &Path, rows: usize) -> Result<Self> {
        let tokenizer = Tokenizer::open(folder)?;
        tokenizer.check(rows)?;
        let path = folder.join("tokenizer.json");
        let json: Value = read_json(&path)?;
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
        let merge = |merge: &Value| match merge {
            Value::String(pair) => Some(pair.clone()),
            Value::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        };
        let merges = model["merges"].as_array().into_iter().flatten().map(merge).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| wrong("model.merges: expected pairs such as [\"a\", \"b\"]"))?;
        let (pre, note) = pre(&json["pre_tokenizer"]);
        let bos = tokenizer.bos().and_then(|token| tokenizer.id(token));
        Ok(Self {
            tokens,
            kinds,
            merges,
            pre,
            bos,
            eos: tokenizer.eos_ids().first().copied(),
            pad: tokenizer.pad_id(),
            adds_bos: tokenizer.bos().is_some_and(|bos| opens_with(&json["post_processor"], bos)),
            template: tokenizer.chat_template().map(str::to_string),
            notes: note.map(|note| format!("{}: {note}", path.display())).into_iter().collect(),
        })
    }

    pub(super) fn describe(&self, header: &mut Header) {
        header.text("tokenizer.ggml.model", "gpt2");
        header.text("tokenizer.ggml.pre", self.pre);
        header.texts("tokenizer.ggml.tokens", &self.tokens);
        header.integers("tokenizer.ggml.token_type", &self.kinds);
        header.texts("tokenizer.ggml.merges", &self.merges);
        for (key, id) in [("bos", self.bos), ("eos", self.eos), ("padding", self.pad)] {
            id.into_iter().for_each(|id| header.u32(&format!("tokenizer.ggml.{key}_token_id"), id));
        }
        header.flag("tokenizer.ggml.add_bos_token", self.adds_bos);
        header.text("tokenizer.chat_template", self.template.as_deref().unwrap_or(crate::chat::CHATML));
    }
}

/// A component of type ByteLevel, or a sequence that has one.
fn is_byte_level(component: &Value) -> bool {
    let parts = ["decoders", "pretokenizers"].iter().filter_map(|key| component[key].as_array()).flatten();
    component["type"] == "ByteLevel" || parts.into_iter().any(is_byte_level)
}

/// Whether a post-processor puts `bos` in front of a text.
fn opens_with(processor: &Value, bos: &str) -> bool {
    processor["single"][0]["SpecialToken"]["id"] == bos
        || processor["processors"].as_array().is_some_and(|list| list.iter().any(|one| opens_with(one, bos)))
}

/// llama.cpp's name of the pre-tokenizer, and what the user should know where it has none.
fn pre(component: &Value) -> (&'static str, Option<String>) {
    let parts = component["pretokenizers"].as_array().map_or(std::slice::from_ref(component), Vec::as_slice);
    let regex = parts.iter().find_map(|part| part["pattern"]["Regex"].as_str());
    match regex {
        None if parts.iter().any(|part| part["type"] == "ByteLevel" && part["use_regex"] != false) => ("gpt-2", None),
        regex => match PRE.iter().find(|(known, _)| Some(*known) == regex) {
            Some((_, name)) => (name, None),
            None => {
                let said = regex.map_or("no pattern".to_string(), |regex| format!("the pattern {regex:?}"));
                let note = format!(
                    "llama.cpp has no name for its pre-tokenizer ({said}); \"default\" is written, which may cut some texts differently"
                );
                ("default", Some(note))
            }
        },
    }
}
