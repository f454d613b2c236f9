//! `LinearLogprob` and its backward. The logits are computed block by block of rows and vocabulary; only one block is
//! in memory.

use super::gemm::{Left, Right, Start, Term, gemm};
use super::simd::{self, Floats};
use super::tasks::{chunk_rows, run};
use crate::backend::ops;
use crate::tensor::Tensor;

/// Rows and columns of the block of logits in memory, 8 MiB.
const BLOCK_ROWS: usize = 2048;
const BLOCK_COLUMNS: usize = 1024;

/// Inputs of both directions: x (M, C), w (V, C), targets (M).
struct Head<'a> {
    x: &'a [f32],
    w: Floats<'a>,
    c: usize,
    v: usize,
    targets: &'a [i32],
    temperature: f32,
}

impl<'a> Head<'a> {
    fn new(x: &'a Tensor, w: &'a Tensor, targets: &'a Tensor, temperature: f32) -> Self {
        let (x, targets) = (x.slice(), targets.slice());
        Self { x, w: Floats::of(w), c: w.columns(), v: w.rows(), targets, temperature }
    }

    /// Calls `visit(row, column, columns, logits)` for each block of logits in order: the rows from `row` on and the
    /// `columns` columns from `column` on.
    fn blocks(&self, mut visit: impl FnMut(usize, usize, usize, &mut [f32])) {
        let (m, c, v) = (self.targets.len(), self.c, self.v);
        let mut block = vec![0.0; m.min(BLOCK_ROWS) * v.min(BLOCK_COLUMNS)];
        for row in (0..m).step_by(BLOCK_ROWS) {
            let rows = BLOCK_ROWS.min(m - row);
            for column in (0..v).step_by(BLOCK_COLUMNS) {
                let columns = BLOCK_COLUMNS.min(v - column);
                let logits = &mut block[..rows * columns];
                let a = Left::rows(&self.x[row * c..], c);
                let b = Right::columns(self.w.from(column * c), c);
                let term = Term { k: c, alpha: 1.0, a, b };
                gemm(rows, columns, Start::Zero, &[term], logits, columns);
                visit(row, column, columns, logits);
            }
        }
    }

    /// Returns the target of `row` as a column of the block that begins at `column`, if it lies in the block.
    fn target(&self, row: usize, column: usize, columns: usize) -> Option<usize> {
        (self.targets[row] as usize).checked_sub(column).filter(|&target| target < columns)
    }
}

pub(super) fn linear_logprob(op: ops::LinearLogprob) {
    let head = Head::new(op.x, op.w, op.targets, op.temperature);
    let (logp, entropy, lse) = (op.logp.slice_mut::<f32>(), op.entropy.slice_mut::<f32>(), op.lse.slice_mut::<f32>());
    let mut states = vec![(f32::NEG_INFINITY, 0.0, 0.0); logp.len()];
    head.blocks(|row, column, columns, logits| {
        let rows = chunk_rows(columns);
        let chunks =
            logits.chunks_mut(rows * columns).zip(states[row..].chunks_mut(rows)).zip(logp[row..].chunks_mut(rows));
        run(chunks.enumerate().collect(), |(i, ((logits, states), logp))| {
            simd::scale(logits, head.temperature.recip());
            for (j, logits) in logits.chunks_exact(columns).enumerate() {
                simd::entropy_block(logits, &mut states[j]);
                if let Some(target) = head.target(row + i * rows + j, column, columns) {
                    logp[j] = logits[target];
                }
            }
        });
    });
    for (((logp, entropy), lse), (top, sum, product)) in logp.iter_mut().zip(entropy).zip(lse).zip(states) {
        *lse = top + sum.ln();
        *logp = *logp - top - sum.ln();
        *entropy = sum.ln() - product / sum;
    }
}

/// Returns the largest of a row of logits and the log of the sum of exp(logit - largest), with the bits of
/// `linear_logprob`.
pub fn statistics(logits: &[f32]) -> (f32, f32) {
    let mut state = (f32::NEG_INFINITY, 0.0, 0.0);
    logits.chunks(BLOCK_COLUMNS).for_each(|block| simd::entropy_block(block, &mut state));
    (state.0, state.1.ln())
}

/// Computes the gradients: with p = exp(z - lse), dz = dlogp (1[target] - p) - dentropy p (log p + entropy), then
/// through z = x w^T / temperature.
pub(super) fn linear_logprob_backward(op: ops::LinearLogprobBackward) {
    let head = Head::new(op.x, op.w, op.targets, op.temperature);
    let (entropy, lse, dlogp) = (op.entropy.slice::<f32>(), op.lse.slice::<f32>(), op.dlogp.slice::<f32>());
    let dentropy = op.dentropy.map(|t| t.slice::<f32>());
    let (dx, mut dw) = (op.dx.slice_mut::<f32>(), op.dw.map(|t| t.slice_mut::<f32>()));
    let c = head.c;
    dx.fill(0.0);
    let scale = head.temperature.recip();
    head.blocks(|row, column, columns, logits| {
        let rows = chunk_rows(columns);
        run(logits.chunks_mut(rows * columns).enumerate().collect(), |(i, chunk)| {
            simd::scale(chunk, scale);
            for (j, dz) in chunk.chunks_exact_mut(columns).enumerate() {
                let t = row + i * rows + j;
                let dentropy = dentropy.map_or(0.0, |d| d[t]);
                simd::logit_gradient(dz, lse[t], dlogp[t], dentropy, entropy[t], scale);
                if let Some(target) = head.target(t, column, columns) {
                    dz[target] += dlogp[t] * scale;
                }
            }
        });
        let m = logits.len() / columns;
        let w = Right::rows(head.w.from(column * c), c);
        let term = Term { k: columns, alpha: 1.0, a: Left::rows(logits, columns), b: w };
        gemm(m, c, Start::Held, &[term], &mut dx[row * c..], c);
        if let Some(dw) = dw.as_deref_mut() {
            let x = Right::rows(Floats::F32(&head.x[row * c..]), c);
            let term = Term { k: m, alpha: 1.0, a: Left::columns(logits, columns), b: x };
            gemm(columns, c, Start::Held, &[term], &mut dw[column * c..], c);
        }
    });
}
