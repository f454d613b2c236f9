//! Per-head RMSNorm and rotary embedding of q and k: launches of kernels/qk_norm_rope.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, no_kernel, optional, pointer};
use super::rows;
use crate::backend::ops::{self, Heads, QkNorm};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Blocks that add up the gradients of the weights, about two per multiprocessor of a large GPU. The number is
/// constant, so that the sum does not depend on the device.
const BLOCKS: usize = 256;
const MOST_THREADS: usize = 128;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "qk_norm_rope", name }
}

/// Returns the threads per block, which has the heads of one token, and the number of heads side by side: with vectors
/// half the heads (so that cosines and sines serve two), else one per warp. The rule is that of `has_vectors` in the
/// kernel.
fn geometry(heads: Heads) -> (usize, usize) {
    let (n, lanes) = (heads.nh + heads.nkv, heads.hs / 16);
    if heads.hs.is_multiple_of(16) && lanes.is_power_of_two() && heads.hs <= 512 {
        let threads = (n * lanes).div_ceil(2).next_multiple_of(32).min(MOST_THREADS);
        (threads, threads / lanes)
    } else {
        let warps = n.min(MOST_THREADS / 32);
        (warps * 32, warps)
    }
}

/// Returns the type of the norm's weights. Error: the weights have two types, or the table is not f32.
fn weights(op: &str, norm: Option<QkNorm>, table: &Tensor) -> Result<DType> {
    if table.dtype() != DType::F32 {
        return Err(Error::content(format!("{op}: the table is {table:?}; on the GPU expected f32")));
    }
    match norm {
        Some(norm) if norm.q.dtype() != norm.k.dtype() => Err(Error::content(format!(
            "{op}: the norms of q and k are {:?} and {:?}; on the GPU expected one type",
            norm.q, norm.k
        ))),
        Some(norm) => match norm.q.dtype() {
            dtype @ (DType::BF16 | DType::F32) => Ok(dtype),
            _ => Err(no_kernel(op, "the norm of q", norm.q)),
        },
        None => Ok(DType::BF16),
    }
}

pub(super) fn qk_norm_rope(be: &Cuda, op: ops::QkNormRope) -> Result<()> {
    let ops::QkNormRope { qkv, heads, norm, positions, table, raw } = op;
    let name = match weights("qk_norm_rope", norm, table)? {
        DType::BF16 => "qk_norm_rope_bf16",
        _ => "qk_norm_rope_f32",
    };
    let args = [
        pointer(qkv)?,
        optional(norm.map(|norm| norm.q))?,
        optional(norm.map(|norm| norm.k))?,
        Arg::F32(norm.map_or(0.0, |norm| norm.eps)),
        pointer(positions)?,
        pointer(table)?,
        optional(raw.as_deref())?,
        int(table.rows())?,
        int(heads.nh)?,
        int(heads.nkv)?,
        int(heads.hs)?,
    ];
    be.launch(kernel(name), [qkv.rows(), 1, 1], geometry(heads).0, 0, &args)
}

pub(super) fn qk_norm_rope_backward(be: &Cuda, op: ops::QkNormRopeBackward) -> Result<()> {
    let ops::QkNormRopeBackward { dqkv, heads, norm, positions, table, raw, dnorm } = op;
    let name = match (weights("qk_norm_rope_backward", norm, table)?, dnorm.is_some()) {
        (DType::BF16, false) => "qk_norm_rope_backward_bf16",
        (DType::BF16, true) => "qk_norm_rope_backward_dw_bf16",
        (_, false) => "qk_norm_rope_backward_f32",
        (_, true) => "qk_norm_rope_backward_dw_f32",
    };
    let (t, (threads, side_by_side)) = (dqkv.rows(), geometry(heads));
    let blocks = if dnorm.is_some() { t.min(BLOCKS) } else { t };
    let partials = if dnorm.is_some() { Some(be.workspace(&[2, blocks, heads.hs], DType::F32)?) } else { None };
    let shared = if dnorm.is_some() { side_by_side * 2 * heads.hs * size_of::<f32>() } else { 0 };
    let args = [
        pointer(dqkv)?,
        optional(norm.map(|norm| norm.q))?,
        optional(norm.map(|norm| norm.k))?,
        Arg::F32(norm.map_or(0.0, |norm| norm.eps)),
        pointer(positions)?,
        pointer(table)?,
        optional(raw)?,
        optional(partials.as_ref())?,
        int(t)?,
        int(table.rows())?,
        int(heads.nh)?,
        int(heads.nkv)?,
        int(heads.hs)?,
    ];
    be.launch(kernel(name), [blocks, 1, 1], threads, shared, &args)?;
    let (Some(partials), Some((dq, dk))) = (partials, dnorm) else { return Ok(()) };
    rows::add_partials(be, &partials, 0, dq)?;
    rows::add_partials(be, &partials, 1, dk)
}
