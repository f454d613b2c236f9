//! A critic's linear head on hidden states.

use super::real::{Real, dot};
use crate::backend::ops;

/// Computes `ValueHead` row by row.
pub(super) fn value_head<R: Real>(op: ops::ValueHead) {
    let (w, bias) = (op.w.slice::<R>(), op.bias.slice::<R>()[0]);
    for (x, value) in op.x.slice::<R>().chunks_exact(w.len()).zip(op.value.slice_mut::<R>()) {
        *value = dot(x, w) + bias;
    }
}

/// Computes `ValueHeadBackward` row by row.
pub(super) fn value_head_backward<R: Real>(op: ops::ValueHeadBackward) {
    let w = op.w.slice::<R>();
    let (dx, dw, dbias) = (op.dx.slice_mut::<R>(), op.dw.slice_mut::<R>(), op.dbias.slice_mut::<R>());
    let rows = op.x.slice::<R>().chunks_exact(w.len()).zip(dx.chunks_exact_mut(w.len()));
    for ((x, dx), &dvalue) in rows.zip(op.dvalue.slice::<R>()) {
        for (i, dx) in dx.iter_mut().enumerate() {
            *dx = dvalue * w[i];
            dw[i] += dvalue * x[i];
        }
        dbias[0] += dvalue;
    }
}
