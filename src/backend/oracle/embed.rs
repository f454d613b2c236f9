//! Token embedding: rows of a table, and the scatter of their gradients.

use super::{Real, widen_range};
use crate::tensor::Tensor;

/// Row `ids[t]` of wte (V, C) to row t of out (T, C). Ids are in range.
pub fn embed<R: Real>(ids: &[i32], wte: &Tensor, out: &mut [R]) {
    let c = wte.columns();
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(c)) {
        let start = id as usize * c;
        out.copy_from_slice(&widen_range(wte, start..start + c));
    }
}

/// Adds row t of dout (T, C) to row `ids[t]` of dwte (V, C), in token order.
pub fn embed_backward<R: Real>(ids: &[i32], dout: &[R], c: usize, dwte: &mut [R]) {
    super::rows::scatter_add_rows(dout, ids, c, dwte);
}
