//! Log-probabilities from hidden states: products, and launches of kernels/linear_logprob.cu, chunk by chunk of rows.

use super::device::{Arg, Gemm, Matrix};
use super::gemm::{gemm, matrix, operand};
use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use crate::backend::ops;
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use std::ops::Range;

/// Threads per block, as in the kernels.
const BLOCK: usize = 512;
/// Unit of the rows of a chunk: a tile of the product.
const TILE: usize = 128;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "linear_logprob", name }
}

/// Splits `m` rows into as few chunks as keep the f32 logits (rows, V) within `bytes`, but at least a tile. All chunks
/// are about equally large: a last chunk of a few rows would take as long as a tile.
fn chunks(m: usize, v: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (bytes / (v * 4) / TILE * TILE).max(TILE);
    let count = m.div_ceil(most).max(1);
    let rows = m.div_ceil(count).max(1).next_multiple_of(TILE);
    (0..m).step_by(rows).map(move |start| start..(start + rows).min(m))
}

/// Returns the matrix that begins at row `start`.
fn from_row(matrix: Matrix, start: usize) -> Matrix {
    Matrix { address: matrix.address + (start * matrix.stride * matrix.dtype.size()) as u64, ..matrix }
}

/// Returns the argument for the elements of a vector from `start` on; elements have four bytes.
fn from_element(vector: &Tensor, start: usize) -> Result<Arg> {
    Ok(match pointer(vector)? {
        Arg::Pointer(address) => Arg::Pointer(address + 4 * start as u64),
        other => other,
    })
}

/// Computes out (rows, V) = x (rows, C) w^T.
fn product(be: &Cuda, x: Matrix, w: &Tensor, rows: usize, out: Matrix) -> Result<()> {
    let (a, b) = (x, matrix(w)?);
    let (n, k) = (w.rows(), w.columns());
    gemm(be, &Gemm { m: rows, n, k, a, transpose_a: false, b, transpose_b: true, c: out, alpha: 1.0, beta: 0.0 })
}

pub(super) fn linear_logprob(be: &Cuda, op: ops::LinearLogprob) -> Result<()> {
    let ops::LinearLogprob { x, w, targets, temperature, logp, entropy, lse } = op;
    let (m, v) = (x.rows(), w.rows());
    let narrow = operand(be, w)?;
    let mut room = None;
    for rows in chunks(m, v, be.logits_bytes) {
        let count = rows.len();
        let logits = match room.take() {
            Some(logits) => logits,
            None => be.workspace(&[count, v], DType::F32)?, // the first chunk is the largest
        };
        product(be, from_row(matrix(x)?, rows.start), narrow.tensor(), count, matrix(&logits)?)?;
        let args = [
            pointer(&logits)?,
            from_element(targets, rows.start)?,
            Arg::F32(1.0 / temperature),
            from_element(logp, rows.start)?,
            from_element(entropy, rows.start)?,
            from_element(lse, rows.start)?,
            int(v)?,
        ];
        be.launch(kernel("logprob"), [count, 1, 1], BLOCK, 0, &args)?;
        room = Some(logits);
    }
    Ok(())
}

pub(super) fn linear_logprob_backward(be: &Cuda, op: ops::LinearLogprobBackward) -> Result<()> {
    let ops::LinearLogprobBackward { x, w, targets, temperature, entropy, lse, dlogp, dentropy, dx, mut dw } = op;
    let (m, v, c) = (x.rows(), w.rows(), x.columns());
    let narrow = operand(be, w)?;
    // Every chunk reads and writes the whole dw, so chunks are larger when dw is wanted.
    let bytes = if dw.is_some() { 4 * be.logits_bytes } else { be.logits_bytes };
    let mut room = None;
    for rows in chunks(m, v, bytes) {
        let count = rows.len();
        let (logits, dlogits) = match room.take() {
            Some(room) => room,
            None => (be.workspace(&[count, v], DType::F32)?, be.workspace(&[count, v], DType::BF16)?),
        };
        let x = from_row(matrix(x)?, rows.start);
        product(be, x, narrow.tensor(), count, matrix(&logits)?)?;
        let args = [
            pointer(&logits)?,
            from_element(targets, rows.start)?,
            Arg::F32(1.0 / temperature),
            from_element(entropy, rows.start)?,
            from_element(lse, rows.start)?,
            from_element(dlogp, rows.start)?,
            dentropy.map_or(Ok(Arg::Pointer(0)), |d| from_element(d, rows.start))?,
            pointer(&dlogits)?,
            int(v)?,
        ];
        be.launch(kernel("logprob_backward"), [count, 1, 1], BLOCK, 0, &args)?;
        let dz = matrix(&dlogits)?;
        // dx (rows, C) = dlogits w
        let (b, out) = (matrix(narrow.tensor())?, from_row(matrix(dx)?, rows.start));
        let of_x = Gemm {
            m: count,
            n: c,
            k: v,
            a: dz,
            transpose_a: false,
            b,
            transpose_b: false,
            c: out,
            alpha: 1.0,
            beta: 0.0,
        };
        gemm(be, &of_x)?;
        if let Some(dw) = dw.as_deref_mut() {
            // dw (V, C) += dlogits^T x
            let of_w = Gemm { m: v, n: c, k: count, transpose_a: true, b: x, c: matrix(dw)?, beta: 1.0, ..of_x };
            gemm(be, &of_w)?;
        }
        room = Some((logits, dlogits));
    }
    Ok(())
}

pub(super) fn logits(be: &Cuda, op: ops::Logits) -> Result<()> {
    let ops::Logits { x, w, out } = op;
    let narrow = operand(be, w)?;
    product(be, matrix(x)?, narrow.tensor(), x.rows(), matrix(out)?)
}
