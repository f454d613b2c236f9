//! The update on one round of single-step samples: PPO with a critic, or group-normalised advantages (GRPO), with a
//! policy loss clipped per token (PPO), by CISPO's weights, or per sequence (GSPO). Actor, critic and reference are
//! adapters over one frozen base. Knows no task, no sandbox, no text. docs/rl.md has the equations.

use crate::backend::Backend;
use crate::backend::ops::{self, PpoInputs, PpoParams, PpoStats, Surrogate};
use crate::batch::{self, Group, LossBatch};
use crate::checkpoint;
use crate::error::Result;
use crate::model::lora::Adapter;
use crate::model::{Activations, Gradients, Model, Policy};
use crate::optimizer::{self, AdamWConfig, Optimizer};
use crate::run::Suspect;
use crate::tensor::Tensor;
use std::ops::Range;
use std::path::Path;

pub mod advantages;
mod critic;
mod round;
mod settings;
mod stats;

pub use critic::Critic;
pub use round::Round;
pub use settings::{Algorithm, GroupBaseline, GroupDeviation, KlIn, LossAverage, Objective, Overlong, Settings};
pub use stats::{MinibatchStats, UpdateStats};

use advantages::{Signal, loss_weights, signal};
use critic::{CriticGradients, CriticInputs};
use round::Micro;
use stats::{Gauge, Sums};

/// Actor, critic, reference and their optimizers.
pub struct Learner<'a> {
    backend: &'a dyn Backend,
    model: &'a Model,
    settings: &'a Settings,
    /// The policy being trained.
    pub actor: Adapter,
    /// The frozen policy the KL is measured against.
    pub reference: Adapter,
    /// Present with PPO.
    pub critic: Option<Critic>,
    /// The actor's optimizer.
    pub actor_optimizer: Optimizer,
    acts: Activations,
    updates: usize,
}

/// The part of a round that one optimizer step uses.
struct Minibatch {
    parts: Vec<Micro>,
    /// Its tokens in the round's flat order.
    tokens: Range<usize>,
    /// The weight of each of its tokens in the loss; all 0 when no reply has a loss.
    weights: Vec<f32>,
}

/// Inputs of the loss for each token of a round, in its flat order.
struct Known {
    behaviour: Vec<f32>,
    reference: Vec<f32>,
    /// Values before the update; empty without a critic.
    values: Vec<f32>,
    signal: Signal,
}

impl<'a> Learner<'a> {
    /// A learner whose actor and, with PPO, critic start as copies of `reference`; the critic's head is zero.
    pub fn new(backend: &'a dyn Backend, model: &'a Model, settings: &'a Settings, reference: Adapter) -> Result<Self> {
        let constants = constants(settings);
        let critic = match settings.algorithm {
            Algorithm::Ppo => Some(Critic::new(backend, model, reference.copied(backend)?, constants)?),
            Algorithm::Grpo => None,
        };
        Ok(Self {
            backend,
            model,
            settings,
            actor: reference.copied(backend)?,
            actor_optimizer: Optimizer::new(backend, &reference.tensors, constants)?,
            reference,
            critic,
            acts: Activations::new(settings.recompute).with_room(settings.micro_tokens),
            updates: 0,
        })
    }

