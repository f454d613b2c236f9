//! Prepares whole steps of a model with random weights: LoRA training, decoding, a rollout by the engine, one update.
//! Times nothing.

use super::kernels::Step;
use super::measure::Target;
use super::work::{BLOCK_SIZE, BURST, Sizes, Task, Work, adapter_shapes, gemm_parameters};
use crate::backend::ops::{self, Sampling};
use crate::backend::{Backend, Recording};
use crate::batch::{Group, LossBatch};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::kv_cache::{BlockManager, KvCache, PagedPlan};
use crate::model::lora::{Adapter, LoraConfig, Module};
use crate::model::{Activations, Gradients, Model, Policy, forward_paged, index_tensor};
use crate::optimizer::{AdamWConfig, Optimizer};
use crate::ppo::{self, Learner, Round};
use crate::rng::Philox;
use crate::rollout::{self, Engine, Request};
use crate::sft::cross_entropy;
use crate::tensor::{DType, Tensor};
use std::cell::RefCell;

/// Estimates the most bytes that a task takes, weights included, so that it can be refused before anything is
/// allocated.
pub fn bytes_needed(sizes: &Sizes, task: &Task) -> f64 {
    let config = &sizes.model.1;
    let embedding = if config.tied { 0 } else { config.vocab * config.hidden };
    let weights = 2.0 * (gemm_parameters(config) + embedding as f64);
    let adapter: usize = adapter_shapes(config, sizes.rank).iter().map(|s| s[0] * s[1]).sum();
    let (heads, layers, c) = (config.heads, config.layers as f64, config.hidden);
    // Bytes kept per token and layer: two residual streams and their norms; q, k, v; o; gate and up; their product.
    let kept = 2 * (4 * c + heads.qkv_width() + heads.nh * heads.hs + 3 * config.mlp);
    let cache = |tokens: usize| tokens as f64 * layers * (4 * heads.nkv * heads.hs) as f64;
    let logits = |rows: usize| (8 * rows * config.vocab) as f64;
    let training = |tokens: usize| tokens as f64 * layers * kept as f64 + logits(tokens.min(1024));
    weights
        + match *task {
            Task::Sft { t } => training(t) + 16.0 * adapter as f64,
            Task::RaggedSft { t, spread, .. } => training(t + spread) + 16.0 * adapter as f64,
            Task::Decode { b, context } => cache(b * context) + logits(b),
            Task::Rollout { prompts, samples, prompt, reply } => {
                cache(prompts * (prompt + samples * (reply + BLOCK_SIZE))) + logits(prompts * samples)
            }
            Task::Update { critic, .. } => {
                training(2 * sizes.tokens[0]) + (if critic { 36.0 } else { 20.0 }) * adapter as f64
            }
            _ => 0.0,
        }
        + if sizes.model.0 == "tiny" { 0.0 } else { 2e9 }
}

/// Draws the lengths of one step's packs in pairs, `off` below and `off` above `t`, so that their mean is `t`.
fn ragged(step: usize, t: usize, packs: usize, spread: usize) -> Vec<usize> {
    let mut random = Philox::new(8, step as u64);
    let pair = |_| {
        let off = random.below(spread + 1);
        [t - off, t + off]
    };
    (0..packs / 2).flat_map(pair).collect()
}

/// Results that a step reports about itself.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// Error and its allowance.
    pub error: Option<(f64, f64)>,
    /// Description in words.
    pub note: String,
}

/// A model with random weights, and the replies sampled from it.
pub struct EndToEnd<'a> {
    target: Target<'a>,
    sizes: Sizes,
    model: Model,
    sampled: Option<(Vec<Group>, Vec<Vec<f32>>)>,
    /// Findings of the last step that ran.
    pub findings: RefCell<Findings>,
}

impl<'a> EndToEnd<'a> {
    /// Makes the weights.
    pub fn new(target: Target<'a>, sizes: &Sizes) -> Result<Self> {
        let model = target.random_model(sizes.model.1.clone())?;
        Ok(Self { target, sizes: sizes.clone(), model, sampled: None, findings: RefCell::default() })
    }

    fn adapter(&self) -> Result<Adapter> {
        let lora = LoraConfig {
            rank: self.sizes.rank,
            alpha: 2.0 * self.sizes.rank as f32,
            rslora: false,
            modules: Module::ALL.to_vec(),
        };
        Adapter::new(self.target.backend, &self.model.config, lora, &mut Philox::new(5, 0))
    }

