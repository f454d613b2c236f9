//! Reads typed values of one JSON object by key. Errors and notes name the file and the key; notes also the line.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The keys of one JSON object, with its file and its path in the file for messages.
pub(super) struct Keys<'a> {
    pub map: &'a Map<String, Value>,
    pub file: &'a Path,
    /// The whole file, for line numbers.
    pub text: &'a str,
    /// Names of the objects around this one, each followed by a dot.
    pub prefix: &'a str,
}

impl<'a> Keys<'a> {
    /// An error about `key`.
    pub fn error(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::content(format!("{}: {}{key}: {what}", self.file.display(), self.prefix))
    }

    /// A note for the user about `key`, which must be present.
    pub fn note(&self, key: &str, what: impl std::fmt::Display) -> String {
        let (file, prefix) = (self.file.display(), self.prefix);
        match self.line(key) {
            Some(line) => format!("{file}, line {line}: {prefix}{key}: {what}"),
            None => format!("{file}: {prefix}{key}: {what}"),
        }
    }

    /// Line of `key`, counted from 1: its first occurrence after the names of the objects around it.
    fn line(&self, key: &str) -> Option<usize> {
        let mut at = 0;
        for name in self.prefix.split_terminator('.').chain([key]) {
            at += self.text[at..].find(&format!("\"{name}\""))?;
        }
        Some(1 + self.text[..at].matches('\n').count())
    }

    /// The value; null counts as absent, as in transformers.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The error for a required key that is missing.
    pub fn missing(&self, key: &str, expected: &str) -> Error {
        self.error(key, format!("missing; expected {expected}"))
    }

    /// A whole number from `min` to `max`.
    pub fn opt_whole(&self, key: &str, min: usize, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n >= min as u64 && n <= max as u64 => Ok(Some(n as usize)),
            _ => Err(self.error(key, format!("found {value}, expected a whole number from {min} to {max}"))),
        }
    }

    /// A whole number from 1 to `max`.
    pub fn opt_count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        self.opt_whole(key, 1, max)
    }

    /// A required whole number from 1 to `max`.
    pub fn count(&self, key: &str, max: usize) -> Result<usize> {
        self.opt_count(key, max)?.ok_or_else(|| self.missing(key, &format!("a whole number from 1 to {max}")))
    }

    /// A number above zero.
    pub fn opt_positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            _ => Err(self.error(key, format!("found {value}, expected a positive number such as 10000.0"))),
        }
    }

    /// A required number above zero.
    pub fn positive(&self, key: &str) -> Result<f64> {
        self.opt_positive(key)?.ok_or_else(|| self.missing(key, "a positive number"))
    }

    /// True or false; `default` when absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(value) => Err(self.error(key, format!("found {value}, expected true or false"))),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(value) => Err(self.error(key, format!("found {value}, expected a string"))),
        }
    }

    /// A list of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.error(key, format!("found {value}, expected a list of strings")))
    }

    /// The object under `key`; an empty one counts as absent, as in transformers.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
            Some(value) => Err(self.error(key, format!("found {value}, expected an object"))),
        }
    }
}
