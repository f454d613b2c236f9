//! Reads the files beside tokenizer.json: special tokens by name, tokens that tokenizer.json lacks, chat templates.

use super::file::read_object;
use crate::error::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokenizers::AddedToken;

/// Keys under which a folder states special tokens; templates know the tokens by these names.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys of further special tokens: lists, or objects that name them.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The files of a tokenizer's folder, parsed; a file that is absent is an empty object.
pub struct Folder {
    config: Value,
    config_path: PathBuf,
    map: Value,
    map_path: PathBuf,
    added: Value,
    added_path: PathBuf,
}

impl Folder {
    pub fn read(dir: &Path, config: Value, config_path: PathBuf) -> Result<Self> {
        let (map_path, added_path) = (dir.join("special_tokens_map.json"), dir.join("added_tokens.json"));
        Ok(Self {
            config,
            config_path,
            map: read_object(&map_path)?,
            map_path,
            added: read_object(&added_path)?,
            added_path,
        })
    }

    fn has_decoder(&self) -> bool {
        self.config["added_tokens_decoder"].is_object()
    }

    /// Names and texts of the special tokens. Error: the files state two different `eos_token`.
    pub fn special_tokens(&self) -> Result<Vec<(String, String)>> {
        let mut found = vec![];
        for name in NAMES {
            let config = token_text(&self.config[name], name, &self.config_path)?;
            let map = token_text(&self.map[name], name, &self.map_path)?;
            if let ("eos_token", Some(config), Some(map)) = (name, &config, &map)
                && config != map
            {
                return Err(Error::content(format!(
                    "{}: {name} is {map:?}, in {} it is {config:?}: write the one that ends a reply of this model into both",
                    self.map_path.display(),
                    self.config_path.display()
                )));
            }
            let token = if self.has_decoder() { config.or(map) } else { map.or(config) };
            found.extend(token.map(|token| (name.to_string(), token)));
        }
        for (name, token) in self.config["extra_special_tokens"].as_object().into_iter().flatten() {
            let token = token_text(token, name, &self.config_path)?;
            found.extend(token.filter(|_| !NAMES.contains(&name.as_str())).map(|token| (name.clone(), token)));
        }
        Ok(found)
    }

    /// The further special tokens, each with the key and the file that lists it.
    fn listed(&self) -> Result<Vec<(&str, String, &Path)>> {
        let mut found = vec![];
        for key in LISTS {
            for (file, path) in [(&self.config, &self.config_path), (&self.map, &self.map_path)] {
                let tokens: Vec<&Value> = match &file[key] {
                    Value::Null => vec![],
                    Value::Array(list) => list.iter().collect(),
                    Value::Object(named) => named.values().collect(),
                    other => {
                        return Err(Error::content(format!(
                            "{}: {key} is {other}; expected a list of tokens such as [\"<|im_end|>\"]",
                            path.display()
                        )));
                    }
                };
                for token in tokens {
                    found.extend(token_text(token, key, path)?.map(|token| (key, token, path.as_path())));
                }
            }
        }
        Ok(found)
    }

