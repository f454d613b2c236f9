//! Packed causal attention: launches of kernels/attention.cu, attention_backward.cu and attention_tiles.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::{Cuda, int, pointer};
use crate::backend::{Heads, Segments};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Rows of a tile of queries or keys, as in the kernels.
const ROWS: usize = 64;
/// Threads of a block, as in the kernels.
const BLOCK: usize = 128;
const LIST_BLOCK: usize = 1024;
/// Integers of an entry of a list of tiles.
const ENTRY: usize = 8;

/// The kernel of this head size among those of 32, 64 and 128.
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

/// The most tiles that `rows` rows can make in these segments: each may end in a ragged one.
fn capacity(segments: &Segments, rows: usize) -> usize {
    rows / ROWS + segments.parent.len()
}

/// Whose tiles a list has.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Queries,
    Keys,
}

/// A list of tiles: a header with their number, then an entry a tile.
fn list(be: &Cuda, side: Side, segments: &Segments, rows: usize) -> Result<Tensor> {
    let Segments { cu_seqlens, parent } = segments;
    let capacity = capacity(segments, rows);
    let tiles = be.workspace(&[1 + capacity, ENTRY], DType::I32)?;
    let mut args =
        vec![pointer(cu_seqlens)?, pointer(parent)?, int(parent.len())?, int(rows)?, pointer(&tiles)?, int(capacity)?];
    let mut launch =
        |name, args: &[Arg]| be.launch(Kernel { file: "attention_tiles", name }, [1, 1, 1], LIST_BLOCK, 0, args);
    if side == Side::Queries {
        launch("attention_query_tiles", &args)?;
    } else {
        let family = be.workspace(&[parent.len(), 2], DType::I32)?;
        args.push(pointer(&family)?);
        launch("attention_key_tiles", &args)?;
    }
    Ok(tiles)
}

fn scale(heads: Heads) -> Arg {
    Arg::F32((heads.hs as f64).sqrt().recip() as f32)
}

pub(super) fn attention(
    be: &Cuda,
    qkv: &Tensor,
    heads: Heads,
    segments: &Segments,
    o: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    let Heads { nh, nkv, hs } = heads;
    let kernel = of_head_size("attention", "attention", ["attention_32", "attention_64", "attention_128"], hs)?;
    let rows = qkv.rows();
    let tiles = list(be, Side::Queries, segments, rows)?;
    let args =
        [pointer(qkv)?, pointer(&tiles)?, int(rows)?, int(nh)?, int(nkv)?, scale(heads), pointer(o)?, pointer(lse)?];
    // Two K and two V tiles of bf16.
    let shared = 4 * ROWS * hs * 2;
    be.launch(kernel, [capacity(segments, rows) * nh, 1, 1], BLOCK, shared, &args)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn attention_backward(
    be: &Cuda,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: Heads,
    segments: &Segments,
    dqkv: &mut Tensor,
) -> Result<()> {
    let Heads { nh, nkv, hs } = heads;
    let kernel = |names| of_head_size("attention_backward", "attention_backward", names, hs);
    let delta_kernel = kernel(["attention_delta_32", "attention_delta_64", "attention_delta_128"])?;
    let dq_kernel = kernel(["attention_dq_32", "attention_dq_64", "attention_dq_128"])?;
    let dkv_kernel = kernel(["attention_dkv_32", "attention_dkv_64", "attention_dkv_128"])?;
    let rows = qkv.rows();
    let capacity = capacity(segments, rows);
    let extents = [int(rows)?, int(nh)?, int(nkv)?];

    let delta = be.workspace(&[nh, rows], DType::F32)?;
    let args = [pointer(o)?, pointer(dout)?, extents[0], extents[1], pointer(&delta)?];
    be.launch(delta_kernel, [o.len().div_ceil(8 * BLOCK), 1, 1], BLOCK, 0, &args)?;

    // Two tiles of the block's own rows and two double-buffered ones of the other side.
    let step = if hs == 128 { 32 } else { 64 };
    let shared = (2 * ROWS + 4 * step) * hs * 2;
    let inputs = [pointer(qkv)?, pointer(dout)?, pointer(lse)?, pointer(&delta)?];
    let outputs = [scale(heads), pointer(dqkv)?];

    let keys = list(be, Side::Keys, segments, rows)?;
    let tiles = [pointer(segments.cu_seqlens)?, pointer(segments.parent)?, pointer(&keys)?];
    let args = [&inputs[..], &tiles, &extents, &outputs].concat();
    // lse and delta of two steps.
    let statistics = 2 * 2 * step * 4;
    be.launch(dkv_kernel, [capacity * nkv, 1, 1], BLOCK, shared + statistics, &args)?;

    let queries = list(be, Side::Queries, segments, rows)?;
    let args = [&inputs[..], &[pointer(&queries)?], &extents, &outputs].concat();
    be.launch(dq_kernel, [capacity * nh, 1, 1], BLOCK, shared, &args)
}
