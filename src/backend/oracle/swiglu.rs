//! SwiGLU (arXiv 2002.05202): silu(gate) * up. A row holds F gates, then F ups.

use super::real::Real;
use crate::backend::ops;

/// Computes `Swiglu` row by row.
pub(super) fn swiglu<R: Real>(op: ops::Swiglu) {
    let f = op.y.columns();
    let rows = op.gate_up.slice::<R>().chunks_exact(2 * f);
    for (gate_up, y) in rows.zip(op.y.slice_mut::<R>().chunks_exact_mut(f)) {
        let (gate, up) = gate_up.split_at(f);
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(gate) * up;
        }
    }
}

/// silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g).
pub(super) fn swiglu_backward<R: Real>(op: ops::SwigluBackward) {
    let f = op.dy.columns();
    let rows = op.gate_up.slice::<R>().chunks_exact(2 * f).zip(op.dy.slice::<R>().chunks_exact(f));
    for ((gate_up, dy), dgate_up) in rows.zip(op.dgate_up.slice_mut::<R>().chunks_exact_mut(2 * f)) {
        let ((gate, up), (dgate, dup)) = (gate_up.split_at(f), dgate_up.split_at_mut(f));
        for i in 0..f {
            let s = sigmoid(gate[i]);
            dgate[i] = dy[i] * up[i] * s * (R::one() + gate[i] * (R::one() - s));
            dup[i] = dy[i] * gate[i] * s;
        }
    }
}

fn sigmoid<R: Real>(x: R) -> R {
    (R::one() + (-x).exp()).recip()
}
