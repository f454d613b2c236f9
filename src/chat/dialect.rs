//! Finds out how a template wants tool calls written, by rendering a small conversation once. Data has the arguments as
//! an object or as JSON text, and templates read one of them or both; a message without text is "" to some and null to
//! others.

use super::python;
use crate::message::{CALLS, Message};
use serde_json::{Map, Value, json};

/// The form in which a template reads tool calls.
#[derive(Debug, Clone, PartialEq)]
pub struct Dialect {
    /// The content of a message that only calls tools: "" or null.
    silence: Value,
    /// Whether arguments given as an object are rendered, as JSON or in the template's own way.
    reads_objects: bool,
    /// Whether arguments given as JSON text are rendered as they are, not quoted once more.
    reads_text: bool,
}

impl Dialect {
    /// Probes a template; `render` returns its text of messages, or nothing if it fails.
    pub fn of(render: &dyn Fn(Value) -> Option<String>) -> Self {
        let reads = |silence: &Value, arguments: Value| {
            let call =
                json!({"id": "call00000", "type": "function", "function": {"name": "a_name", "arguments": arguments}});
            let messages =
                json!([{"role": "user", "content": "ask"}, {"role": "assistant", "content": silence, CALLS: [call]}]);
            render(messages)
                .is_some_and(|text| text.contains("a_name") && text.contains("a_key") && !text.contains("\\\"a_key"))
        };
        let with = |silence: Value| Self {
            reads_objects: reads(&silence, json!({"a_key": 1})),
            reads_text: reads(&silence, json!("{\"a_key\": 1}")),
            silence,
        };
        let null = with(Value::Null);
        let empty = with(json!(""));
        if !empty.reads_objects && !empty.reads_text && (null.reads_objects || null.reads_text) { null } else { empty }
    }

    /// A message as the template's value: the thought also under transformers' name `thinking`, calls in the form that
    /// the template reads.
    pub fn value(&self, message: &Message) -> Value {
        let mut value = Map::from_iter([
            ("role".to_string(), json!(message.role)),
            ("content".to_string(), json!(message.content)),
        ]);
        value.extend(message.more.iter().map(|(key, value)| (key.clone(), value.clone())));
        if let Some(thought) = message.thought() {
            value.insert("thinking".to_string(), json!(thought));
        }
        if !message.calls().is_empty() {
            if message.content.is_empty() {
                value.insert("content".to_string(), self.silence.clone());
            }
            value.insert(CALLS.to_string(), message.calls().iter().map(|call| self.call(call)).collect());
        }
        Value::Object(value)
    }

    /// Whether `arguments` are converted to the other form before the template gets them.
    pub fn converts(&self, arguments: &Value) -> bool {
        match arguments {
            Value::String(_) => !self.reads_text && self.reads_objects,
            _ => !self.reads_objects && self.reads_text,
        }
    }

    fn call(&self, call: &Value) -> Value {
        let mut call = call.clone();
        let function = if call.get("function").is_some() { &mut call["function"] } else { &mut call };
        if let Some(arguments) = function.get_mut("arguments").filter(|arguments| self.converts(arguments)) {
            let converted = match &*arguments {
                Value::String(text) => serde_json::from_str(text).ok(),
                object => python::json(object, None).ok().map(Value::String),
            };
            if let Some(converted) = converted {
                *arguments = converted;
            }
        }
        call
    }
}
