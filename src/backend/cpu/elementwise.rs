//! Ops without a contraction: embedding, RMSNorm, rotary embedding, SwiGLU, AdamW; rows or pieces in parallel.

use super::simd::{self, AdamFactors, Floats};
use super::tasks::{GRAIN, chunk_rows, run};
use crate::backend::ops::{self, Heads};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Rows per partial sum of a norm's weight gradient.
const SUM_ROWS: usize = 256;

pub(super) fn embed(op: ops::Embed) {
    let (wte, c, ids) = (Floats::of(op.wte), op.wte.columns(), op.ids.slice::<i32>());
    let (rows, out) = (chunk_rows(c), op.out.slice_mut::<f32>());
    run(out.chunks_mut(rows * c).zip(ids.chunks(rows)).collect(), |(out, ids)| {
        for (out, &id) in out.chunks_exact_mut(c).zip(ids) {
            wte.widen(id as usize * c, out);
        }
    });
}

pub(super) fn add_rmsnorm(op: ops::AddRmsnorm) {
    let (residual, w, eps) = (op.residual.slice::<f32>(), &*Floats::small(op.w), op.eps);
    let x_sum = op.x.zip(op.sum).map(|(x, sum)| (x.slice::<f32>(), sum.slice_mut::<f32>()));
    let (y, rstd) = (op.y.slice_mut::<f32>(), op.rstd.slice_mut::<f32>());
    let c = w.len();
    let rows = chunk_rows(c);
    let norm = |row: &[f32], y: &mut [f32], rstd: &mut f32| {
        *rstd = (simd::dot(row, row) / c as f32 + eps).sqrt().recip();
        simd::scale_by(row, *rstd, w, y);
    };
    let outputs = residual.chunks(rows * c).zip(y.chunks_mut(rows * c)).zip(rstd.chunks_mut(rows));
    match x_sum {
        None => run(outputs.collect(), |((residual, y), rstd)| {
            for ((row, y), rstd) in residual.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(rstd) {
                norm(row, y, rstd);
            }
        }),
        Some((x, sum)) => {
            run(outputs.zip(x.chunks(rows * c).zip(sum.chunks_mut(rows * c))).collect(), |(outputs, (x, sum))| {
                let ((residual, y), rstd) = outputs;
                sum.copy_from_slice(residual);
                simd::add(x, sum);
                for ((row, y), rstd) in sum.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(rstd) {
                    norm(row, y, rstd);
                }
            });
        }
    }
}

