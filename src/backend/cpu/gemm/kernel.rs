//! The kernels' common form.

/// C (M, columns) += A B. Arguments: contraction length, A with its two strides, B and C each with the distance between
/// rows.
pub(super) type Kernel = unsafe fn(usize, *const f32, usize, usize, *const f32, usize, *mut f32, usize);
