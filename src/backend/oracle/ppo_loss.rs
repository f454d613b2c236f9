//! The clipped policy loss with dual clip, KL term and entropy bonus; per token, in f64.

use super::Real;
use crate::backend::{KlEstimator, PpoInputs, PpoParams, PpoStats};

/// The weighted sums, and the gradients dlogp and dentropy (M).
///
/// loss = sum of weight (-objective + kl_coefficient kl - entropy_coefficient entropy), with r = exp(logp - behaviour) and
/// objective = min(r A, clip(r) A), for A < 0 at least dual_clip A (arXiv 1707.06347 eq. 7, 1912.09729 eq. 5).
pub fn ppo_loss<R: Real>(params: &PpoParams, inputs: &PpoInputs, dlogp: &mut [R], dentropy: &mut [R]) -> PpoStats {
    let at = |t: &crate::tensor::Tensor, i: usize| t.slice::<R>()[i].f64();
    let (kl_coefficient, entropy_coefficient) =
        (f64::from(params.kl_coefficient), f64::from(params.entropy_coefficient));
    let mut stats = PpoStats::default();
    for i in 0..dlogp.len() {
        let (logp, entropy, weight) = (at(inputs.logp, i), at(inputs.entropy, i), at(inputs.weight, i));
        let moved = logp - at(inputs.behaviour, i);
        let (objective, dobjective, clipped) = objective(params, moved.exp(), at(inputs.advantage, i));
        let (kl, dkl) = kl(params.kl_estimator, logp - at(inputs.reference, i));
        stats.policy_loss -= weight * objective;
        stats.kl += weight * kl;
        stats.entropy += weight * entropy;
        stats.clip_fraction += if clipped { weight } else { 0.0 };
        stats.approx_kl += weight * (moved.exp() - 1.0 - moved);
        dlogp[i] = R::of(weight * (kl_coefficient * dkl - dobjective));
        dentropy[i] = R::of(-weight * entropy_coefficient);
    }
    stats.loss = stats.policy_loss + kl_coefficient * stats.kl - entropy_coefficient * stats.entropy;
    stats
}

/// The objective of one token, its derivative by logp, and whether a clip was in force.
fn objective(params: &PpoParams, ratio: f64, advantage: f64) -> (f64, f64, bool) {
    let plain = ratio * advantage;
    let clipped = ratio.clamp(1.0 - f64::from(params.clip_low), 1.0 + f64::from(params.clip_high)) * advantage;
    let floor = params.dual_clip.filter(|_| advantage < 0.0).map(|c| f64::from(c) * advantage);
    match floor {
        Some(floor) if plain.min(clipped) < floor => (floor, 0.0, true),
        _ if clipped < plain => (clipped, 0.0, true),
        _ => (plain, plain, false),
    }
}

/// The estimate of one token and its derivative by logp, from `d` = logp - reference.
fn kl(estimator: KlEstimator, d: f64) -> (f64, f64) {
    match estimator {
        KlEstimator::K1 => (d, 1.0),
        KlEstimator::K2 => (d * d / 2.0, d),
        KlEstimator::K3 => ((-d).exp() - 1.0 + d, 1.0 - (-d).exp()),
    }
}