pub(super) fn add_rmsnorm_backward(op: ops::AddRmsnormBackward) {
    let (sum, w, rstd) = (op.sum.slice::<f32>(), &*Floats::small(op.w), op.rstd.slice::<f32>());
    let (dy, dsum, dw) = (op.dy.slice::<f32>(), op.dsum.slice_mut::<f32>(), op.dw.map(|dw| dw.slice_mut::<f32>()));
    let c = w.len();
    let rows = chunk_rows(c);
    let inputs = sum.chunks(rows * c).zip(dy.chunks(rows * c)).zip(rstd.chunks(rows));
    run(inputs.zip(dsum.chunks_mut(rows * c)).collect(), |(((x, dy), rstd), dx)| {
        for (((x, dy), rstd), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(rstd).zip(dx.chunks_exact_mut(c)) {
            simd::rmsnorm_backward(x, *rstd, w, dy, dx);
        }
    });
    if let Some(dw) = dw {
        let pieces = sum.par_chunks(SUM_ROWS * c).zip(dy.par_chunks(SUM_ROWS * c)).zip(rstd.par_chunks(SUM_ROWS));
        let partials: Vec<Vec<f32>> = pieces
            .map(|((x, dy), rstd)| {
                let mut partial = vec![0.0; c];
                for ((x, dy), rstd) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(rstd) {
                    simd::rmsnorm_weight(x, *rstd, dy, &mut partial);
                }
                partial
            })
            .collect();
        partials.iter().for_each(|partial| simd::add(partial, dw));
    }
}

/// Computes `QkNormRope` without a norm.
pub(super) fn rope(op: ops::QkNormRope) {
    rotate(op.qkv, op.heads, op.positions, op.table, 1.0);
}

/// Computes `QkNormRopeBackward` without a norm.
pub(super) fn rope_backward(op: ops::QkNormRopeBackward) {
    rotate(op.dqkv, op.heads, op.positions, op.table, -1.0);
}

/// Rotates queries and keys in place by their positions; `sign` is -1 for the backward.
fn rotate(qkv: &mut Tensor, heads: Heads, positions: &Tensor, table: &Tensor, sign: f32) {
    let (d, hs) = (heads.qkv_width(), heads.hs);
    let (qkv, positions, table) = (qkv.slice_mut::<f32>(), positions.slice::<i32>(), Floats::of(table));
    let rows = chunk_rows(d);
    run(qkv.chunks_mut(rows * d).zip(positions.chunks(rows)).collect(), |(qkv, positions)| {
        let mut angles = vec![0.0; hs];
        for (row, &position) in qkv.chunks_exact_mut(d).zip(positions) {
            table.widen(position as usize * hs, &mut angles);
            simd::rotate(&mut row[..(heads.nh + heads.nkv) * hs], &angles, sign);
        }
    });
}

pub(super) fn swiglu(op: ops::Swiglu) {
    let (f, gate_up, y) = (op.y.columns(), op.gate_up.slice::<f32>(), op.y.slice_mut::<f32>());
    let rows = chunk_rows(2 * f);
    run(gate_up.chunks(rows * 2 * f).zip(y.chunks_mut(rows * f)).collect(), |(gate_up, y)| {
        for (row, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
            simd::swiglu(&row[..f], &row[f..], y);
        }
    });
}

pub(super) fn swiglu_backward(op: ops::SwigluBackward) {
    let (f, gate_up, dy) = (op.dy.columns(), op.gate_up.slice::<f32>(), op.dy.slice::<f32>());
    let dgate_up = op.dgate_up.slice_mut::<f32>();
    let rows = chunk_rows(2 * f);
    let inputs = gate_up.chunks(rows * 2 * f).zip(dy.chunks(rows * f));
    run(inputs.zip(dgate_up.chunks_mut(rows * 2 * f)).collect(), |((gate_up, dy), dgate_up)| {
        let rows = gate_up.chunks_exact(2 * f).zip(dy.chunks_exact(f));
        for ((row, dy), out) in rows.zip(dgate_up.chunks_exact_mut(2 * f)) {
            let (dgate, dup) = out.split_at_mut(f);
            simd::swiglu_backward(&row[..f], &row[f..], dy, dgate, dup);
        }
    });
}

pub(super) fn adamw(op: ops::AdamWStep) {
    let step = op.settings;
    let (beta1, beta2) = (f64::from(step.beta1), f64::from(step.beta2));
    let steps = f64::from(step.step);
    let factors = AdamFactors {
        grad: step.grad_scale,
        beta1: step.beta1,
        rest1: (1.0 - beta1) as f32,
        beta2: step.beta2,
        rest2: (1.0 - beta2) as f32,
        decay: (1.0 - f64::from(step.lr) * f64::from(step.weight_decay)) as f32,
        rate: (f64::from(step.lr) / (1.0 - beta1.powf(steps))) as f32,
        root: (1.0 / (1.0 - beta2.powf(steps))) as f32,
        eps: step.eps,
    };
    let mut pieces = Vec::new();
    for ops::Trained { param, grad, m, v } in op.tensors {
        let moments = m.slice_mut().chunks_mut(GRAIN).zip(v.slice_mut().chunks_mut(GRAIN));
        pieces.extend(param.slice_mut().chunks_mut(GRAIN).zip(grad.slice().chunks(GRAIN)).zip(moments));
    }
    run(pieces, |((p, g), (m, v))| simd::adamw(p, g, m, v, &factors));
}
