//! Token embedding: gathers rows of a table and scatters their gradients.

use super::real::{Real, widen_range};
use super::rows;
use crate::backend::ops;

/// Copies the rows one by one.
pub(super) fn embed<R: Real>(op: ops::Embed) {
    let c = op.wte.columns();
    for (&id, out) in op.ids.slice::<i32>().iter().zip(op.out.slice_mut::<R>().chunks_exact_mut(c)) {
        let start = id as usize * c;
        out.copy_from_slice(&widen_range(op.wte, start..start + c));
    }
}

/// Adds the rows of dout in token order.
pub(super) fn embed_backward<R: Real>(op: ops::EmbedBackward) {
    rows::scatter_add_rows::<R>(ops::ScatterAddRows { dy: op.dout, rows: op.ids, dx: op.dwte });
}
