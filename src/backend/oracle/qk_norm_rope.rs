//! Per-head RMSNorm of queries and keys (Qwen3), then rotary embedding (arXiv 2104.09864), in place on the q and k
//! parts of qkv.

use super::add_rmsnorm::{rmsnorm_row, rmsnorm_row_backward};
use super::real::{Real, dot, widen};
use crate::backend::ops::{self, Heads};

/// Rotates one head (HS), whose halves are the two coordinates; `row` holds HS/2 cosines, then HS/2 sines.
fn rotate<R: Real>(head: &mut [R], row: &[R]) {
    let half = head.len() / 2;
    for i in 0..half {
        let (cos, sin, a, b) = (row[i], row[half + i], head[i], head[half + i]);
        head[i] = a * cos - b * sin;
        head[half + i] = b * cos + a * sin;
    }
}

/// Applies the gradient of `rotate` in place: the transposed map (the inverse, when cos^2 + sin^2 = 1).
fn rotate_backward<R: Real>(head: &mut [R], row: &[R]) {
    let half = head.len() / 2;
    for i in 0..half {
        let (cos, sin, a, b) = (row[i], row[half + i], head[i], head[half + i]);
        head[i] = a * cos + b * sin;
        head[half + i] = b * cos - a * sin;
    }
}

/// Computes `QkNormRope` head by head.
pub(super) fn qk_norm_rope<R: Real>(op: ops::QkNormRope) {
    let ops::QkNormRope { heads, norm, table, .. } = op;
    let (qkv, positions) = (op.qkv.slice_mut::<R>(), op.positions.slice::<i32>());
    let raw = op.raw.map(|t| t.slice_mut::<R>());
    let Heads { nh, nkv, hs } = heads;
    let (table, qk) = (widen::<R>(table), (nh + nkv) * hs);
    if let (Some(norm), Some(raw)) = (norm, raw) {
        let (wq, wk) = (widen::<R>(norm.q), widen::<R>(norm.k));
        for (qkv, raw) in qkv.chunks_exact_mut(heads.qkv_width()).zip(raw.chunks_exact_mut(qk)) {
            raw.copy_from_slice(&qkv[..qk]);
            for h in 0..nh + nkv {
                let (w, at) = (if h < nh { &wq } else { &wk }, h * hs..(h + 1) * hs);
                rmsnorm_row(&raw[at.clone()], w, norm.eps, &mut qkv[at]);
            }
        }
    }
    for (qkv, &position) in qkv.chunks_exact_mut(heads.qkv_width()).zip(positions) {
        for head in qkv[..qk].chunks_exact_mut(hs) {
            rotate(head, &table[position as usize * hs..][..hs]);
        }
    }
}

/// Computes `QkNormRopeBackward` head by head.
pub(super) fn qk_norm_rope_backward<R: Real>(op: ops::QkNormRopeBackward) {
    let ops::QkNormRopeBackward { heads, norm, table, .. } = op;
    let (dqkv, positions) = (op.dqkv.slice_mut::<R>(), op.positions.slice::<i32>());
    let (raw, dnorm) =
        (op.raw.map(|t| t.slice::<R>()), op.dnorm.map(|(q, k)| (q.slice_mut::<R>(), k.slice_mut::<R>())));
    let Heads { nh, nkv, hs } = heads;
    let (table, qk) = (widen::<R>(table), (nh + nkv) * hs);
    for (dqkv, &position) in dqkv.chunks_exact_mut(heads.qkv_width()).zip(positions) {
        for head in dqkv[..qk].chunks_exact_mut(hs) {
            rotate_backward(head, &table[position as usize * hs..][..hs]);
        }
    }
    let (Some(norm), Some(raw)) = (norm, raw) else { return };
    let (wq, wk) = (widen::<R>(norm.q), widen::<R>(norm.k));
    let (mut dq, mut dk) = dnorm.unzip();
    for (dqkv, raw) in dqkv.chunks_exact_mut(heads.qkv_width()).zip(raw.chunks_exact(qk)) {
        for (h, (dy, x)) in dqkv[..qk].chunks_exact_mut(hs).zip(raw.chunks_exact(hs)).enumerate() {
            let (w, dw) = if h < nh { (&wq, dq.as_deref_mut()) } else { (&wk, dk.as_deref_mut()) };
            let rstd = (dot(x, x) / R::of(hs as f64) + R::of(norm.eps.into())).sqrt().recip();
            let mut dx = vec![R::zero(); hs];
            rmsnorm_row_backward(x, w, rstd, dy, &mut dx, dw);
            dy.copy_from_slice(&dx);
        }
    }
}
