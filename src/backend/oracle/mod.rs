//! The naive backend: every op as a plain loop, generic over f32 and f64, with nothing done for speed. The fast
//! backends are compared with it, and gradients are checked with it in f64.
//!
//! The functions of its modules take operands that have passed the checks of their op (`backend::ops`).

use super::Backend;
use super::ops::{Execute, Op, tensor as door};
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use real::{Real, store, widen};

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
mod real;
mod rows;
mod sample;
mod swiglu;
mod value_head;
mod value_loss;

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

impl Execute for Oracle {
    fn activation(&self) -> DType {
        self.activation
    }

    fn execute(&self, op: Op) -> Result<()> {
        match self.activation {
            DType::F64 => execute::<f64>(op),
            _ => execute::<f32>(op),
        }
    }
}

impl Backend for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
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
