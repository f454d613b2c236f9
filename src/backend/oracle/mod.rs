//! The naive backend: every op as a plain loop, generic over f32 and f64. Kept for ever as what the fast backends are compared
//! with, and for gradient checks in f64. It does nothing for speed.
//!
//! The free functions of its modules work on slices whose shapes and values have been checked (`backend::check`).

use super::{
    AdamW, Backend, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments,
    ValueInputs, check,
};
use crate::error::Result;
use crate::tensor::{DType, Element, Tensor, to_bf16, to_f16};
use half::{bf16, f16};
use std::borrow::Cow;
use std::ops::Range;

pub mod adamw;
pub mod add_rmsnorm;
pub mod advance;
pub mod attention;
pub mod attention_paged;
pub mod embed;
pub mod linear;
pub mod linear_logprob;
pub mod ppo_loss;
pub mod qk_norm_rope;
pub mod rows;
pub mod sample;
pub mod swiglu;
pub mod value_head;
pub mod value_loss;

/// What the loops compute in: f32 or f64.
pub trait Real: Element + num_traits::Float + num_traits::NumAssign {
    /// Rounded from f64.
    fn of(x: f64) -> Self;
    /// Widened to f64.
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

/// Writes values of as many elements into a float tensor, rounded to its type.
// `half` rounds an f64 by its upper 20 bits of mantissa, which misses ties of an f32: half types are rounded from f32.
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

/// Evaluates an expression with `$real` standing for the activation type.
macro_rules! dispatch {
    ($self:ident, $real:ident => $body:expr) => {
        match $self.activation {
            DType::F64 => {
                type $real = f64;
                $body
            }
            _ => {
                type $real = f32;
                $body
            }
        }
    };
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
        check::write(tensor, values)?;
        store(&widen::<f64>(values), tensor);
        Ok(())
    }

    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        check::read(tensor)?;
        Ok(widen::<f32>(tensor).into_owned())
    }

    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        check::read_i32(tensor)?;
        Ok(tensor.slice::<i32>().to_vec())
    }

    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        check::copy(from, to)?;
        store(&widen::<f64>(from), to);
        Ok(())
    }

    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        check::fill(tensor)?;
        store(&vec![value; tensor.len()], tensor);
        Ok(())
    }

    fn embed(&self, ids: &Tensor, wte: &Tensor, out: &mut Tensor) -> Result<()> {
        check::embed(self.activation, ids, wte, out)?;
        check::indices("embed", "id", ids.slice(), "V", wte.rows())?;
        dispatch!(self, R => embed::embed::<R>(ids.slice(), wte, out.slice_mut()));
        Ok(())
    }

    fn embed_backward(&self, ids: &Tensor, dout: &Tensor, dwte: &mut Tensor) -> Result<()> {
        check::embed_backward(self.activation, ids, dout, dwte)?;
        check::indices("embed_backward", "id", ids.slice(), "V", dwte.rows())?;
        dispatch!(self, R => embed::embed_backward::<R>(ids.slice(), dout.slice(), dout.columns(), dwte.slice_mut()));
        Ok(())
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
        check::add_rmsnorm(self.activation, residual, x, w, sum.as_deref(), y, rstd)?;
        dispatch!(self, R => {
            let normed = match (x, sum) {
                (Some(x), Some(sum)) => {
                    let sum = sum.slice_mut::<R>();
                    add_rmsnorm::add(residual.slice(), x.slice(), sum);
                    &*sum
                }
                _ => residual.slice::<R>(),
            };
            add_rmsnorm::rmsnorm(normed, &widen(w), eps, y.slice_mut(), rstd.slice_mut());
        });
        Ok(())
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
        check::add_rmsnorm_backward(self.activation, sum, w, rstd, dy, dsum, dw.as_deref())?;
        dispatch!(self, R => add_rmsnorm::rmsnorm_backward::<R>(
            sum.slice(), &widen(w), rstd.slice(), dy.slice(), dsum.slice_mut(), dw.map(|t| t.slice_mut())
        ));
        Ok(())
    }

    fn linear(&self, x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) -> Result<()> {
        check::linear(self.activation, x, p, y, column, s.as_deref())?;
        dispatch!(self, R => linear::linear::<R>(x, p, y, column, s));
        Ok(())
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
        check::linear_backward(self.activation, x, p, dy, column, s, dx.as_deref(), &grads)?;
        dispatch!(self, R => linear::linear_backward::<R>(x, p, dy, column, s, dx, grads));
        Ok(())
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
        check::qk_norm_rope(self.activation, qkv, heads, norm, positions, table, raw.as_deref())?;
        check::indices("qk_norm_rope", "position", positions.slice(), "P", table.rows())?;
        dispatch!(self, R => qk_norm_rope::qk_norm_rope::<R>(
            qkv.slice_mut(), heads, norm, positions.slice(), table, raw.map(|t| t.slice_mut())
        ));
        Ok(())
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
        check::qk_norm_rope_backward(self.activation, dqkv, heads, norm, positions, table, raw, wanted)?;
        check::indices("qk_norm_rope_backward", "position", positions.slice(), "P", table.rows())?;
        dispatch!(self, R => qk_norm_rope::qk_norm_rope_backward::<R>(
            dqkv.slice_mut(), heads, norm, positions.slice(), table, raw.map(|t| t.slice()),
            dnorm.map(|(q, k)| (q.slice_mut(), k.slice_mut()))
        ));
        Ok(())
    }

    fn attention(
        &self,
        qkv: &Tensor,
        heads: Heads,
        segments: &Segments,
        o: &mut Tensor,
        lse: &mut Tensor,
    ) -> Result<()> {
        check::attention(self.activation, qkv, heads, segments, o, lse)?;
        let (cu, parent) = (segments.cu_seqlens.slice(), segments.parent.slice());
        check::segment_values("attention", cu, parent, qkv.rows())?;
        dispatch!(self, R => attention::attention::<R>(
            qkv.slice(), heads, cu, parent, o.slice_mut(), lse.slice_mut()
        ));
        Ok(())
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
        check::attention_backward(self.activation, qkv, o, lse, dout, heads, segments, dqkv)?;
        let (cu, parent) = (segments.cu_seqlens.slice(), segments.parent.slice());
        check::segment_values("attention_backward", cu, parent, qkv.rows())?;
        dispatch!(self, R => attention::attention_backward::<R>(
            qkv.slice(), o.slice(), lse.slice(), dout.slice(), heads, cu, parent, dqkv.slice_mut()
        ));
        Ok(())
    }

    fn kv_append(
        &self,
        qkv: &Tensor,
        heads: Heads,
        slots: &Tensor,
        k_cache: &mut Tensor,
        v_cache: &mut Tensor,
    ) -> Result<()> {
        check::kv_append(self.activation, qkv, heads, slots, k_cache, v_cache)?;
        check::indices("kv_append", "slot", slots.slice(), "rows", k_cache.rows())?;
        dispatch!(self, R => attention_paged::kv_append::<R>(
            qkv.slice(), heads, slots.slice(), k_cache.slice_mut(), v_cache.slice_mut()
        ));
        Ok(())
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
        let a = self.activation;
        check::attention_paged(a, qkv, heads, k_cache, v_cache, block_size, block_table, lens, cu_q, o)?;
        let (table, lens, cu_q) = (block_table.slice(), lens.slice(), cu_q.slice());
        let blocks = k_cache.rows() / block_size;
        check::page_values("attention_paged", table, lens, cu_q, qkv.rows(), block_size, blocks)?;
        dispatch!(self, R => attention_paged::attention_paged::<R>(
            qkv.slice(), heads, k_cache.slice(), v_cache.slice(), block_size, table, lens, cu_q, o.slice_mut()
        ));
        Ok(())
    }

    fn swiglu(&self, gate_up: &Tensor, y: &mut Tensor) -> Result<()> {
        check::swiglu(self.activation, gate_up, y)?;
        dispatch!(self, R => swiglu::swiglu::<R>(gate_up.slice(), y.columns(), y.slice_mut()));
        Ok(())
    }

    fn swiglu_backward(&self, gate_up: &Tensor, dy: &Tensor, dgate_up: &mut Tensor) -> Result<()> {
        check::swiglu_backward(self.activation, gate_up, dy, dgate_up)?;
        dispatch!(self, R => swiglu::swiglu_backward::<R>(
            gate_up.slice(), dy.columns(), dy.slice(), dgate_up.slice_mut()
        ));
        Ok(())
    }

    fn gather_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        check::gather_rows(self.activation, x, rows, y)?;
        check::indices("gather_rows", "row", rows.slice(), "T", x.rows())?;
        dispatch!(self, R => rows::gather_rows::<R>(x.slice(), rows.slice(), x.columns(), y.slice_mut()));
        Ok(())
    }

    fn scatter_add_rows(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
        check::scatter_add_rows(self.activation, dy, rows, dx)?;
        check::indices("scatter_add_rows", "row", rows.slice(), "T", dx.rows())?;
        dispatch!(self, R => rows::scatter_add_rows::<R>(dy.slice(), rows.slice(), dy.columns(), dx.slice_mut()));
        Ok(())
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
        check::linear_logprob(self.activation, x, w, targets, temperature, logp, entropy, lse)?;
        check::indices("linear_logprob", "target", targets.slice(), "V", w.rows())?;
        dispatch!(self, R => linear_logprob::linear_logprob::<R>(
            x.slice(), &widen(w), w.columns(), targets.slice(), temperature,
            logp.slice_mut(), entropy.slice_mut(), lse.slice_mut()
        ));
        Ok(())
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
        let (a, dw_shape) = (self.activation, dw.as_deref());
        check::linear_logprob_backward(a, x, w, targets, temperature, entropy, lse, dlogp, dentropy, dx, dw_shape)?;
        check::indices("linear_logprob_backward", "target", targets.slice(), "V", w.rows())?;
        dispatch!(self, R => linear_logprob::linear_logprob_backward::<R>(
            x.slice(), &widen(w), w.columns(), targets.slice(), temperature, entropy.slice(), lse.slice(),
            dlogp.slice(), dentropy.map(|t| t.slice()), dx.slice_mut(), dw.map(|t| t.slice_mut())
        ));
        Ok(())
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
        advance::advance(block_size, block_table, positions, lens, slots, counter)
    }

    fn logits(&self, x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
        check::logits(self.activation, x, w, out)?;
        dispatch!(self, R => linear::matmul_nt::<R>(
            x.slice(), &widen(w), w.columns(), out.slice_mut(), w.rows(), 0
        ));
        Ok(())
    }

    fn sample(&self, logits: &Tensor, sampling: &Sampling, ids: &mut Tensor, logp: &mut Tensor) -> Result<()> {
        check::sample(self.activation, logits, sampling, ids, logp)?;
        check::sampling_values(sampling.temperature.slice(), sampling.top_p.slice(), sampling.top_k.slice())?;
        let v = logits.columns();
        dispatch!(self, R => sample::sample::<R>(logits.slice(), v, sampling, ids.slice_mut(), logp.slice_mut()))
    }

    fn value_head(&self, x: &Tensor, w: &Tensor, bias: &Tensor, value: &mut Tensor) -> Result<()> {
        check::value_head(self.activation, x, w, bias, value)?;
        dispatch!(self, R => value_head::value_head::<R>(x, w, bias, value.slice_mut()));
        Ok(())
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
        check::value_head_backward(self.activation, x, w, dvalue, dx, dw, dbias)?;
        let (dx, dw, dbias) = (dx, dw, dbias);
        dispatch!(self, R => value_head::value_head_backward::<R>(x, w, dvalue, dx.slice_mut(), dw.slice_mut(), dbias.slice_mut()));
        Ok(())
    }

    fn ppo_loss(
        &self,
        params: &PpoParams,
        inputs: &PpoInputs,
        dlogp: &mut Tensor,
        dentropy: &mut Tensor,
    ) -> Result<PpoStats> {
        check::ppo_loss(self.activation, inputs, dlogp, dentropy)?;
        Ok(dispatch!(self, R => ppo_loss::ppo_loss::<R>(params, inputs, dlogp.slice_mut(), dentropy.slice_mut())))
    }

    fn value_loss(&self, clip: Option<f32>, inputs: &ValueInputs, dvalue: &mut Tensor) -> Result<f64> {
        check::value_loss(self.activation, inputs, dvalue)?;
        Ok(dispatch!(self, R => value_loss::value_loss::<R>(clip, inputs, dvalue.slice_mut())))
    }

    fn squared_norm(&self, tensors: &[&Tensor]) -> Result<f64> {
        check::squared_norm(self.activation, tensors)?;
        Ok(dispatch!(self, R => tensors.iter().fold(0.0, |sum, t| sum + adamw::squared_norm::<R>(t.slice()))))
    }

    fn adamw(
        &self,
        step: &AdamW,
        params: &mut [&mut Tensor],
        grads: &[&Tensor],
        m: &mut [&mut Tensor],
        v: &mut [&mut Tensor],
    ) -> Result<()> {
        check::adamw(self.activation, step.step, params, grads, m, v)?;
        for (((param, grad), m), v) in params.iter_mut().zip(grads).zip(m).zip(v) {
            dispatch!(self, R => adamw::adamw::<R>(
                step, param.slice_mut(), grad.slice(), m.slice_mut(), v.slice_mut()
            ));
        }
        Ok(())
    }

    fn merge_lora(&self, w: &mut Tensor, lora: &Lora) -> Result<()> {
        check::merge_lora(w, lora)?;
        dispatch!(self, R => adamw::merge_lora::<R>(w, lora));
        Ok(())
    }
}
