//! Advantages and the update of one round of single-step samples: PPO with a critic, or group-normalised advantages (GRPO).
//! One frozen base; actor, critic and reference are adapters over it. Knows no task, no sandbox, no text.

use crate::backend::{Backend, Linear, LinearGrads, PpoInputs, PpoParams, PpoStats, ValueInputs};
use crate::batch::{self, Group, LossBatch};
use crate::checkpoint;
use crate::config::{Algorithm, KlIn, LossAverage, Rl};
use crate::error::Result;
use crate::model::lora::Adapter;
use crate::model::{Activations, Gradients, Model, Policy};
use crate::optimizer::{AdamWConfig, Optimizer};
use crate::tensor::Tensor;
use crate::weights::{self, WeightMap};
use std::ops::Range;
use std::path::Path;

/// Generalised advantage estimation (arXiv 1506.02438) over one sample's tokens: rewards and values as long as the sample,
/// the value after the last token is 0. Returns (advantages, targets of the value function).
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

/// Group-normalised advantages (GRPO, arXiv 2402.03300 section 4.1.2): (r - mean) / (deviation + epsilon) within each group
/// of `size` consecutive scores; without `deviation` only the mean is subtracted. The deviation divides by size - 1.
pub fn group_advantages(scores: &[f64], size: usize, deviation: bool, epsilon: f64) -> Vec<f32> {
    let normalise = |group: &[f64]| {
        let mean = group.iter().sum::<f64>() / group.len() as f64;
        let squares = group.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>();
        let scale = if deviation { (squares / (group.len() - 1).max(1) as f64).sqrt() + epsilon } else { 1.0 };
        group.iter().map(|r| ((r - mean) / scale) as f32).collect::<Vec<_>>()
    };
    scores.chunks(size).flat_map(normalise).collect()
}

/// To mean 0 and deviation 1 over all values.
pub fn whiten(values: &mut [f32]) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let scale = 1.0 / (variance + 1e-8).sqrt();
    values.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale) as f32);
}

/// The share of each token in the loss of a minibatch with replies of `lengths` tokens, one after the other. `Token`: 1 / tokens
/// (DAPO, arXiv 2503.14476 eq. 8); `Sample`: 1 / (replies * reply_scale) (Dr. GRPO, arXiv 2503.20783); `Reply`: 1 / (replies * tokens of
/// its reply) (GRPO, arXiv 2402.03300 eq. 3).
pub fn loss_weights(average: LossAverage, lengths: &[usize], reply_scale: f32) -> Vec<f32> {
    let (tokens, replies) = (lengths.iter().sum::<usize>() as f32, lengths.len() as f32);
    let share = |length: usize| match average {
        LossAverage::Token => 1.0 / tokens,
        LossAverage::Sample => 1.0 / (replies * reply_scale),
        LossAverage::Reply => 1.0 / (replies * length as f32),
    };
    lengths.iter().flat_map(|&n| std::iter::repeat_n(share(n), n)).collect()
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

/// AdamW's constants in reinforcement learning; adapters do not decay.
const ADAMW: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };

/// The value function: an adapter of its own over the base and a linear head.
pub struct Critic {
    /// Low-rank change of the base.
    pub adapter: Adapter,
    /// w (1, C) and b (1).
    pub head: Vec<Tensor>,
}

impl Critic {
    /// A critic that says 0 everywhere: `adapter` (B zero) and a zero head.
    pub fn new(backend: &dyn Backend, model: &Model, adapter: Adapter) -> Result<Self> {
        let dtype = backend.accumulator();
        let head = vec![backend.alloc(&[1, model.config.hidden], dtype)?, backend.alloc(&[1], dtype)?];
        Ok(Self { adapter, head })
    }