    /// All trained tensors, with the learning rates of the update that is under way.
    pub fn trained(&self) -> Vec<Suspect<'_>> {
        let Settings { learning_rate, critic_learning_rate, .. } = *self.settings;
        let factor = self.factor();
        let list = |what, names, tensors, rate| Suspect { what, names, tensors, rate: rate * factor };
        let mut lists = vec![list("the adapter", &self.actor.names[..], &self.actor.tensors[..], learning_rate)];
        if let Some(critic) = &self.critic {
            let (names, tensors) = (&critic.adapter.names, &critic.adapter.tensors);
            lists.push(list("the critic's adapter", names, tensors, critic_learning_rate));
            lists.push(list("the critic's head", &critic.head_names, &critic.head, critic_learning_rate));
        }
        lists
    }

    /// The factor on both learning rates in the next update.
    fn factor(&self) -> f32 {
        self.settings.schedule.over(self.settings.warmup, self.settings.steps).factor(self.updates as u32)
    }

    /// Writes adapters, critic and optimizers into `dir`; the caller keeps the number of updates.
    pub fn save(&self, dir: &Path) -> Result<()> {
        checkpoint::save_adapter(&dir.join("actor"), &self.actor, "")?;
        checkpoint::save_adapter(&dir.join("reference"), &self.reference, "")?;
        checkpoint::save_optimizer(&dir.join("actor_optimizer.safetensors"), &self.actor_optimizer)?;
        self.critic.as_ref().map_or(Ok(()), |critic| critic.save(dir))
    }

    /// Reads back what `save` wrote after `updates` updates; the learner must have been made with the same settings.
    pub fn load(&mut self, dir: &Path, updates: usize) -> Result<()> {
        let (backend, config) = (self.backend, &self.model.config);
        self.actor = checkpoint::load_adapter(backend, config, &dir.join("actor"))?;
        self.reference = checkpoint::load_adapter(backend, config, &dir.join("reference"))?;
        checkpoint::load_optimizer(backend, &dir.join("actor_optimizer.safetensors"), &mut self.actor_optimizer)?;
        if let Some(critic) = &mut self.critic {
            critic.load(backend, self.model, dir)?;
        }
        self.updates = updates;
        Ok(())
    }

    /// One round's update: `epochs` passes of `minibatches` optimizer steps; `target_kl` may end them early. Errors: a
    /// round whose parts do not belong together; a reward, loss, gradient or parameter that is not finite.
    pub fn update(&mut self, round: &Round) -> Result<UpdateStats> {
        round.check()?;
        let settings = self.settings;
        let parts = self.parts(round)?;
        let (reference, values) = self.scored(round, &parts)?;
        let signal = signal(settings, round, &reference, &values);
        let known = Known { behaviour: round.logprobs.concat(), reference, values, signal };
        let minibatches = self.minibatches(parts, &known.signal.is_live);

        let factor = self.factor();
        let mut stats = UpdateStats::new(round, &known.signal, &known.values, factor);
        let mut actor_grads = Gradients::new(self.backend, self.policy(&self.actor), false)?;
        let mut critic_grads = match &self.critic {
            Some(critic) => Some(critic.gradients(self.backend, self.model)?),
            None => None,
        };
        let mut gauge = Gauge::default();
        for pass in 0..settings.epochs {
            let before = stats.minibatches.len();
            for minibatch in minibatches.iter().filter(|m| m.weights.iter().any(|&w| w > 0.0)) {
                // Until the first step the trainer's log-probabilities are those of the policy that sampled.
                let measured = stats.minibatches.is_empty().then_some(&mut gauge);
                let one = self.step(
                    minibatch,
                    &known,
                    round.temperature,
                    factor,
                    &mut actor_grads,
                    &mut critic_grads,
                    measured,
                )?;
                stats.minibatches.push(one);
            }
            stats.passes = pass + 1;
            let moved = stats::mean(stats.minibatches[before..].iter().map(|m| m.policy.approx_kl));
            if settings.target_kl > 0.0 && moved > f64::from(settings.target_kl) {
                break;
            }
        }
        self.updates += 1;
        stats.finish(gauge);
        Ok(stats)
    }

    /// One optimizer step of the actor (none while the critic warms up) and one of the critic.
    #[allow(clippy::too_many_arguments)]
    fn step(
        &mut self,
        minibatch: &Minibatch,
        known: &Known,
        temperature: f32,
        factor: f32,
        actor_grads: &mut Gradients,
        critic_grads: &mut Option<CriticGradients>,
        mut gauge: Option<&mut Gauge>,
    ) -> Result<MinibatchStats> {
        let (backend, settings) = (self.backend, self.settings);
        let mut sums = Sums::default();
        actor_grads.zero(backend)?;
        for micro in &minibatch.parts {
            let start = minibatch.tokens.start;
            let weights = &minibatch.weights[micro.tokens.start - start..micro.tokens.end - start];
            if weights.iter().all(|&w| w == 0.0) {
                continue;
            }
            let weight = self.vector(weights)?;
            let logp = self.actor_pass(micro, temperature, known, &weight, actor_grads, &mut sums)?;
            if let Some(gauge) = gauge.as_deref_mut() {
                gauge.add(&logp, &known.behaviour[micro.tokens.clone()]);
            }
            if let (Some(critic), Some(grads)) = (&self.critic, critic_grads.as_mut()) {
                let old_value = self.vector(&known.values[micro.tokens.clone()])?;
                let target = self.vector(&known.signal.targets[micro.tokens.clone()])?;
                let clip = (settings.value_clip > 0.0).then_some(settings.value_clip);
                let inputs = CriticInputs { clip, old_value: &old_value, target: &target, weight: &weight };
                sums.value_loss += critic.pass(backend, self.model, micro, &inputs, &mut self.acts, grads)?;
            }
        }
        sums.check()?;
        let grads = actor_grads.adapter.as_deref().unwrap_or_default();
        let norm = if self.updates >= settings.critic_warmup || self.critic.is_none() {
            let lr = settings.learning_rate * factor;
            self.actor_optimizer.step(backend, &mut self.actor.tensors, grads, lr, settings.max_norm)?
        } else {
            optimizer::squared_norm(backend, &grads.iter().collect::<Vec<_>>())?.sqrt() as f32
        };
        if let (Some(critic), Some(grads)) = (&mut self.critic, critic_grads) {
            let lr = settings.critic_learning_rate * factor;
            sums.critic_norm = Some(critic.step(backend, grads, lr, settings.max_norm)?);
        }
        let total = minibatch.weights.iter().map(|&w| f64::from(w)).sum();
        Ok(sums.finish(total, norm))
    }

    /// Cuts the round into minibatches of whole groups, and these into passes within `micro_tokens`.
    fn parts(&self, round: &Round) -> Result<Vec<Vec<Micro>>> {
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

    /// Log-probabilities under the reference, and values when there is a critic, of all tokens before the update.
    fn scored(&mut self, round: &Round, parts: &[Vec<Micro>]) -> Result<(Vec<f32>, Vec<f32>)> {
        let backend = self.backend;
        let (mut reference, mut values) = (vec![], vec![]);
        for micro in parts.iter().flatten() {
            let policy = Policy { model: self.model, adapter: Some(&self.reference) };
            let scores = batch::forward(backend, policy, &micro.batch, round.temperature, false, &mut self.acts)?;
            reference.extend(backend.read(&scores.logp)?);
            if let Some(critic) = &self.critic {
                let (value, _) = critic.values(backend, self.model, &micro.batch, false, &mut self.acts)?;
                values.extend(backend.read(&value)?);
            }
        }
        Ok((reference, values))
    }

    /// The minibatches with the weights of their tokens.
    fn minibatches(&self, parts: Vec<Vec<Micro>>, is_live: &[bool]) -> Vec<Minibatch> {
        let (mut token, mut reply) = (0, 0);
        let one = |parts: Vec<Micro>| {
            let lengths: Vec<usize> = parts.iter().flat_map(|m| m.batch.samples.iter().map(Range::len)).collect();
            let live = &is_live[reply..reply + lengths.len()];
            let weights = loss_weights(self.settings.loss_average, &lengths, live, self.settings.reply_scale);
            let tokens = token..token + weights.len();
            (token, reply) = (tokens.end, reply + lengths.len());
            Minibatch { parts, tokens, weights }
        };
        parts.into_iter().map(one).collect()
    }

    /// Forward, loss and backward of the actor on one part; returns the log-probabilities.
    fn actor_pass(
        &mut self,
        micro: &Micro,
        temperature: f32,
        known: &Known,
        weight: &Tensor,
        grads: &mut Gradients,
        sums: &mut Sums,
    ) -> Result<Vec<f32>> {
        let (backend, s) = (self.backend, self.settings);
        let policy = Policy { model: self.model, adapter: Some(&self.actor) };
        let scores = batch::forward(backend, policy, &micro.batch, temperature, true, &mut self.acts)?;
        let logp = backend.read(&scores.logp)?;
        let part = |all: &[f32]| self.vector(&all[micro.tokens.clone()]);
        let behaviour = match s.objective {
            Objective::Gspo => {
                self.vector(&sequence_behaviour(&logp, &known.behaviour[micro.tokens.clone()], &micro.batch.samples))?
            }
            Objective::Clip | Objective::Cispo => part(&known.behaviour)?,
        };
        let ppo = PpoInputs {
            logp: &scores.logp,
            entropy: &scores.entropy,
            behaviour: &behaviour,
            reference: &part(&known.reference)?,
            advantage: &part(&known.signal.advantages)?,
            weight,
        };
        let vector = || backend.alloc(&[micro.batch.loss_rows()], backend.accumulator());
        let (mut dlogp, mut dentropy) = (vector()?, vector()?);
        let (params, mut stats) = (params(s), PpoStats::default());
        ops::PpoLoss { params: &params, inputs: &ppo, dlogp: &mut dlogp, dentropy: &mut dentropy, stats: &mut stats }
            .run(backend)?;
        sums.add(&stats);
        let dentropy = (s.entropy_coefficient != 0.0).then_some(&dentropy);
        batch::backward(backend, policy, &micro.batch, temperature, &mut self.acts, &scores, &dlogp, dentropy, grads)?;
        Ok(logp)
    }

    fn policy<'b>(&'b self, adapter: &'b Adapter) -> Policy<'b> {
        Policy { model: self.model, adapter: Some(adapter) }
    }

    fn vector(&self, values: &[f32]) -> Result<Tensor> {
        let mut tensor = self.backend.alloc_unset(&[values.len()], self.backend.accumulator())?;
        self.backend.write(&mut tensor, &Tensor::from_slice(&[values.len()], values))?;
        Ok(tensor)
    }
}

