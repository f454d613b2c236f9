//! How ops are cut into tasks for the threads.

use rayon::prelude::*;

/// Elements per task of an element-wise op.
pub(super) const GRAIN: usize = 16_384;

/// Returns the rows of `width` elements per task.
pub(super) fn chunk_rows(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// Runs `f` on every task: on this thread if there is only one, else on the thread pool.
pub(super) fn run<T: Send>(tasks: Vec<T>, f: impl Fn(T) + Send + Sync) {
    if tasks.len() <= 1 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}