    fn linear(&self) -> Linear<'_> {
        Linear { w: &self.head[0], bias: Some(&self.head[1]), lora: None }
    }

    /// Values (M) of the loss rows and their hidden states (M, C).
    fn values(
        &self,
        backend: &dyn Backend,
        model: &Model,
        batch: &LossBatch,
        keep: bool,
        acts: &mut Activations,
    ) -> Result<(Tensor, Tensor)> {
        let policy = Policy { model, adapter: Some(&self.adapter) };
        let hidden = batch::forward_hidden(backend, policy, batch, keep, acts)?;
        let mut values = backend.alloc(&[batch.loss_rows(), 1], backend.activation())?;
        backend.linear(&hidden, &self.linear(), &mut values, 0, None)?;
        Ok((values.reshape(&[batch.loss_rows()]), hidden))
    }
}

/// What was sampled in one round and what it earned.
pub struct Round<'a> {
    /// The prompts with their replies; every group has as many replies.
    pub groups: &'a [Group],
    /// Behaviour log-probabilities, one list a reply, in the groups' order.
    pub logprobs: &'a [Vec<f32>],
    /// Reward of each reply.
    pub rewards: &'a [f64],
    /// The temperature they were sampled at.
    pub temperature: f32,
}

/// What one update did.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpdateStats {
    /// Means over tokens of the last pass (loss terms as they were weighted).
    pub policy: PpoStats,
    /// Mean value loss of the last pass.
    pub value_loss: Option<f64>,
    /// Of the values before the update.
    pub explained_variance: Option<f64>,
    /// Norm of the actor's gradient before clipping, last optimizer step.
    pub grad_norm: f64,
    /// Mean |log p(engine) - log p(trainer)| of the first minibatch, before any update.
    pub gauge: f64,
    /// Its largest value.
    pub gauge_max: f64,
}

/// Actor, critic, reference and their optimizers.
pub struct Learner<'a> {
    backend: &'a dyn Backend,
    model: &'a Model,
    settings: &'a Rl,
    /// The policy being trained.
    pub actor: Adapter,
    /// The frozen policy the KL is measured against.
    pub reference: Adapter,
    /// Present with PPO.
    pub critic: Option<Critic>,
    /// Of the actor.
    pub actor_optimizer: Optimizer,
    /// Of the critic's adapter and of its head.
    pub critic_optimizers: Option<(Optimizer, Optimizer)>,
    acts: Activations,
    updates: usize,
}

/// One part of a round that is computed in one pass.
struct Micro {
    batch: LossBatch,
    /// Its tokens in the round's flat order.
    tokens: Range<usize>,
}

impl<'a> Learner<'a> {
    /// The actor starts as a copy of `reference`; `critic` is given with PPO.
    pub fn new(
        backend: &'a dyn Backend,
        model: &'a Model,
        settings: &'a Rl,
        reference: Adapter,
        critic: Option<Critic>,
    ) -> Result<Self> {
        let actor_optimizer = Optimizer::new(backend, &reference.tensors, ADAMW)?;
        let critic_optimizers = match &critic {
            Some(c) => {
                Some((Optimizer::new(backend, &c.adapter.tensors, ADAMW)?, Optimizer::new(backend, &c.head, ADAMW)?))
            }
            None => None,
        };
        Ok(Self {
            backend,
            model,
            settings,
            actor: reference.copied(backend)?,
            reference,
            critic,
            actor_optimizer,
            critic_optimizers,
            acts: Activations::new(settings.recompute),
            updates: 0,
        })
    }

    /// Writes everything an update depends on into `dir`.
    pub fn save(&self, dir: &Path) -> Result<()> {
        checkpoint::save_adapter(&dir.join("actor"), &self.actor, "")?;
        checkpoint::save_adapter(&dir.join("reference"), &self.reference, "")?;
        checkpoint::save_optimizer(&dir.join("actor_optimizer.safetensors"), &self.actor_optimizer)?;
        if let (Some(critic), Some((adapter, head))) = (&self.critic, &self.critic_optimizers) {
            checkpoint::save_adapter(&dir.join("critic"), &critic.adapter, "")?;
            let tensors = [("weight".to_string(), &critic.head[0]), ("bias".to_string(), &critic.head[1])];
            weights::save(&dir.join("critic_head.safetensors"), &tensors, None)?;
            checkpoint::save_optimizer(&dir.join("critic_optimizer.safetensors"), adapter)?;
            checkpoint::save_optimizer(&dir.join("critic_head_optimizer.safetensors"), head)?;
        }
        Ok(())
    }

