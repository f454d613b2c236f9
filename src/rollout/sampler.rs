//! Samples tokens, with their log-probabilities, from hidden states.

use super::settings::Sampling as Settings;
use crate::backend::Backend;
use crate::backend::ops::{self, Sampling};
use crate::error::Result;
use crate::rng::Philox;
use crate::tensor::{DType, Tensor};

/// The random stream of one row: the two key words and the token's index.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub key: [i32; 2],
    pub counter: i32,
}

impl Draw {
    /// The first draw of sample number `sample` of the stream.
    pub fn first(seed: u64, stream: &str, sample: usize) -> Self {
        let mut rng = Philox::named(seed, &format!("{stream}/{sample}"));
        Self { key: [rng.bits() as i32, rng.bits() as i32], counter: 0 }
    }
}

/// Sampling parameters and random streams of B rows, as tensors.
pub(super) struct Draws {
    temperature: Tensor,
    top_p: Tensor,
    top_k: Tensor,
    seed: Tensor,
    /// (B), the index of the next token of each row's sample.
    pub counter: Tensor,
}

impl Draws {
    /// One row per draw, all under `settings`.
    pub fn new(be: &dyn Backend, settings: &Settings, draws: &[Draw]) -> Result<Self> {
        let rows = draws.len();
        let put = |values: Tensor| -> Result<Tensor> {
            let mut tensor = be.alloc(values.shape(), values.dtype())?;
            be.write(&mut tensor, &values)?;
            Ok(tensor)
        };
        let keys: Vec<i32> = draws.iter().flat_map(|d| d.key).collect();
        let counters: Vec<i32> = draws.iter().map(|d| d.counter).collect();
        Ok(Self {
            temperature: put(Tensor::from_slice(&[rows], &vec![settings.temperature; rows]))?,
            top_p: put(Tensor::from_slice(&[rows], &vec![settings.top_p; rows]))?,
            top_k: put(Tensor::from_slice(&[rows], &vec![settings.top_k; rows]))?,
            seed: put(Tensor::from_slice(&[rows, 2], &keys))?,
            counter: put(Tensor::from_slice(&[rows], &counters))?,
        })
    }

    /// Takes the streams of `other`, which has the same rows and settings.
    pub fn set(&mut self, be: &dyn Backend, other: &Self) -> Result<()> {
        be.copy(&other.seed, &mut self.seed)?;
        be.copy(&other.counter, &mut self.counter)
    }

    /// The tensors as the op takes them.
    pub fn sampling(&self) -> Sampling<'_> {
        let Self { temperature, top_p, top_k, seed, counter } = self;
        Sampling { temperature, top_p, top_k, seed, counter }
    }
}

/// Draws one token for each row of `hidden` (B, C); returns (ids, log-probabilities).
pub(super) fn sample(
    backend: &dyn Backend,
    hidden: &Tensor,
    lm_head: &Tensor,
    settings: &Settings,
    draws: &[Draw],
) -> Result<(Vec<i32>, Vec<f32>)> {
    let rows = hidden.rows();
    let mut logits = backend.alloc(&[rows, lm_head.rows()], backend.accumulator())?;
    ops::Logits { x: hidden, w: lm_head, out: &mut logits }.run(backend)?;
    let (mut ids, mut logp) = (backend.alloc(&[rows], DType::I32)?, backend.alloc(&[rows], backend.accumulator())?);
    ops::Sample {
        logits: &logits,
        sampling: &Draws::new(backend, settings, draws)?.sampling(),
        ids: &mut ids,
        logp: &mut logp,
    }
    .run(backend)?;
    Ok((backend.read_i32(&ids)?, backend.read(&logp)?))
}
