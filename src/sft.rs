//! Supervised fine-tuning of an adapter or of all weights: packed examples, loss on the agent's replies only. The loop
//! is `train`.

use crate::backend::Backend;
use crate::batch::{self, LossBatch};
use crate::checkpoint;
use crate::console::errln;
use crate::dataset::{self, Example};
use crate::error::{Error, Result};
use crate::export;
use crate::model::lora::Adapter;
use crate::model::{Activations, Gradients, Model, Policy, Recompute};
use crate::optimizer::{AdamWConfig, Decay, Optimizer};
use crate::rng::Philox;
use crate::run::{Run, Suspect, Suspects, finite};
use crate::settings::{choice, section};
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

section! {
    /// `[sft]`
    Settings {
        epochs: usize, learning_rate: f32, schedule: Decay, warmup: usize, batch_tokens: usize, micro_tokens: usize,
        max_tokens: usize, beta1: f32, beta2: f32, weight_decay: f32, max_norm: f32, full: bool, recompute: Recompute,
        validation_share: f64, save_dtype: SaveDtype,
    }
}
choice! {
    /// The type that fully trained weights are written in.
    SaveDtype { Base, Bf16, F16, F32 }
}

/// What is trained.
pub enum Trained {
    /// A low-rank change of a frozen base.
    Adapter(Adapter),
    /// All weights, in the accumulator type.
    Weights {
        /// The trained weights.
        model: Model,
        /// The model folder that training began from; checkpoints are whole folders with its tokenizer and
        /// configuration.
        folder: PathBuf,
    },
}

impl Trained {
    /// The policy to run: the adapter over `base`, or the trained weights themselves.
    pub fn policy<'b>(&'b self, base: &'b Model) -> Policy<'b> {
        match self {
            Trained::Adapter(adapter) => Policy { model: base, adapter: Some(adapter) },
            Trained::Weights { model, .. } => Policy { model, adapter: None },
        }
    }

    /// The tensors that an optimizer changes.
    pub fn params(&mut self) -> &mut [Tensor] {
        match self {
            Trained::Adapter(adapter) => &mut adapter.tensors,
            Trained::Weights { model, .. } => &mut model.weights,
        }
    }

    fn grads<'g>(&self, grads: &'g Gradients) -> &'g [Tensor] {
        let list = if matches!(self, Trained::Adapter(_)) { &grads.adapter } else { &grads.weights };
        list.as_deref().unwrap_or_default()
    }

    /// Zero gradients of what is trained.
    pub fn gradients(&self, backend: &dyn Backend, base: &Model) -> Result<Gradients> {
        Gradients::new(backend, self.policy(base), matches!(self, Trained::Weights { .. }))
    }

    /// One optimizer step; returns the gradient's norm before clipping.
    pub fn step(
        &mut self,
        backend: &dyn Backend,
        optimizer: &mut Optimizer,
        grads: &Gradients,
        lr: f32,
        max_norm: f32,
    ) -> Result<f32> {
        // Looked up first, before `self` is borrowed mutably.
        let grads = self.grads(grads);
        optimizer.step(backend, self.params(), grads, lr, max_norm)
    }

    /// The tensors that a number that is not finite may come from.
    fn suspects<'t>(&'t self, base: &'t Model, rate: f32) -> Suspects<'t> {
        let (what, names, tensors) = match self {
            Trained::Adapter(adapter) => ("the adapter", &adapter.names, &adapter.tensors),
            Trained::Weights { model, .. } => ("the trained model", &model.names, &model.weights),
        };
        Suspects { base: (&base.names, &base.weights), trained: vec![Suspect { what, names, tensors, rate }] }
    }

    fn save(&self, dir: &Path) -> Result<()> {
        match self {
            Trained::Adapter(adapter) => checkpoint::save_adapter(&dir.join("adapter"), adapter, ""),
            Trained::Weights { model, folder } => {
                // In f32 whatever the base's type is, so that a resumed run continues bit for bit.
                export::trained(&dir.join("model"), model, DType::F32, folder).map(drop)
            }
        }
    }

    fn load(&mut self, backend: &dyn Backend, base: &Model, dir: &Path) -> Result<()> {
        match self {
            Trained::Adapter(adapter) => {
                *adapter = checkpoint::load_adapter(backend, &base.config, &dir.join("adapter"))?;
            }
            Trained::Weights { model, .. } => {
                *model = checkpoint::load_model(backend, &dir.join("model"))?.0.widen(backend)?
            }
        }
        Ok(())
    }
}

