//! The policy loss with its clips, KL term and entropy bonus; per token, in f64.

use super::real::Real;
use crate::backend::ops::{self, KlEstimator, MOST_LOG_RATIO, PpoParams, PpoStats, Surrogate};
use crate::tensor::Tensor;

/// loss = sum of weight (policy + kl_coefficient r kl - entropy_coefficient entropy) with the ratio r = exp(logp -
/// behaviour). The r before kl has no gradient.
pub(super) fn ppo_loss<R: Real>(op: ops::PpoLoss) {
    let ops::PpoLoss { params, inputs, .. } = op;
    let (dlogp, dentropy) = (op.dlogp.slice_mut::<R>(), op.dentropy.slice_mut::<R>());
    let at = |t: &Tensor, i: usize| t.slice::<R>()[i].f64();
    let (kl_coefficient, entropy_coefficient) =
        (f64::from(params.kl_coefficient), f64::from(params.entropy_coefficient));
    let (mut stats, mut kl_loss) = (PpoStats::default(), 0.0);
    for i in 0..dlogp.len() {
        let (logp, entropy, weight) = (at(inputs.logp, i), at(inputs.entropy, i), at(inputs.weight, i));
        let (log_ratio, moves) = bounded(logp - at(inputs.behaviour, i));
        let ratio = log_ratio.exp();
        let policy = policy(params, logp, ratio, moves, at(inputs.advantage, i));
        let (kl, dkl) = kl(params.kl_estimator, logp - at(inputs.reference, i));
        stats.policy_loss += weight * policy.loss;
        stats.kl += weight * kl;
        kl_loss += weight * ratio * kl;
        stats.entropy += weight * entropy;
        stats.clip_fraction += if policy.is_clipped { weight } else { 0.0 };
        stats.approx_kl += weight * (ratio - 1.0 - log_ratio);
        stats.ratio_max = if weight > 0.0 { stats.ratio_max.max(ratio) } else { stats.ratio_max };
        dlogp[i] = R::of(weight * (policy.dlogp + kl_coefficient * ratio * dkl));
        dentropy[i] = R::of(-weight * entropy_coefficient);
    }
    stats.loss = stats.policy_loss + kl_coefficient * kl_loss - entropy_coefficient * stats.entropy;
    *op.stats = stats;
}

/// Clamps `d` to +-[`MOST_LOG_RATIO`] and returns the derivative too: 1 inside, 0 outside.
fn bounded(d: f64) -> (f64, f64) {
    (d.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO), if d.abs() > MOST_LOG_RATIO { 0.0 } else { 1.0 })
}

/// The policy part of one token.
struct Policy {
    loss: f64,
    dlogp: f64,
    is_clipped: bool,
}

/// Computes the policy part of one token. `moves` is the derivative of the log ratio by logp.
fn policy(params: &PpoParams, logp: f64, ratio: f64, moves: f64, advantage: f64) -> Policy {
    let within = ratio.clamp(1.0 - f64::from(params.clip_low), 1.0 + f64::from(params.clip_high));
    if params.surrogate == Surrogate::Cispo {
        let dlogp = -within * advantage;
        return Policy { loss: dlogp * logp, dlogp, is_clipped: within != ratio };
    }
    let (plain, clipped) = (-advantage * ratio, -advantage * within);
    let most = params.dual_clip.filter(|_| advantage < 0.0).map_or(f64::INFINITY, |c| -advantage * f64::from(c));
    let is_clipped = clipped > plain;
    let (loss, dlogp) = if is_clipped { (clipped, 0.0) } else { (plain, plain * moves) };
    if loss > most { Policy { loss: most, dlogp: 0.0, is_clipped } } else { Policy { loss, dlogp, is_clipped } }
}

/// Returns the KL estimate of one token and its derivative by logp, from `d` = logp - reference.
fn kl(estimator: KlEstimator, d: f64) -> (f64, f64) {
    let (d, moves) = bounded(d);
    let (kl, dkl) = match estimator {
        KlEstimator::K1 => (d, 1.0),
        KlEstimator::K2 => (d * d / 2.0, d),
        KlEstimator::K3 => ((-d).exp() - 1.0 + d, 1.0 - (-d).exp()),
    };
    (kl, dkl * moves)
}
