//! The policy loss: PPO's clipped surrogate (arXiv 1707.06347 eq. 7) or CISPO's, a KL term and an entropy bonus.

use super::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// Estimators of KL(policy || reference) from log-probabilities of sampled tokens (Schulman, "Approximating KL divergence").
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

/// What the policy part of `ppo_loss` does with a token's ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surrogate {
    /// PPO's: the worse of the plain and the clipped ratio times the advantage (arXiv 1707.06347 eq. 7).
    Clip,
    /// CISPO's: the clipped ratio, without a gradient of its own, weighs the log-probability (arXiv 2506.13585 eq. 4, 5).
    Cispo,
}

/// Log-probability ratios and differences are held within +-20 before they are exponentiated or squared; outside they have no gradient.
pub const MOST_LOG_RATIO: f64 = 20.0;

/// The policy loss of one token and its options.
#[derive(Debug, Clone, Copy)]
pub struct PpoParams {
    /// The form of the policy part.
    pub surrogate: Surrogate,
    /// The ratio is clipped below at 1 - clip_low.
    pub clip_low: f32,
    /// The ratio is clipped above at 1 + clip_high.
    pub clip_high: f32,
    /// Dual clip (arXiv 1912.09729 eq. 5): with a negative advantage A the objective is at least `dual_clip * A`; above 1. CISPO has none.
    pub dual_clip: Option<f32>,
    /// Weight of the KL term in the loss; 0 leaves it out. The term is the estimate times the token's ratio, which has no gradient here
    /// and makes the term unbiased when the policy has moved since sampling.
    pub kl_coefficient: f32,
    /// Which estimator the KL term uses. Its gradient is taken through the policy's log-probability: that of K2 is the gradient of
    /// KL(policy || reference), K3's that of KL(reference || policy), K1's is 0 on the mean.
    pub kl_estimator: KlEstimator,
    /// Weight of the entropy bonus (subtracted from the loss).
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
    /// The token's share of the loss: the loss is the weighted sum (token mean: 1 / M each).
    pub weight: &'a Tensor,
}

/// Weighted sums over the M tokens of one [`PpoLoss`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PpoStats {
    /// The whole loss.
    pub loss: f64,
    /// The policy part.
    pub policy_loss: f64,
    /// The KL estimate (chosen estimator), whatever its coefficient, without the ratio that weighs it in the loss.
    pub kl: f64,
    /// Entropy.
    pub entropy: f64,
    /// Tokens for which the clip to [1 - clip_low, 1 + clip_high] was in force.
    pub clip_fraction: f64,
    /// k3 between behaviour and policy: how far the update has moved.
    pub approx_kl: f64,
    /// No sum: the greatest ratio of a token whose weight is not 0; 0 when there is none.
    pub ratio_max: f64,
}

/// The loss of M tokens and its gradients.
pub struct PpoLoss<'a> {
    /// Its options.
    pub params: &'a PpoParams,
    /// What is known of the tokens.
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
