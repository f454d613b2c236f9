//! The learning signal of a round: adjusted rewards, advantages, value targets, and which replies have a loss. Host
//! arithmetic in the round's flat order of tokens; no tensor, no model.

use super::round::Round;
use super::settings::{Algorithm, GroupBaseline, GroupDeviation, KlIn, LossAverage, Overlong, Settings};
use crate::backend::ops::{KlEstimator, MOST_LOG_RATIO};
use std::ops::Range;

/// The learning signal of a round.
pub struct Signal {
    /// One per token; 0 for tokens without a loss.
    pub advantages: Vec<f32>,
    /// Targets of the value function, one per token; empty without a critic.
    pub targets: Vec<f32>,
    /// One per reply: true if it has a loss.
    pub is_live: Vec<bool>,
    /// One per group: true if its replies earned equal rewards. `None` where a group is one reply.
    pub is_dead: Option<Vec<bool>>,
}

/// The signal of `round` by the settings' algorithm. `reference` and, with a critic, `values` have one number per
/// token: log-probabilities under the frozen reference, and values before the update.
pub fn signal(settings: &Settings, round: &Round, reference: &[f32], values: &[f32]) -> Signal {
    let spans = round.spans();
    let samples = round.groups.first().map_or(1, |g| g.replies.len());
    let rewards = rewards(settings, round, &spans);
    let is_dead: Option<Vec<bool>> =
        (samples > 1).then(|| rewards.chunks(samples).map(|g| g.iter().all(|r| *r == g[0])).collect());
    let drops = settings.drop_dead_groups && settings.algorithm == Algorithm::Grpo;
    let is_dropped = |reply: usize| drops && is_dead.as_ref().is_some_and(|dead| dead[reply / samples]);
    let is_masked = |reply: usize| settings.overlong == Overlong::Mask && round.is_truncated[reply];
    let is_live: Vec<bool> = (0..spans.len()).map(|reply| !is_dropped(reply) && !is_masked(reply)).collect();

    let behaviour = round.logprobs.iter().flatten();
    let mut token_rewards: Vec<f32> = match settings.kl_in {
        KlIn::Reward => {
            let penalty = |(p, q): (&f32, &f32)| -settings.kl_coefficient * kl(settings.kl_estimator, *p, *q);
            behaviour.zip(reference).map(penalty).collect()
        }
        KlIn::Loss => vec![0.0; reference.len()],
    };
    let (mut advantages, mut targets) = (vec![], vec![]);
    match settings.algorithm {
        Algorithm::Ppo => {
            for (span, reward) in spans.iter().zip(&rewards) {
                token_rewards[span.end - 1] += *reward as f32;
                let (a, t) = gae(&token_rewards[span.clone()], &values[span.clone()], settings.gamma, settings.lambda);
                advantages.extend(a);
                targets.extend(t);
            }
        }
        Algorithm::Grpo => {
            let penalty = |span: &Range<usize>| token_rewards[span.clone()].iter().map(|&r| f64::from(r)).sum::<f64>();
            let scores: Vec<f64> = rewards.iter().zip(&spans).map(|(reward, span)| reward + penalty(span)).collect();
            let (baseline, deviation) = (settings.group_baseline, settings.group_deviation);
            let of_replies = group_advantages(&scores, samples, baseline, deviation, f64::from(settings.group_epsilon));
            advantages.extend(spans.iter().zip(of_replies).flat_map(|(span, a)| std::iter::repeat_n(a, span.len())));
        }
    }
    let is_live_token: Vec<bool> =
        spans.iter().zip(&is_live).flat_map(|(span, live)| std::iter::repeat_n(*live, span.len())).collect();
    if settings.algorithm == Algorithm::Ppo && settings.whiten {
        let mut live: Vec<f32> = live(&advantages, &is_live_token);
        whiten(&mut live);
        let mut live = live.into_iter();
        let places = advantages.iter_mut().zip(&is_live_token).filter(|(_, live)| **live);
        places.for_each(|(advantage, _)| *advantage = live.next().unwrap_or_default());
    }
    for (advantage, _) in advantages.iter_mut().zip(&is_live_token).filter(|(_, live)| !**live) {
        *advantage = 0.0;
    }
    Signal { advantages, targets, is_live, is_dead }
}

impl Signal {
    /// Share of the groups whose replies earned equal rewards; `None` where a group is one reply.
    pub fn dead_groups(&self) -> Option<f64> {
        self.is_dead.as_ref().map(|dead| dead.iter().filter(|d| **d).count() as f64 / dead.len() as f64)
    }
}

