//! Residual addition and RMSNorm (arXiv 1910.07467); the row functions also serve the per-head norm of queries and keys.

use super::{Real, dot};

/// y = x / rms(x) * w over one row of C elements; returns 1 / rms(x), where rms(x)^2 = mean(x^2) + eps.
pub fn rmsnorm_row<R: Real>(x: &[R], w: &[R], eps: f32, y: &mut [R]) -> R {
    let rstd = (dot(x, x) / R::of(x.len() as f64) + R::of(eps.into())).sqrt().recip();
    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
        *y = x * rstd * w;
    }
    rstd
}

/// The gradient of `rmsnorm_row`: accumulates into dx (C) and, when wanted, dw (C).
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

/// sum = residual + x, all of equal length.
pub fn add<R: Real>(residual: &[R], x: &[R], sum: &mut [R]) {
    for ((sum, &residual), &x) in sum.iter_mut().zip(residual).zip(x) {
        *sum = residual + x;
    }
}

/// y (T, C) = rows of sum (T, C), normalised, times w (C); rstd (T).
pub fn rmsnorm<R: Real>(sum: &[R], w: &[R], eps: f32, y: &mut [R], rstd: &mut [R]) {
    let c = w.len();
    for ((x, y), rstd) in sum.chunks_exact(c).zip(y.chunks_exact_mut(c)).zip(rstd) {
        *rstd = rmsnorm_row(x, w, eps, y);
    }
}

/// Accumulates into dsum (T, C) and, when wanted, dw (C).
pub fn rmsnorm_backward<R: Real>(sum: &[R], w: &[R], rstd: &[R], dy: &[R], dsum: &mut [R], mut dw: Option<&mut [R]>) {
    let c = w.len();
    for (t, &rstd) in rstd.iter().enumerate() {
        let row = t * c..(t + 1) * c;
        rmsnorm_row_backward(&sum[row.clone()], w, rstd, &dy[row.clone()], &mut dsum[row], dw.as_deref_mut());
    }
}
