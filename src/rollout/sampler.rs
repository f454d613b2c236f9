//! Hidden states of the rows that draw a token, to tokens and their log-probabilities.

use crate::backend::{Backend, Sampling};
use crate::config::Sampling as Settings;
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
    /// The first draw of sample `sample` of the stream.
    pub fn first(seed: u64, stream: &str, sample: usize) -> Self {
        let mut rng = Philox::named(seed, &format!("{stream}/{sample}"));
        Self { key: [rng.bits() as i32, rng.bits() as i32], counter: 0 }
    }
}

/// One token for each row of `hidden` (B, C).
pub(super) fn sample(
    backend: &dyn Backend,
    hidden: &Tensor,
    lm_head: &Tensor,
    settings: &Settings,
    draws: &[Draw],
) -> Result<(Vec<u32>, Vec<f32>)> {
    let rows = hidden.rows();
    let mut logits = backend.alloc(&[rows, lm_head.rows()], backend.accumulator())?;
    backend.logits(hidden, lm_head, &mut logits)?;
    let put = |values: Tensor| -> Result<Tensor> {
        let mut tensor = backend.alloc(values.shape(), values.dtype())?;
        backend.write(&mut tensor, &values)?;
        Ok(tensor)
    };
    let (mut ids, mut logp) = (backend.alloc(&[rows], DType::I32)?, backend.alloc(&[rows], backend.accumulator())?);
    let keys: Vec<i32> = draws.iter().flat_map(|d| d.key).collect();
    let counters: Vec<i32> = draws.iter().map(|d| d.counter).collect();
    let sampling = Sampling {
        temperature: &put(Tensor::from_slice(&[rows], &vec![settings.temperature; rows]))?,
        top_p: &put(Tensor::from_slice(&[rows], &vec![settings.top_p; rows]))?,
        top_k: &put(Tensor::from_slice(&[rows], &vec![settings.top_k; rows]))?,
        seed: &put(Tensor::from_slice(&[rows, 2], &keys))?,
        counter: &put(Tensor::from_slice(&[rows], &counters))?,
    };
    backend.sample(&logits, &sampling, &mut ids, &mut logp)?;
    let ids = backend.read_i32(&ids)?.into_iter().map(|id| id as u32).collect();
    Ok((ids, backend.read(&logp)?))
}
