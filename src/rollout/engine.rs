//! Continuous batching over a paged cache: each prompt is computed once and forked for its samples, then all running
//! samples decode together. A sample's tokens do not depend on what else is in the batch.

use super::burst::{Bursts, Row};
use super::sampler::{self, Draw};
use super::scheduler::{Running, Scheduler, Work};
use super::settings::{Sampling, Settings};
use super::{Request, Sample};
use crate::backend::Backend;
use crate::backend::ops::{self};
use crate::error::{Error, Result, check_interrupt};
use crate::model::kv_cache::{KvCache, PagedPlan, Sequence};
use crate::model::{self, Activations, Model, Policy};
use crate::tensor::{DType, Tensor};
use std::sync::atomic::AtomicBool;

/// A model's cache and buffers, ready to sample with any adapter over the model.
pub struct Engine<'a> {
    backend: &'a dyn Backend,
    cache: KvCache,
    scheduler: Scheduler,
    /// The sequence of a burst's padding rows, which belong to no sample.
    padding: Sequence,
    bursts: Bursts,
    burst: usize,
    /// The model's positions.
    positions: usize,
    cache_tokens: usize,
    acts: Activations,
    interrupted: Option<&'a AtomicBool>,
}

/// One sample as it grows.
struct Growing {
    draw: Draw,
    sample: Sample,
}

/// True when a sample may draw no more: it drew an end token or reached its maximum length.
fn has_ended(sample: &Sample, request: &Request, stop: &[u32]) -> bool {
    sample.ids.last().is_some_and(|id| stop.contains(id)) || sample.ids.len() >= request.max_tokens
}

impl<'a> Engine<'a> {
    /// Makes an engine and allocates its cache.
    pub fn new(backend: &'a dyn Backend, model: &Model, settings: &Settings) -> Result<Self> {
        let (scheduler, padding) = Scheduler::new(settings)?;
        let cache = KvCache::new(backend, &model.config, scheduler.blocks.total(), settings.block_size)?;
        let (bursts, burst) = (Bursts::new(cache.bytes()), settings.burst.min(settings.block_size));
        let acts = Activations::default().with_room(settings.prefill_tokens);
        let (positions, cache_tokens) = (model.config.max_positions, settings.cache_tokens);
        Ok(Self { backend, cache, scheduler, padding, bursts, burst, positions, cache_tokens, acts, interrupted: None })
    }

    /// Makes sampling end with an error (interrupted) while `flag` is set.
    pub fn interrupted_by(self, flag: &'a AtomicBool) -> Self {
        Self { interrupted: Some(flag), ..self }
    }

    /// The model's positions: the most tokens of a prompt and its reply.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// `engine.cache_tokens`.
    pub fn cache_tokens(&self) -> usize {
        self.cache_tokens
    }

    /// Maximum tokens of a prompt with which `samples` replies of at most `max_tokens` tokens always fit into the
    /// cache.
    pub fn longest_prompt(&self, samples: usize, max_tokens: usize) -> usize {
        self.scheduler.longest_prompt(samples, max_tokens)
    }

    /// Samples the replies to each request, in order. A sample ends with one of `stop` or at its length limit.
    pub fn generate(
        &mut self,
        policy: Policy,
        requests: &[Request],
        sampling: &Sampling,
        stop: &[u32],
    ) -> Result<Vec<Vec<Sample>>> {
        let growing = |request: &Request| {
            let one = |sample| Growing {
                draw: Draw::first(request.seed, &request.stream, sample),
                sample: Sample { ids: vec![], logprobs: vec![] },
            };
            (0..request.samples).map(one).collect::<Vec<_>>()
        };
        let mut replies: Vec<Vec<Growing>> = requests.iter().map(growing).collect();
        let done = self.run(policy, requests, sampling, stop, &mut replies);
        if done.is_err() {
            self.scheduler.clear();
        }
        done?;
        Ok(replies.into_iter().map(|r| r.into_iter().map(|g| g.sample).collect()).collect())
    }

    fn run(
        &mut self,
        policy: Policy,
        requests: &[Request],
        sampling: &Sampling,
        stop: &[u32],
        replies: &mut [Vec<Growing>],
    ) -> Result<()> {
        self.scheduler.submit(requests, self.positions)?;
        loop {
            self.interrupted.map_or(Ok(()), check_interrupt)?;
            let (first, rows) = match self.scheduler.next(requests) {
                Work::Prefill(chosen) => self.prefill(policy, requests, &chosen)?,
                Work::Decode => {
                    self.decode(policy, requests, sampling, stop, replies)?;
                    continue;
                }
                Work::Done => return Ok(()),
            };
            self.draw(policy, requests, sampling, stop, replies, first, &rows)?;
        }
    }

