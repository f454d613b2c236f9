//! The settings of what a policy sees and how long it plays.

use super::action::ReplyFormat;
use super::prompt::Style;
use crate::settings::section;

section! {
    /// `[environment]`
    Settings {
        prompt: Style, format: ReplyFormat, max_steps: usize, episode_seconds: f64, observation_limit: usize,
        context_limit: usize, undo_failed_edits: bool,
    }
}
