//! The naive backend: every op as a plain loop, generic over f32 and f64, with nothing done for speed. The fast
//! backends are compared with it, and gradients are checked with it in f64.
//!
//! The functions of its modules take operands that have passed the checks of their op (`backend::ops`).

use super::Backend;
use super::ops::{Op, tensor as door};
use crate::error::Result;
use crate::tensor::{DType, Element, Tensor, to_bf16, to_f16};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

mod adamw;
mod add_rmsnorm;
mod advance;
pub mod attention;
mod attention_paged;
mod embed;
mod linear;
mod linear_logprob;
mod ppo_loss;
mod qk_norm_rope;
mod rows;
mod sample;
mod swiglu;
mod value_head;
mod value_loss;

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

/// The naive backend in f32 or f64.
#[derive(Debug, Clone, Copy)]
pub struct Oracle {
    activation: DType,
}

impl Oracle {
    /// Activations in f32.
    pub fn f32() -> Self {
        Self { activation: DType::F32 }
    }

    /// Activations in f64, for gradient checks.
    pub fn f64() -> Self {
        Self { activation: DType::F64 }
    }
}

impl Backend for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn activation(&self) -> DType {
        self.activation
    }

    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, dtype))
    }

    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
        door::write(tensor, values)?;
        store(&widen::<f64>(values), tensor);
        Ok(())
    }

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        door::read(tensor)?;
        Ok(widen::<f32>(tensor).into_owned())
    }

    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        door::read_i32(tensor)?;
        Ok(tensor.slice::<i32>().to_vec())
    }

    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        door::copy(from, to)?;
        store(&widen::<f64>(from), to);
        Ok(())
    }

    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        door::fill(tensor)?;
        store(&vec![value; tensor.len()], tensor);
        Ok(())
    }

    fn execute(&self, op: Op) -> Result<()> {
        match self.activation {
            DType::F64 => execute::<f64>(op),
            _ => execute::<f32>(op),
        }
    }
}

fn execute<R: Real>(op: Op) -> Result<()> {
    match op {
        Op::Embed(op) => embed::embed::<R>(op),
        Op::EmbedBackward(op) => embed::embed_backward::<R>(op),
        Op::AddRmsnorm(op) => add_rmsnorm::add_rmsnorm::<R>(op),
        Op::AddRmsnormBackward(op) => add_rmsnorm::add_rmsnorm_backward::<R>(op),
        Op::Linears(op) => linear::linears::<R>(op),
        Op::LinearsBackward(op) => linear::linears_backward::<R>(op),
        Op::MergeLora(op) => linear::merge_lora::<R>(op),
        Op::QkNormRope(op) => qk_norm_rope::qk_norm_rope::<R>(op),
        Op::QkNormRopeBackward(op) => qk_norm_rope::qk_norm_rope_backward::<R>(op),
        Op::Attention(op) => attention::attention::<R>(op),
        Op::AttentionBackward(op) => attention::attention_backward::<R>(op),
        Op::KvAppend(op) => attention_paged::kv_append::<R>(op),
        Op::AttentionPaged(op) => attention_paged::attention_paged::<R>(op),
        Op::Advance(op) => advance::advance(op)?,
        Op::Swiglu(op) => swiglu::swiglu::<R>(op),
        Op::SwigluBackward(op) => swiglu::swiglu_backward::<R>(op),
        Op::GatherRows(op) => rows::gather_rows::<R>(op),
        Op::ScatterAddRows(op) => rows::scatter_add_rows::<R>(op),
        Op::LinearLogprob(op) => linear_logprob::linear_logprob::<R>(op),
        Op::LinearLogprobBackward(op) => linear_logprob::linear_logprob_backward::<R>(op),
        Op::Logits(op) => linear_logprob::logits::<R>(op),
        Op::Sample(op) => sample::sample::<R>(op)?,
        Op::ValueHead(op) => value_head::value_head::<R>(op),
        Op::ValueHeadBackward(op) => value_head::value_head_backward::<R>(op),
        Op::PpoLoss(op) => ppo_loss::ppo_loss::<R>(op),
        Op::ValueLoss(op) => value_loss::value_loss::<R>(op),
        Op::AdamWStep(op) => adamw::adamw::<R>(op),
        Op::SquaredNorm(op) => adamw::squared_norm::<R>(op),
    }
    Ok(())
}
