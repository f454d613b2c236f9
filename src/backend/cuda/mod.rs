//! The GPU backend: bf16 activations, f32 accumulation, one launch or few an op. Each op has a file here with its launches and a file
//! in kernels/ with its kernels, both under the oracle's stem. What runs the kernels is a `Device`.
//!
//! Index values (ids, rows, slots, offsets) are not read back to be checked: whoever makes the index tensors has checked them, and
//! kernels leave out, or fill with NaN, what lies outside.

use super::check::{self, Types};
use super::{
    AdamW, Backend, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Recording, Sampling,
    Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use device::{Arg, Device, Launch};
use kernels::Kernel;
use std::sync::Arc;

mod arena;
pub mod compiler;
pub mod device;
pub mod driver;
mod gemm_library;
mod graph;
pub mod kernels;
pub mod library;
mod memory;
pub mod probe;
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

pub use linear::LinearPath;

const TYPES: Types = Types { activation: DType::BF16, accumulator: DType::F32 };

/// The GPU backend over one device.
pub struct Cuda {
    device: Arc<dyn Device>,
    logits_bytes: usize,
    linear_path: LinearPath,
}

/// Of f32 logits in memory at a time, about, in `linear_logprob`: some hundred rows of 150,000 tokens, enough for large products.
const LOGITS_BYTES: usize = 256 << 20;

impl Cuda {
    /// A backend whose tensors and work are the device's.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self { device, logits_bytes: LOGITS_BYTES, linear_path: LinearPath::Library }
    }

    /// The same with about `bytes` of f32 logits in memory at a time in `linear_logprob` (at least 128 rows; four times as many bytes where
    /// the gradient of the head is wanted). By default 256 MiB.
    pub fn with_logits_bytes(self, bytes: usize) -> Self {
        Self { logits_bytes: bytes, ..self }
    }

    /// The same, its linear layers computed as said.
    pub fn with_linear_path(self, linear_path: LinearPath) -> Self {
        Self { linear_path, ..self }
    }

    /// What runs the kernels.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Fills a bf16 or f32 tensor of the device with normal numbers of this deviation, made on the device. Equal seeds and lengths give
    /// equal values.
    pub fn random_normal(&self, tensor: &mut Tensor, deviation: f32, seed: u64) -> Result<()> {
        tensor::random_normal(self, tensor, deviation, seed)
    }

    fn launch(&self, kernel: Kernel, grid: [usize; 3], block: usize, shared: usize, args: &[Arg]) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let extent = |n: usize| {
            u32::try_from(n)
                .map_err(|_| Error::system(format!("{}: {n} blocks are too many; use a smaller batch", kernel.name)))
        };
        let grid = [extent(grid[0])?, extent(grid[1])?, extent(grid[2])?];
        self.device.launch(&Launch { kernel, grid, block: extent(block)?, shared: extent(shared)?, args })
    }

    /// A tensor for the time of one op, with anything in it. Its memory may be given out again as soon as it is dropped: work on it stands before whatever
    /// uses the memory next, in the device's order.
    fn workspace(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Ok(Tensor::on_device(shape, dtype, self.device.alloc(bytes)?))
    }
}

/// The argument for a tensor of the device. Error: it lies on the host.
fn pointer(tensor: &Tensor) -> Result<Arg> {
    let address = tensor.device_address();
    address
        .map(Arg::Pointer)
        .ok_or_else(|| Error::system(format!("{tensor:?} lies on the host; the GPU needs it placed first")))
}

/// The argument for a tensor that may be left out: a null pointer then.
fn optional(tensor: Option<&Tensor>) -> Result<Arg> {
    tensor.map_or(Ok(Arg::Pointer(0)), pointer)
}

/// An extent as the kernels' `int`. Error: it does not fit.
fn int(n: usize) -> Result<Arg> {
    i32::try_from(n)
        .map(Arg::I32)
        .map_err(|_| Error::system(format!("an extent of {n} does not fit 32 bits; use a smaller batch")))
}

