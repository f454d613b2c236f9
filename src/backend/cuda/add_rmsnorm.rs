//! Residual addition and RMSNorm: launches of kernels/add_rmsnorm.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, no_kernel, optional, pointer};
use super::rows;
use crate::backend::{Backend, ops};
use crate::error::Result;
use crate::tensor::DType;

/// Blocks that add up dw, two per multiprocessor of a large GPU. The number is constant, so that the sum does not
/// depend on the device.
const BLOCKS: usize = 256;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "add_rmsnorm", name }
}

/// Returns the threads per block, which has a row of `c` columns. A thread has 1 vector of 8 columns for up to 256
/// vectors, 2 for up to 512, else 4.
fn threads(c: usize) -> usize {
    let vectors = c.div_ceil(8);
    let each = match vectors {
        0..=256 => 1,
        257..=512 => 2,
        _ => 4,
    };
    vectors.div_ceil(each).next_multiple_of(32).min(512)
}

pub(super) fn add_rmsnorm(be: &Cuda, op: ops::AddRmsnorm) -> Result<()> {
    let ops::AddRmsnorm { residual, x, w, eps, sum, y, rstd } = op;
    let name = match w.dtype() {
        DType::BF16 => "add_rmsnorm_bf16",
        DType::F32 => "add_rmsnorm_f32",
        _ => return Err(no_kernel("add_rmsnorm", "w", w)),
    };
    let args = [
        pointer(residual)?,
        optional(x)?,
        pointer(w)?,
        Arg::F32(eps),
        optional(sum.as_deref())?,
        pointer(y)?,
        pointer(rstd)?,
        int(w.len())?,
    ];
    be.launch(kernel(name), [residual.rows(), 1, 1], threads(w.len()), 0, &args)
}

pub(super) fn add_rmsnorm_backward(be: &Cuda, op: ops::AddRmsnormBackward) -> Result<()> {
    let ops::AddRmsnormBackward { sum, w, rstd, dy, dsum, dw } = op;
    let name = match (w.dtype(), dw.is_some()) {
        (DType::BF16, false) => "add_rmsnorm_backward_bf16",
        (DType::F32, false) => "add_rmsnorm_backward_f32",
        (DType::BF16, true) => "add_rmsnorm_backward_dw_bf16",
        (DType::F32, true) => "add_rmsnorm_backward_dw_f32",
        _ => return Err(no_kernel("add_rmsnorm_backward", "w", w)),
    };
    let (t, c) = (sum.rows(), w.len());
    let blocks = if dw.is_some() { t.min(BLOCKS) } else { t };
    let partials = if dw.is_some() { Some(be.alloc(&[1, blocks, c], DType::F32)?) } else { None };
    let args = [
        pointer(sum)?,
        pointer(w)?,
        pointer(rstd)?,
        pointer(dy)?,
        pointer(dsum)?,
        optional(partials.as_ref())?,
        int(t)?,
        int(c)?,
    ];
    be.launch(kernel(name), [blocks, 1, 1], threads(c), 0, &args)?;
    match (partials, dw) {
        (Some(partials), Some(dw)) => rows::add_partials(be, &partials, 0, dw),
        _ => Ok(()),
    }
}
