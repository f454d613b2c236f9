//! Figures of an update: sums over the parts of a minibatch, means over the minibatches of all passes.

use super::advantages::{Signal, explained_variance, live};
use super::round::Round;
use crate::backend::ops::PpoStats;
use crate::error::{Error, Result};

/// Figures of one optimizer step, measured before it.
#[derive(Debug, Clone, Copy)]
pub struct MinibatchStats {
    /// Loss and policy loss are weighted sums; the others are weighted means over tokens, except the greatest ratio.
    pub policy: PpoStats,
    /// Weighted mean; `None` without a critic.
    pub value_loss: Option<f64>,
    /// Norm of the actor's gradient before clipping.
    pub grad_norm: f64,
    /// Norm of the critic's gradient, adapter and head together, before clipping.
    pub critic_grad_norm: Option<f64>,
}

/// Figures of one update. Means are over all minibatches of all passes that had replies with a loss, and NaN if there
/// were none.
#[derive(Debug, Clone, Default)]
pub struct UpdateStats {
    /// One per optimizer step, pass by pass.
    pub minibatches: Vec<MinibatchStats>,
    /// Means over the minibatches; the greatest of the ratios.
    pub policy: PpoStats,
    /// Mean; `None` without a critic.
    pub value_loss: Option<f64>,
    /// Mean of the actor's gradient norms.
    pub grad_norm: f64,
    /// Of the values before the update, over the tokens that have a loss; `None` without a critic or when the targets
    /// do not vary.
    pub explained_variance: Option<f64>,
    /// Passes over the round; fewer than `epochs` when `target_kl` ended them.
    pub passes: usize,
    /// The schedule's factor on the learning rates in this update.
    pub rate_factor: f32,
    /// Share of the groups whose replies earned equal rewards; `None` where a group is one reply.
    pub dead_groups: Option<f64>,
    /// Groups in which no reply has a loss.
    pub dropped_groups: usize,
    /// Share of the replies that were cut off.
    pub truncated: f64,
    /// Mean |log p(engine) - log p(trainer)| of the first minibatch, before any update; `None` if no reply had a loss.
    pub gauge: Option<f64>,
    /// Largest such difference.
    pub gauge_max: Option<f64>,
}

/// Mean; NaN when there are no values.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    sum / f64::from(n)
}

impl UpdateStats {
    /// The figures known before the first step.
    pub(super) fn new(round: &Round, signal: &Signal, values: &[f32], rate_factor: f32) -> Self {
        let spans = round.spans();
        let is_live: Vec<bool> =
            spans.iter().zip(&signal.is_live).flat_map(|(span, live)| std::iter::repeat_n(*live, span.len())).collect();
        let samples = spans.len() / round.groups.len().max(1);
        Self {
            explained_variance: explained_variance(&live(values, &is_live), &live(&signal.targets, &is_live)),
            rate_factor,
            dead_groups: signal.dead_groups(),
            dropped_groups: signal.is_live.chunks(samples.max(1)).filter(|group| !group.contains(&true)).count(),
            truncated: mean(round.is_truncated.iter().map(|&cut| f64::from(u8::from(cut)))),
            ..Self::default()
        }
    }

    /// Computes the means over the minibatches, and the gauge.
    pub(super) fn finish(&mut self, gauge: Gauge) {
        let all = &self.minibatches;
        let policy = |of: fn(&PpoStats) -> f64| mean(all.iter().map(|m| of(&m.policy)));
        self.policy = PpoStats {
            loss: policy(|p| p.loss),
            policy_loss: policy(|p| p.policy_loss),
            kl: policy(|p| p.kl),
            entropy: policy(|p| p.entropy),
            clip_fraction: policy(|p| p.clip_fraction),
            approx_kl: policy(|p| p.approx_kl),
            ratio_max: all.iter().map(|m| m.policy.ratio_max).fold(f64::NAN, f64::max),
        };
        self.grad_norm = mean(all.iter().map(|m| m.grad_norm));
        let value_losses: Option<Vec<f64>> = all.iter().map(|m| m.value_loss).collect();
        self.value_loss = value_losses.filter(|list| !list.is_empty()).map(|list| mean(list.into_iter()));
        self.gauge = (gauge.tokens > 0).then(|| gauge.sum / gauge.tokens as f64);
        self.gauge_max = (gauge.tokens > 0).then_some(gauge.max);
    }
}

/// Differences between the engine's and the trainer's log-probabilities.
#[derive(Default)]
pub(super) struct Gauge {
    sum: f64,
    max: f64,
    tokens: usize,
}

impl Gauge {
    pub(super) fn add(&mut self, trainer: &[f32], engine: &[f32]) {
        for difference in trainer.iter().zip(engine).map(|(a, b)| f64::from((a - b).abs())) {
            self.sum += difference;
            self.max = self.max.max(difference);
            self.tokens += 1;
        }
    }
}

/// Weighted sums over the parts of one minibatch.
#[derive(Default)]
pub(super) struct Sums {
    policy: PpoStats,
    pub(super) value_loss: f64,
    pub(super) critic_norm: Option<f32>,
}

impl Sums {
    pub(super) fn add(&mut self, s: &PpoStats) {
        let p = &mut self.policy;
        p.loss += s.loss;
        p.policy_loss += s.policy_loss;
        p.kl += s.kl;
        p.entropy += s.entropy;
        p.clip_fraction += s.clip_fraction;
        p.approx_kl += s.approx_kl;
        p.ratio_max = p.ratio_max.max(s.ratio_max);
    }

    /// Error: a loss is not finite.
    pub(super) fn check(&self) -> Result<()> {
        for (what, loss) in [("policy", self.policy.loss), ("value", self.value_loss)] {
            if !loss.is_finite() {
                return Err(Error::not_finite(format!("the {what} loss is {loss}")));
            }
        }
        Ok(())
    }

    /// Turns weighted sums into means; the weights of the minibatch sum to `total`.
    pub(super) fn finish(self, total: f64, grad_norm: f32) -> MinibatchStats {
        let p = self.policy;
        MinibatchStats {
            policy: PpoStats {
                kl: p.kl / total,
                entropy: p.entropy / total,
                clip_fraction: p.clip_fraction / total,
                approx_kl: p.approx_kl / total,
                ..p
            },
            value_loss: self.critic_norm.map(|_| self.value_loss / total),
            grad_norm: f64::from(grad_norm),
            critic_grad_norm: self.critic_norm.map(f64::from),
        }
    }
}
