//! Conversations as chat templates read them: messages, tools, template arguments. Knows no file formats, no tokens.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Fields beyond `role` and `content` that a message may have and that mean something here.
pub const FIELDS: [&str; 4] = [THOUGHT, CALLS, "tool_call_id", "name"];
/// The field that holds an assistant's thoughts: text.
pub const THOUGHT: &str = "reasoning_content";
/// The field that holds an assistant's calls of tools: a list of `{"type": "function", "function": {"name", "arguments"}}`.
pub const CALLS: &str = "tool_calls";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// system, user, assistant or tool.
    pub role: String,
    /// Its text; empty where an assistant only calls tools.
    pub content: String,
    /// What else a chat template may read, in the order of the data: `FIELDS`, and keys that the template at hand names.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Message {
    /// A message that is text only.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_string(), content: content.into(), more: Map::new() }
    }

    /// The thoughts of an assistant before its text.
    pub fn thought(&self) -> Option<&str> {
        self.more.get(THOUGHT)?.as_str()
    }

    /// An assistant's calls of tools; none is an empty list.
    pub fn calls(&self) -> &[Value] {
        self.more.get(CALLS).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// What a conversation brings to its chat template beside its messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// JSON schemas of the tools that may be called; `None` where nothing is said of tools.
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
    /// Every assistant's message is learnt.
    fn from(messages: Vec<Message>) -> Self {
        let is_learnt = messages.iter().map(|message| message.role == "assistant").collect();
        Self { messages, is_learnt, context: Context::default() }
    }
}
