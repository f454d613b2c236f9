//! The policy loss: PPO's clipped surrogate (arXiv 1707.06347 eq. 7) or CISPO's, a KL term and an entropy bonus.

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// Estimators of KL(policy || reference) from log-probabilities of sampled tokens, with p the policy's probability and
/// q the reference's (Schulman, "Approximating KL divergence").
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// log p - log q
    K1,
    /// (log p - log q)^2 / 2
    K2,
    /// q/p - 1 - log(q/p)
    K3,
}

/// Form of the policy part of the loss: its use of a token's probability ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surrogate {
    /// PPO: the worse of the plain and the clipped ratio, times the advantage (arXiv 1707.06347 eq. 7).
    Clip,
    /// CISPO: the log-probability, weighted by the clipped ratio, which gets no gradient of its own (arXiv 2506.13585
    /// eq. 4, 5).
    Cispo,
}

/// Bound on log-probability ratios and differences: they are clamped to +-20 before they are exponentiated or squared.
/// Outside the bound they have no gradient.
pub const MOST_LOG_RATIO: f64 = 20.0;

/// Options of the policy loss.
#[derive(Debug, Clone, Copy)]
pub struct PpoParams {
    /// The form of the policy part.
    pub surrogate: Surrogate,
    /// Lower clip: the ratio is at least 1 - clip_low.
    pub clip_low: f32,
    /// Upper clip: the ratio is at most 1 + clip_high.
    pub clip_high: f32,
    /// Dual clip (arXiv 1912.09729 eq. 5), above 1; CISPO has none. With a negative advantage A the objective is at
    /// least `dual_clip * A`.
    pub dual_clip: Option<f32>,
    /// Weight of the KL term in the loss; 0 leaves it out. The term is the estimate times the token's ratio. The ratio
    /// has no gradient here; it makes the term unbiased when the policy has moved since sampling.
    pub kl_coefficient: f32,
    /// Estimator of the KL term. Its gradient is taken through the policy's log-probability: that of K2 is the gradient
    /// of KL(policy || reference), that of K3 the gradient of KL(reference || policy), and that of K1 is 0 on average.
    pub kl_estimator: KlEstimator,
    /// Weight of the entropy bonus, which is subtracted from the loss.
    pub entropy_coefficient: f32,
}

/// Inputs of [`PpoLoss`], each (M) in the accumulator type.
pub struct PpoInputs<'a> {
    /// Log-probabilities under the policy being trained.
    pub logp: &'a Tensor,
    /// Entropies under the policy being trained.
    pub entropy: &'a Tensor,
    /// Log-probabilities recorded when sampling.
    pub behaviour: &'a Tensor,
    /// Log-probabilities under the frozen reference.
    pub reference: &'a Tensor,
    /// Advantages.
    pub advantage: &'a Tensor,
    /// Each token's weight: the loss is the weighted sum (token mean: 1 / M each).
    pub weight: &'a Tensor,
}

/// Weighted sums over the M tokens of one [`PpoLoss`], except `ratio_max`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PpoStats {
    /// The whole loss.
    pub loss: f64,
    /// The policy part.
    pub policy_loss: f64,
    /// The KL estimate by the chosen estimator, whatever its coefficient, without the ratio that weights it in the
    /// loss.
    pub kl: f64,
    /// Entropy.
    pub entropy: f64,
    /// Weight of the tokens for which the clip to [1 - clip_low, 1 + clip_high] was in force.
    pub clip_fraction: f64,
    /// K3 estimate of KL(behaviour || policy): how far the update has moved the policy.
    pub approx_kl: f64,
    /// The greatest ratio of a token whose weight is above 0; 0 when there is none.
    pub ratio_max: f64,
}

/// The loss of M tokens and its gradients.
pub struct PpoLoss<'a> {
    /// Options of the loss.
    pub params: &'a PpoParams,
    /// Log-probabilities, advantages and weights of the tokens.
    pub inputs: &'a PpoInputs<'a>,
    /// (M), in the accumulator type.
    pub dlogp: &'a mut Tensor,
    /// (M), in the accumulator type.
    pub dentropy: &'a mut Tensor,
    /// Receives the loss and its parts.
    pub stats: &'a mut PpoStats,
}

impl Operands for PpoLoss<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("ppo_loss", types);
        let PpoInputs { logp, entropy, behaviour, reference, advantage, weight } = self.inputs;
        let m = door.vector("logp (M)", logp)?;
        for (name, t) in [
            ("logp (M)", logp),
            ("entropy (M)", entropy),
            ("behaviour (M)", behaviour),
            ("reference (M)", reference),
            ("advantage (M)", advantage),
            ("weight (M)", weight),
        ] {
            door.statistic(name, t, &[m])?;
        }
        door.accumulated("dlogp (M)", self.dlogp, &[m])?;
        door.accumulated("dentropy (M)", self.dentropy, &[m])
    }
}