    /// Reads back what `save` wrote after `updates` updates; the learner must have been made with the same settings.
    pub fn load(&mut self, dir: &Path, updates: usize) -> Result<()> {
        let (backend, config) = (self.backend, &self.model.config);
        self.actor = checkpoint::load_adapter(backend, config, &dir.join("actor"))?;
        self.reference = checkpoint::load_adapter(backend, config, &dir.join("reference"))?;
        checkpoint::load_optimizer(backend, &dir.join("actor_optimizer.safetensors"), &mut self.actor_optimizer)?;
        if let (Some(critic), Some((adapter, head))) = (&mut self.critic, &mut self.critic_optimizers) {
            critic.adapter = checkpoint::load_adapter(backend, config, &dir.join("critic"))?;
            let map = WeightMap::open_file(&dir.join("critic_head.safetensors"))?;
            for (tensor, name) in critic.head.iter_mut().zip(["weight", "bias"]) {
                backend.write(tensor, &map.get(name, tensor.shape())?)?;
            }
            checkpoint::load_optimizer(backend, &dir.join("critic_optimizer.safetensors"), adapter)?;
            checkpoint::load_optimizer(backend, &dir.join("critic_head_optimizer.safetensors"), head)?;
        }
        self.updates = updates;
        Ok(())
    }

