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

/// The list of tiles of queries: a header with their number, then an entry a tile.
fn query_tiles(be: &Cuda, segments: &Segments, rows: usize) -> Result<Tensor> {
    let capacity = capacity(segments, rows);
    let tiles = be.workspace(&[1 + capacity, ENTRY], DType::I32)?;
    let Segments { cu_seqlens, parent } = segments;
    let extents = [int(parent.len())?, int(rows)?];
    let args = [pointer(cu_seqlens)?, pointer(parent)?, extents[0], extents[1], pointer(&tiles)?, int(capacity)?];
    let kernel = Kernel { file: "attention_tiles", name: "attention_query_tiles" };
    be.launch(kernel, [1, 1, 1], LIST_BLOCK, 0, &args)?;
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
    let tiles = query_tiles(be, segments, rows)?;
    let args =
        [pointer(qkv)?, pointer(&tiles)?, int(rows)?, int(nh)?, int(nkv)?, scale(heads), pointer(o)?, pointer(lse)?];
    // Two K and two V tiles of bf16.
    let shared = 4 * ROWS * hs * 2;
    be.launch(kernel, [capacity(segments, rows) * nh, 1, 1], BLOCK, shared, &args)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn attention_backward(
    _be: &Cuda,
    _qkv: &Tensor,
    _o: &Tensor,
    _lse: &Tensor,
    _dout: &Tensor,
    _heads: Heads,
    _segments: &Segments,
    _dqkv: &mut Tensor,
) -> Result<()> {
    Err(Error::system("attention_backward: no kernel"))
}
