//! What one update is made from: a round's samples, and the part of it that one pass computes.

use crate::batch::{Group, LossBatch};
use crate::error::{Error, Result};
use std::ops::Range;

/// The samples of one round and their rewards.
pub struct Round<'a> {
    /// The prompts with their replies; every group has the same number of replies.
    pub groups: &'a [Group],
    /// Log-probabilities under the policy that sampled, one list per reply, in the groups' order.
    pub logprobs: &'a [Vec<f32>],
    /// Reward of each reply.
    pub rewards: &'a [f64],
    /// True for each reply that was cut off: it reached `max_tokens` without a token that ends it.
    pub is_truncated: &'a [bool],
    /// Maximum tokens of a reply.
    pub max_tokens: usize,
    /// The sampling temperature.
    pub temperature: f32,
}

impl Round<'_> {
    /// The token range of each reply in the round's flat order.
    pub(super) fn spans(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let span = |reply: &Vec<f32>| {
            end += reply.len();
            end - reply.len()..end
        };
        self.logprobs.iter().map(span).collect()
    }

    pub(super) fn check(&self) -> Result<()> {
        let replies: Vec<&Vec<u32>> = self.groups.iter().flat_map(|g| &g.replies).collect();
        let samples = self.groups.first().map_or(0, |g| g.replies.len());
        let same = replies.len() == self.logprobs.len()
            && replies.len() == self.rewards.len()
            && replies.len() == self.is_truncated.len()
            && self.groups.iter().all(|g| g.replies.len() == samples)
            && replies.iter().zip(self.logprobs).all(|(ids, logprobs)| !ids.is_empty() && ids.len() == logprobs.len());
        if !same || samples == 0 {
            return Err(Error::system(format!(
                "update: {} groups, {} replies, {} lists of log-probabilities, {} rewards and {} flags do not belong together",
                self.groups.len(),
                replies.len(),
                self.logprobs.len(),
                self.rewards.len(),
                self.is_truncated.len()
            )));
        }
        match self.rewards.iter().position(|r| !r.is_finite()) {
            Some(i) => Err(Error::system(format!(
                "update: reply {i} earned {}; a reward must be finite: set reward.clip above 0, for example 1.0",
                self.rewards[i]
            ))),
            None => Ok(()),
        }
    }
}

/// The part of a round that is computed in one pass.
pub(super) struct Micro {
    pub batch: LossBatch,
    /// Its tokens in the round's flat order.
    pub tokens: Range<usize>,
}
