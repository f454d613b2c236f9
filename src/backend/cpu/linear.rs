//! `linear` and its backward: one matrix product each for the weight and for the two halves of the adapter.

use super::gemm::{Left, Right, gemm, gemm_reduce};
use super::simd::{self, Floats};
use super::{chunk_rows, run};
use crate::backend::{Linear, LinearGrads};
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Rows of one partial sum of the gradient of a bias.
const BIAS_ROWS: usize = 256;

pub fn linear(x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) {
    let (t, n, k, width) = (x.rows(), p.w.rows(), p.w.columns(), y.columns());
    if t == 0 {
        return;
    }
    let (x, y) = (x.slice::<f32>(), y.slice_mut::<f32>());
    let bias = p.bias.map(Floats::small);
    let rows = chunk_rows(width);
    run(y.chunks_mut(rows * width).collect(), |chunk| {
        for row in chunk.chunks_exact_mut(width) {
            match &bias {
                Some(bias) => row[column..column + n].copy_from_slice(bias),
                None => row[column..column + n].fill(0.0),
            }
        }
    });
    let y = &mut y[column..];
    gemm(t, n, k, 1.0, Left::rows(x, k), Right::columns(Floats::of(p.w), k), y, width);
    if let (Some(lora), Some(s)) = (&p.lora, s) {
        let (r, s) = (lora.a.rows(), s.slice_mut::<f32>());
        s.fill(0.0);
        gemm(t, r, k, 1.0, Left::rows(x, k), Right::columns(Floats::of(lora.a), k), s, r);
        gemm(t, n, r, lora.scale, Left::rows(s, r), Right::columns(Floats::of(lora.b), r), y, width);
    }
}

pub fn linear_backward(
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
    let mut dx = dx.map(|dx| dx.slice_mut::<f32>());
    if let Some(dx) = dx.as_deref_mut() {
        gemm(t, k, n, 1.0, Left::rows(dy, width), Right::rows(Floats::of(p.w), k), dx, k);
    }
    if let Some(lora) = &p.lora
        && (dx.is_some() || grads.lora.is_some())
    {
        let r = lora.a.rows();
        let mut ds = vec![0.0; t * r]; // scale * dy B
        gemm(t, r, n, lora.scale, Left::rows(dy, width), Right::rows(Floats::of(lora.b), r), &mut ds, r);
        if let Some(dx) = dx {
            gemm(t, k, r, 1.0, Left::rows(&ds, r), Right::rows(Floats::of(lora.a), k), dx, k);
        }
        if let (Some((da, db)), Some(s)) = (grads.lora, s) {
            let x = Right::rows(Floats::F32(x), k);
            gemm_reduce(r, k, t, 1.0, Left::columns(&ds, r), x, da.slice_mut(), k);
            let s = Right::rows(Floats::of(s), r);
            gemm_reduce(n, r, t, lora.scale, Left::columns(dy, width), s, db.slice_mut(), r);
        }
    }
    if let Some(dw) = grads.w {
        let x = Right::rows(Floats::F32(x), k);
        gemm_reduce(n, k, t, 1.0, Left::columns(dy, width), x, dw.slice_mut(), k);
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

/// x (B, C), w (V, C) -> out (B, V).
pub fn logits(x: &Tensor, w: &Tensor, out: &mut Tensor) {
    let (b, v, c) = (x.rows(), w.rows(), w.columns());
    let out = out.slice_mut::<f32>();
    out.fill(0.0);
    gemm(b, v, c, 1.0, Left::rows(x.slice(), c), Right::columns(Floats::of(w), c), out, v);
}
