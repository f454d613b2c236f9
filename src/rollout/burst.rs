//! A burst: a few decode steps of all running samples without a word from or to the host in between. What changes from step to step
//! lies in tensors that the backend advances itself, so that a backend that can record work (CUDA graphs) records a burst once and
//! replays it. Schedules nothing.

use super::sampler::{Draw, Draws};
use crate::backend::{Backend, Recording};
use crate::config::Sampling as Settings;
use crate::error::{Error, Result};
use crate::model::kv_cache::{KvCache, PagedPlan, Sequence};
use crate::model::{self, Activations, Policy, index_tensor};
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;
use std::ops::Range;

/// Bursts kept with their buffers; when there are more, all are dropped and made again.
const KEPT: usize = 48;

/// What makes two bursts do the same work on the same memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    width: usize,
    steps: usize,
    /// Device addresses of the weights and of the adapter, and its scale.
    policy: Vec<u64>,
    /// Temperature, top_p and top_k as bits.
    sampling: [u32; 3],
}

/// Buffers of one burst. B rows, padded; P pages.
struct Burst {
    plan: PagedPlan,
    draws: Draws,
    ids: Vec<Tensor>,  // steps + 1 of (B): what step i reads, and what it draws
    logp: Vec<Tensor>, // steps of (B)
    logits: Tensor,    // (B, V)
    acts: Activations,
    has_run: bool,
    recording: Option<Box<dyn Recording>>,
}

/// The bursts made so far.
#[derive(Default)]
pub(super) struct Bursts {
    known: HashMap<Key, Burst>,
}

/// One running sample at the start of a burst: its sequence, with room for the burst's tokens already appended, the token it goes on
/// from, and its stream.
pub(super) struct Row<'a> {
    pub sequence: &'a Sequence,
    pub last: u32,
    pub draw: Draw,
}

/// Rows of a burst for `running` samples: few different numbers, so that recordings are used again.
fn padded(running: usize) -> usize {
    match running {
        0..=16 => running.next_power_of_two(),
        17..=128 => running.next_multiple_of(16),
        _ => running.next_multiple_of(32),
    }
}

impl Bursts {
    /// Decodes `steps` tokens of every row; returns (ids, log-probabilities) step by step, in the rows' order. `padding` is a sequence
    /// of one token whose block nobody reads, with `steps` at most the cache's block size.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        be: &dyn Backend,
        policy: Policy,
        cache: &mut KvCache,
        settings: &Settings,
        rows: &[Row],
        padding: &Sequence,
        steps: usize,
    ) -> Result<Vec<(Vec<i32>, Vec<f32>)>> {
        let pages = rows.iter().map(|row| row.sequence.blocks().len()).max().unwrap_or(1);
        let (extent, width) =
            if be.records() { (padded(rows.len()), pages.next_power_of_two()) } else { (rows.len(), pages) };
        let first = |sequence: &Sequence| sequence.len() - steps..sequence.len() - steps + 1;
        let mut starts: Vec<(&Sequence, Range<usize>)> = rows.iter().map(|r| (r.sequence, first(r.sequence))).collect();
        let mut draws: Vec<Draw> = rows.iter().map(|r| r.draw).collect();
        let mut ids: Vec<i32> = rows.iter().map(|r| r.last as i32).collect();
        starts.resize(extent, (padding, 0..1));
        draws.resize(extent, Draw { key: [0; 2], counter: 0 });
        ids.resize(extent, 0);
        let plan = PagedPlan::new(be, &starts, &[], width)?;
        let draws = Draws::new(be, settings, &draws)?;
        let ids = index_tensor(be, &[extent], &ids)?;

        let sampling = [settings.temperature.to_bits(), settings.top_p.to_bits(), settings.top_k as u32];
        let key = Key { rows: extent, width, steps, policy: identity(policy), sampling };
        if !self.known.contains_key(&key) {
            if !be.records() || self.known.len() >= KEPT {
                self.known.clear();
            }
            let float = |shape: &[usize]| be.alloc(shape, be.accumulator());
            let mut lists = (vec![], vec![]);
            for _ in 0..steps {
                lists.0.push(be.alloc(&[extent], DType::I32)?);
                lists.1.push(float(&[extent])?);
            }
            let logits = float(&[extent, policy.model.lm_head().rows()])?;
            lists.0.insert(0, ids);
            let (ids, logp) = lists;
            let acts = Activations::default();
            self.known
                .insert(key.clone(), Burst { plan, draws, ids, logp, logits, acts, has_run: false, recording: None });
        } else if let Some(burst) = self.known.get_mut(&key) {
            burst.plan.set(be, &plan)?;
            burst.draws.set(be, &draws)?;
            be.copy(&ids, &mut burst.ids[0])?;
        }
        let Some(burst) = self.known.get_mut(&key) else { return Err(Error::system("a burst went missing")) };
        // The first run warms up (kernels are compiled, products timed, buffers fitted) and counts; the second is recorded.
        if be.records() && burst.has_run && burst.recording.is_none() {
            burst.recording = be.record(&mut || burst.steps(be, policy, cache))?;
        }
        match &burst.recording {
            Some(recording) => recording.replay()?,
            None => burst.steps(be, policy, cache)?,
        }
        burst.has_run = true;
        let drawn = burst.ids[1..].iter().zip(&burst.logp);
        drawn
            .map(|(ids, logp)| {
                let (mut ids, mut logp) = (be.read_i32(ids)?, be.read(logp)?);
                ids.truncate(rows.len());
                logp.truncate(rows.len());
                Ok((ids, logp))
            })
            .collect()
    }
}

impl Burst {
    /// The work: the same ops on the same tensors every time.
    fn steps(&mut self, be: &dyn Backend, policy: Policy, cache: &mut KvCache) -> Result<()> {
        for step in 0..self.logp.len() {
            let plan = &mut self.plan;
            if step > 0 {
                let (table, counter) = (&plan.block_table, &mut self.draws.counter);
                be.advance(cache.block_size, table, &mut plan.positions, &mut plan.lens, &mut plan.slots, counter)?;
            }
            model::forward_paged(be, policy, &self.ids[step], cache, plan, &mut self.acts)?;
            be.logits(self.acts.hidden(), policy.model.lm_head(), &mut self.logits)?;
            be.sample(&self.logits, &self.draws.sampling(), &mut self.ids[step + 1], &mut self.logp[step])?;
        }
        Ok(())
    }
}

/// Where the policy's numbers lie and how they are used: equal for policies that run the same work on the same memory.
fn identity(policy: Policy) -> Vec<u64> {
    let address = |tensor: &Tensor| tensor.device_address().unwrap_or_default();
    let mut words: Vec<u64> = policy.model.weights.iter().map(address).collect();
    if let Some(adapter) = policy.adapter {
        words.push(u64::from(adapter.config.scale().to_bits()));
        words.extend(adapter.tensors.iter().map(address));
    }
    words
}
