//! Conversations as chat templates read them: messages, tools, template arguments. Knows no file formats and no tokens.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Fields of a message, beyond `role` and `content`, that mean something here.
pub const FIELDS: [&str; 4] = [THOUGHT, CALLS, "tool_call_id", "name"];
/// Field that holds an assistant's thoughts, as text.
pub const THOUGHT: &str = "reasoning_content";
/// Field that holds an assistant's tool calls: a list of `{"type": "function", "function": {"name", "arguments"}}`.
pub const CALLS: &str = "tool_calls";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// system, user, assistant or tool.
    pub role: String,
    /// Its text; empty where an assistant only calls tools.
    pub content: String,
    /// Other fields that a chat template may read, in the order of the data: `FIELDS`, and keys that the template at
    /// hand names.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Message {
    /// Makes a message that is text only.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_string(), content: content.into(), more: Map::new() }
    }

    /// Returns the thoughts of an assistant before its text.
    pub fn thought(&self) -> Option<&str> {
        self.more.get(THOUGHT)?.as_str()
    }

    /// Returns an assistant's tool calls; empty without any.
    pub fn calls(&self) -> &[Value] {
        self.more.get(CALLS).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// Input of a chat template besides the messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// JSON schemas of the tools that may be called; `None` when the data does not mention tools.
    pub tools: Option<Vec<Value>>,
    /// Arguments of the template such as `enable_thinking`, by name.
    pub arguments: Map<String, Value>,
}

/// A conversation to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Its messages in order.
    pub messages: Vec<Message>,
    /// For each message: true where it is an assistant's and is learnt.
    pub is_learnt: Vec<bool>,
    /// Tools and template arguments.
    pub context: Context,
}

impl From<Vec<Message>> for Conversation {
    /// Makes a conversation in which every assistant's message is learnt.
    fn from(messages: Vec<Message>) -> Self {
        let is_learnt = messages.iter().map(|message| message.role == "assistant").collect();
        Self { messages, is_learnt, context: Context::default() }
    }
}
