//! The critic's head: launches of kernels/value_head.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use super::rows::add_partials;
use crate::backend::ops;
use crate::error::Result;
use crate::tensor::DType;

/// Threads per block; the forward has a warp per row.
const BLOCK: usize = 256;
const WARPS: usize = BLOCK / 32;
/// Rows per block of the backward; each block makes one partial sum. The number does not depend on the device, so that
/// equal inputs give equal sums on every GPU.
const ROWS: usize = 64;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "value_head", name }
}

pub(super) fn value_head(be: &Cuda, op: ops::ValueHead) -> Result<()> {
    let ops::ValueHead { x, w, bias, value } = op;
    let (m, c) = (x.rows(), x.columns());
    let args = [pointer(x)?, pointer(w)?, pointer(bias)?, pointer(value)?, int(m)?, int(c)?];
    be.launch(kernel("value_head"), [m.div_ceil(WARPS), 1, 1], BLOCK, 0, &args)
}

pub(super) fn value_head_backward(be: &Cuda, op: ops::ValueHeadBackward) -> Result<()> {
    let ops::ValueHeadBackward { x, w, dvalue, dx, dw, dbias } = op;
    let (m, c) = (x.rows(), x.columns());
    let pieces = m.div_ceil(ROWS);
    let partials = be.workspace(&[1, pieces, c], DType::F32)?;
    let bias_partials = be.workspace(&[1, pieces, 1], DType::F32)?;
    let args = [
        pointer(x)?,
        pointer(w)?,
        pointer(dvalue)?,
        pointer(dx)?,
        pointer(&partials)?,
        pointer(&bias_partials)?,
        int(m)?,
        int(c)?,
        Arg::I32(ROWS as i32),
    ];
    be.launch(kernel("value_head_backward"), [c.div_ceil(BLOCK), pieces, 1], BLOCK, 0, &args)?;
    add_partials(be, &partials, 0, dw)?;
    add_partials(be, &bias_partials, 0, dbias)
}