    /// Adds to `inner` every token that the files name and it lacks. Errors: a token would get another id than the
    /// files say; a special token has no id.
    pub fn add_missing(
        &self,
        inner: &mut tokenizers::Tokenizer,
        path: &Path,
        special: &[(String, String)],
    ) -> Result<()> {
        let declared = self.declared()?;
        let known = inner.get_added_vocabulary().get_added_tokens_decoder();
        let missing: Vec<AddedToken> =
            declared.iter().filter(|(id, token, _)| known.get(id) != Some(token)).map(|(_, t, _)| t.clone()).collect();
        inner.add_tokens(&missing);
        for (id, token, place) in declared {
            let found = inner.token_to_id(&token.content);
            if found != Some(id) {
                return Err(Error::content(format!(
                    "{}: token {:?} is said to have id {id}; with {} it has {}: use the files that came with this model",
                    place.display(),
                    token.content,
                    path.display(),
                    found.map_or("none".to_string(), |id| format!("id {id}"))
                )));
            }
        }
        let is_special =
            |inner: &tokenizers::Tokenizer, token: &str| inner.get_added_vocabulary().is_special_token(token);
        for (key, token, place) in self.listed()? {
            if inner.token_to_id(&token).is_none() {
                let (place, path) = (place.display(), path.display());
                return Err(Error::content(format!(
                    "{place}: {key} has {token:?}, which is no token of {path}: take it out, or use the files that came with this model"
                )));
            }
            if !is_special(inner, &token) {
                inner.add_tokens(&[AddedToken::from(token, true)]);
            }
        }
        for (name, token) in special {
            if inner.token_to_id(token).is_none() {
                let place = if self.config[name].is_null() { &self.map_path } else { &self.config_path };
                let (place, path) = (place.display(), path.display());
                return Err(Error::content(format!("{place}: {name} {token:?} is no token of {path}")));
            }
            if !is_special(inner, token) {
                inner.add_tokens(&[AddedToken::from(token.as_str(), true)]);
            }
        }
        Ok(())
    }

    /// The tokens whose ids the files state, sorted by id, each with the file that states it.
    fn declared(&self) -> Result<Vec<(u32, AddedToken, &Path)>> {
        let mut found = vec![];
        if let Some(entries) = self.config["added_tokens_decoder"].as_object() {
            for (id, token) in entries {
                let flag = |key: &str, default: bool| token[key].as_bool().unwrap_or(default);
                let (Ok(id), Some(content)) = (id.parse(), token["content"].as_str()) else {
                    return Err(Error::content(format!(
                        "{}: added_tokens_decoder has {id:?}: {token}; expected an id with a token, such as \
                         \"151645\": {{\"content\": \"<|im_end|>\", \"special\": true}}",
                        self.config_path.display()
                    )));
                };
                let special = flag("special", false);
                let added = AddedToken::from(content, special)
                    .single_word(flag("single_word", false))
                    .lstrip(flag("lstrip", false))
                    .rstrip(flag("rstrip", false))
                    .normalized(flag("normalized", !special));
                found.push((id, added, self.config_path.as_path()));
            }
        } else if let Some(entries) = self.added.as_object() {
            for (content, id) in entries {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    return Err(Error::content(format!(
                        "{}: {content:?} has {id}; expected a token id such as 151645",
                        self.added_path.display()
                    )));
                };
                found.push((id, AddedToken::from(content.as_str(), false).normalized(true), self.added_path.as_path()));
            }
        }
        found.sort_by_key(|(id, ..)| *id);
        Ok(found)
    }

    /// The templates `default` and `tool_use` in the `chat_template` of tokenizer_config.json: text, or a list of named
    /// templates.
    pub fn templates(&self) -> Result<(Option<String>, Option<String>)> {
        let wrong = || {
            Error::content(format!(
                "{}: chat_template is neither text nor a list with {{\"name\": \"default\", \"template\": \"...\"}}",
                self.config_path.display()
            ))
        };
        let named = |list: &[Value], name: &str| {
            let entry = list.iter().find(|entry| entry["name"] == name);
            entry.map(|entry| entry["template"].as_str().map(str::to_string).ok_or_else(wrong)).transpose()
        };
        match &self.config["chat_template"] {
            Value::Null => Ok((None, None)),
            Value::String(text) => Ok((Some(text.clone()), None)),
            Value::Array(list) => Ok((Some(named(list, "default")?.ok_or_else(wrong)?), named(list, "tool_use")?)),
            _ => Err(wrong()),
        }
    }
}

/// The text of a special token, which is absent, null, text, or an object with `content`.
fn token_text(value: &Value, key: &str, path: &Path) -> Result<Option<String>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Object(object) if object.get("content").is_some_and(Value::is_string) => {
            Ok(object["content"].as_str().map(str::to_string))
        }
        other => Err(Error::content(format!(
            "{}: {key} is {other}; expected a token such as \"<|im_end|>\", or {{\"content\": \"<|im_end|>\"}}",
            path.display()
        ))),
    }
}
