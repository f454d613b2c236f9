//! Detects training that diverges: by the loss, or by the policy's entropy and its distance from the reference. Gives a
//! warning, and ends the run when it lasts.

use crate::error::{Error, Result};
use std::collections::VecDeque;

/// Diverged steps in a row after which a warning is given.
const TOLD_AFTER: usize = 4;
/// Number of latest losses whose mean is compared with the best such mean.
const WINDOW: usize = 4;
/// Smallest rise of the mean loss, in nats, that counts as divergence.
const LEAST_RISE: f64 = 1.0;
/// A loss within this distance, in nats, of that of equal probabilities comes from a model that tells no token from
/// another.
const NEAR: f64 = 1e-3;
/// Distance from the reference, in nats per token, beyond which the policy has left it behind: probabilities of its own
/// tokens differ by a factor of `exp(10)`.
const FAR: f64 = 10.0;

/// Watches the steps of one phase.
pub struct Divergence {
    /// `run.divergence_patience`: diverged steps in a row that end the run; 0 never ends it.
    patience: usize,
    /// The loss of equal probabilities: ln of the vocabulary.
    uniform: f64,
    losses: VecDeque<f64>,
    best: f64,
    in_a_row: usize,
}

impl Divergence {
    /// Creates a watch for a model of `vocab` tokens.
    pub fn new(patience: usize, vocab: usize) -> Self {
        Self { patience, uniform: (vocab as f64).ln(), losses: VecDeque::new(), best: f64::INFINITY, in_a_row: 0 }
    }

    /// Takes a step's loss, a mean over tokens in nats. The step has diverged if its loss is that of equal
    /// probabilities, or if the mean over a few steps has risen from the best one by more than 1 nat and more than
    /// halfway to that loss. Returns a warning to print, when one is due. Error: `patience` steps in a row have
    /// diverged.
    pub fn loss(&mut self, loss: f64) -> Result<Option<String>> {
        self.losses.push_back(loss);
        if self.losses.len() > WINDOW {
            self.losses.pop_front();
        }
        let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        let limit = self.best + LEAST_RISE.max((self.uniform - self.best) / 2.0);
        let why = if (loss - self.uniform).abs() < NEAR {
            Some(format!("the loss, {loss:.3}, is that of equal probabilities: the model tells no token from another"))
        } else if mean > limit {
            Some(format!("the loss has risen from {:.3} to {mean:.3}", self.best))
        } else {
            None
        };
        // The first loss, the base's own, counts at once; later ones count as the mean of a full window.
        if self.best.is_infinite() || self.losses.len() == WINDOW {
            self.best = self.best.min(mean);
        }
        self.count(why)
    }

    /// Takes a step's policy: its entropy and its distance from the reference, both in nats per token. Returns as
    /// [`Self::loss`] does.
    pub fn policy(&mut self, entropy: f64, kl: f64) -> Result<Option<String>> {
        let why = if entropy > 0.95 * self.uniform {
            Some(format!("the policy's entropy, {entropy:.2}, is that of equal probabilities"))
        } else if kl.is_nan() || kl.abs() > FAR {
            Some(format!("the policy is {kl:.1} nats a token away from where it started"))
        } else {
            None
        };
        self.count(why)
    }

    fn count(&mut self, why: Option<String>) -> Result<Option<String>> {
        let Some(why) = why else {
            self.in_a_row = 0;
            return Ok(None);
        };
        self.in_a_row += 1;
        let steps = self.in_a_row;
        if self.patience > 0 && steps >= self.patience {
            return Err(Error::system(format!(
                "training diverges: {why}, {steps} steps in a row; a lower learning rate helps, from a checkpoint before that if you like; \
                 run.divergence_patience=0 goes on in any case"
            )));
        }
        Ok((steps == TOLD_AFTER).then(|| format!("training diverges: {why}; a lower learning rate helps")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The step of the first warning, and the step that ends the run.
    fn watch(patience: usize, losses: impl IntoIterator<Item = f64>) -> (Option<usize>, Option<usize>) {
        let (mut watch, mut told) = (Divergence::new(patience, 1000), None);
        for (step, loss) in losses.into_iter().enumerate() {
            match watch.loss(loss) {
                Ok(Some(_)) => told = told.or(Some(step + 1)),
                Ok(None) => (),
                Err(_) => return (told, Some(step + 1)),
            }
        }
        (told, None)
    }

    #[test]
    fn learning_and_noise_are_sound() {
        assert_eq!(watch(8, (0..50).map(|i| 7.5 * 0.95f64.powi(i))), (None, None), "from above equal probabilities");
        assert_eq!(watch(8, (0..50).map(|i| 2.0 + if i % 2 == 0 { 0.9 } else { -0.9 })), (None, None));
        assert_eq!(watch(8, [0.1].into_iter().chain((0..50).map(|_| 0.9))), (None, None), "an easy first step");
        assert_eq!(watch(8, [5.0, 0.1].into_iter().chain([5.0; 50])), (None, None), "one easy step");
        assert_eq!(watch(8, [2.0; 5].into_iter().chain([4.0; 50])), (None, None), "risen, and far from guessing");
    }

    #[test]
    fn a_risen_loss_and_one_that_tells_nothing_are_told_and_ended() {
        let uniform = 1000f64.ln();
        assert_eq!(watch(8, [12.0].into_iter().chain((0..20).map(|_| uniform))), (Some(5), Some(9)));
        let risen = [1.0; 5].into_iter().chain((0..20).map(|_| 9.0));
        let (told, ended) = watch(8, risen);
        assert!(told.unwrap() < ended.unwrap() && ended.unwrap() < 17, "{told:?} {ended:?}");
        assert_eq!(watch(0, (0..20).map(|_| uniform)), (Some(4), None), "a patience of 0");
    }

    #[test]
    fn a_policy_that_guesses_or_has_gone_far_is_ended() {
        for (entropy, kl) in [(1000f64.ln(), 0.1), (2.0, 11.0), (2.0, -11.0), (2.0, f64::NAN)] {
            let mut watch = Divergence::new(3, 1000);
            let ends: Vec<bool> = (0..3).map(|_| watch.policy(entropy, kl).is_err()).collect();
            assert_eq!(ends, [false, false, true], "{entropy} {kl}");
        }
        let mut watch = Divergence::new(3, 1000);
        assert!((0..9).all(|i| watch.policy(if i % 3 == 2 { 2.0 } else { 6.9 }, 0.1).is_ok()), "not in a row");
    }
}
