//! Linear layers, forward and backward: one matrix product each for the weight and for the two halves of the adapter.

use super::gemm::{Left, Right, Start, Term, gemm, gemm_reduce};
use super::simd::{self, Floats};
use crate::backend::ops::{self, Linear, LinearGrads};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Rows per partial sum of a bias gradient.
const BIAS_ROWS: usize = 256;

pub(super) fn linears(mut op: ops::Linears) {
    for ((column, layer), s) in op.side_by_side().zip(std::mem::take(&mut op.s)) {
        linear(op.x, layer, op.y, column, s);
    }
}

pub(super) fn linears_backward(mut op: ops::LinearsBackward) {
    let (s, grads) = (std::mem::take(&mut op.s), std::mem::take(&mut op.grads));
    for (((column, layer), s), grads) in op.side_by_side().zip(s).zip(grads) {
        linear_backward(op.x, layer, op.dy, column, s, op.dx.as_deref_mut(), grads);
    }
}

fn linear(x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) {
    let (t, n, k, width) = (x.rows(), p.w.rows(), p.w.columns(), y.columns());
    if t == 0 {
        return;
    }
    let (x, y) = (x.slice::<f32>(), y.slice_mut::<f32>());
    let bias = p.bias.map(Floats::small);
    let start = bias.as_deref().map_or(Start::Zero, Start::Row);
    let main = Term { k, alpha: 1.0, a: Left::rows(x, k), b: Right::columns(Floats::of(p.w), k) };
    let y = &mut y[column..];
    let (Some(lora), Some(s)) = (&p.lora, s) else {
        return gemm(t, n, start, &[main], y, width);
    };
    let (r, s) = (lora.a.rows(), s.slice_mut::<f32>());
    gemm(t, r, Start::Zero, &[Term { b: Right::columns(Floats::of(lora.a), k), ..main }], s, r);
    let b = Right::columns(Floats::of(lora.b), r);
    gemm(t, n, start, &[main, Term { k: r, alpha: lora.scale, a: Left::rows(s, r), b }], y, width);
}

fn linear_backward(
    x: &Tensor,
    p: &Linear,
    dy: &Tensor,
    column: usize,
    s: Option<&Tensor>,
    dx: Option<&mut Tensor>,
    grads: LinearGrads,
) {
    let (t, n, k, width) = (x.rows(), p.w.rows(), p.w.columns(), dy.columns());
    if t == 0 {
        return;
    }
    let (x, dy) = (x.slice::<f32>(), &dy.slice::<f32>()[column..]);
    let (by_rows, by_columns) = (Left::rows(dy, width), Left::columns(dy, width));
    let main = Term { k: n, alpha: 1.0, a: by_rows, b: Right::rows(Floats::of(p.w), k) };
    let x = Right::rows(Floats::F32(x), k);
    if let Some(lora) = &p.lora
        && (dx.is_some() || grads.lora.is_some())
    {
        let r = lora.a.rows();
        let mut ds = vec![0.0; t * r]; // scale * dy B
        let through_b = Term { k: n, alpha: lora.scale, a: by_rows, b: Right::rows(Floats::of(lora.b), r) };
        gemm(t, r, Start::Zero, &[through_b], &mut ds, r);
        if let Some(dx) = dx {
            let through_a = Term { k: r, alpha: 1.0, a: Left::rows(&ds, r), b: Right::rows(Floats::of(lora.a), k) };
            gemm(t, k, Start::Held, &[main, through_a], dx.slice_mut(), k);
        }
        if let (Some((da, db)), Some(s)) = (grads.lora, s) {
            gemm_reduce(r, k, Term { k: t, alpha: 1.0, a: Left::columns(&ds, r), b: x }, da.slice_mut(), k);
            let s = Right::rows(Floats::of(s), r);
            gemm_reduce(n, r, Term { k: t, alpha: lora.scale, a: by_columns, b: s }, db.slice_mut(), r);
        }
    } else if let Some(dx) = dx {
        gemm(t, k, Start::Held, &[main], dx.slice_mut(), k);
    }
    if let Some(dw) = grads.w {
        gemm_reduce(n, k, Term { k: t, alpha: 1.0, a: by_columns, b: x }, dw.slice_mut(), k);
    }
    if let Some(dbias) = grads.bias {
        let starts = (0..t).into_par_iter().step_by(BIAS_ROWS);
        let partials: Vec<Vec<f32>> = starts
            .map(|start| {
                let mut sum = vec![0.0; n];
                for row in start..t.min(start + BIAS_ROWS) {
                    simd::add(&dy[row * width..][..n], &mut sum);
                }
                sum
            })
            .collect();
        let dbias = dbias.slice_mut::<f32>();
        partials.iter().for_each(|sum| simd::add(sum, dbias));
    }
}

pub(super) fn logits(op: ops::Logits) {
    let ops::Logits { x, w, out } = op;
    let (b, v, c) = (x.rows(), w.rows(), w.columns());
    let term = Term { k: c, alpha: 1.0, a: Left::rows(x.slice(), c), b: Right::columns(Floats::of(w), c) };
    gemm(b, v, Start::Zero, &[term], out.slice_mut(), v);
}
