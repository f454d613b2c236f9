//! Attention over a paged cache: launches of kernels/attention_paged.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use crate::backend::ops::{self, Heads};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Keys per tile, the unit in which results are merged. It is fixed, so that a token's result depends only on its own
/// keys.
const KEYS: usize = 128;
const SPLIT_THREADS: usize = 128;
const PROMPT_THREADS: usize = 256;
/// Rows of q per block: heads that share a key head in `split`, (query, head) pairs in `prompt`.
const SPLIT_ROWS: usize = 16;
const PROMPT_ROWS: usize = 64;
/// Blocks per multiprocessor that `split` aims at: four times the number that run at once, so that long and short
/// sequences even out.
const BLOCKS_EACH: usize = 12;
/// Bytes of workspace above which only decoding uses `split`.
const MOST_WORKSPACE: usize = 256 << 20;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "attention_paged", name }
}

/// Arguments that both kernels take: the cache's tensors, then its extents.
struct Cache {
    tensors: [Arg; 6],
    extents: [Arg; 4],
}

pub(super) fn attention_paged(be: &Cuda, op: ops::AttentionPaged) -> Result<()> {
    let ops::AttentionPaged { qkv, heads, k_cache, v_cache, block_size, block_table, lens, cu_q, o } = op;
    let [split, merge, prompt] = match heads.hs {
        32 => ["split_32", "merge_32", "prompt_32"],
        64 => ["split_64", "merge_64", "prompt_64"],
        128 => ["split_128", "merge_128", "prompt_128"],
        hs => {
            return Err(Error::content(format!("attention_paged: head size {hs}; on the GPU expected 32, 64 or 128")));
        }
    };
    let (q, b, pages) = (qkv.rows(), lens.len(), block_table.columns());
    let (group, tiles) = (heads.nh / heads.nkv, (pages * block_size).div_ceil(KEYS));
    let cache = Cache {
        tensors: [
            pointer(qkv)?,
            pointer(k_cache)?,
            pointer(v_cache)?,
            pointer(block_table)?,
            pointer(lens)?,
            pointer(cu_q)?,
        ],
        extents: [int(b)?, int(pages)?, int(block_size)?, int(k_cache.rows())?],
    };
    // Both kernels give the same bits; the choice is one of speed. `split` is for few queries, and for too few rows to
    // fill the multiprocessors.
    let row_tiles = (q * group + (PROMPT_ROWS - 1) * b.min(q)) / PROMPT_ROWS; // at most
    let workspace = q * heads.nh * tiles * (heads.hs + 2) * size_of::<f32>();
    let fills_device = q * group * heads.nkv >= PROMPT_ROWS * be.device.multiprocessors() / 2;
    if q <= 2 * b || (!fills_device && workspace <= MOST_WORKSPACE) {
        decode(be, [split, merge], heads, &cache, tiles, o)
    } else {
        let args = [
            &cache.tensors[..],
            &[pointer(o)?],
            &cache.extents,
            &[int(heads.nh)?, int(heads.nkv)?, int(tiles)?, scale(heads)],
        ]
        .concat();
        let shared = shared(PROMPT_ROWS, heads.hs, 2);
        be.launch(kernel(prompt), [row_tiles, heads.nkv, 1], PROMPT_THREADS, shared, &args)
    }
}

/// Returns the factor of the scores, for exponents of two.
fn scale(heads: Heads) -> Arg {
    Arg::F32(std::f32::consts::LOG2_E / (heads.hs as f32).sqrt())
}

/// Returns the bytes of a block's shared memory: k and v, q, the weights, cache rows twice, and for each row four sums
/// and a maximum for each of the `sharing` warps.
fn shared(rows: usize, hs: usize, sharing: usize) -> usize {
    2 * (2 * KEYS * hs + rows * hs + rows * KEYS) + 4 * (2 * KEYS + rows * (sharing + 4))
}

fn decode(
    be: &Cuda,
    names: [&'static str; 2],
    heads: Heads,
    cache: &Cache,
    tiles: usize,
    o: &mut Tensor,
) -> Result<()> {
    let (q, Heads { nh, nkv, hs }) = (o.rows(), heads);
    let (o_tiles, ml_tiles) =
        (be.workspace(&[q, nh, tiles, hs], DType::F32)?, be.workspace(&[q, nh, tiles, 2], DType::F32)?);
    let across = nkv * (nh / nkv).div_ceil(SPLIT_ROWS);
    let wanted = (BLOCKS_EACH * be.device.multiprocessors()).div_ceil((q * across).max(1));
    let args = [
        &cache.tensors[..],
        &[pointer(&o_tiles)?, pointer(&ml_tiles)?],
        &cache.extents,
        &[int(nh)?, int(nkv)?, int(tiles)?, scale(heads)],
    ]
    .concat();
    let shared = shared(SPLIT_ROWS, hs, 4);
    be.launch(kernel(names[0]), [q, across, wanted.min(tiles)], SPLIT_THREADS, shared, &args)?;

    let [.., lens, cu_q] = cache.tensors;
    let [sequences, ..] = cache.extents;
    let args =
        [pointer(&o_tiles)?, pointer(&ml_tiles)?, lens, cu_q, pointer(o)?, sequences, int(q)?, int(nh)?, int(tiles)?];
    be.launch(kernel(names[1]), [(q * nh).div_ceil(SPLIT_THREADS / 32), 1, 1], SPLIT_THREADS, 0, &args)
}
