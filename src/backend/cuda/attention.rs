//! Packed causal attention: launches of kernels/attention.cu, attention_backward.cu and attention_tiles.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use crate::backend::Backend;
use crate::backend::ops::{self, Heads, Segments};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Rows of a tile of queries or keys, as in the kernels.
const ROWS: usize = 64;
/// Threads per block, as in the kernels.
const BLOCK: usize = 128;
const LIST_BLOCK: usize = 1024;
/// Integers per entry of a list of tiles.
const ENTRY: usize = 8;

/// Returns the kernel for this head size, out of those for 32, 64 and 128.
fn of_head_size(op: &str, file: &'static str, names: [&'static str; 3], hs: usize) -> Result<Kernel> {
    let name = match hs {
        32 => names[0],
        64 => names[1],
        128 => names[2],
        _ => {
            let says = format!("{op}: a head size of {hs}; on the GPU the head sizes 32, 64 and 128 are supported");
            return Err(Error::content(says));
        }
    };
    Ok(Kernel { file, name })
}

/// Returns the most tiles that `rows` rows can make in these segments: each segment may end in a ragged tile.
fn tiles(segments: &Segments, rows: usize) -> usize {
    rows / ROWS + segments.parent.len()
}

/// A list of tiles that kernels walk: the most entries it can have, and its tensor, whose first row holds the number of
/// entries.
struct List {
    capacity: usize,
    entries: Tensor,
}

/// Runs the tile-listing kernel `name`, with the arguments that all of these take, then its own.
fn list(be: &Cuda, name: &'static str, capacity: usize, segments: &Segments, rows: usize, own: &[Arg]) -> Result<List> {
    let entries = be.workspace(&[1 + capacity, ENTRY], DType::I32)?;
    let Segments { cu_seqlens, parent } = segments;
    let extents = [int(parent.len())?, int(rows)?];
    let common = [pointer(cu_seqlens)?, pointer(parent)?, extents[0], extents[1], pointer(&entries)?, int(capacity)?];
    let kernel = Kernel { file: "attention_tiles", name };
    be.launch(kernel, [1, 1, 1], LIST_BLOCK, 0, &[&common, own].concat())?;
    Ok(List { capacity, entries })
}

fn query_tiles(be: &Cuda, segments: &Segments, rows: usize) -> Result<List> {
    list(be, "attention_query_tiles", tiles(segments, rows), segments, rows, &[])
}

/// Lists tiles of keys; heavy ones are split into at most `most_parts` parts altogether.
fn key_tiles(be: &Cuda, segments: &Segments, rows: usize, most_parts: usize) -> Result<List> {
    let family = be.alloc(&[segments.parent.len(), 2], DType::I32)?; // zeros, to which the kernel adds
    let own = [pointer(&family)?, int(most_parts)?];
    list(be, "attention_key_tiles", tiles(segments, rows) + most_parts, segments, rows, &own)
}

fn scale(heads: Heads) -> Arg {
    Arg::F32((heads.hs as f64).sqrt().recip() as f32)
}

pub(super) fn attention(be: &Cuda, op: ops::Attention) -> Result<()> {
    let ops::Attention { qkv, heads, segments, o, lse } = op;
    let Heads { nh, nkv, hs } = heads;
    let kernel = of_head_size("attention", "attention", ["attention_32", "attention_64", "attention_128"], hs)?;
    let rows = qkv.rows();
    let tiles = query_tiles(be, segments, rows)?;
    let args = [
        pointer(qkv)?,
        pointer(&tiles.entries)?,
        int(rows)?,
        int(nh)?,
        int(nkv)?,
        scale(heads),
        pointer(o)?,
        pointer(lse)?,
    ];
    // Two K and two V tiles of bf16.
    let shared = 4 * ROWS * hs * 2;
    be.launch(kernel, [tiles.capacity * nh, 1, 1], BLOCK, shared, &args)
}

pub(super) fn attention_backward(be: &Cuda, op: ops::AttentionBackward) -> Result<()> {
    let ops::AttentionBackward { qkv, o, lse, dout, heads, segments, dqkv } = op;
    let Heads { nh, nkv, hs } = heads;
    let kernel = |names| of_head_size("attention_backward", "attention_backward", names, hs);
    let statistics_kernel = kernel(["attention_statistics_32", "attention_statistics_64", "attention_statistics_128"])?;
    let dq_kernel = kernel(["attention_dq_32", "attention_dq_64", "attention_dq_128"])?;
    let dkv_kernel = kernel(["attention_dkv_32", "attention_dkv_64", "attention_dkv_128"])?;
    let sum_kernel = kernel(["attention_dkv_sum_32", "attention_dkv_sum_64", "attention_dkv_sum_128"])?;
    let rows = qkv.rows();
    let extents = [int(rows)?, int(nh)?, int(nkv)?];

    let statistics = be.workspace(&[2, nh, rows], DType::F32)?;
    let args = [pointer(o)?, pointer(dout)?, pointer(lse)?, extents[0], extents[1], pointer(&statistics)?];
    be.launch(statistics_kernel, [o.len().div_ceil(8 * BLOCK), 1, 1], BLOCK, 0, &args)?;

    // Two tiles of the block's own rows and four of the other side: two matrices, double-buffered.
    let step = if hs == 128 { 32 } else { 64 };
    let shared = (2 * ROWS + 4 * step) * hs * 2;
    let inputs = [pointer(qkv)?, pointer(dout)?, pointer(&statistics)?];
    let outputs = [scale(heads), pointer(dqkv)?];

    // Enough parts to fill the GPU about twice, at two blocks per multiprocessor, if all the work were in split tiles.
    let most_parts = (4 * be.device.multiprocessors()).div_ceil(nkv);
    let parts = be.workspace(&[most_parts, nkv, 2 * ROWS, hs], DType::F32)?;
    let keys = key_tiles(be, segments, rows, most_parts)?;
    let tiles = [pointer(segments.cu_seqlens)?, pointer(segments.parent)?, pointer(&keys.entries)?];
    let args = [&inputs[..], &tiles, &extents, &outputs, &[pointer(&parts)?]].concat();
    let of_two_steps = 2 * 2 * step * 4; // bytes of statistics
    be.launch(dkv_kernel, [keys.capacity * nkv, 1, 1], BLOCK, shared + of_two_steps, &args)?;
    let args = [pointer(&keys.entries)?, pointer(&parts)?, extents[1], extents[2], pointer(dqkv)?];
    be.launch(sum_kernel, [keys.capacity * nkv, 1, 1], BLOCK, 0, &args)?;

    let queries = query_tiles(be, segments, rows)?;
    let args = [&inputs[..], &[pointer(&queries.entries)?], &extents, &outputs].concat();
    be.launch(dq_kernel, [queries.capacity * nh, 1, 1], BLOCK, shared, &args)
}
