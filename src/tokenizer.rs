//! Text to token ids and back, from the tokenizer files of a Hugging Face folder. Adds no special tokens of its own: a
//! chat template writes them. Does not render conversations (chat.rs does).

mod added;
mod file;

use crate::error::{Error, Result};
use crate::files::regular;
use file::{read_object, read_text};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The tokenizer of a model folder, with the names and ids of its special tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    chat_template: Option<String>,
    tool_template: Option<String>,
    special: Vec<(String, String)>,
    pad_id: Option<u32>,
    eos_ids: Vec<u32>,
    size: usize,
}

impl Tokenizer {
    /// Reads tokenizer.json of `dir`, and those files beside it that exist and that transformers reads too:
    ///
    /// - tokenizer_config.json: the named special tokens, `added_tokens_decoder`, `additional_special_tokens` and
    ///   `extra_special_tokens` (tokens that tokenizer.json may lack), `chat_template`; `split_special_tokens = true`
    ///   is refused. Other keys do not change the ids of a rendered conversation (`add_bos_token` and `add_eos_token`:
    ///   the template writes those tokens).
    /// - special_tokens_map.json: special tokens that tokenizer_config.json does not name. It wins if that has no
    ///   `added_tokens_decoder`, but two different `eos_token` are refused.
    /// - added_tokens.json: tokens that tokenizer.json lacks, if tokenizer_config.json has no `added_tokens_decoder`.
    /// - chat_template.jinja wins over the template in the config, additional_chat_templates/tool_use.jinja over its
    ///   `tool_use`.
    /// - generation_config.json and config.json: `eos_token_id`.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = regular::read(&path, u64::MAX).map_err(|e| missing(dir).unwrap_or(e))?;
        let mut inner = parsed(&bytes).map_err(|e| {
            Error::content(format!("{}: {e}; expected a tokenizer.json of the `tokenizers` library", path.display()))
        })?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::content(format!("{}: {e}", path.display())))?;

        let config_path = dir.join("tokenizer_config.json");
        let config = read_object(&config_path)?;
        if config["split_special_tokens"] == true {
            return Err(Error::content(format!(
                "{}: split_special_tokens = true would write a chat template's tokens in pieces; expected false",
                config_path.display()
            )));
        }
        let folder = added::Folder::read(dir, config, config_path)?;
        let special = folder.special_tokens()?;
        folder.add_missing(&mut inner, &path, &special)?;
        let size = inner.get_vocab(true).values().map(|&id| id as usize + 1).max().unwrap_or(0);
        if size == 0 {
            return Err(Error::content(format!("{}: it has no tokens; expected at least one", path.display())));
        }

        let id_of = |key: &str| special.iter().find(|(name, _)| name == key).and_then(|(_, t)| inner.token_to_id(t));
        let pad_id = id_of("pad_token");
        let mut eos_ids: Vec<u32> = id_of("eos_token").into_iter().collect();
        for file in ["generation_config.json", "config.json"] {
            for id in ids_of(&dir.join(file), "eos_token_id")? {
                if !eos_ids.contains(&id) {
                    eos_ids.push(id);
                }
            }
        }
        let chat_template = read_text(&dir.join("chat_template.jinja"))?;
        let tool_template = read_text(&dir.join("additional_chat_templates/tool_use.jinja"))?;
        // A template in a file of its own also serves conversations with tools, whatever the config has.
        let (default, tool_use) = match &chat_template {
            Some(_) => (None, None),
            None => folder.templates()?,
        };
        Ok(Self {
            inner,
            path,
            chat_template: chat_template.or(default),
            tool_template: tool_template.or(tool_use),
            special,
            pad_id,
            eos_ids,
            size,
        })
    }

    /// Token ids of `text`; special tokens in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| {
            Error::content(format!("{}: encoding {} bytes of text: {e}", self.path.display(), text.len()))
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens kept. Ids that the tokenizer does not know (rows that pad an embedding) give
    /// no text; bytes that are not UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// The id of one token by name.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a special token (one that a chat template writes, not text).
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .get_added_vocabulary()
            .simple_id_to_token(id)
            .is_some_and(|t| self.inner.get_added_vocabulary().is_special_token(&t))
    }

    /// Whether `id` was added to the vocabulary as a whole token (special or not) and is not white space: a mark, not a
    /// piece of text.
    pub fn is_added(&self, id: u32) -> bool {
        self.inner.get_added_vocabulary().simple_id_to_token(id).is_some_and(|token| !token.trim().is_empty())
    }

    /// Tokens added to the vocabulary as wholes, special or not, from any of the files; in no order.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.iter().map(|(&id, token)| (id, token.content.as_str()))
    }

    /// The folder it was read from.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Ids that end a reply: the tokenizer's own eos first, then those of generation_config.json and config.json. A
    /// chat template may close replies with another token: see `ChatTemplate::stop_ids`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The named special tokens (`bos_token`, `eos_token`, `pad_token`, ...), as a chat template knows them.
    pub fn special_tokens(&self) -> &[(String, String)] {
        &self.special
    }

    fn special_token(&self, key: &str) -> Option<&str> {
        self.special.iter().find(|(name, _)| name == key).map(|(_, token)| token.as_str())
    }

    /// The token that opens a text, as a chat template's `bos_token`.
    pub fn bos(&self) -> Option<&str> {
        self.special_token("bos_token")
    }

    /// The token that ends a text, as a chat template's `eos_token`.
    pub fn eos(&self) -> Option<&str> {
        self.special_token("eos_token")
    }

    /// The padding id, if one is named.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad_id
    }

    /// The folder's own chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The folder's separate template for conversations with tools, if it has one.
    pub fn tool_template(&self) -> Option<&str> {
        self.tool_template.as_deref()
    }

    /// The largest id plus one: how many rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// Refuses a tokenizer with ids beyond the `model_vocab` rows of a model's embedding. Fewer tokens than rows are
    /// usual (padding).
    pub fn check(&self, model_vocab: usize) -> Result<()> {
        let (tokens, beyond) = (self.size, self.eos_ids.iter().find(|&&id| id as usize >= model_vocab));
        if tokens > model_vocab || beyond.is_some() {
            return Err(Error::content(format!(
                "{}: the tokenizer has {tokens} tokens, the model's embedding {model_vocab} rows (vocab_size in config.json){}: \
                 use the tokenizer.json that came with this model",
                self.path.display(),
                beyond.map_or(String::new(), |id| format!(", and the end token {id} is beyond them"))
            )));
        }
        Ok(())
    }
}

