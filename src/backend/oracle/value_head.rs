//! A critic's linear head on hidden states.

use super::{Real, dot};
use crate::tensor::Tensor;

/// value (M) = x (M, C) w (1, C)^T + bias (1).
pub fn value_head<R: Real>(x: &Tensor, w: &Tensor, bias: &Tensor, value: &mut [R]) {
    let (w, bias) = (w.slice::<R>(), bias.slice::<R>()[0]);
    for (x, value) in x.slice::<R>().chunks_exact(w.len()).zip(value) {
        *value = dot(x, w) + bias;
    }
}

/// Writes dx (M, C) whole; dw (C) and dbias (1) accumulate.
pub fn value_head_backward<R: Real>(
    x: &Tensor,
    w: &Tensor,
    dvalue: &Tensor,
    dx: &mut [R],
    dw: &mut [R],
    dbias: &mut [R],
) {
    let (w, dvalue) = (w.slice::<R>(), dvalue.slice::<R>());
    let rows = x.slice::<R>().chunks_exact(w.len()).zip(dx.chunks_exact_mut(w.len()));
    for ((x, dx), &dvalue) in rows.zip(dvalue) {
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx = dvalue * w[i];
            dw[i] += dvalue * x[i];
        }
        dbias[0] += dvalue;
    }
}
