//! SwiGLU (arXiv 2002.05202): silu(gate) * up, where a row holds F gates, then F ups.

use super::Real;

/// gate_up (T, 2F) -> y (T, F).
pub fn swiglu<R: Real>(gate_up: &[R], f: usize, y: &mut [R]) {
    for (gate_up, y) in gate_up.chunks_exact(2 * f).zip(y.chunks_exact_mut(f)) {
        let (gate, up) = gate_up.split_at(f);
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = gate * sigmoid(gate) * up;
        }
    }
}

/// Writes dgate_up (T, 2F) whole; silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g).
pub fn swiglu_backward<R: Real>(gate_up: &[R], f: usize, dy: &[R], dgate_up: &mut [R]) {
    let rows = gate_up.chunks_exact(2 * f).zip(dy.chunks_exact(f)).zip(dgate_up.chunks_exact_mut(2 * f));
    for ((gate_up, dy), dgate_up) in rows {
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