/// The error for a folder that has other tokenizer files in place of tokenizer.json.
fn missing(dir: &Path) -> Option<Error> {
    let is_there = |name: &&str| dir.join(name).exists();
    let others: Vec<&str> = ["tokenizer.model", "vocab.json", "merges.txt"].into_iter().filter(is_there).collect();
    if others.is_empty() || is_there(&"tokenizer.json") {
        return None;
    }
    let (place, others) = (dir.display(), others.join(" and "));
    Some(Error::content(format!(
        "{place}: no tokenizer.json, but {others}, which this program does not read: make it in Python with transformers, \
         AutoTokenizer.from_pretrained(\"{place}\").save_pretrained(\"OUT\"), and copy the files of OUT there"
    )))
}

/// Parses tokenizer.json. The library panics where the JSON of a decoder or normalizer breaks off, so the JSON is
/// checked first and remaining panics become errors.
fn parsed(bytes: &[u8]) -> std::result::Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<Value>(bytes).map_err(|e| e.to_string())?;
    let parsed = crate::error::caught(|| tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string()));
    parsed.unwrap_or_else(|| Err("a part of it has fields that the library does not take".to_string()))
}

/// The ids under `key`, which may be absent, null, a number or a list of numbers.
fn ids_of(path: &Path, key: &str) -> Result<Vec<u32>> {
    let object = read_object(path)?;
    let number = |v: &Value| {
        v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| {
            Error::content(format!("{}: {key} holds {v}; expected a token id such as 151645", path.display()))
        })
    };
    match &object[key] {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(number).collect(),
        one => Ok(vec![number(one)?]),
    }
}