    fn ids(&self, stream: u64, n: usize) -> Vec<u32> {
        let mut random = Philox::new(6, stream);
        (0..n).map(|_| random.below(self.model.config.vocab) as u32).collect()
    }

    /// Prepares the work of a row.
    pub fn prepare<'s>(&'s mut self, work: &Work) -> Result<Step<'s>> {
        *self.findings.borrow_mut() = Findings::default();
        if let Task::Update { prompts, samples, prompt, reply, .. } = work.task
            && self.sampled.is_none()
        {
            self.sampled = Some(self.rollout(prompts, samples, prompt, reply)?);
        }
        match work.task {
            Task::Sft { t } => self.sft(0.0, move |_| vec![t]),
            // The slack is there because each step's loss is over other tokens.
            Task::RaggedSft { t, packs, spread } => self.sft(0.1, move |step| ragged(step, t, packs, spread)),
            Task::Decode { b, context } => self.decode(b, context),
            Task::Rollout { prompts, samples, prompt, reply } => {
                Ok(Box::new(move || self.rollout(prompts, samples, prompt, reply).map(drop)))
            }
            Task::Update { critic, .. } => self.update(critic),
            _ => Err(Error::system(format!("{:?} is no step of a model", work.task))),
        }
    }

    /// Prepares training steps. `lengths` maps a step's number to the lengths of its packs; a pack that is not alone in
    /// its step holds two sequences. From the sixth step on, the loss must be below the first one plus `slack`.
    fn sft(&self, slack: f64, lengths: impl Fn(usize) -> Vec<usize> + 'static) -> Result<Step<'_>> {
        let be = self.target.backend;
        let mut adapter = self.adapter()?;
        let batches = move |step: usize| -> Result<Vec<LossBatch>> {
            let lengths = lengths(step);
            let one = |&t: &usize| {
                let (ids, is_sampled) = (self.ids(0, t), vec![true; t]);
                let cut = if lengths.len() > 1 { t / 2 } else { t };
                let sequences = [(&ids[..cut], &is_sampled[..cut]), (&ids[cut..], &is_sampled[cut..])];
                let few = if cut < t { 2 } else { 1 };
                LossBatch::from_sequences(be, &self.model.config, &sequences[..few])
            };
            lengths.iter().map(one).collect()
        };
        let mut grads = Gradients::new(be, Policy { model: &self.model, adapter: Some(&adapter) }, false)?;
        let constants = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(be, &adapter.tensors, constants)?;
        let mut acts = Activations::default();
        // Expected loss of an untied head on normalised random states: log V + half the variance of the logits.
        let config = &self.model.config;
        let expected = (config.vocab as f64).ln() + 0.5 * 0.02f64.powi(2) * config.hidden as f64;
        let mut first = None;
        Ok(Box::new(move || {
            grads.zero(be)?;
            let policy = Policy { model: &self.model, adapter: Some(&adapter) };
            let packs = batches(optimizer.steps as usize)?;
            let weight = 1.0 / packs.iter().map(LossBatch::loss_rows).sum::<usize>() as f32;
            let mut loss = 0.0;
            for batch in &packs {
                loss += cross_entropy(be, policy, batch, weight, &mut acts, Some(&mut grads))?;
            }
            let tensors = grads.adapter.as_deref().unwrap_or_default();
            let norm = optimizer.step(be, &mut adapter.tensors, tensors, 1e-4, 1.0)?;
            let start = *first.get_or_insert(loss);
            // Training repeats the same tokens, so a step that does nothing, or the wrong thing, shows as a loss that
            // does not fall.
            let off = if config.tied { 0.0 } else { (start - expected).abs() };
            let steps = optimizer.steps;
            let error = if !loss.is_finite() || norm == 0.0 || (steps > 5 && loss >= start + slack) {
                f64::INFINITY
            } else {
                off
            };
            *self.findings.borrow_mut() = Findings {
                error: Some((error, 0.5)),
                note: format!(
                    "loss {start:.3} (expected {expected:.3}) to {loss:.3} in {steps} steps; gradient norm {norm:.2e}"
                ),
            };
            Ok(())
        }))
    }

    /// Prepares decoding over a cache of random keys and values, which replaces a prefill. Each step is one burst as
    /// the engine runs it: plan in, a few steps of forward, logits and sampling (recorded where the backend records),
    /// ids out. Every burst ends at `context` tokens.
    fn decode(&self, b: usize, context: usize) -> Result<Step<'_>> {
        let (be, config) = (self.target.backend, &self.model.config);
        let pages = context.div_ceil(BLOCK_SIZE);
        let mut cache = KvCache::new(be, config, b * pages, BLOCK_SIZE)?;
        for (i, tensor) in cache.k.iter_mut().chain(&mut cache.v).enumerate() {
            self.target.random_normal(tensor, 1.0, i as u64)?;
        }
        let mut blocks = BlockManager::new(b * pages, BLOCK_SIZE);
        // Sequences get their blocks in turns, as when they grow side by side.
        let mut sequences = (0..b).map(|_| blocks.allocate(0)).collect::<Result<Vec<_>>>()?;
        for start in (0..context).step_by(BLOCK_SIZE) {
            sequences.iter_mut().try_for_each(|s| blocks.append(s, BLOCK_SIZE.min(context - start)))?;
        }
        let first = context - BURST..context - BURST + 1;
        let starts: Vec<_> = sequences.iter().map(|s| (s, first.clone())).collect();
        let float = |value: f32| -> Result<Tensor> {
            let mut tensor = be.alloc(&[b], DType::F32)?;
            be.fill(&mut tensor, value)?;
            Ok(tensor)
        };
        let last: Vec<i32> = self.ids(1, b).into_iter().map(|id| id as i32).collect();
        let mut ids = vec![index_tensor(be, &[b], &last)?];
        let mut logp = vec![];
        for _ in 0..BURST {
            ids.push(be.alloc(&[b], DType::I32)?);
            logp.push(be.alloc(&[b], be.accumulator())?);
        }
        let mut decode = Decode {
            recording: None,
            runs: 0,
            plan: PagedPlan::new(be, &starts, &[], pages)?,
            start: PagedPlan::new(be, &starts, &[], pages)?,
            counter: index_tensor(be, &[b], &vec![0; b])?,
            temperature: float(1.0)?,
            top_p: float(1.0)?,
            top_k: index_tensor(be, &[b], &vec![0; b])?,
            seed: index_tensor(be, &[b, 2], &(0..2 * b as i32).collect::<Vec<_>>())?,
            logits: be.alloc(&[b, config.vocab], be.accumulator())?,
            acts: Activations::default(),
            ids,
            logp,
            cache,
        };
        Ok(Box::new(move || decode.burst(be, &self.model)))
    }

    fn rollout(
        &self,
        prompts: usize,
        samples: usize,
        prompt: usize,
        reply: usize,
    ) -> Result<(Vec<Group>, Vec<Vec<f32>>)> {
        let settings = rollout::Settings {
            block_size: BLOCK_SIZE,
            cache_tokens: prompts * (prompt + samples * (reply + 2 * BLOCK_SIZE)),
            prefill_tokens: self.sizes.tokens[0],
            max_running: prompts * samples,
            burst: BURST,
        };
        let sampling = rollout::Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, max_tokens: reply };
        let request = |i: usize| Request {
            prompt: self.ids(10 + i as u64, prompt),
            samples,
            seed: 0,
            stream: format!("bench {i}"),
            max_tokens: reply,
        };
        let requests: Vec<Request> = (0..prompts).map(request).collect();
        let mut engine = Engine::new(self.target.backend, &self.model, &settings)?;
        let policy = Policy { model: &self.model, adapter: None };
        let replies = engine.generate(policy, &requests, &sampling, &[])?;
        let group = |(request, samples): (Request, &Vec<crate::rollout::Sample>)| Group {
            prompt: request.prompt,
            replies: samples.iter().map(|s| s.ids.clone()).collect(),
        };
        let groups = requests.into_iter().zip(&replies).map(group).collect();
        Ok((groups, replies.into_iter().flatten().map(|s| s.logprobs).collect()))
    }

    fn update(&self, critic: bool) -> Result<Step<'_>> {
        let be = self.target.backend;
        let Some((groups, logprobs)) = &self.sampled else { return Err(Error::system("an update without a rollout")) };
        let samples = groups[0].replies.len();
        let mut overrides = vec![
            format!("samples={samples}"),
            format!("algorithm={}", if critic { "ppo" } else { "grpo" }),
            format!("micro_tokens={}", 2 * self.sizes.tokens[0]),
        ];
        overrides.extend(["epochs=1", "minibatches=1", "critic_warmup=0"].map(String::from));
        let settings = Config::load(&[], &overrides, "rl")?.rl;
        // Leaked because the learner borrows its settings for as long as the step lives: a few words of memory per row.
        let settings: &'static ppo::Settings = Box::leak(Box::new(settings));
        let mut learner = Learner::new(be, &self.model, settings, self.adapter()?)?;
        let mut random = Philox::new(7, 0);
        let rewards: Vec<f64> = (0..logprobs.len()).map(|_| random.normal()).collect();
        let is_truncated = vec![false; logprobs.len()];
        let max_tokens = logprobs.iter().map(Vec::len).max().unwrap_or(1);
        let mut gauge = None;
        Ok(Box::new(move || {
            let (rewards, is_truncated) = (&rewards[..], &is_truncated[..]);
            let round = Round { groups, logprobs, rewards, is_truncated, max_tokens, temperature: 1.0 };
            let stats = learner.update(&round)?;
            let measured = |value: Option<f64>| value.unwrap_or(f64::INFINITY);
            let (mean, most) = *gauge.get_or_insert((measured(stats.gauge), measured(stats.gauge_max)));
            let error = if stats.policy.loss.is_finite() && stats.grad_norm > 0.0 { mean } else { f64::INFINITY };
            *self.findings.borrow_mut() = Findings {
                // A mean difference of one nat would make the ratios meaningless; bf16 gives about a hundredth.
                error: Some((error, 1.0)),
                note: format!("log p of engine and trainer differ by {mean:.2e} on average, {most:.2e} at most"),
            };
            Ok(())
        }))
    }
}