/// The data of supervised fine-tuning.
pub struct Examples {
    /// Examples that contribute to the gradient.
    pub training: Vec<Example>,
    /// The share `sft.validation_share` of all examples, drawn with the run's seed.
    pub validation: Vec<Example>,
}

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
}

/// Trains for `epochs` passes over the training examples in an order drawn from the run's seed. Logs loss, rate, gradient norm,
/// and the validation loss after each epoch. Errors: no examples; a loss, gradient or parameter that is not finite;
/// interrupted.
pub fn train(
    run: &mut Run,
    settings: &Settings,
    base: &Model,
    mut trained: Trained,
    data: &Examples,
) -> Result<Trained> {
    let (backend, examples) = (run.backend, &data.training[..]);
    if examples.is_empty() {
        return Err(Error::content("no example to train on"));
    }
    let Settings { beta1, beta2, weight_decay, .. } = *settings;
    let constants = AdamWConfig { beta1, beta2, eps: 1e-8, weight_decay };
    let mut optimizer = Optimizer::new(backend, &*trained.params(), constants)?;
    let steps = plan(examples, settings, run.settings.seed)?;
    let schedule = settings.schedule.over(settings.warmup, steps.len());
    if settings.warmup >= steps.len() {
        errln!(
            "warning: sft.warmup = {}: training has {} optimizer steps, so sft.learning_rate is never reached",
            settings.warmup,
            steps.len()
        );
    }
    let mut start = 0;
    if let Some((dir, State { step })) = run.resumed()? {
        trained.load(backend, base, &dir)?;
        checkpoint::load_optimizer(backend, &dir.join("optimizer.safetensors"), &mut optimizer)?;
        start = step;
    }
    let mut grads = trained.gradients(backend, base)?;
    let mut acts = Activations::new(settings.recompute).with_room(settings.micro_tokens);
    let mut progress = run.progress(steps.len(), start);
    let mut divergence = run.divergence(base.config.vocab)?;
    for (index, packs) in steps.iter().enumerate().skip(start) {
        let step = index + 1;
        grads.zero(backend)?;
        let tokens: usize = packs.iter().flatten().map(|&e| loss_tokens(&examples[e])).sum();
        let mut loss = 0.0;
        for pack in packs {
            let batch = sequences(backend, base, pack.iter().map(|&e| &examples[e]))?;
            loss +=
                cross_entropy(backend, trained.policy(base), &batch, 1.0 / tokens as f32, &mut acts, Some(&mut grads))?;
        }
        let lr = settings.learning_rate * schedule.factor(index as u32);
        let grad_norm = finite("the loss", loss)
            .and_then(|()| trained.step(backend, &mut optimizer, &grads, lr, settings.max_norm))
            .map_err(|error| run.lost(error, step, &trained.suspects(base, lr), || content(examples, packs, loss)))?;
        run.log(step, &json!({"loss": loss, "learning_rate": lr, "grad_norm": grad_norm, "tokens": tokens}))?;
        let is_epoch_end = step.is_multiple_of(steps.len().div_ceil(settings.epochs)) || step == steps.len();
        if is_epoch_end
            && let Some(loss) = mean_loss(backend, trained.policy(base), base, &data.validation, settings, &mut acts)?
        {
            finite("the validation loss", loss).map_err(|error| {
                run.lost(error, step, &trained.suspects(base, lr), || content(examples, packs, loss))
            })?;
            run.log(step, &json!({"validation_loss": loss}))?;
        }
        if let Some(line) = divergence.loss(loss).map_err(|error| error.context(format!("sft step {step}")))? {
            progress.say(&format!("warning: sft step {step}: {line}"));
        }
        let read = packs.iter().flatten().map(|&e| examples[e].ids.len()).sum();
        progress.advance(step, read, &format!("loss {loss:.3}"));
        run.step_done(step, steps.len(), &State { step }, |dir| {
            trained.save(dir)?;
            checkpoint::save_optimizer(&dir.join("optimizer.safetensors"), &optimizer)
        })?;
    }
    progress.finish();
    Ok(trained)
}

/// A step's examples, for inspection: where they came from, their ids, and which of them have a loss.
fn content(examples: &[Example], packs: &[Vec<usize>], loss: f64) -> Value {
    let one = |&at: &usize| {
        let Example { source, ids, is_sampled } = &examples[at];
        json!({"source": source, "ids": ids, "is_sampled": is_sampled})
    };
    json!({"loss": loss.to_string(), "examples": packs.iter().flatten().map(one).collect::<Vec<_>>()})
}

/// Maximum examples of all epochs together, whose order is held in memory: about 2 GB.
const MOST_PICKS: usize = 50_000_000;