#[cfg(test)]
#[path = "../tests/common/byte_tokenizer.rs"]
#[allow(clippy::unwrap_used)]
mod fixture;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::fixture::byte_tokenizer_files;
    use super::*;
    use serde_json::json;

    /// The byte-level tokenizer, opened.
    pub(crate) fn byte_tokenizer(extra: &[&str]) -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        byte_tokenizer_files(dir.path(), extra, &json!({"eos_token": "<|im_end|>"}));
        Tokenizer::open(dir.path()).unwrap()
    }

    #[test]
    fn text_survives_the_round_trip_with_special_tokens_kept() {
        let tokenizer = byte_tokenizer(&[]);
        for text in ["", "def f(x):\n    return x\t# ä日本🙂", "<|im_start|>user\nhi<|im_end|>\n", " \u{0} lead"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids), text);
        }
        assert_eq!(tokenizer.encode("<|im_end|>a").unwrap(), [257, u32::from(b'a')]);
        assert!(tokenizer.is_special(257) && !tokenizer.is_special(97));
        assert_eq!(tokenizer.decode(&[97, 9999]), "a");
    }

    #[test]
    fn special_tokens_and_templates_are_read_in_all_their_forms() {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"bos_token": {"content": "<s>"}, "eos_token": "<|im_end|>", "pad_token": null,
                            "chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]});
        byte_tokenizer_files(dir.path(), &["<s>"], &config);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [257, 258]}"#).unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 3}"#).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad_id()), (Some("<s>"), Some("<|im_end|>"), None));
        assert_eq!(tokenizer.eos_ids(), [257, 258, 3]);
        assert_eq!(tokenizer.chat_template(), Some("D"));
        std::fs::write(dir.path().join("chat_template.jinja"), "J").unwrap();
        assert_eq!(Tokenizer::open(dir.path()).unwrap().chat_template(), Some("J"));
    }

    #[test]
    fn a_tokenizer_larger_than_the_model_is_refused() {
        let tokenizer = byte_tokenizer(&["<extra>"]);
        assert_eq!(tokenizer.vocab_size(), 259);
        assert!(tokenizer.check(259).is_ok() && tokenizer.check(512).is_ok());
        let error = tokenizer.check(258).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for part in ["259 tokens", "258 rows", "tokenizer.json that came with"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(!error.to_string().contains("end token"));
        assert!(tokenizer.check(257).unwrap_err().to_string().contains("end token 257"));
    }

    #[test]
    fn bad_files_are_named() {
        let check = |file: &str, text: &str, part: &str| {
            let dir = tempfile::tempdir().unwrap();
            byte_tokenizer_files(dir.path(), &[], &json!({}));
            std::fs::write(dir.path().join(file), text).unwrap();
            let error = Tokenizer::open(dir.path()).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(file) && error.to_string().contains(part), "{error}");
        };
        check("tokenizer.json", "{", "tokenizer.json of the `tokenizers` library");
        check("tokenizer_config.json", "[]", "expected a JSON object");
        check("tokenizer_config.json", r#"{"eos_token": 3}"#, "<|im_end|>");
        check("tokenizer_config.json", r#"{"eos_token": "<nope>"}"#, "no token of");
        check("tokenizer_config.json", r#"{"chat_template": []}"#, "default");
        check("generation_config.json", r#"{"eos_token_id": -1}"#, "151645");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Tokenizer::open(empty.path()).unwrap_err().exit_code(), 2);
    }
}
