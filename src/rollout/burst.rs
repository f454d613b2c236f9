//! Bursts: a few decode steps of all running samples without exchange with the host in between. What changes from step
//! to step lies in tensors that the backend advances itself, so that a backend that can record work (CUDA graphs)
//! records a burst once and replays it. Schedules nothing.

use super::sampler::{Draw, Draws};
use super::settings::Sampling;
use crate::backend::ops::{self};
use crate::backend::{Backend, Recording};
use crate::error::Result;
use crate::model::kv_cache::{KvCache, PagedPlan, Sequence};
use crate::model::lora::Module;
use crate::model::{self, Activations, Policy, index_tensor};
use crate::tensor::{DType, Tensor};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

/// Maximum bytes of device memory of all recordings together beside a key/value cache of `cache` bytes. Above it, those
/// not used for longest are dropped, and made again when needed.
pub fn recording_bytes(cache: usize) -> usize {
    (cache / 4).min(1 << 30)
}

/// Identifies the work and memory of a burst: bursts with equal keys share a recording.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    width: usize,
    steps: usize,
    /// Device addresses of the weights and of the adapter, its rank and scale.
    policy: Vec<u64>,
    buffers: BufferKey,
    /// Temperature, top_p and top_k as bits.
    sampling: [u32; 3],
}

/// One burst of B rows (padded) and P pages.
struct Burst {
    plan: PagedPlan,
    draws: Draws,
    ids: Vec<Tensor>,  // steps + 1 of (B): what step i reads, and what it draws
    logp: Vec<Tensor>, // steps of (B)
    has_run: bool,
    recording: Option<Box<dyn Recording>>,
    /// Number of the run that used it last, from 1.
    used: u64,
}

/// Buffers that all bursts of B rows under adapters of one shape share.
struct Buffers {
    acts: Activations,
    logits: Tensor, // (B, V)
}

/// What decides the shapes of a burst's buffers: its rows; rank and modules of the adapter.
type BufferKey = (usize, Option<(usize, Vec<Module>)>);

/// The bursts made so far, and their buffers.
pub(super) struct Bursts {
    known: HashMap<Key, Burst>,
    buffers: HashMap<BufferKey, Buffers>,
    runs: u64,
    /// Maximum bytes of all recordings together.
    most: usize,
}

/// One running sample at the start of a burst: its sequence, with room for the burst's tokens already appended, its
/// last token, and its random stream.
pub(super) struct Row<'a> {
    pub sequence: &'a Sequence,
    pub last: u32,
    pub draw: Draw,
}

/// Rows of a burst for `running` samples, padded to few different numbers so that recordings are reused.
fn padded(running: usize) -> usize {
    match running {
        0..=16 => running.next_power_of_two(),
        17..=128 => running.next_multiple_of(16),
        _ => running.next_multiple_of(32),
    }
}

impl Bursts {
    /// No bursts yet, beside a key/value cache of `cache` bytes.
    pub fn new(cache: usize) -> Self {
        Self { known: HashMap::new(), buffers: HashMap::new(), runs: 0, most: recording_bytes(cache) }
    }

