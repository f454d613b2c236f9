//! What was played: prompts, replies, masks, log-probabilities, rewards; read and written as JSONL, one trajectory a line.

use crate::reward::Case;
use serde::{Deserialize, Serialize};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// system, user, assistant or tool.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_string(), content: content.into() }
    }
}

/// One action and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What the agent saw.
    pub prompt: Vec<Message>,
    /// What it replied, as text.
    pub reply: String,
    /// Token ids of prompt and reply; empty when no tokenizer was at hand.
    pub ids: Vec<u32>,
    /// As long as `ids`: true where the agent produced the token.
    pub is_sampled: Vec<bool>,
    /// As many as true entries of `is_sampled`: log-probabilities when sampled; empty for an expert.
    pub logprobs: Vec<f32>,
    /// The action's name, or `Invalid`.
    pub action: String,
    /// What the reward calls it.
    pub case: Case,
    /// The reward in the run's form.
    pub reward: f64,
    /// Metric before.
    pub metric_before: f64,
    /// Metric after; equal to before when nothing was graded.
    pub metric_after: f64,
    /// What the agent is told.
    pub observation: String,
    /// Content id of the workspace before the action.
    pub snapshot_before: String,
    /// Content id of the workspace after it.
    pub snapshot_after: String,
}

/// One episode, or a single step cut out of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// The task's name.
    pub task: String,
    /// expert, base, sft or rl: who played.
    pub source: String,
    /// Its place in the run's random streams.
    pub index: u64,
    /// The ideas an expert was given; empty otherwise.
    pub ideas: Vec<String>,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// The metric of the final state.
    pub metric_final: f64,
    /// The best metric along the way.
    pub metric_best: f64,
    /// True when the final state has no valid graded run of its own and scores as its last graded one or m_init.
    pub failed: bool,
}
