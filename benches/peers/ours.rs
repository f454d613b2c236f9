//! Our side: a training step and greedy decoding through the same calls that `sft` and `rl` make, timed around the work alone.

use onestep::backend::Backend;
use onestep::backend::ops::{self, Sampling};
use onestep::batch::LossBatch;
use onestep::error::Result;
use onestep::model::kv_cache::{BlockManager, KvCache, PagedPlan};
use onestep::model::lora::Adapter;
use onestep::model::{self, Activations, Gradients, Model, Policy, index_tensor};
use onestep::optimizer::{AdamWConfig, Optimizer};
use onestep::rollout;
use onestep::rollout::{Engine, Request, Sample};
use onestep::sft::{Trained, cross_entropy};
use onestep::tensor::Tensor;
use serde::Deserialize;
use std::path::PathBuf;
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
            None => Trained::Weights { model: base.widen(backend)?, folder: PathBuf::new() },
        };
        let constants = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };
        let optimizer = Optimizer::new(backend, &*trained.params(), constants)?;
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
    /// The largest logit; ours are not known.
    #[serde(default)]
    pub largest: f64,
}

/// Greedy decoding of `samples` copies of every prompt, pass by pass as the engine does it: it does not say when its prefill
/// ends.
pub struct Decoder<'a> {
    backend: &'a dyn Backend,
    model: &'a Model,
    prompts: &'a [Vec<u32>],
    samples: usize,
    new: usize,
    blocks: usize,
    cache: KvCache,
    acts: Activations,
}

const BLOCK: usize = 16;

impl<'a> Decoder<'a> {
    pub fn new(
        backend: &'a dyn Backend,
        model: &'a Model,
        prompts: &'a [Vec<u32>],
        samples: usize,
        new: usize,
    ) -> Result<Self> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + new;
        let blocks = prompts.len() * samples * longest.div_ceil(BLOCK);
        let cache = KvCache::new(backend, &model.config, blocks, BLOCK)?;
        Ok(Self { backend, model, prompts, samples, new, blocks, cache, acts: Activations::default() })
    }

    /// Both phases, timed; with the ids and their log-probabilities.
    pub fn run(&mut self) -> Result<Decoded> {
        let begin = Instant::now();
        let mut blocks = BlockManager::new(self.blocks, BLOCK);
        let (mut ids, mut rows, mut copies, mut sequences) = (vec![], vec![], vec![], vec![]);
        for prompt in self.prompts {
            let start = ids.len();
            ids.extend(prompt.iter().map(|&id| id as i32));
            let parent = blocks.allocate(prompt.len())?;
            let mut forks = vec![];
            for _ in 1..self.samples {
                let (fork, pairs) = blocks.fork(&parent)?;
                let partial = prompt.len() - pairs.len();
                copies.extend(pairs.iter().enumerate().map(|(i, &(_, to))| (start + partial + i, to)));
                forks.push(fork);
            }
            rows.extend(vec![ids.len() as i32 - 1; self.samples]);
            sequences.push(parent);
            sequences.extend(forks);
        }
        let parents: Vec<_> = sequences.iter().step_by(self.samples).map(|s| (s, 0..s.len())).collect();
        let plan = PagedPlan::new(self.backend, &parents, &copies, 0)?;
        let (mut last, mut logp) = self.pass(&ids, &plan, &rows)?;
        let prefill = begin.elapsed().as_secs_f64();
        let (mut ids, mut logps) = (vec![vec![]; last.len()], vec![vec![]; last.len()]);
        let rows: Vec<i32> = (0..last.len() as i32).collect();
        for step in 1..=self.new {
            for (sample, (id, logp)) in last.iter().zip(logp).enumerate() {
                ids[sample].push(*id as u32);
                logps[sample].push(logp);
            }
            if step == self.new {
                break;
            }
            sequences.iter_mut().try_for_each(|sequence| blocks.append(sequence, 1))?;
            let queries: Vec<_> = sequences.iter().map(|s| (s, s.len() - 1..s.len())).collect();
            let plan = PagedPlan::new(self.backend, &queries, &[], 0)?;
            (last, logp) = self.pass(&last, &plan, &rows)?;
        }
        let decode = begin.elapsed().as_secs_f64() - prefill;
        Ok(Decoded { prefill, decode, ids, logps, largest: 0.0 })
    }

    /// One pass over `ids`: the most probable next tokens of `rows` and their log-probabilities.
    fn pass(&mut self, ids: &[i32], plan: &PagedPlan, rows: &[i32]) -> Result<(Vec<i32>, Vec<f32>)> {
        let Self { backend, model, cache, acts, .. } = self;
        let policy = Policy { model, adapter: None };
        let batch = rows.len();
        model::forward_paged(*backend, policy, &index_tensor(*backend, &[ids.len()], ids)?, cache, plan, acts)?;
        let float = |shape: &[usize]| backend.alloc(shape, backend.activation());
        let (mut hidden, mut logits) = (float(&[batch, model.config.hidden])?, float(&[batch, model.config.vocab])?);
        ops::GatherRows { x: acts.hidden(), rows: &index_tensor(*backend, &[batch], rows)?, y: &mut hidden }
            .run(*backend)?;
        ops::Logits { x: &hidden, w: model.lm_head(), out: &mut logits }.run(*backend)?;
        let zeros = index_tensor(*backend, &[batch], &vec![0; batch])?;
        let greedy = Sampling {
            temperature: &float(&[batch])?,
            top_p: &Tensor::from_slice(&[batch], &vec![1.0f32; batch]),
            top_k: &zeros,
            seed: &index_tensor(*backend, &[batch, 2], &vec![0; 2 * batch])?,
            counter: &zeros,
        };
        let (mut chosen, mut logp) = (index_tensor(*backend, &[batch], &vec![0; batch])?, float(&[batch])?);
        ops::Sample { logits: &logits, sampling: &greedy, ids: &mut chosen, logp: &mut logp }.run(*backend)?;
        Ok((backend.read_i32(&chosen)?, backend.read(&logp)?))
    }

    /// Does the engine say the same, to the last bit?
    pub fn agrees_with_engine(&self, decoded: &Decoded) -> Result<bool> {
        let request = |prompt: &Vec<u32>| Request {
            prompt: prompt.clone(),
            samples: self.samples,
            seed: 0,
            stream: "peers".to_string(),
            max_tokens: self.new,
        };
        let requests: Vec<Request> = self.prompts.iter().map(request).collect();
        let greedy = rollout::Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, max_tokens: self.new };
        let settings = rollout::Settings {
            block_size: BLOCK,
            cache_tokens: (self.blocks + 2 * decoded.ids.len()) * BLOCK,
            prefill_tokens: self.prompts.iter().map(Vec::len).sum(),
            max_running: decoded.ids.len(),
            burst: 1,
        };
        let policy = Policy { model: self.model, adapter: None };
        let samples = Engine::new(self.backend, self.model, &settings)?.generate(policy, &requests, &greedy, &[])?;
        let all: Vec<_> = samples.into_iter().flatten().collect();
        let is_same = |(i, s): (usize, &Sample)| s.ids == decoded.ids[i] && s.logprobs == decoded.logps[i];
        Ok(all.len() == decoded.ids.len() && all.iter().enumerate().all(is_same))
    }
}
