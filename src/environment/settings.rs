//! The settings of what a policy sees and how long it plays.

use super::action::ReplyFormat;
use crate::settings::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[environment]`
    Settings {
        prompt: Style, format: ReplyFormat, max_steps: usize, episode_seconds: f64, observation_limit: usize,
        context_limit: usize, undo_failed_edits: bool,
    }
}

/// How a state is shown to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// One short user message: task, entry script as it is now, last observation.
    Compact,
    /// System message, task, and the whole history.
    Full,
}