    /// One round's update: `epochs` passes of `minibatches` optimizer steps.
    pub fn update(&mut self, round: &Round) -> Result<UpdateStats> {
        let (backend, settings) = (self.backend, self.settings);
        let lengths: Vec<usize> = round.groups.iter().flat_map(|g| g.replies.iter().map(Vec::len)).collect();
        let behaviour: Vec<f32> = round.logprobs.concat();
        let minibatches = self.minibatches(round)?;

        let (mut reference, mut values) = (vec![], vec![]);
        for micro in minibatches.iter().flatten() {
            let policy = Policy { model: self.model, adapter: Some(&self.reference) };
            let scores = batch::forward(backend, policy, &micro.batch, round.temperature, false, &mut self.acts)?;
            reference.extend(backend.read(&scores.logp)?);
            if let Some(critic) = &self.critic {
                let (value, _) = critic.values(backend, self.model, &micro.batch, false, &mut self.acts)?;
                values.extend(backend.read(&value)?);
            }
        }
        let (advantages, targets) = self.advantages(round, &lengths, &behaviour, &reference, &values);

        let mut stats = UpdateStats { explained_variance: explained_variance(&values, &targets), ..Default::default() };
        let mut actor_grads = Gradients::new(backend, self.policy(&self.actor), false)?;
        let mut critic_grads = match &self.critic {
            Some(c) => Some((Gradients::new(backend, self.policy(&c.adapter), false)?, zeros_like(backend, &c.head)?)),
            None => None,
        };
        let train_actor = self.updates >= settings.critic_warmup || self.critic.is_none();
        for epoch in 0..settings.epochs {
            for (index, minibatch) in minibatches.iter().enumerate() {
                let span = minibatch[0].tokens.start..minibatch[minibatch.len() - 1].tokens.end;
                let replies: Vec<usize> =
                    minibatch.iter().flat_map(|m| m.batch.samples.iter().map(Range::len)).collect();
                let weight = loss_weights(settings.loss_average, &replies, settings.reply_scale);
                actor_grads.zero(backend)?;
                let mut sums = Sums::default();
                for micro in minibatch {
                    let part = |all: &[f32]| self.vector(&all[micro.tokens.clone()]);
                    let here = micro.tokens.start - span.start..micro.tokens.end - span.start;
                    let weights = self.vector(&weight[here])?;
                    let inputs = [part(&behaviour)?, part(&reference)?, part(&advantages)?];
                    let scores =
                        self.actor_pass(micro, round.temperature, &inputs, &weights, &mut actor_grads, &mut sums)?;
                    if epoch == 0 && index == 0 {
                        sums.gauge(&backend.read(&scores)?, &behaviour[micro.tokens.clone()]);
                    }
                    if let Some((grads, head)) = &mut critic_grads {
                        let inputs =
                            [self.vector(&values[micro.tokens.clone()])?, self.vector(&targets[micro.tokens.clone()])?];
                        sums.value_loss += self.critic_pass(micro, &inputs, &weights, grads, head)?;
                    }
                }
                if train_actor {
                    let grads = actor_grads.adapter.as_deref().unwrap_or_default();
                    let norm = self.actor_optimizer.step(
                        backend,
                        &mut self.actor.tensors,
                        grads,
                        settings.learning_rate,
                        settings.max_norm,
                    )?;
                    stats.grad_norm = f64::from(norm);
                }
                if let (Some(critic), Some((adapter, head)), Some((grads, dhead))) =
                    (&mut self.critic, &mut self.critic_optimizers, &mut critic_grads)
                {
                    let (lr, max_norm) = (settings.critic_learning_rate, settings.max_norm);
                    let adapter_grads = grads.adapter.as_deref().unwrap_or_default();
                    adapter.step(backend, &mut critic.adapter.tensors, adapter_grads, lr, max_norm)?;
                    head.step(backend, &mut critic.head, dhead, lr, max_norm)?;
                    grads.zero(backend)?;
                    dhead.iter_mut().try_for_each(|t| backend.fill(t, 0.0))?;
                }
                sums.finish(&mut stats, weight.iter().map(|&w| f64::from(w)).sum(), critic_grads.is_some());
            }
        }
        self.updates += 1;
        Ok(stats)
    }

    /// The round cut into minibatches of whole groups, and these into passes within `micro_tokens`.
    fn minibatches(&self, round: &Round) -> Result<Vec<Vec<Micro>>> {
        let per_minibatch = round.groups.len().div_ceil(self.settings.minibatches);
        let mut tokens = 0;
        let mut cut = |groups: &[Group]| -> Result<Vec<Micro>> {
            let ranges = batch::split(groups.iter().map(Group::tokens), self.settings.micro_tokens);
            let passes = ranges.into_iter().map(|range| {
                let batch = LossBatch::from_groups(self.backend, &self.model.config, &groups[range], false)?;
                let start = tokens;
                tokens += batch.loss_rows();
                Ok(Micro { batch, tokens: start..tokens })
            });
            passes.collect()
        };
        round.groups.chunks(per_minibatch).map(&mut cut).collect()
    }

