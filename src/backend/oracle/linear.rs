//! Linear layers with an optional bias and low-rank adapter (LoRA, arXiv 2106.09685), and plain logits.

use super::{Real, dot, widen};
use crate::backend::{Linear, LinearGrads};
use crate::tensor::Tensor;

/// y[t, column + n] = x[t] . w[n]: x (T, K), w (N, K), y (T, width).
pub fn matmul_nt<R: Real>(x: &[R], w: &[R], k: usize, y: &mut [R], width: usize, column: usize) {
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(width)) {
        for (w, y) in w.chunks_exact(k).zip(&mut y[column..]) {
            *y = dot(x, w);
        }
    }
}

/// dx (T, K) += scale * dy w and dw (N, K) += scale * dy^T x, each when given. dy lies in columns [column, column + N) of rows
/// of `width`.
#[allow(clippy::too_many_arguments)]
pub fn matmul_nt_backward<R: Real>(
    x: &[R],
    w: &[R],
    k: usize,
    dy: &[R],
    width: usize,
    column: usize,
    scale: R,
    mut dx: Option<&mut [R]>,
    mut dw: Option<&mut [R]>,
) {
    for (t, x) in x.chunks_exact(k).enumerate() {
        for (n, w) in w.chunks_exact(k).enumerate() {
            let dy = scale * dy[t * width + column + n];
            if let Some(dx) = dx.as_deref_mut() {
                axpy(dy, w, &mut dx[t * k..][..k]);
            }
            if let Some(dw) = dw.as_deref_mut() {
                axpy(dy, x, &mut dw[n * k..][..k]);
            }
        }
    }
}

/// y += a x.
fn axpy<R: Real>(a: R, x: &[R], y: &mut [R]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// y[:, column .. column + N] = x W^T + bias + scale (x A^T) B^T; with an adapter, `s` (T, R) receives x A^T.
pub fn linear<R: Real>(x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) {
    let ([n, k], width) = ([p.w.rows(), p.w.columns()], y.columns());
    let (x, y) = (x.slice::<R>(), y.slice_mut::<R>());
    matmul_nt(x, &widen(p.w), k, y, width, column);
    if let Some(bias) = p.bias {
        let bias = widen::<R>(bias);
        for y in y.chunks_exact_mut(width) {
            axpy(R::one(), &bias, &mut y[column..column + n]);
        }
    }
    if let (Some(lora), Some(s)) = (&p.lora, s) {
        let (r, s) = (lora.a.rows(), s.slice_mut::<R>());
        matmul_nt(x, &widen(lora.a), k, s, r, 0);
        let b = widen::<R>(lora.b);
        for (s, y) in s.chunks_exact(r).zip(y.chunks_exact_mut(width)) {
            for (b, y) in b.chunks_exact(r).zip(&mut y[column..]) {
                *y += R::of(lora.scale.into()) * dot(s, b);
            }
        }
    }
}

/// The gradient of `linear`; everything given accumulates.
pub fn linear_backward<R: Real>(
    x: &Tensor,
    p: &Linear,
    dy: &Tensor,
    column: usize,
    s: Option<&Tensor>,
    dx: Option<&mut Tensor>,
    grads: LinearGrads,
) {
    let ([t, n, k], width) = ([x.rows(), p.w.rows(), p.w.columns()], dy.columns());
    let (x, dy) = (x.slice::<R>(), dy.slice::<R>());
    let mut dx = dx.map(|dx| dx.slice_mut::<R>());
    let dw = grads.w.map(|dw| dw.slice_mut::<R>());
    matmul_nt_backward(x, &widen(p.w), k, dy, width, column, R::one(), dx.as_deref_mut(), dw);
    if let Some(dbias) = grads.bias {
        for dy in dy.chunks_exact(width) {
            axpy(R::one(), &dy[column..column + n], dbias.slice_mut::<R>());
        }
    }
    if let Some(lora) = &p.lora {
        let (r, scale) = (lora.a.rows(), R::of(lora.scale.into()));
        let (da, db) = grads.lora.map(|(da, db)| (da.slice_mut::<R>(), db.slice_mut::<R>())).unzip();
        // s is only read for db, so zeros serve where nobody gave it.
        let zeros = vec![R::zero(); t * r];
        let s = s.map_or(zeros.as_slice(), |s| s.slice::<R>());
        let mut ds = vec![R::zero(); t * r];
        matmul_nt_backward(s, &widen(lora.b), r, dy, width, column, scale, Some(&mut ds), db);
        matmul_nt_backward(x, &widen(lora.a), k, &ds, r, 0, R::one(), dx, da);
    }
}