/// What an op says of an element type that it has no kernel for.
fn no_kernel(op: &str, name: &str, tensor: &Tensor) -> Error {
    Error::content(format!("{op}: {name} is {tensor:?}; on the GPU expected bf16 or f32"))
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn activation(&self) -> DType {
        TYPES.activation
    }

    fn accumulator(&self) -> DType {
        TYPES.accumulator
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
        let mut placed = self.workspace(weight.shape(), TYPES.activation)?;
        self.write(&mut placed, &weight)?;
        Ok(placed)
    }

    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
        check::write(tensor, values)?;
        tensor::write(self, tensor, values)
    }

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        check::read(tensor)?;
        tensor::read(tensor)
    }

    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        check::read_i32(tensor)?;
        tensor::read_i32(tensor)
    }

    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        check::copy(from, to)?;
        tensor::copy(self, from, to)
    }

    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        check::fill(tensor)?;
        tensor::fill(self, tensor, value)
    }

    fn embed(&self, ids: &Tensor, wte: &Tensor, out: &mut Tensor) -> Result<()> {
        check::embed(TYPES, ids, wte, out)?;
        embed::embed(self, ids, wte, out)
    }

    fn embed_backward(&self, ids: &Tensor, dout: &Tensor, dwte: &mut Tensor) -> Result<()> {
        check::embed_backward(TYPES, ids, dout, dwte)?;
        embed::embed_backward(self, ids, dout, dwte)
    }

    fn add_rmsnorm(
        &self,
        residual: &Tensor,
        x: Option<&Tensor>,
        w: &Tensor,
        eps: f32,
        sum: Option<&mut Tensor>,
        y: &mut Tensor,
        rstd: &mut Tensor,
    ) -> Result<()> {
        check::add_rmsnorm(TYPES, residual, x, w, sum.as_deref(), y, rstd)?;
        add_rmsnorm::add_rmsnorm(self, residual, x, w, eps, sum, y, rstd)
    }

    fn add_rmsnorm_backward(
        &self,
        sum: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        dy: &Tensor,
        dsum: &mut Tensor,
        dw: Option<&mut Tensor>,
    ) -> Result<()> {
        check::add_rmsnorm_backward(TYPES, sum, w, rstd, dy, dsum, dw.as_deref())?;
        add_rmsnorm::add_rmsnorm_backward(self, sum, w, rstd, dy, dsum, dw)
    }

    fn linear(&self, x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) -> Result<()> {
        check::linear(TYPES, x, p, y, column, s.as_deref())?;
        linear::linear(self, x, p, y, column, s)
    }

    fn linear_backward(
        &self,
        x: &Tensor,
        p: &Linear,
        dy: &Tensor,
        column: usize,
        s: Option<&Tensor>,
        dx: Option<&mut Tensor>,
        grads: LinearGrads,
    ) -> Result<()> {
        check::linear_backward(TYPES, x, p, dy, column, s, dx.as_deref(), &grads)?;
        linear::linear_backward(self, x, p, dy, column, s, dx, grads)
    }

    fn linears(&self, x: &Tensor, layers: &[Linear], y: &mut Tensor, s: &mut [Option<Tensor>]) -> Result<()> {
        check::linears(TYPES, x, layers, y, s)?;
        linear::linears(self, x, layers, y, s)
    }

    fn linears_backward(
        &self,
        x: &Tensor,
        layers: &[Linear],
        dy: &Tensor,
        s: &[Option<Tensor>],
        dx: Option<&mut Tensor>,
        grads: Vec<LinearGrads>,
    ) -> Result<()> {
        check::linears_backward(TYPES, x, layers, dy, s, dx.as_deref(), &grads)?;
        linear::linears_backward(self, x, layers, dy, s, dx, grads)
    }

    fn qk_norm_rope(
        &self,
        qkv: &mut Tensor,
        heads: Heads,
        norm: Option<QkNorm>,
        positions: &Tensor,
        table: &Tensor,
        raw: Option<&mut Tensor>,
    ) -> Result<()> {
        check::qk_norm_rope(TYPES, qkv, heads, norm, positions, table, raw.as_deref())?;
        qk_norm_rope::qk_norm_rope(self, qkv, heads, norm, positions, table, raw)
    }

    fn qk_norm_rope_backward(
        &self,
        dqkv: &mut Tensor,
        heads: Heads,
        norm: Option<QkNorm>,
        positions: &Tensor,
        table: &Tensor,
        raw: Option<&Tensor>,
        dnorm: Option<(&mut Tensor, &mut Tensor)>,
    ) -> Result<()> {
        let wanted = dnorm.as_ref().map(|(q, k)| (&**q, &**k));
        check::qk_norm_rope_backward(TYPES, dqkv, heads, norm, positions, table, raw, wanted)?;
        qk_norm_rope::qk_norm_rope_backward(self, dqkv, heads, norm, positions, table, raw, dnorm)
    }

    fn attention(
        &self,
        qkv: &Tensor,
        heads: Heads,
        segments: &Segments,
        o: &mut Tensor,
        lse: &mut Tensor,
    ) -> Result<()> {
        check::attention(TYPES, qkv, heads, segments, o, lse)?;
        attention::attention(self, qkv, heads, segments, o, lse)
    }

    fn attention_backward(
        &self,
        qkv: &Tensor,
        o: &Tensor,
        lse: &Tensor,
        dout: &Tensor,
        heads: Heads,
        segments: &Segments,
        dqkv: &mut Tensor,
    ) -> Result<()> {
        check::attention_backward(TYPES, qkv, o, lse, dout, heads, segments, dqkv)?;
        attention::attention_backward(self, qkv, o, lse, dout, heads, segments, dqkv)
    }

    fn kv_append(
        &self,
        qkv: &Tensor,
        heads: Heads,
        slots: &Tensor,
        k_cache: &mut Tensor,
        v_cache: &mut Tensor,
    ) -> Result<()> {
        check::kv_append(TYPES, qkv, heads, slots, k_cache, v_cache)?;
        rows::kv_append(self, qkv, heads, slots, k_cache, v_cache)
    }

    fn attention_paged(
        &self,
        qkv: &Tensor,
        heads: Heads,
        k_cache: &Tensor,
        v_cache: &Tensor,
        block_size: usize,
        block_table: &Tensor,
        lens: &Tensor,
        cu_q: &Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        check::attention_paged(TYPES, qkv, heads, k_cache, v_cache, block_size, block_table, lens, cu_q, o)?;
        attention_paged::attention_paged(self, qkv, heads, k_cache, v_cache, block_size, block_table, lens, cu_q, o)
    }

    fn swiglu(&self, gate_up: &Tensor, y: &mut Tensor) -> Result<()> {
        check::swiglu(TYPES, gate_up, y)?;
        swiglu::swiglu(self, gate_up, y)
    }

    fn swiglu_backward(&self, gate_up: &Tensor, dy: &Tensor, dgate_up: &mut Tensor) -> Result<()> {
        check::swiglu_backward(TYPES, gate_up, dy, dgate_up)?;
        swiglu::swiglu_backward(self, gate_up, dy, dgate_up)
    }

    fn gather_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        check::gather_rows(TYPES, x, rows, y)?;
        rows::gather_rows(self, x, rows, y)
    }

    fn scatter_add_rows(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
        check::scatter_add_rows(TYPES, dy, rows, dx)?;
        rows::scatter_add_rows(self, dy, rows, dx)
    }

    fn linear_logprob(
        &self,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        temperature: f32,
        logp: &mut Tensor,
        entropy: &mut Tensor,
        lse: &mut Tensor,
    ) -> Result<()> {
        check::linear_logprob(TYPES, x, w, targets, temperature, logp, entropy, lse)?;
        linear_logprob::linear_logprob(self, x, w, targets, temperature, logp, entropy, lse)
    }

    fn linear_logprob_backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        targets: &Tensor,
        temperature: f32,
        entropy: &Tensor,
        lse: &Tensor,
        dlogp: &Tensor,
        dentropy: Option<&Tensor>,
        dx: &mut Tensor,
        dw: Option<&mut Tensor>,
    ) -> Result<()> {
        let (e, dw_shape) = (dentropy, dw.as_deref());
        check::linear_logprob_backward(TYPES, x, w, targets, temperature, entropy, lse, dlogp, e, dx, dw_shape)?;
        linear_logprob::linear_logprob_backward(self, x, w, targets, temperature, entropy, lse, dlogp, dentropy, dx, dw)
    }

    fn advance(
        &self,
        block_size: usize,
        block_table: &Tensor,
        positions: &mut Tensor,
        lens: &mut Tensor,
        slots: &mut Tensor,
        counter: &mut Tensor,
    ) -> Result<()> {
        check::advance(block_size, block_table, positions, lens, slots, counter)?;
        advance::advance(self, block_size, block_table, positions, lens, slots, counter)
    }

    fn logits(&self, x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
        check::logits(TYPES, x, w, out)?;
        linear_logprob::logits(self, x, w, out)
    }

    fn sample(&self, logits: &Tensor, sampling: &Sampling, ids: &mut Tensor, logp: &mut Tensor) -> Result<()> {
        check::sample(TYPES, logits, sampling, ids, logp)?;
        sample::sample(self, logits, sampling, ids, logp)
    }

    fn value_head(&self, x: &Tensor, w: &Tensor, bias: &Tensor, value: &mut Tensor) -> Result<()> {
        check::value_head(TYPES, x, w, bias, value)?;
        value_head::value_head(self, x, w, bias, value)
    }

    fn value_head_backward(
        &self,
        x: &Tensor,
        w: &Tensor,
        dvalue: &Tensor,
        dx: &mut Tensor,
        dw: &mut Tensor,
        dbias: &mut Tensor,
    ) -> Result<()> {
        check::value_head_backward(TYPES, x, w, dvalue, dx, dw, dbias)?;
        value_head::value_head_backward(self, x, w, dvalue, dx, dw, dbias)
    }

    fn ppo_loss(
        &self,
        params: &PpoParams,
        inputs: &PpoInputs,
        dlogp: &mut Tensor,
        dentropy: &mut Tensor,
    ) -> Result<PpoStats> {
        check::ppo_loss(TYPES, inputs, dlogp, dentropy)?;
        ppo_loss::ppo_loss(self, params, inputs, dlogp, dentropy)
    }

    fn value_loss(&self, clip: Option<f32>, inputs: &ValueInputs, dvalue: &mut Tensor) -> Result<f64> {
        check::value_loss(TYPES, inputs, dvalue)?;
        value_loss::value_loss(self, clip, inputs, dvalue)
    }

    fn squared_norm(&self, tensors: &[&Tensor]) -> Result<f64> {
        check::squared_norm(TYPES, tensors)?;
        adamw::squared_norm(self, tensors)
    }

    fn adamw(
        &self,
        step: &AdamW,
        params: &mut [&mut Tensor],
        grads: &[&Tensor],
        m: &mut [&mut Tensor],
        v: &mut [&mut Tensor],
    ) -> Result<()> {
        check::adamw(TYPES, step.step, params, grads, m, v)?;
        adamw::adamw(self, step, params, grads, m, v)
    }

    fn merge_lora(&self, w: &mut Tensor, lora: &Lora) -> Result<()> {
        check::merge_lora(w, lora)?;
        linear::merge_lora(self, w, lora)
    }
}