    /// Advantages and value targets of every token, in the round's flat order.
    fn advantages(
        &self,
        round: &Round,
        lengths: &[usize],
        behaviour: &[f32],
        reference: &[f32],
        values: &[f32],
    ) -> (Vec<f32>, Vec<f32>) {
        let s = self.settings;
        let mut rewards = vec![0.0f32; behaviour.len()];
        if s.kl_in == KlIn::Reward {
            for (reward, (p, q)) in rewards.iter_mut().zip(behaviour.iter().zip(reference)) {
                *reward = -s.kl_coefficient * kl(s.kl_estimator, *p, *q);
            }
        }
        let ends = lengths.iter().scan(0, |end, n| {
            *end += n;
            Some(*end)
        });
        let spans: Vec<Range<usize>> = ends.zip(lengths).map(|(end, n)| end - n..end).collect();
        match s.algorithm {
            Algorithm::Ppo => {
                let (mut advantages, mut targets) = (vec![], vec![]);
                for (span, reward) in spans.into_iter().zip(round.rewards) {
                    rewards[span.end - 1] += *reward as f32;
                    let (a, t) = gae(&rewards[span.clone()], &values[span], s.gamma, s.lambda);
                    advantages.extend(a);
                    targets.extend(t);
                }
                if s.whiten {
                    whiten(&mut advantages);
                }
                (advantages, targets)
            }
            Algorithm::Grpo => {
                let score = |(span, reward): (&Range<usize>, &f64)| {
                    reward + rewards[span.clone()].iter().map(|&r| f64::from(r)).sum::<f64>()
                };
                let scores: Vec<f64> = spans.iter().zip(round.rewards).map(score).collect();
                let epsilon = f64::from(s.group_epsilon);
                let per_reply = group_advantages(&scores, s.samples, s.group_deviation, epsilon);
                let tokens = spans.iter().zip(per_reply).flat_map(|(span, a)| std::iter::repeat_n(a, span.len()));
                (tokens.collect(), vec![])
            }
        }
    }

    /// Forward, loss and backward of the actor on one part; returns the log-probabilities. `inputs`: behaviour, reference,
    /// advantage (M).
    fn actor_pass(
        &mut self,
        micro: &Micro,
        temperature: f32,
        inputs: &[Tensor; 3],
        weight: &Tensor,
        grads: &mut Gradients,
        sums: &mut Sums,
    ) -> Result<Tensor> {
        let (backend, s) = (self.backend, self.settings);
        let policy = Policy { model: self.model, adapter: Some(&self.actor) };
        let scores = batch::forward(backend, policy, &micro.batch, temperature, true, &mut self.acts)?;
        let params = PpoParams {
            clip_low: s.clip_low,
            clip_high: s.clip_high,
            dual_clip: (s.dual_clip > 1.0).then_some(s.dual_clip),
            kl_coefficient: if s.kl_in == KlIn::Loss { s.kl_coefficient } else { 0.0 },
            kl_estimator: s.kl_estimator,
            entropy_coefficient: s.entropy_coefficient,
        };
        let ppo = PpoInputs {
            logp: &scores.logp,
            entropy: &scores.entropy,
            behaviour: &inputs[0],
            reference: &inputs[1],
            advantage: &inputs[2],
            weight,
        };
        let vector = || backend.alloc(&[micro.batch.loss_rows()], backend.accumulator());
        let (mut dlogp, mut dentropy) = (vector()?, vector()?);
        sums.add(&backend.ppo_loss(&params, &ppo, &mut dlogp, &mut dentropy)?);
        let dentropy = (s.entropy_coefficient != 0.0).then_some(&dentropy);
        batch::backward(backend, policy, &micro.batch, temperature, &mut self.acts, &scores, &dlogp, dentropy, grads)?;
        Ok(scores.logp)
    }

    /// Forward, loss and backward of the critic on one part; returns the loss. `inputs`: old value, target (M).
    fn critic_pass(
        &mut self,
        micro: &Micro,
        inputs: &[Tensor; 2],
        weight: &Tensor,
        grads: &mut Gradients,
        dhead: &mut [Tensor],
    ) -> Result<f64> {
        let (backend, clip) = (self.backend, self.settings.value_clip);
        let Some(critic) = &self.critic else { return Ok(0.0) };
        let (value, hidden) = critic.values(backend, self.model, &micro.batch, true, &mut self.acts)?;
        let mut dvalue = backend.alloc(value.shape(), backend.activation())?;
        let inputs = ValueInputs { value: &value, old_value: &inputs[0], target: &inputs[1], weight };
        let loss = backend.value_loss((clip > 0.0).then_some(clip), &inputs, &mut dvalue)?;
        let dvalue = dvalue.reshape(&[micro.batch.loss_rows(), 1]);
        let mut drows = backend.alloc(hidden.shape(), backend.activation())?;
        let [dw, dbias] = dhead else { return Ok(loss) };
        let head_grads = LinearGrads { lora: None, w: Some(dw), bias: Some(dbias) };
        backend.linear_backward(&hidden, &critic.linear(), &dvalue, 0, None, Some(&mut drows), head_grads)?;
        let policy = Policy { model: self.model, adapter: Some(&critic.adapter) };
        batch::backward_hidden(backend, policy, &micro.batch, &mut self.acts, &drows, grads)?;
        Ok(loss)
    }

