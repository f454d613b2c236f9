//! Gathering rows of a matrix, and adding rows back into one.

use super::real::Real;
use crate::backend::ops;

/// Copies the rows one by one.
pub(super) fn gather_rows<R: Real>(op: ops::GatherRows) {
    let (x, c) = (op.x.slice::<R>(), op.x.columns());
    for (&row, y) in op.rows.slice::<i32>().iter().zip(op.y.slice_mut::<R>().chunks_exact_mut(c)) {
        y.copy_from_slice(&x[row as usize * c..][..c]);
    }
}

/// Adds the rows one by one.
pub(super) fn scatter_add_rows<R: Real>(op: ops::ScatterAddRows) {
    let (c, dx) = (op.dy.columns(), op.dx.slice_mut::<R>());
    for (&row, dy) in op.rows.slice::<i32>().iter().zip(op.dy.slice::<R>().chunks_exact(c)) {
        for (dx, &dy) in dx[row as usize * c..][..c].iter_mut().zip(dy) {
            *dx += dy;
        }
    }
}
