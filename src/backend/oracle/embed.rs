//! Token embedding: rows of a table, and the scatter of their gradients.

use super::{Real, rows, widen_range};
use crate::backend::ops;

/// Row by row.
pub(super) fn embed<R: Real>(op: ops::Embed) {
    let c = op.wte.columns();
    for (&id, out) in op.ids.slice::<i32>().iter().zip(op.out.slice_mut::<R>().chunks_exact_mut(c)) {
        let start = id as usize * c;
        out.copy_from_slice(&widen_range(op.wte, start..start + c));
    }
}

/// Row by row.
pub(super) fn embed_backward<R: Real>(op: ops::EmbedBackward) {
    rows::scatter_add_rows::<R>(ops::ScatterAddRows { dy: op.dout, rows: op.ids, dx: op.dwte });
}
