//! Residual addition and RMSNorm (arXiv 1910.07467). The row functions also serve the per-head norm of queries and
//! keys.

use super::real::{Real, dot, widen};
use crate::backend::ops;

/// Computes y = x / rms(x) * w over one row of C elements; returns 1 / rms(x), where rms(x)^2 = mean(x^2) + eps.
pub fn rmsnorm_row<R: Real>(x: &[R], w: &[R], eps: f32, y: &mut [R]) -> R {
    let rstd = (dot(x, x) / R::of(x.len() as f64) + R::of(eps.into())).sqrt().recip();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = x * rstd * w;
    }
    rstd
}

/// Computes the gradient of `rmsnorm_row`; accumulates into dx (C) and, if given, dw (C).
///
/// With n = x rstd and g = dy w: dx = rstd (g - n mean(g n)), dw = dy n.
pub fn rmsnorm_row_backward<R: Real>(x: &[R], w: &[R], rstd: R, dy: &[R], dx: &mut [R], dw: Option<&mut [R]>) {
    let mut mean = R::zero();
    for ((&x, &w), &dy) in x.iter().zip(w).zip(dy) {
        mean += dy * w * x * rstd;
    }
    mean /= R::of(x.len() as f64);
    for (((dx, &x), &w), &dy) in dx.iter_mut().zip(x).zip(w).zip(dy) {
        *dx += rstd * (dy * w - x * rstd * mean);
    }
    if let Some(dw) = dw {
        for ((dw, &x), &dy) in dw.iter_mut().zip(x).zip(dy) {
            *dw += dy * x * rstd;
        }
    }
}

/// Computes `AddRmsnorm` row by row.
pub(super) fn add_rmsnorm<R: Real>(op: ops::AddRmsnorm) {
    let ops::AddRmsnorm { residual, x, w, eps, sum, y, rstd } = op;
    let (w, residual) = (widen::<R>(w), residual.slice::<R>());
    let normed = match (x, sum) {
        (Some(x), Some(sum)) => {
            let sum = sum.slice_mut::<R>();
            for ((sum, &residual), &x) in sum.iter_mut().zip(residual).zip(x.slice()) {
                *sum = residual + x;
            }
            &*sum
        }
        _ => residual,
    };
    let rows = normed.chunks_exact(w.len()).zip(y.slice_mut::<R>().chunks_exact_mut(w.len()));
    for ((x, y), rstd) in rows.zip(rstd.slice_mut()) {
        *rstd = rmsnorm_row(x, &w, eps, y);
    }
}

/// Computes `AddRmsnormBackward` row by row.
pub(super) fn add_rmsnorm_backward<R: Real>(op: ops::AddRmsnormBackward) {
    let ops::AddRmsnormBackward { sum, w, rstd, dy, dsum, dw } = op;
    let (w, mut dw) = (widen::<R>(w), dw.map(|dw| dw.slice_mut::<R>()));
    let (c, sum, dy, dsum) = (w.len(), sum.slice::<R>(), dy.slice::<R>(), dsum.slice_mut::<R>());
    for (t, &rstd) in rstd.slice::<R>().iter().enumerate() {
        let row = t * c..(t + 1) * c;
        rmsnorm_row_backward(&sum[row.clone()], &w, rstd, &dy[row.clone()], &mut dsum[row], dw.as_deref_mut());
    }
}