/// Checks settings against the examples before training. Errors: more epochs than can be planned; a warm-up as long as
/// the steps or longer (`train` itself only warns).
pub fn check(examples: &[Example], settings: &Settings, seed: u64) -> Result<()> {
    let steps = if examples.is_empty() { 0 } else { plan(examples, settings, seed)?.len() };
    match settings.warmup {
        warmup if warmup > 0 && warmup >= steps => Err(Error::content(format!(
            "sft.warmup = {warmup} with {steps} steps (sft.epochs, sft.batch_tokens): the learning rate would never be reached; expected \
             less than the steps"
        ))),
        _ => Ok(()),
    }
}

/// The examples of every step, as packs of one pass each: shuffled per epoch, cut into steps of about equal tokens
/// (about `batch_tokens` at most), each packed within `micro_tokens`.
fn plan(examples: &[Example], settings: &Settings, seed: u64) -> Result<Vec<Vec<Vec<usize>>>> {
    let picks = examples.len().saturating_mul(settings.epochs);
    if picks > MOST_PICKS {
        return Err(Error::content(format!(
            "sft.epochs = {} of {} examples: the order of all of them is drawn ahead; expected at most {} epochs",
            settings.epochs,
            examples.len(),
            MOST_PICKS / examples.len()
        )));
    }
    let tokens: usize = examples.iter().map(|e| e.ids.len()).sum();
    let even = tokens.div_ceil(tokens.div_ceil(settings.batch_tokens));
    let mut steps = vec![];
    for epoch in 0..settings.epochs {
        let mut order: Vec<usize> = (0..examples.len()).collect();
        Philox::named(seed, &format!("sft epoch {epoch}")).shuffle(&mut order);
        let mut cut = vec![vec![]];
        let mut sum = 0;
        for example in order {
            // Each step begins where its share of the tokens does, so that the last one is not a small rest.
            if sum >= even * cut.len() {
                cut.push(vec![]);
            }
            sum += examples[example].ids.len();
            cut.last_mut().into_iter().for_each(|step| step.push(example));
        }
        for step in cut {
            let lengths: Vec<usize> = step.iter().map(|&e: &usize| examples[e].ids.len()).collect();
            let packs = dataset::pack(&lengths, settings.micro_tokens).into_iter();
            steps.push(packs.map(|pack| pack.into_iter().map(|place| step[place]).collect()).collect());
        }
    }
    Ok(steps)
}

fn loss_tokens(example: &Example) -> usize {
    example.is_sampled.iter().skip(1).filter(|&&sampled| sampled).count()
}

fn sequences<'e>(
    backend: &dyn Backend,
    base: &Model,
    examples: impl Iterator<Item = &'e Example>,
) -> Result<LossBatch> {
    let list: Vec<(&[u32], &[bool])> = examples.map(|e| (e.ids.as_slice(), e.is_sampled.as_slice())).collect();
    LossBatch::from_sequences(backend, &base.config, &list)
}

/// The sum over loss rows of -weight log p; adds its gradient to `grads` if they are given.
pub fn cross_entropy(
    backend: &dyn Backend,
    policy: Policy,
    batch: &LossBatch,
    weight: f32,
    acts: &mut Activations,
    grads: Option<&mut Gradients>,
) -> Result<f64> {
    let scores = batch::forward(backend, policy, batch, 1.0, grads.is_some(), acts)?;
    let sum: f64 = backend.read(&scores.logp)?.into_iter().map(f64::from).sum();
    if let Some(grads) = grads {
        let mut dlogp = backend.alloc_unset(&[batch.loss_rows()], backend.accumulator())?;
        backend.fill(&mut dlogp, -weight)?;
        batch::backward(backend, policy, batch, 1.0, acts, &scores, &dlogp, None, grads)?;
    }
    Ok(-sum * f64::from(weight))
}

/// Mean loss per token; `None` without examples.
fn mean_loss(
    backend: &dyn Backend,
    policy: Policy,
    base: &Model,
    examples: &[Example],
    settings: &Settings,
    acts: &mut Activations,
) -> Result<Option<f64>> {
    let (mut sum, mut tokens) = (0.0, 0);
    for range in batch::split(examples.iter().map(|e| e.ids.len()), settings.micro_tokens) {
        let batch = sequences(backend, base, examples[range].iter())?;
        tokens += batch.loss_rows();
        sum += cross_entropy(backend, policy, &batch, 1.0, acts, None)?;
    }
    Ok((tokens > 0).then(|| sum / tokens as f64))
}
