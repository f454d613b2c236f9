//! `linear_logprob` and its backward: logits of some rows and some of the vocabulary at a time, never more than a block of them.

use super::gemm::{Left, Right, Start, Term, gemm};
use super::simd::{self, Floats};
use super::{chunk_rows, run};
use crate::tensor::Tensor;

/// Rows and columns of the block of logits in memory: 8 MiB.
const BLOCK_ROWS: usize = 2048;
const BLOCK_COLUMNS: usize = 1024;

/// What both directions read: x (M, C), w (V, C), targets (M).
pub struct Head<'a> {
    x: &'a [f32],
    w: Floats<'a>,
    c: usize,
    v: usize,
    targets: &'a [i32],
    temperature: f32,
}

impl<'a> Head<'a> {
    /// Shapes and targets are checked.
    pub fn new(x: &'a Tensor, w: &'a Tensor, targets: &'a Tensor, temperature: f32) -> Self {
        let (x, targets) = (x.slice(), targets.slice());
        Self { x, w: Floats::of(w), c: w.columns(), v: w.rows(), targets, temperature }
    }

    /// Calls `visit(row, column, logits)` for blocks of logits: of rows from `row` on, columns from `column` on, all in order.
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
                let term = Term { k: c, alpha: self.temperature.recip(), a, b };
                gemm(rows, columns, Start::Zero, &[term], logits, columns);
                visit(row, column, columns, logits);
            }
        }
    }

    /// The target of `row` as a column of the block that begins at `column`, when it lies there.
    fn target(&self, row: usize, column: usize, columns: usize) -> Option<usize> {
        (self.targets[row] as usize).checked_sub(column).filter(|&target| target < columns)
    }
}

pub fn linear_logprob(head: &Head, logp: &mut [f32], entropy: &mut [f32], lse: &mut [f32]) {
    let mut states = vec![(f32::NEG_INFINITY, 0.0, 0.0); logp.len()];
    head.blocks(|row, column, columns, logits| {
        let rows = chunk_rows(columns);
        let chunks =
            logits.chunks(rows * columns).zip(states[row..].chunks_mut(rows)).zip(logp[row..].chunks_mut(rows));
        run(chunks.enumerate().collect(), |(i, ((logits, states), logp))| {
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
        *logp -= *lse;
        *entropy = sum.ln() - product / sum;
    }
}

/// With p = exp(z - lse): dz = dlogp (1[target] - p) - dentropy p (log p + entropy), then through z = x w^T / temperature.
pub fn linear_logprob_backward(
    head: &Head,
    entropy: &[f32],
    lse: &[f32],
    dlogp: &[f32],
    dentropy: Option<&[f32]>,
    dx: &mut [f32],
    mut dw: Option<&mut [f32]>,
) {
    let c = head.c;
    dx.fill(0.0);
    let scale = head.temperature.recip();
    head.blocks(|row, column, columns, logits| {
        let rows = chunk_rows(columns);
        run(logits.chunks_mut(rows * columns).enumerate().collect(), |(i, chunk)| {
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
