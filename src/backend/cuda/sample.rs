//! Sampling of tokens: launches of kernels/sample.cu.

use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use crate::backend::ops;
use crate::error::Result;

/// Threads per block; a block has one row.
const BLOCK: usize = 1024;

/// Draws one id per row. Settings and logits are not read back to be checked: a row that has NaN, +inf or no finite
/// logit, or a temperature below 0, gets id 0 with a log-probability of NaN.
pub(super) fn sample(be: &Cuda, op: ops::Sample) -> Result<()> {
    let ops::Sample { logits, sampling, ids, logp } = op;
    let args = [
        pointer(logits)?,
        pointer(sampling.temperature)?,
        pointer(sampling.top_p)?,
        pointer(sampling.top_k)?,
        pointer(sampling.seed)?,
        pointer(sampling.counter)?,
        pointer(ids)?,
        pointer(logp)?,
        int(logits.columns())?,
    ];
    be.launch(Kernel { file: "sample", name: "sample" }, [ids.len(), 1, 1], BLOCK, 0, &args)
}