    fn policy<'b>(&'b self, adapter: &'b Adapter) -> Policy<'b> {
        Policy { model: self.model, adapter: Some(adapter) }
    }

    fn vector(&self, values: &[f32]) -> Result<Tensor> {
        let mut tensor = self.backend.alloc(&[values.len()], self.backend.accumulator())?;
        self.backend.write(&mut tensor, &Tensor::from_slice(&[values.len()], values))?;
        Ok(tensor)
    }
}

/// A KL estimate of one token from log p (policy) and log q (reference).
pub fn kl(estimator: crate::backend::KlEstimator, p: f32, q: f32) -> f32 {
    use crate::backend::KlEstimator::{K1, K2, K3};
    match estimator {
        K1 => p - q,
        K2 => 0.5 * (p - q) * (p - q),
        K3 => (q - p).exp() - 1.0 - (q - p),
    }
}

fn zeros_like(backend: &dyn Backend, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    tensors.iter().map(|t| backend.alloc(t.shape(), backend.accumulator())).collect()
}

/// Weighted sums over the parts of one minibatch.
#[derive(Default)]
struct Sums {
    policy: PpoStats,
    value_loss: f64,
    gauge_sum: f64,
    gauge_max: f64,
    gauge_tokens: usize,
}

impl Sums {
    fn add(&mut self, s: &PpoStats) {
        let p = &mut self.policy;
        p.loss += s.loss;
        p.policy_loss += s.policy_loss;
        p.kl += s.kl;
        p.entropy += s.entropy;
        p.clip_fraction += s.clip_fraction;
        p.approx_kl += s.approx_kl;
    }

    fn gauge(&mut self, trainer: &[f32], engine: &[f32]) {
        for difference in trainer.iter().zip(engine).map(|(a, b)| f64::from((a - b).abs())) {
            self.gauge_sum += difference;
            self.gauge_max = self.gauge_max.max(difference);
            self.gauge_tokens += 1;
        }
    }

    /// Weighted sums to means: the weights of a minibatch sum to `total`.
    fn finish(self, stats: &mut UpdateStats, total: f64, has_critic: bool) {
        let p = self.policy;
        stats.policy = PpoStats {
            loss: p.loss,
            policy_loss: p.policy_loss,
            kl: p.kl / total,
            entropy: p.entropy / total,
            clip_fraction: p.clip_fraction / total,
            approx_kl: p.approx_kl / total,
        };
        stats.value_loss = has_critic.then_some(self.value_loss / total);
        if self.gauge_tokens > 0 {
            stats.gauge = self.gauge_sum / self.gauge_tokens as f64;
            stats.gauge_max = self.gauge_max;
        }
    }
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
        let a = group_advantages(&[1.0, 3.0, 5.0, 5.0], 2, true, 0.0);
        let root = std::f32::consts::FRAC_1_SQRT_2;
        assert!((a[0] + root).abs() < 1e-6 && (a[1] - root).abs() < 1e-6, "{a:?}");
        assert!(a[2].is_nan() || a[2] == 0.0);
        assert_eq!(group_advantages(&[1.0, 3.0, 5.0, 5.0], 2, false, 0.02), [-1.0, 1.0, 0.0, 0.0]);
        assert_eq!(group_advantages(&[5.0, 5.0], 2, true, 0.02), [0.0, 0.0]);
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
