//! The GPU backend: bf16 activations, f32 accumulation, one or a few launches per op. The launches of an op are in a
//! file here, and its kernels in kernels/, mostly under the file name that the oracle uses. A `Device` runs the
//! kernels.
//!
//! Index values (ids, rows, slots, offsets) are not read back to be checked: the code that makes the index tensors has
//! checked them. Kernels skip values outside the range, or write NaN for them.

use super::ops::{Execute, Op, tensor as door};
use super::{Backend, Recording};
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use device::Device;
use launch::LOGITS_BYTES;
use std::sync::Arc;

mod arena;
pub mod compiler;
mod context;
pub mod device;
pub mod driver;
mod gemm_library;
mod graph;
pub mod kernels;
mod launch;
pub mod library;
mod memory;
pub mod probe;
pub mod ready;
mod uploads;

mod adamw;
mod add_rmsnorm;
mod advance;
mod attention;
mod attention_paged;
mod embed;
mod gemm;
mod linear;
mod linear_logprob;
mod ppo_loss;
mod qk_norm_rope;
mod rows;
mod sample;
mod swiglu;
mod tensor;
mod value_head;
mod value_loss;

pub use launch::{Cuda, LinearPath};

impl Cuda {
    /// Makes a backend whose tensors and work are on `device`.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { device, logits_bytes: LOGITS_BYTES, linear_path: LinearPath::Library }
    }

    /// Keeps about `bytes` of f32 logits in memory at a time in `linear_logprob` (at least 128 rows; four times as many
    /// bytes where the gradient of the head is wanted). The default is 256 MiB.
    pub fn with_logits_bytes(self, bytes: usize) -> Self {
        Self { logits_bytes: bytes, ..self }
    }

    /// Computes linear layers by `linear_path`.
    pub fn with_linear_path(self, linear_path: LinearPath) -> Self {
        Self { linear_path, ..self }
    }

    /// The device that runs the kernels.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Fills a bf16 or f32 tensor of the device with normal numbers of this standard deviation, made on the device.
    /// Equal seeds and lengths give equal values.
    pub fn random_normal(&self, tensor: &mut Tensor, deviation: f32, seed: u64) -> Result<()> {
        tensor::random_normal(self, tensor, deviation, seed)
    }
}

impl Execute for Cuda {
    fn activation(&self) -> DType {
        DType::BF16
    }

    fn accumulator(&self) -> DType {
        DType::F32
    }

    fn is_host(&self) -> bool {
        false
    }

    fn execute(&self, op: Op) -> Result<()> {
        match op {
            Op::Embed(op) => embed::embed(self, op),
            Op::EmbedBackward(op) => embed::embed_backward(self, op),
            Op::AddRmsnorm(op) => add_rmsnorm::add_rmsnorm(self, op),
            Op::AddRmsnormBackward(op) => add_rmsnorm::add_rmsnorm_backward(self, op),
            Op::Linears(op) => linear::linears(self, op),
            Op::LinearsBackward(op) => linear::linears_backward(self, op),
            Op::MergeLora(op) => linear::merge_lora(self, op),
            Op::QkNormRope(op) => qk_norm_rope::qk_norm_rope(self, op),
            Op::QkNormRopeBackward(op) => qk_norm_rope::qk_norm_rope_backward(self, op),
            Op::Attention(op) => attention::attention(self, op),
            Op::AttentionBackward(op) => attention::attention_backward(self, op),
            Op::KvAppend(op) => rows::kv_append(self, op),
            Op::AttentionPaged(op) => attention_paged::attention_paged(self, op),
            Op::Advance(op) => advance::advance(self, op),
            Op::Swiglu(op) => swiglu::swiglu(self, op),
            Op::SwigluBackward(op) => swiglu::swiglu_backward(self, op),
            Op::GatherRows(op) => rows::gather_rows(self, op),
            Op::ScatterAddRows(op) => rows::scatter_add_rows(self, op),
            Op::LinearLogprob(op) => linear_logprob::linear_logprob(self, op),
            Op::LinearLogprobBackward(op) => linear_logprob::linear_logprob_backward(self, op),
            Op::Logits(op) => linear_logprob::logits(self, op),
            Op::Sample(op) => sample::sample(self, op),
            Op::ValueHead(op) => value_head::value_head(self, op),
            Op::ValueHeadBackward(op) => value_head::value_head_backward(self, op),
            Op::PpoLoss(op) => ppo_loss::ppo_loss(self, op),
            Op::ValueLoss(op) => value_loss::value_loss(self, op),
            Op::AdamWStep(op) => adamw::adamw(self, op),
            Op::SquaredNorm(op) => adamw::squared_norm(self, op),
        }
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let mut tensor = self.workspace(shape, dtype)?;
        tensor::fill(self, &mut tensor, 0.0)?;
        Ok(tensor)
    }

    fn alloc_unset(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.workspace(shape, dtype)
    }

    fn records(&self) -> bool {
        self.device.records()
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Recording>>> {
        self.device.record(work).map(Some)
    }

    fn keep_choices(&self) -> Result<()> {
        self.device.keep_choices()
    }

    fn place(&self, weight: Tensor) -> Result<Tensor> {
        let mut placed = self.workspace(weight.shape(), DType::BF16)?;
        self.write(&mut placed, &weight)?;
        Ok(placed)
    }

    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
        door::write(tensor, values)?;
        tensor::write(self, tensor, values)
    }

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        door::read(tensor)?;
        tensor::read(tensor)
    }

    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        door::read_i32(tensor)?;
        tensor::read_i32(tensor)
    }

    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        door::copy(from, to)?;
        tensor::copy(self, from, to)
    }

    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        door::fill(tensor)?;
        tensor::fill(self, tensor, value)
    }
}
