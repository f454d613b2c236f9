//! Our side: a training step and greedy decoding through the same calls that `sft` and `rl` make, timed around the work alone.

use onestep::backend::Backend;
use onestep::batch::LossBatch;
use onestep::config::{Engine as EngineSettings, Sampling};
use onestep::error::Result;
use onestep::model::lora::Adapter;
use onestep::model::{Activations, Gradients, Model, Policy};
use onestep::optimizer::{AdamWConfig, Optimizer};
use onestep::rollout::{Engine, Request};
use onestep::sft::{Trained, cross_entropy};
use serde::Deserialize;
use std::time::Instant;

/// One training step of either side.
#[derive(Deserialize)]
pub struct Step {
    pub seconds: f64,
    pub loss: f64,
    /// Of the gradient, before clipping.
    pub norm: f64,
}

/// Forward, backward, clipping and AdamW on one batch, again and again.
pub struct Trainer<'a> {
    backend: &'a dyn Backend,
    base: &'a Model,
    trained: Trained,
    optimizer: Optimizer,
    grads: Gradients,
    acts: Activations,
    batch: LossBatch,
    lr: f32,
    clip: f32,
}

impl<'a> Trainer<'a> {
    /// Trains `adapter`, or all weights, to predict every token of `ids` but the first of each sequence.
    pub fn new(
        backend: &'a dyn Backend,
        base: &'a Model,
        adapter: Option<Adapter>,
        ids: &[Vec<u32>],
        lr: f32,
        clip: f32,
    ) -> Result<Self> {
        let mut trained = match adapter {
            Some(adapter) => Trained::Adapter(adapter),
            None => Trained::Weights(base.widen(backend)?),
        };
        let constants = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
        let optimizer = Optimizer::new(backend, trained.params(), constants)?;
        let grads = trained.gradients(backend, base)?;
        let all: Vec<Vec<bool>> = ids.iter().map(|ids| vec![true; ids.len()]).collect();
        let sequences: Vec<(&[u32], &[bool])> = ids.iter().zip(&all).map(|(i, a)| (&i[..], &a[..])).collect();
        let batch = LossBatch::from_sequences(backend, &base.config, &sequences)?;
        Ok(Self { backend, base, trained, optimizer, grads, acts: Activations::default(), batch, lr, clip })
    }

    pub fn step(&mut self) -> Result<Step> {
        let begin = Instant::now();
        self.grads.zero(self.backend)?;
        let weight = 1.0 / self.batch.loss_rows() as f32;
        let policy = self.trained.policy(self.base);
        let grads = Some(&mut self.grads);
        let loss = cross_entropy(self.backend, policy, &self.batch, weight, &mut self.acts, grads)?;
        let norm = self.trained.step(self.backend, &mut self.optimizer, &self.grads, self.lr, self.clip)?;
        Ok(Step { seconds: begin.elapsed().as_secs_f64(), loss, norm: norm.into() })
    }
}

/// One greedy decoding of either side. The scores are there when they were asked for.
#[derive(Deserialize)]
pub struct Decoded {
    /// Seconds to the first token of every sample.
    pub prefill: f64,
    /// Seconds for the other tokens.
    pub decode: f64,
    #[serde(default)]
    pub ids: Vec<Vec<u32>>,
    #[serde(default)]
    pub logps: Vec<Vec<f32>>,
}

/// Greedy decoding of `samples` copies of every prompt.
pub struct Decoder<'a> {
    engine: Engine<'a>,
    policy: Policy<'a>,
    requests: Vec<Request>,
}

impl<'a> Decoder<'a> {
    pub fn new(
        backend: &'a dyn Backend,
        model: &'a Model,
        prompts: &[Vec<u32>],
        samples: usize,
        new: usize,
    ) -> Result<Self> {
        let request = |prompt: &Vec<u32>| Request {
            prompt: prompt.clone(),
            samples,
            seed: 0,
            stream: "peers".to_string(),
            max_tokens: new,
        };
        let requests: Vec<Request> = prompts.iter().map(request).collect();
        let rows = requests.len() * samples;
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + new;
        let prefill_tokens = prompts.iter().map(Vec::len).sum();
        let block_size = 16;
        let cache_tokens = (rows + prompts.len()) * (longest.next_multiple_of(block_size) + block_size);
        let settings = EngineSettings { block_size, cache_tokens, prefill_tokens, max_running: rows };
        let engine = Engine::new(backend, model, &settings)?;
        Ok(Self { engine, policy: Policy { model, adapter: None }, requests })
    }

    /// The engine says nothing of its phases: the prefill is a run that stops at the first token, the rest what a whole run
    /// takes longer.
    pub fn run(&mut self) -> Result<Decoded> {
        let mut first = self.requests.clone();
        first.iter_mut().for_each(|request| request.max_tokens = 1);
        let (prefill, _) = self.generate(&first)?;
        let requests = self.requests.clone();
        let (whole, samples) = self.generate(&requests)?;
        let (ids, logps) = samples.into_iter().map(|sample| (sample.ids, sample.logprobs)).unzip();
        Ok(Decoded { prefill, decode: whole - prefill, ids, logps })
    }

    fn generate(&mut self, requests: &[Request]) -> Result<(f64, Vec<onestep::rollout::Sample>)> {
        let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, max_tokens: 0 };
        let begin = Instant::now();
        let samples = self.engine.generate(self.policy, requests, &greedy, &[])?;
        Ok((begin.elapsed().as_secs_f64(), samples.into_iter().flatten().collect()))
    }
}
