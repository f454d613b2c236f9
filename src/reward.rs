//! Computes the reward of one step, a pure function of its outcome (ML-Agent, arXiv 2505.23723, section 3.3 in both
//! versions).

use crate::settings::{choice, section};
use serde::{Deserialize, Serialize};

section! {
    /// `[reward]`
    Settings { form: Form, clip: f64, flagged: Flagged }
}
choice! {
    /// The reward of a submission that looks suspicious.
    Flagged { Full, Neutral }
}

impl Settings {
    /// The reward of a step under these settings; `is_flagged`: its submission looks suspicious.
    pub fn of(&self, case: Case, share: f64, is_flagged: bool) -> f64 {
        let case =
            if is_flagged && case == Case::Edit && self.flagged == Flagged::Neutral { Case::Neutral } else { case };
        reward(self.form, case, share, (self.clip > 0.0).then_some(self.clip))
    }
}

/// Outcome of a step, as far as its reward is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// The reply is not a valid action.
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

impl Case {
    /// Returns the name in records.
    pub fn name(self) -> &'static str {
        match self {
            Case::Invalid => "invalid",
            Case::Error => "error",
            Case::Neutral => "neutral",
            Case::Corner => "corner",
            Case::Edit => "edit",
        }
    }
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

/// Computes the reward of a step in `form`.
///
/// `share` counts for an edit only. It is (m_{t+1} - m_t) / (m_best - m_init), so positive is better whatever the
/// metric's direction; the caller passes 0 for a change below the task's noise floor. `clip` bounds the linear form to
/// [-clip, clip]: the paper has no clip, but one bad edit on an unbounded metric can cost several gaps. The sigmoid is
/// bounded already.
pub fn reward(form: Form, case: Case, share: f64, clip: Option<f64>) -> f64 {
    match (form, case) {
        (Form::Sigmoid, Case::Invalid | Case::Error) => 0.0,
        (Form::Sigmoid, Case::Neutral | Case::Corner) => 0.5,
        (Form::Sigmoid, Case::Edit) => 1.0 / (1.0 + (-100.0 * share).exp()),
        (Form::Linear, Case::Invalid | Case::Error) => -1.0,
        (Form::Linear, Case::Neutral | Case::Corner) => 0.0,
        (Form::Linear, Case::Edit) => clip.map_or(share, |c| share.max(-c).min(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_in_both_forms() {
        use Case::*;
        for (case, share, clip, sigmoid, linear) in [
            (Invalid, 0.0, None, 0.0, -1.0),
            (Error, 0.0, None, 0.0, -1.0),
            (Neutral, 0.0, None, 0.5, 0.0),
            (Corner, 0.0, None, 0.5, 0.0),
            // A share counts for an edit only.
            (Invalid, 0.3, None, 0.0, -1.0),
            (Error, 0.3, None, 0.0, -1.0),
            (Neutral, 0.3, None, 0.5, 0.0),
            (Corner, 0.3, None, 0.5, 0.0),
            (Edit, 0.0, None, 0.5, 0.0),
            // The saturation of the paper's first version: 1, 2 and 5 % of the gap.
            (Edit, 0.01, None, 0.731, 0.01),
            (Edit, 0.02, None, 0.881, 0.02),
            (Edit, 0.05, None, 0.993, 0.05),
            (Edit, -0.01, None, 0.269, -0.01),
            (Edit, 1.5, None, 1.0, 1.5),
            (Edit, 1.5, Some(1.0), 1.0, 1.0),
            (Edit, -3.0, None, 0.0, -3.0),
            (Edit, -3.0, Some(1.0), 0.0, -1.0),
            (Edit, 0.25, Some(1.0), 1.0, 0.25),
            (Edit, f64::NEG_INFINITY, Some(1.0), 0.0, -1.0),
        ] {
            let got = reward(Form::Sigmoid, case, share, clip);
            assert!((got - sigmoid).abs() < 5e-4, "the values are given to three digits: {case:?} {share} {got}");
            assert_eq!(reward(Form::Linear, case, share, clip), linear, "{case:?} {share} {clip:?}");
        }
    }
}
