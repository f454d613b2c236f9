//! The fast backend for host memory: f32 activations; weights in f32, bf16 or f16, widened tile by tile. Ops that need
//! no speed run on the oracle. The bits are equal for any number of threads, and a row's forward result does not depend
//! on the other rows of the call.

use super::Backend;
use super::ops::{Execute, Op, tensor as door};
use super::oracle::Oracle;
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use half::{bf16, f16};

mod attention;
mod attention_backward;
mod elementwise;
mod gemm;
mod linear;
mod linear_logprob;
mod sample;
mod simd;
mod tasks;

/// The CPU backend, on rayon's current thread pool.
#[derive(Debug, Clone, Copy)]
pub struct Cpu;

/// Returns the backend that runs the ops that need no speed.
fn oracle() -> Oracle {
    Oracle::f32()
}

impl Execute for Cpu {
    fn activation(&self) -> DType {
        DType::F32
    }

    fn execute(&self, op: Op) -> Result<()> {
        match op {
            Op::Embed(op) => elementwise::embed(op),
            Op::AddRmsnorm(op) => elementwise::add_rmsnorm(op),
            Op::AddRmsnormBackward(op) => elementwise::add_rmsnorm_backward(op),
            Op::Linears(op) => linear::linears(op),
            Op::LinearsBackward(op) => linear::linears_backward(op),
            Op::QkNormRope(op) if op.norm.is_none() => elementwise::rope(op),
            Op::QkNormRopeBackward(op) if op.norm.is_none() => elementwise::rope_backward(op),
            Op::Attention(op) => attention::attention(op),
            Op::AttentionBackward(op) => attention_backward::attention_backward(op),
            Op::AttentionPaged(op) => attention::attention_paged(op),
            Op::Swiglu(op) => elementwise::swiglu(op),
            Op::SwigluBackward(op) => elementwise::swiglu_backward(op),
            Op::LinearLogprob(op) => linear_logprob::linear_logprob(op),
            Op::LinearLogprobBackward(op) => linear_logprob::linear_logprob_backward(op),
            Op::Logits(op) => linear::logits(op),
            Op::Sample(op) => return sample::sample(op),
            Op::AdamWStep(op) => elementwise::adamw(op),
            other => return oracle().execute(other),
        }
        Ok(())
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, dtype))
    }

    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
        oracle().write(tensor, values)
    }

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        oracle().read(tensor)
    }

    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        oracle().read_i32(tensor)
    }

    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        door::copy(from, to)?;
        match from.dtype() {
            DType::F32 => to.slice_mut::<f32>().copy_from_slice(from.slice()),
            DType::F64 => to.slice_mut::<f64>().copy_from_slice(from.slice()),
            DType::F16 => to.slice_mut::<f16>().copy_from_slice(from.slice()),
            DType::BF16 => to.slice_mut::<bf16>().copy_from_slice(from.slice()),
            DType::I32 => to.slice_mut::<i32>().copy_from_slice(from.slice()),
        }
        Ok(())
    }

    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        if tensor.dtype() != DType::F32 {
            return oracle().fill(tensor, value);
        }
        door::fill(tensor)?;
        tensor.slice_mut::<f32>().fill(value);
        Ok(())
    }
}
