//! Rows picked out of a matrix, and added back into one.

use super::Real;

/// Row `rows[m]` of x (T, C) to row m of y (M, C). Rows are in range.
pub fn gather_rows<R: Real>(x: &[R], rows: &[i32], c: usize, y: &mut [R]) {
    for (&row, y) in rows.iter().zip(y.chunks_exact_mut(c)) {
        y.copy_from_slice(&x[row as usize * c..][..c]);
    }
}

/// Adds row m of dy (M, C) to row `rows[m]` of dx (T, C), in row order. Rows are in range.
pub fn scatter_add_rows<R: Real>(dy: &[R], rows: &[i32], c: usize, dx: &mut [R]) {
    for (&row, dy) in rows.iter().zip(dy.chunks_exact(c)) {
        for (dx, &dy) in dx[row as usize * c..][..c].iter_mut().zip(dy) {
            *dx += dy;
        }
    }
}