/// The values whose entry in `is_live` is true, in order.
pub fn live(values: &[f32], is_live: &[bool]) -> Vec<f32> {
    values.iter().zip(is_live).filter(|(_, live)| **live).map(|(value, _)| *value).collect()
}

/// Rewards of the replies minus the penalty of overlong ones: with `penalise` a fixed amount if a reply was cut off,
/// with `soft` an amount that grows over the last tokens before the limit (DAPO, arXiv 2503.14476 eq. 13).
fn rewards(settings: &Settings, round: &Round, spans: &[Range<usize>]) -> Vec<f64> {
    let (penalty, buffer) = (f64::from(settings.overlong_penalty), settings.overlong_buffer as f64);
    let free = round.max_tokens as f64 - buffer;
    let lost = |reply: usize| {
        let tokens = spans[reply].len() as f64;
        match settings.overlong {
            Overlong::Penalise if round.is_truncated[reply] => penalty,
            Overlong::Soft if tokens > free => penalty * (tokens - free) / buffer,
            _ => 0.0,
        }
    };
    round.rewards.iter().enumerate().map(|(reply, reward)| reward - lost(reply)).collect()
}

/// A KL estimate of one token from log p (policy) and log q (reference); their difference is clamped to
/// +-[`MOST_LOG_RATIO`].
pub fn kl(estimator: KlEstimator, p: f32, q: f32) -> f32 {
    let d = (p - q).clamp(-MOST_LOG_RATIO as f32, MOST_LOG_RATIO as f32);
    match estimator {
        KlEstimator::K1 => d,
        KlEstimator::K2 => 0.5 * d * d,
        KlEstimator::K3 => (-d).exp() - 1.0 + d,
    }
}

/// Generalised advantage estimation (arXiv 1506.02438) over one sample's tokens. Rewards and values are as long as the
/// sample; the value after the last token is 0. Returns (advantages, targets of the value function).
pub fn gae(rewards: &[f32], values: &[f32], gamma: f32, lambda: f32) -> (Vec<f32>, Vec<f32>) {
    let mut advantages = vec![0.0; rewards.len()];
    let mut running = 0.0;
    for t in (0..rewards.len()).rev() {
        let next = values.get(t + 1).copied().unwrap_or(0.0);
        running = rewards[t] + gamma * next - values[t] + gamma * lambda * running;
        advantages[t] = running;
    }
    let targets = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    (advantages, targets)
}

/// Advantages of replies within their groups of `size` consecutive scores (GRPO, arXiv 2402.03300 section 4.1.2):
/// (score - baseline) / (deviation + epsilon). The baseline is the group's mean, or for each reply the mean of the
/// others (RLOO, arXiv 2402.14740). The deviation is the group's, that of all scores (arXiv 2508.08221), or none,
/// without division (Dr. GRPO, arXiv 2503.20783). Deviations divide by n - 1.
pub fn group_advantages(
    scores: &[f64],
    size: usize,
    baseline: GroupBaseline,
    deviation: GroupDeviation,
    epsilon: f64,
) -> Vec<f32> {
    let of_all = standard_deviation(scores);
    let normalise = |group: &[f64]| {
        let n = group.len() as f64;
        let mean = group.iter().sum::<f64>() / n;
        // score - mean of the others = (score - mean) n / (n - 1)
        let factor = match baseline {
            GroupBaseline::Mean => 1.0,
            GroupBaseline::LeaveOneOut => n / (n - 1.0).max(1.0),
        };
        let scale = match deviation {
            GroupDeviation::Group => standard_deviation(group) + epsilon,
            GroupDeviation::Batch => of_all + epsilon,
            GroupDeviation::None => 1.0,
        };
        // If deviation and epsilon are 0, all scores are equal.
        let inverse = if scale > 0.0 { factor / scale } else { 0.0 };
        group.iter().map(|score| ((score - mean) * inverse) as f32).collect::<Vec<_>>()
    };
    scores.chunks(size).flat_map(normalise).collect()
}

fn standard_deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt()
}

/// Shifts and scales all values to mean 0 and deviation 1.
pub fn whiten(values: &mut [f32]) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let scale = 1.0 / (variance + 1e-8).sqrt();
    values.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale) as f32);
}

