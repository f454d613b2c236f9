//! Linear layers with an optional bias and low-rank adapter (LoRA, arXiv 2106.09685).

use super::real::{Real, dot, store, widen};
use crate::backend::ops::{self, Linear, LinearGrads};
use crate::tensor::Tensor;

/// y[t, column + n] = x[t] . w[n]: x (T, K), w (N, K), y (T, width).
pub(super) fn matmul_nt<R: Real>(x: &[R], w: &[R], k: usize, y: &mut [R], width: usize, column: usize) {
    for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(width)) {
        for (w, y) in w.chunks_exact(k).zip(&mut y[column..]) {
            *y = dot(x, w);
        }
    }
}

/// Inputs of the backward of a product y = x w^T: x (T, K), w (N, K), and dy in columns [column, column + N) of rows of
/// `width`.
struct Product<'a, R> {
    x: &'a [R],
    w: &'a [R],
    k: usize,
    dy: &'a [R],
    width: usize,
    column: usize,
}

impl<R: Real> Product<'_, R> {
    /// dx (T, K) += scale * dy w and dw (N, K) += scale * dy^T x, each when given.
    fn backward(&self, scale: R, mut dx: Option<&mut [R]>, mut dw: Option<&mut [R]>) {
        let k = self.k;
        for (t, x) in self.x.chunks_exact(k).enumerate() {
            for (n, w) in self.w.chunks_exact(k).enumerate() {
                let dy = scale * self.dy[t * self.width + self.column + n];
                if let Some(dx) = dx.as_deref_mut() {
                    axpy(dy, w, &mut dx[t * k..][..k]);
                }
                if let Some(dw) = dw.as_deref_mut() {
                    axpy(dy, x, &mut dw[n * k..][..k]);
                }
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

/// Computes `Linears` layer by layer.
pub(super) fn linears<R: Real>(mut op: ops::Linears) {
    for ((column, layer), s) in op.side_by_side().zip(std::mem::take(&mut op.s)) {
        linear::<R>(op.x, layer, op.y, column, s);
    }
}

/// Computes `LinearsBackward` layer by layer.
pub(super) fn linears_backward<R: Real>(mut op: ops::LinearsBackward) {
    let operands = op.side_by_side().zip(std::mem::take(&mut op.s)).zip(std::mem::take(&mut op.grads));
    for (((column, layer), s), grads) in operands {
        linear_backward::<R>(op.x, layer, op.dy, column, s, op.dx.as_deref_mut(), grads);
    }
}

/// y[:, column .. column + N] = x W^T + bias + scale (x A^T) B^T; with an adapter, `s` (T, R) receives x A^T.
fn linear<R: Real>(x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) {
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
fn linear_backward<R: Real>(
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
    Product { x, w: &widen(p.w), k, dy, width, column }.backward(R::one(), dx.as_deref_mut(), dw);
    if let Some(dbias) = grads.bias {
        for dy in dy.chunks_exact(width) {
            axpy(R::one(), &dy[column..column + n], dbias.slice_mut::<R>());
        }
    }
    if let Some(lora) = &p.lora {
        let (r, scale) = (lora.a.rows(), R::of(lora.scale.into()));
        let (da, db) = grads.lora.map(|(da, db)| (da.slice_mut::<R>(), db.slice_mut::<R>())).unzip();
        // s is read only for db, so zeros stand in for it where it is missing.
        let zeros = vec![R::zero(); t * r];
        let s = s.map_or(zeros.as_slice(), |s| s.slice::<R>());
        let mut ds = vec![R::zero(); t * r];
        Product { x: s, w: &widen(lora.b), k: r, dy, width, column }.backward(scale, Some(&mut ds), db);
        Product { x, w: &widen(lora.a), k, dy: &ds, width: r, column: 0 }.backward(R::one(), dx, da);
    }
}

/// Merges the adapter in `R` and rounds once, to w's type.
pub(super) fn merge_lora<R: Real>(op: ops::MergeLora) {
    let ops::MergeLora { w, lora } = op;
    let (k, r, scale) = (w.columns(), lora.a.rows(), R::of(lora.scale.into()));
    let (a, b) = (widen::<R>(lora.a), widen::<R>(lora.b));
    let mut merged = widen::<R>(w).into_owned();
    let mut change = vec![R::zero(); k]; // a row of B A
    for (n, row) in merged.chunks_exact_mut(k).enumerate() {
        change.fill(R::zero());
        for j in 0..r {
            change.iter_mut().zip(&a[j * k..]).for_each(|(sum, &a)| *sum += b[n * r + j] * a);
        }
        row.iter_mut().zip(&change).for_each(|(w, &change)| *w += scale * change);
    }
    store(&merged, w);
}
