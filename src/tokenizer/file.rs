//! The JSON and text files beside a tokenizer.

use crate::error::{Error, Result};
use crate::files::regular;
use serde_json::Value;
use std::path::Path;

/// Reads a JSON object; a file that is absent gives an empty one.
pub(super) fn read_object(path: &Path) -> Result<Value> {
    let Some(text) = read_text(path)? else { return Ok(Value::Object(serde_json::Map::new())) };
    match serde_json::from_str(&text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Error::content(format!("{}: expected a JSON object", path.display()))),
        Err(e) => Err(Error::content(format!("{}: {e}; expected a JSON object", path.display()))),
    }
}

/// The text of a file; `None` if it is absent.
pub(super) fn read_text(path: &Path) -> Result<Option<String>> {
    if path.exists() { regular::read_text(path, u64::MAX).map(Some) } else { Ok(None) }
}