/// Epsilon of AdamW, added to the root of the second moment: PyTorch's default.
const ADAM_EPS: f32 = 1e-8;

/// AdamW's constants in reinforcement learning.
fn constants(settings: &Settings) -> AdamWConfig {
    let Settings { beta1, beta2, weight_decay, .. } = *settings;
    AdamWConfig { beta1, beta2, eps: ADAM_EPS, weight_decay }
}

/// Options of the token loss under these settings.
fn params(s: &Settings) -> PpoParams {
    PpoParams {
        surrogate: if s.objective == Objective::Cispo { Surrogate::Cispo } else { Surrogate::Clip },
        clip_low: s.clip_low,
        clip_high: s.clip_high,
        dual_clip: (s.objective == Objective::Clip && s.dual_clip > 1.0).then_some(s.dual_clip),
        kl_coefficient: if s.kl_in == KlIn::Loss { s.kl_coefficient } else { 0.0 },
        kl_estimator: s.kl_estimator,
        entropy_coefficient: s.entropy_coefficient,
    }
}

/// Behaviour log-probabilities that make the token loss GSPO's: each lies below the token's log-probability by the
/// reply's mean log ratio (arXiv 2507.18071 eq. 7), so every token has that ratio and the gradient of its own
/// log-probability (GSPO's token form).
fn sequence_behaviour(logp: &[f32], behaviour: &[f32], samples: &[Range<usize>]) -> Vec<f32> {
    let of_reply = |span: &Range<usize>| {
        let moved = span.clone().map(|i| f64::from(logp[i]) - f64::from(behaviour[i])).sum::<f64>();
        let mean = moved / span.len() as f64;
        span.clone().map(move |i| (f64::from(logp[i]) - mean) as f32)
    };
    samples.iter().flat_map(of_reply).collect()
}
