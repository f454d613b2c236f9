//! Gathering rows, adding them back, appending them to a cache, and adding up partial sums: launches of
//! kernels/rows.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, no_kernel, pointer};
use crate::backend::{Backend, ops};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// The most threads of a block that copies a row, 16 bytes per thread.
const MOST_THREADS: usize = 256;
/// The most threads of a block that adds rows: fewer, so that the columns of a frequent row are spread over more
/// blocks.
const ADDING_THREADS: usize = 128;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "rows", name }
}

/// Returns the work units of a row of `c` columns: vectors of 8 elements, or single elements.
fn units(c: usize) -> usize {
    if c.is_multiple_of(8) { c / 8 } else { c }
}

fn threads(units: usize, most: usize) -> usize {
    units.next_multiple_of(32).clamp(32, most)
}

/// Copies rows of x (T, C), which is bf16 or f32, to y (M, C), for `op`.
pub(super) fn gather(be: &Cuda, op: &str, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
    let name = match x.dtype() {
        DType::BF16 => "gather_rows_bf16",
        DType::F32 => "gather_rows_f32",
        _ => return Err(no_kernel(op, "the matrix", x)),
    };
    let args = [pointer(x)?, pointer(rows)?, pointer(y)?, int(x.rows())?, int(x.columns())?];
    be.launch(kernel(name), [y.rows(), 1, 1], threads(units(x.columns()), MOST_THREADS), 0, &args)
}

/// Adds dy (M, C) to rows of dx (T, C), bf16 or f32, in row order, for `op`.
pub(super) fn scatter_add(be: &Cuda, op: &str, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
    let name = match dx.dtype() {
        DType::BF16 => "scatter_add_rows_bf16",
        DType::F32 => "scatter_add_rows_f32",
        _ => return Err(no_kernel(op, "the matrix", dx)),
    };
    let (m, t, c) = (dy.rows(), dx.rows(), dx.columns());
    let (first, count) = (be.alloc(&[t], DType::I32)?, be.alloc(&[t], DType::I32)?); // zeros: no row is named yet
    let args = [pointer(rows)?, pointer(&first)?, pointer(&count)?, int(m)?, int(t)?];
    be.launch(kernel("name_rows"), [m.div_ceil(256), 1, 1], 256, 0, &args)?;
    let block = threads(units(c), ADDING_THREADS);
    let args =
        [pointer(dy)?, pointer(rows)?, pointer(&first)?, pointer(&count)?, pointer(dx)?, int(m)?, int(t)?, int(c)?];
    be.launch(kernel(name), [m, units(c).div_ceil(block), 1], block, 0, &args)
}

/// Adds to `to` (C) the sum over P of part `part` of f32 partials (parts, P, C), in a fixed order.
pub(super) fn add_partials(be: &Cuda, partials: &Tensor, part: usize, to: &mut Tensor) -> Result<()> {
    let (c, p) = (to.len(), partials.shape()[1]);
    let args = [pointer(partials)?, Arg::I64((part * p * c) as i64), pointer(to)?, int(p)?, int(c)?];
    be.launch(kernel("add_partials"), [c.div_ceil(32), 1, 1], 256, 0, &args)
}

pub(super) fn kv_append(be: &Cuda, op: ops::KvAppend) -> Result<()> {
    let ops::KvAppend { qkv, heads, slots, k_cache, v_cache } = op;
    let (d, from, n) = (heads.qkv_width(), heads.nh * heads.hs, heads.nkv * heads.hs);
    let args = [
        pointer(qkv)?,
        pointer(slots)?,
        pointer(k_cache)?,
        pointer(v_cache)?,
        int(d)?,
        int(from)?,
        int(n)?,
        int(k_cache.rows())?,
    ];
    be.launch(kernel("kv_append"), [qkv.rows(), 1, 1], threads(2 * units(n), MOST_THREADS), 0, &args)
}

pub(super) fn gather_rows(be: &Cuda, op: ops::GatherRows) -> Result<()> {
    let ops::GatherRows { x, rows, y } = op;
    gather(be, "gather_rows", x, rows, y)
}

pub(super) fn scatter_add_rows(be: &Cuda, op: ops::ScatterAddRows) -> Result<()> {
    let ops::ScatterAddRows { dy, rows, dx } = op;
    scatter_add(be, "scatter_add_rows", dy, rows, dx)
}