    /// Decodes `steps` tokens of every row; returns (ids, log-probabilities) step by step, in the rows' order.
    /// `padding` is a one-token sequence whose block nobody reads; `steps` is at most the cache's block size.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        be: &dyn Backend,
        policy: Policy,
        cache: &mut KvCache,
        settings: &Sampling,
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
        let adapter = policy.adapter.map(|adapter| (adapter.config.rank, adapter.config.modules.clone()));
        let key = Key { width, steps, policy: identity(policy), buffers: (extent, adapter), sampling };
        self.runs += 1;
        self.forget(be, &key);
        let buffers = match self.buffers.entry(key.buffers.clone()) {
            Entry::Occupied(old) => old.into_mut(),
            Entry::Vacant(new) => {
                let logits = be.alloc(&[extent, policy.model.lm_head().rows()], be.accumulator())?;
                new.insert(Buffers { acts: Activations::default(), logits })
            }
        };
        let burst = match self.known.entry(key) {
            Entry::Vacant(new) => new.insert(Burst::new(be, plan, draws, ids, steps)?),
            Entry::Occupied(old) => {
                let burst = old.into_mut();
                burst.plan.set(be, &plan)?;
                burst.draws.set(be, &draws)?;
                be.copy(&ids, &mut burst.ids[0])?;
                burst
            }
        };
        // The first run counts, and warms up (kernels are compiled, products timed, buffers fitted); the second is
        // recorded.
        if be.records() && burst.has_run && burst.recording.is_none() {
            burst.recording = be.record(&mut || burst.steps(be, policy, cache, buffers))?;
        }
        burst.used = self.runs;
        match &burst.recording {
            Some(recording) => recording.replay()?,
            None => burst.steps(be, policy, cache, buffers)?,
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

    /// Drops what is not worth its memory before the next burst: all others if nothing is recorded, else those not used
    /// for longest until the recordings are within their limit; then the buffers that no burst uses.
    fn forget(&mut self, be: &dyn Backend, next: &Key) {
        if !be.records() {
            self.known.retain(|known, _| known == next);
        }
        let mut held = self.bytes();
        while held > self.most {
            let others = self.known.iter().filter(|&(key, _)| key != next);
            let Some((oldest, burst)) = others.min_by_key(|(_, burst)| burst.used) else { break };
            held -= burst.bytes();
            let oldest = oldest.clone();
            self.known.remove(&oldest);
        }
        self.buffers.retain(|key, _| *key == next.buffers || self.known.keys().any(|known| known.buffers == *key));
    }

    /// Bytes that the recordings hold.
    fn bytes(&self) -> usize {
        self.known.values().map(Burst::bytes).sum()
    }
}

impl Burst {
    fn bytes(&self) -> usize {
        self.recording.as_ref().map_or(0, |recording| recording.bytes())
    }

    /// A burst that starts from `plan`, `draws` and `ids`.
    fn new(be: &dyn Backend, plan: PagedPlan, draws: Draws, ids: Tensor, steps: usize) -> Result<Self> {
        let rows = ids.len();
        let (mut all, mut logp) = (vec![ids], vec![]);
        for _ in 0..steps {
            all.push(be.alloc(&[rows], DType::I32)?);
            logp.push(be.alloc(&[rows], be.accumulator())?);
        }
        Ok(Self { plan, draws, ids: all, logp, has_run: false, recording: None, used: 0 })
    }

    /// Does the work: the same ops on the same tensors every time.
    fn steps(&mut self, be: &dyn Backend, policy: Policy, cache: &mut KvCache, buffers: &mut Buffers) -> Result<()> {
        let Buffers { acts, logits } = buffers;
        for step in 0..self.logp.len() {
            let plan = &mut self.plan;
            if step > 0 {
                let (table, counter) = (&plan.block_table, &mut self.draws.counter);
                ops::Advance {
                    block_size: cache.block_size,
                    block_table: table,
                    positions: &mut plan.positions,
                    lens: &mut plan.lens,
                    slots: &mut plan.slots,
                    counter,
                }
                .run(be)?;
            }
            model::forward_paged(be, policy, &self.ids[step], cache, plan, acts)?;
            ops::Logits { x: acts.hidden(), w: policy.model.lm_head(), out: logits }.run(be)?;
            ops::Sample {
                logits,
                sampling: &self.draws.sampling(),
                ids: &mut self.ids[step + 1],
                logp: &mut self.logp[step],
            }
            .run(be)?;
        }
        Ok(())
    }
}

/// Addresses of the policy's tensors and how they are used: equal for policies that do the same work on the same
/// memory.
fn identity(policy: Policy) -> Vec<u64> {
    let address = |tensor: &Tensor| tensor.device_address().unwrap_or_default();
    let mut words: Vec<u64> = policy.model.weights.iter().map(address).collect();
    if let Some(adapter) = policy.adapter {
        words.extend([adapter.config.rank as u64, u64::from(adapter.config.scale().to_bits())]);
        words.extend(adapter.tensors.iter().map(address));
    }
    words
}
