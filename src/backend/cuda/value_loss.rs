//! The clipped value loss: launches of kernels/value_loss.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, pointer};
use super::tensor;
use crate::backend::ops;
use crate::error::Result;
use crate::tensor::DType;

/// Threads per block, and the most blocks, as in `ppo_loss`.
const BLOCK: usize = 256;
const MOST_BLOCKS: usize = 256;

pub(super) fn value_loss(be: &Cuda, op: ops::ValueLoss) -> Result<()> {
    let ops::ValueLoss { clip, inputs, dvalue, loss } = op;
    let m = dvalue.len();
    let blocks = m.div_ceil(BLOCK).min(MOST_BLOCKS);
    let partials = be.workspace(&[blocks], DType::F64)?;
    let args = [
        pointer(inputs.value)?,
        pointer(inputs.old_value)?,
        pointer(inputs.target)?,
        pointer(inputs.weight)?,
        pointer(dvalue)?,
        pointer(&partials)?,
        Arg::I64(m as i64),
        Arg::I32(clip.is_some().into()),
        Arg::F32(clip.unwrap_or(0.0)),
    ];
    be.launch(Kernel { file: "value_loss", name: "value_loss" }, [blocks, 1, 1], BLOCK, 0, &args)?;
    *loss = tensor::download(&partials)?.slice::<f64>().iter().sum();
    Ok(())
}
