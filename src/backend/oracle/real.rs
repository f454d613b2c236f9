//! Arithmetic of the loops: in f32 or f64, from and to tensors of any type.

use crate::tensor::{DType, Element, Tensor, to_bf16, to_f16};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

/// Number type of the loops: f32 or f64.
pub trait Real: Element + num_traits::Float + num_traits::NumAssign {
    /// Rounds from f64.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn f64(self) -> f64;
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn f64(self) -> f64 {
        self.into()
    }
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn f64(self) -> f64 {
        self
    }
}

/// The scalar product, added in order.
pub fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    a.iter().zip(b).fold(R::zero(), |sum, (&a, &b)| sum + a * b)
}

/// The elements of a tensor as `R`: borrowed where it holds `R`, converted otherwise.
pub fn widen<R: Real>(tensor: &Tensor) -> Cow<'_, [R]> {
    widen_range(tensor, 0..tensor.len())
}

/// A range of the elements of a tensor as `R`: borrowed where it holds `R`, converted otherwise.
pub fn widen_range<R: Real>(tensor: &Tensor, range: Range<usize>) -> Cow<'_, [R]> {
    match tensor.dtype() {
        dtype if dtype == R::DTYPE => Cow::Borrowed(&tensor.slice::<R>()[range]),
        DType::F32 => tensor.slice::<f32>()[range].iter().map(|&x| R::of(x.into())).collect(),
        DType::F64 => tensor.slice::<f64>()[range].iter().map(|&x| R::of(x)).collect(),
        DType::F16 => tensor.slice::<f16>()[range].iter().map(|&x| R::of(x.into())).collect(),
        DType::BF16 => tensor.slice::<bf16>()[range].iter().map(|&x| R::of(x.into())).collect(),
        DType::I32 => tensor.slice::<i32>()[range].iter().map(|&x| R::of(x.into())).collect(),
    }
}

/// Writes values into a tensor of the same length, rounded to its type.
// The half types are rounded by `to_f16` and `to_bf16`: `half` rounds an f64 by its upper half alone, which gets values
// just above a tie wrong.
pub fn store<R: Real>(values: &[R], tensor: &mut Tensor) {
    match tensor.dtype() {
        DType::F32 => tensor.slice_mut::<f32>().iter_mut().zip(values).for_each(|(t, v)| *t = v.f64() as f32),
        DType::F64 => tensor.slice_mut::<f64>().iter_mut().zip(values).for_each(|(t, v)| *t = v.f64()),
        DType::F16 => tensor.slice_mut::<f16>().iter_mut().zip(values).for_each(|(t, v)| *t = to_f16(v.f64())),
        DType::BF16 => {
            tensor.slice_mut::<bf16>().iter_mut().zip(values).for_each(|(t, v)| *t = to_bf16(v.f64()));
        }
        DType::I32 => tensor.slice_mut::<i32>().iter_mut().zip(values).for_each(|(t, v)| *t = v.f64() as i32),
    }
}
