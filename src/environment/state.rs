//! What an episode is at a moment, and what a step of it gives.

use super::record::SnapshotId;
use crate::reward::Case;
use crate::task::Flag;
use serde::{Deserialize, Serialize};

/// A reply and the observation that followed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The agent's reply, unchanged.
    pub reply: String,
    /// The observation.
    pub observation: String,
    /// The observation in a few words, for the compact prompt.
    pub compact: String,
}

/// State of an episode: everything said and observed since its start. It is plain data and can be used again at any
/// time, as long as the snapshot store holds its snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The task's name.
    pub task: String,
    /// The agent's files.
    pub snapshot: SnapshotId,
    /// Turns so far.
    pub history: Vec<Turn>,
    /// m_t: the metric of the last graded run on the reward split; m_init at the start.
    pub metric: f64,
    /// The metric of the same run on the report split, which evaluation reports as the state's score.
    pub report: f64,
    /// The best metric so far on the reward split.
    pub best: f64,
    /// The metric on the report split of the run that is best on the reward split.
    pub best_report: f64,
    /// True when the files have a valid graded run of their own; false after a failed edit that was not undone.
    pub graded_final: bool,
    /// Steps taken.
    pub steps: usize,
    /// Wall seconds of its scripts; a remembered run counts the time it took when it was executed.
    pub seconds: f64,
    /// True when the episode has ended.
    pub done: bool,
}

/// Outcome of one reply.
#[derive(Debug, Clone, PartialEq)]
pub struct StepResult {
    /// Its case for the reward.
    pub case: Case,
    /// The action's name, or `Invalid` when the reply is not a valid action.
    pub action: String,
    /// Observation that the agent gets.
    pub observation: String,
    /// The observation in a few words.
    pub compact: String,
    /// m_t, the metric before the step.
    pub metric_before: f64,
    /// m_{t+1}, the metric after the step; m_t when nothing was graded.
    pub metric_after: f64,
    /// The metric on the report split before the step.
    pub report_before: f64,
    /// The metric on the report split after the step.
    pub report_after: f64,
    /// What is suspicious about the graded submission.
    pub flags: Vec<Flag>,
    /// Share of the gap from m_init to m_best that the step closed; 0 below the task's noise floor or without a graded
    /// edit.
    pub share: f64,
    /// State after the step.
    pub next: State,
    /// One line for people, with the score the agent does not see.
    pub detail: String,
}

/// Cuts `text` to at most `limit` characters, plus a line in its middle that says how many were left out.
pub(crate) fn cut_middle(text: &str, limit: usize) -> String {
    let total = text.chars().count();
    if total <= limit {
        return text.to_string();
    }
    let (head, tail) = (limit.div_ceil(2), limit / 2);
    let byte = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    format!("{}\n... {} characters left out ...\n{}", &text[..byte(head)], total - limit, &text[byte(total - tail)..])
}
