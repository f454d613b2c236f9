//! SwiGLU: launches of kernels/swiglu.cu.

use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use crate::backend::ops;
use crate::error::Result;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "swiglu", name }
}

/// Returns the blocks per row and the threads per block. A thread has 8 elements of F, or one where 8 does not divide
/// F.
fn geometry(f: usize) -> (usize, usize) {
    let units = if f.is_multiple_of(8) { f / 8 } else { f };
    let block = units.next_multiple_of(32).min(256);
    (units.div_ceil(block), block)
}

pub(super) fn swiglu(be: &Cuda, op: ops::Swiglu) -> Result<()> {
    let ops::Swiglu { gate_up, y } = op;
    let (blocks, block) = geometry(y.columns());
    let args = [pointer(gate_up)?, pointer(y)?, int(y.columns())?, int(blocks)?];
    be.launch(kernel("swiglu"), [y.rows() * blocks, 1, 1], block, 0, &args)
}

pub(super) fn swiglu_backward(be: &Cuda, op: ops::SwigluBackward) -> Result<()> {
    let ops::SwigluBackward { gate_up, dy, dgate_up } = op;
    let (blocks, block) = geometry(dy.columns());
    let args = [pointer(gate_up)?, pointer(dy)?, pointer(dgate_up)?, int(dy.columns())?, int(blocks)?];
    be.launch(kernel("swiglu_backward"), [dy.rows() * blocks, 1, 1], block, 0, &args)
}