/// Buffers of a decode burst. `recording` is the first field, so that it is dropped before the tensors it uses.
struct Decode {
    recording: Option<Box<dyn Recording>>,
    runs: usize,
    plan: PagedPlan,
    start: PagedPlan,
    counter: Tensor,     // (B)
    temperature: Tensor, // (B)
    top_p: Tensor,       // (B)
    top_k: Tensor,       // (B)
    seed: Tensor,        // (B, 2)
    logits: Tensor,      // (B, V)
    acts: Activations,
    ids: Vec<Tensor>,  // BURST + 1 of (B): step i reads ids[i] and draws ids[i + 1]
    logp: Vec<Tensor>, // BURST of (B)
    cache: KvCache,
}

impl Decode {
    fn burst(&mut self, be: &dyn Backend, model: &Model) -> Result<()> {
        self.plan.set(be, &self.start)?;
        if be.records() && self.runs > 0 && self.recording.is_none() {
            self.recording = be.record(&mut || self.steps(be, model))?;
        }
        match &self.recording {
            Some(recording) => recording.replay()?,
            None => self.steps(be, model)?,
        }
        self.runs += 1;
        for (ids, logp) in self.ids[1..].iter().zip(&self.logp) {
            let vocab = model.config.vocab as i32;
            let (ids, logp) = (be.read_i32(ids)?, be.read(logp)?);
            if let Some(id) = ids.iter().find(|id| !(0..vocab).contains(*id)) {
                return Err(Error::system(format!("token {id} was drawn from a vocabulary of {vocab}")));
            }
            if logp.iter().any(|p| !(*p <= 0.0 && p.is_finite())) {
                return Err(Error::system("a drawn token has a log-probability that is none"));
            }
        }
        Ok(())
    }

    fn steps(&mut self, be: &dyn Backend, model: &Model) -> Result<()> {
        for step in 0..BURST {
            let plan = &mut self.plan;
            if step > 0 {
                let (table, counter) = (&plan.block_table, &mut self.counter);
                ops::Advance {
                    block_size: BLOCK_SIZE,
                    block_table: table,
                    positions: &mut plan.positions,
                    lens: &mut plan.lens,
                    slots: &mut plan.slots,
                    counter,
                }
                .run(be)?;
            }
            let policy = Policy { model, adapter: None };
            forward_paged(be, policy, &self.ids[step], &mut self.cache, plan, &mut self.acts)?;
            ops::Logits { x: self.acts.hidden(), w: model.lm_head(), out: &mut self.logits }.run(be)?;
            let sampling = Sampling {
                temperature: &self.temperature,
                top_p: &self.top_p,
                top_k: &self.top_k,
                seed: &self.seed,
                counter: &self.counter,
            };
            ops::Sample {
                logits: &self.logits,
                sampling: &sampling,
                ids: &mut self.ids[step + 1],
                logp: &mut self.logp[step],
            }
            .run(be)?;
        }
        Ok(())
    }
}
