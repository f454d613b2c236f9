//! The reward of one step: a pure function of what the step led to (ML-Agent, arXiv 2505.23723, section 3.3 in both versions).

use serde::{Deserialize, Serialize};

/// What a step led to, as far as its reward is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// The reply is no valid action.
    Invalid,
    /// A valid action that ended in an error (a crash, a compile error, a missing or malformed submission).
    Error,
    /// A valid action that edits nothing.
    Neutral,
    /// Out of memory, time or another resource.
    Corner,
    /// A valid edit that ran and was graded.
    Edit,
}

/// The form of the reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Version 1: invalid and error 0, neutral and corner 0.5, edit sigmoid(100 share).
    Sigmoid,
    /// Version 2: invalid and error -1, neutral and corner 0, edit share.
    Linear,
}