    /// Computes the prompts and starts their samples. Returns the index of the first new running sample, and for each
    /// new one the row that it draws from.
    fn prefill(&mut self, policy: Policy, requests: &[Request], chosen: &[usize]) -> Result<(usize, Vec<i32>)> {
        let first = self.scheduler.running.len();
        let (mut ids, mut rows, mut copies, mut parents) = (vec![], vec![], vec![], vec![]);
        for &request in chosen {
            let Request { prompt, samples, max_tokens, .. } = &requests[request];
            let start = ids.len();
            ids.extend(prompt.iter().map(|&id| id as i32));
            let parent = self.scheduler.blocks.allocate(prompt.len())?;
            parents.push(self.scheduler.running.len());
            for sample in 1..*samples {
                let (sequence, pairs) = self.scheduler.blocks.fork(&parent)?;
                let partial = prompt.len() - pairs.len();
                copies.extend(pairs.iter().enumerate().map(|(i, &(_, to))| (start + partial + i, to)));
                self.scheduler.running.push(Running { request, sample, sequence, left: *max_tokens, last: 0 });
                rows.push(ids.len() as i32 - 1);
            }
            // The prompt's own sequence is the first sample; it stands after its forks.
            self.scheduler.running.push(Running { request, sample: 0, sequence: parent, left: *max_tokens, last: 0 });
            rows.push(ids.len() as i32 - 1);
            if let Some(place) = parents.last_mut() {
                *place = self.scheduler.running.len() - 1;
            }
        }
        let running = &self.scheduler.running;
        let sequences: Vec<_> = parents.iter().map(|&p| (&running[p].sequence, 0..running[p].sequence.len())).collect();
        let plan = PagedPlan::new(self.backend, &sequences, &copies, 0)?;
        self.forward(policy, &ids, &plan)?;
        Ok((first, rows))
    }

    /// Decodes the running samples: one token each, or a burst of them where the backend records work.
    fn decode(
        &mut self,
        policy: Policy,
        requests: &[Request],
        sampling: &Sampling,
        stop: &[u32],
        replies: &mut [Vec<Growing>],
    ) -> Result<()> {
        let Scheduler { running, blocks, .. } = &mut self.scheduler;
        let left = running.iter().map(|r| r.left).min().unwrap_or(1);
        let most = if self.backend.records() { self.burst.min(left) } else { 1 };
        let steps = 1 << most.max(1).ilog2(); // few different numbers: each has its own recording
        running.iter_mut().try_for_each(|r| blocks.append(&mut r.sequence, steps))?;
        let draw = |r: &Running| replies[r.request][r.sample].draw;
        let rows: Vec<Row> =
            running.iter().map(|r| Row { sequence: &r.sequence, last: r.last, draw: draw(r) }).collect();
        let Self { backend, cache, bursts, padding, .. } = self;
        let drawn = bursts.run(*backend, policy, cache, sampling, &rows, padding, steps)?;
        for (ids, logp) in drawn {
            // Samples that have ended stay in the burst; tokens drawn after their end are dropped.
            self.take(requests, stop, replies, 0, &ids, &logp)?;
        }
        self.retire(requests, stop, replies);
        Ok(())
    }

    fn forward(&mut self, policy: Policy, ids: &[i32], plan: &PagedPlan) -> Result<()> {
        let ids = self.indices(ids)?;
        model::forward_paged(self.backend, policy, &ids, &mut self.cache, plan, &mut self.acts)
    }

    /// Draws the next token of the running samples from `first` on; those that end give their blocks back.
    #[allow(clippy::too_many_arguments)]
    fn draw(
        &mut self,
        policy: Policy,
        requests: &[Request],
        sampling: &Sampling,
        stop: &[u32],
        replies: &mut [Vec<Growing>],
        first: usize,
        rows: &[i32],
    ) -> Result<()> {
        let mut hidden =
            self.backend.alloc_unset(&[rows.len(), policy.model.config.hidden], self.backend.activation())?;
        ops::GatherRows { x: self.acts.hidden(), rows: &self.indices(rows)?, y: &mut hidden }.run(self.backend)?;
        let running = &self.scheduler.running[first..];
        let draws: Vec<Draw> = running.iter().map(|r| replies[r.request][r.sample].draw).collect();
        let (ids, logp) = sampler::sample(self.backend, &hidden, policy.model.lm_head(), sampling, &draws)?;
        self.take(requests, stop, replies, first, &ids, &logp)?;
        self.retire(requests, stop, replies);
        Ok(())
    }

    /// Appends its drawn token to each running sample from `first` on that has not ended. Error: a row whose logits are
    /// not finite.
    fn take(
        &mut self,
        requests: &[Request],
        stop: &[u32],
        replies: &mut [Vec<Growing>],
        first: usize,
        ids: &[i32],
        logp: &[f32],
    ) -> Result<()> {
        for ((running, &id), &logp) in self.scheduler.running[first..].iter_mut().zip(ids).zip(logp) {
            let growing = &mut replies[running.request][running.sample];
            if has_ended(&growing.sample, &requests[running.request], stop) {
                continue;
            }
            if logp.is_nan() {
                let (request, token) = (running.request, growing.sample.ids.len());
                return Err(Error::system(format!(
                    "request {request}, token {token}: a logit is not finite; the weights or the adapter are broken, or a value \
                     overflowed"
                )));
            }
            growing.sample.ids.push(id as u32);
            growing.sample.logprobs.push(logp);
            growing.draw.counter += 1;
            running.last = id as u32;
            running.left -= 1;
        }
        Ok(())
    }

    /// Removes the samples that have ended and frees their blocks.
    fn retire(&mut self, requests: &[Request], stop: &[u32], replies: &[Vec<Growing>]) {
        let ended = |r: &Running| has_ended(&replies[r.request][r.sample].sample, &requests[r.request], stop);
        let (ended, kept): (Vec<_>, Vec<_>) = self.scheduler.running.drain(..).partition(ended);
        self.scheduler.running = kept;
        ended.into_iter().for_each(|running| self.scheduler.blocks.free(running.sequence));
    }

    fn indices(&self, values: &[i32]) -> Result<Tensor> {
        let mut tensor = self.backend.alloc_unset(&[values.len()], DType::I32)?;
        self.backend.write(&mut tensor, &Tensor::from_slice(&[values.len()], values))?;
        Ok(tensor)
    }
}