/// The weight of each token in the loss of a minibatch of consecutive replies of `lengths` tokens. Tokens of replies
/// that are not live have weight 0 and do not count in the averages. `Token`: 1 / tokens (DAPO, arXiv 2503.14476 eq.
/// 8); `Sample`: 1 / (replies * reply_scale) (Dr. GRPO, arXiv 2503.20783); `Reply`: 1 / (replies * tokens of its reply)
/// (GRPO, arXiv 2402.03300 eq. 3).
pub fn loss_weights(average: LossAverage, lengths: &[usize], is_live: &[bool], reply_scale: f32) -> Vec<f32> {
    let live = || lengths.iter().zip(is_live).filter(|(_, live)| **live);
    let (tokens, replies) = (live().map(|(n, _)| n).sum::<usize>() as f32, live().count() as f32);
    let share = |length: usize, live: bool| match average {
        _ if !live => 0.0,
        LossAverage::Token => 1.0 / tokens,
        LossAverage::Sample => 1.0 / (replies * reply_scale),
        LossAverage::Reply => 1.0 / (replies * length as f32),
    };
    lengths.iter().zip(is_live).flat_map(|(&n, &live)| std::iter::repeat_n(share(n, live), n)).collect()
}

/// 1 - Var(target - value) / Var(target); `None` when the targets do not vary.
pub fn explained_variance(values: &[f32], targets: &[f32]) -> Option<f64> {
    let variance = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / x.len() as f64
    };
    let targets: Vec<f64> = targets.iter().map(|&t| f64::from(t)).collect();
    let errors: Vec<f64> = targets.iter().zip(values).map(|(t, &v)| t - f64::from(v)).collect();
    let whole = variance(&targets);
    (whole > 1e-12).then(|| 1.0 - variance(&errors) / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gae_with_gamma_and_lambda_one_is_return_minus_value() {
        let (advantages, targets) = gae(&[0.0, -0.5, 2.0], &[0.25, 0.5, 1.0], 1.0, 1.0);
        assert_eq!(advantages, [1.25, 1.0, 1.0]);
        assert_eq!(targets, [1.5, 1.5, 2.0]);
    }

    #[test]
    fn gae_with_lambda_zero_is_the_one_step_error() {
        let (advantages, _) = gae(&[1.0, 2.0], &[0.5, 3.0], 0.5, 0.0);
        assert_eq!(advantages, [1.0 + 0.5 * 3.0 - 0.5, 2.0 - 3.0]);
    }

    #[test]
    fn groups_are_normalised_each_for_itself() {
        use GroupBaseline::{LeaveOneOut, Mean};
        use GroupDeviation::{Batch, Group, None};
        let scores = [1.0, 3.0, 5.0, 5.0];
        let root = std::f32::consts::FRAC_1_SQRT_2;
        // All four: mean 3.5, squares 6.25 + 0.25 + 2.25 + 2.25, over 3.
        let batch = (11.0_f32 / 3.0).sqrt();
        for (baseline, deviation, epsilon, expected) in [
            (Mean, Group, 0.0, [-root, root, 0.0, 0.0]),
            (Mean, None, 0.02, [-1.0, 1.0, 0.0, 0.0]),
            (LeaveOneOut, None, 0.02, [-2.0, 2.0, 0.0, 0.0]),
            (Mean, Batch, 0.5, [-1.0 / (batch + 0.5), 1.0 / (batch + 0.5), 0.0, 0.0]),
            (LeaveOneOut, Group, 0.0, [-2.0 * root, 2.0 * root, 0.0, 0.0]),
        ] {
            let found = group_advantages(&scores, 2, baseline, deviation, epsilon);
            let near = found.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6);
            assert!(near, "{baseline:?} {deviation:?}: {found:?} for {expected:?}");
        }
    }

    #[test]
    fn tokens_without_a_loss_do_not_count_in_averages() {
        let (lengths, is_live) = ([2, 1, 3], [true, false, true]);
        for (average, expected) in [
            (LossAverage::Token, [0.2, 0.2, 0.0, 0.2, 0.2, 0.2]),
            (LossAverage::Sample, [0.125, 0.125, 0.0, 0.125, 0.125, 0.125]),
            (LossAverage::Reply, [0.25, 0.25, 0.0, 1.0 / 6.0, 1.0 / 6.0, 1.0 / 6.0]),
        ] {
            assert_eq!(loss_weights(average, &lengths, &is_live, 4.0), expected, "{average:?}");
        }
        assert_eq!(loss_weights(LossAverage::Token, &[2], &[false], 1.0), [0.0, 0.0]);
    }

    #[test]
    fn whitening_and_explained_variance() {
        let mut x = [1.0, 2.0, 3.0];
        whiten(&mut x);
        assert!((x[0] + 1.0).abs() < 1e-6 && x[1].abs() < 1e-6 && (x[2] - 1.0).abs() < 1e-6, "{x:?}");
        assert_eq!(explained_variance(&[1.0, 2.0], &[1.0, 2.0]), Some(1.0));
        assert_eq!(explained_variance(&[0.0, 0.0], &[1.0, 3.0]), Some(0.0));
        assert_eq!(explained_variance(&[0.0, 0.0], &[1.0, 1.0]), None);
    }
}
