//! Reads tools and template arguments of an item, and tool calls of a message: as objects, or as JSON text, which is
//! how tables hold them.

use super::item::brief;
use super::keys::says_nothing;
use crate::chat::ChatTemplate;
use crate::error::{Error, Result};
use crate::message::Context;
use serde_json::{Map, Value, json};

const TOOLS: &str =
    r#"{"tools": [{"type": "function", "function": {"name": "...", "description": "...", "parameters": {}}}]}"#;
const CALL: &str = r#"{"type": "function", "function": {"name": "...", "arguments": {}}}"#;

/// Reads tools and template arguments of an item. Notes template arguments that the template does not read.
pub fn context(item: &Map<String, Value>, template: &ChatTemplate, notes: &mut Vec<String>) -> Result<Context> {
    let get = |key: &str| item.get(key).filter(|value| !value.is_null() && **value != "");
    let wrong =
        |value: &Value| Error::content(format!("tools: {} is no list of tools; expected {TOOLS}", brief(value)));
    let tools = match get("tools") {
        None => None,
        Some(value) => {
            let list = from_text(value).ok_or_else(|| wrong(value))?;
            let list = list.as_array().ok_or_else(|| wrong(value))?;
            let tool = |tool: &Value| from_text(tool).filter(Value::is_object).ok_or_else(|| wrong(tool));
            Some(list.iter().map(tool).collect::<Result<Vec<_>>>()?)
        }
    };
    let mut arguments = match get("chat_template_kwargs").map(|value| (value, from_text(value))) {
        None => Map::new(),
        Some((_, Some(Value::Object(arguments)))) => arguments,
        Some((value, _)) => {
            return Err(Error::content(format!(
                "chat_template_kwargs: {} is no object; expected {{\"chat_template_kwargs\": {{\"enable_thinking\": false}}}}",
                brief(value)
            )));
        }
    };
    if let Some(value) = get("enable_thinking") {
        if !value.is_boolean() {
            let value = brief(value);
            return Err(Error::content(format!("enable_thinking: {value} is not supported; expected true or false")));
        }
        if arguments.get("enable_thinking").is_some_and(|other| other != value) {
            return Err(Error::content(
                "enable_thinking of the item and of its chat_template_kwargs differ; expected one of them",
            ));
        }
        arguments.insert("enable_thinking".to_string(), value.clone());
    }
    ChatTemplate::check_arguments(&arguments).map_err(|e| e.context("chat_template_kwargs"))?;
    if !arguments.is_empty() {
        let read = template.variables();
        let unread = arguments.keys().filter(|key| !read.contains(*key));
        notes.extend(unread.map(|key| format!("template argument `{key}` is not read by this model's chat template")));
    }
    Ok(Context { tools, arguments })
}

/// Reads tool calls: a list, one call, or either as JSON text; empty when there is nothing.
pub fn calls(value: &Value) -> Result<Vec<Value>> {
    if says_nothing(value) {
        return Ok(vec![]);
    }
    let calls = match from_text(value) {
        Some(Value::Array(calls)) => calls,
        Some(call @ Value::Object(_)) => vec![call],
        _ => return Err(wrong(value)),
    };
    calls.iter().map(|call| from_text(call).ok_or_else(|| wrong(call)).and_then(checked)).collect()
}

/// Reads tool calls as ShareGPT has them, in a message of their own: JSON text of {"name", "arguments"}, or of a list
/// of such.
pub fn calls_of_text(text: &str) -> Result<Vec<Value>> {
    let found = calls(&json!(text))?;
    if found.is_empty() {
        return Err(wrong(&json!(text)));
    }
    let wrapped = |call: Value| match call.get("function") {
        Some(_) => call,
        None => json!({"type": "function", "function": call}),
    };
    Ok(found.into_iter().map(wrapped).collect())
}

/// Returns the objects with keys in a call: the call itself and its function.
pub fn objects(call: &Value) -> impl Iterator<Item = &Value> {
    [Some(call), call.get("function")].into_iter().flatten()
}

/// Returns the arguments of a call.
pub fn arguments(call: &Value) -> &Value {
    let function = call.get("function").unwrap_or(call);
    &function["arguments"]
}

fn wrong(call: &Value) -> Error {
    Error::content(format!(
        "tool_calls: {} is no call; expected {CALL}, the arguments as an object or as its JSON text",
        brief(call)
    ))
}

/// Checks that a call names a function and has its arguments as an object, or as text that is one.
fn checked(call: Value) -> Result<Value> {
    let function = call.get("function").unwrap_or(&call);
    let is_object = from_text(arguments(&call)).is_some_and(|arguments| arguments.is_object());
    if function["name"].as_str().is_none_or(str::is_empty) || !is_object {
        return Err(wrong(&call));
    }
    Ok(call)
}

/// Parses a string as JSON (None: it is not JSON); returns any other value as it is.
fn from_text(value: &Value) -> Option<Value> {
    match value {
        Value::String(text) => serde_json::from_str(text).ok(),
        other => Some(other.clone()),
    }
}
