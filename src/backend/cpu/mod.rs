//! The fast backend for host memory: f32 activations, weights in f32, bf16 or f16 widened tile by tile. It calls the oracle for
//! ops where naive is fast enough. Equal bits whatever the number of threads; a row's forward result does not depend on the
//! other rows of the call.

use super::oracle::Oracle;
use super::{
    AdamW, Backend, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments,
    ValueInputs, check,
};
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use simd::Floats;

mod attention;
mod attention_backward;
mod elementwise;
mod gemm;
mod linear;
mod linear_logprob;
mod sample;
mod simd;

/// Elements that one task of an element-wise op handles.
const GRAIN: usize = 16_384;

/// Rows of `width` elements that one task handles.
fn chunk_rows(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// Runs `f` on every task: here when there is one, else on the thread pool.
fn run<T: Send>(tasks: Vec<T>, f: impl Fn(T) + Send + Sync) {
    if tasks.len() <= 1 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// The CPU backend, on rayon's current thread pool.
#[derive(Debug, Clone, Copy)]
pub struct Cpu;

/// What runs the ops that need no speed.
fn oracle() -> Oracle {
    Oracle::f32()
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn activation(&self) -> DType {
        DType::F32
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
        check::copy(from, to)?;
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
        check::fill(tensor)?;
        tensor.slice_mut::<f32>().fill(value);
        Ok(())
    }

    fn embed(&self, ids: &Tensor, wte: &Tensor, out: &mut Tensor) -> Result<()> {
        check::embed(DType::F32, ids, wte, out)?;
        check::indices("embed", "id", ids.slice(), "V", wte.rows())?;
        elementwise::embed(ids.slice(), Floats::of(wte), wte.columns(), out.slice_mut());
        Ok(())
    }

    fn embed_backward(&self, ids: &Tensor, dout: &Tensor, dwte: &mut Tensor) -> Result<()> {
        oracle().embed_backward(ids, dout, dwte)
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
        check::add_rmsnorm(DType::F32, residual, x, w, sum.as_deref(), y, rstd)?;
        let x_sum = x.zip(sum).map(|(x, sum)| (x.slice(), sum.slice_mut()));
        elementwise::add_rmsnorm(residual.slice(), x_sum, &Floats::small(w), eps, y.slice_mut(), rstd.slice_mut());
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
        check::add_rmsnorm_backward(DType::F32, sum, w, rstd, dy, dsum, dw.as_deref())?;
        let dw = dw.map(|dw| dw.slice_mut());
        let w = Floats::small(w);
        elementwise::add_rmsnorm_backward(sum.slice(), &w, rstd.slice(), dy.slice(), dsum.slice_mut(), dw);
        Ok(())
    }

    fn linear(&self, x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) -> Result<()> {
        check::linear(DType::F32, x, p, y, column, s.as_deref())?;
        linear::linear(x, p, y, column, s);
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
        check::linear_backward(DType::F32, x, p, dy, column, s, dx.as_deref(), &grads)?;
        linear::linear_backward(x, p, dy, column, s, dx, grads);
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
        if norm.is_some() {
            return oracle().qk_norm_rope(qkv, heads, norm, positions, table, raw);
        }
        check::qk_norm_rope(DType::F32, qkv, heads, norm, positions, table, raw.as_deref())?;
        check::indices("qk_norm_rope", "position", positions.slice(), "P", table.rows())?;
        elementwise::rope(qkv.slice_mut(), heads, positions.slice(), Floats::of(table), 1.0);
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
        if norm.is_some() {
            return oracle().qk_norm_rope_backward(dqkv, heads, norm, positions, table, raw, dnorm);
        }
        let wanted = dnorm.as_ref().map(|(q, k)| (&**q, &**k));
        check::qk_norm_rope_backward(DType::F32, dqkv, heads, norm, positions, table, raw, wanted)?;
        check::indices("qk_norm_rope_backward", "position", positions.slice(), "P", table.rows())?;
        elementwise::rope(dqkv.slice_mut(), heads, positions.slice(), Floats::of(table), -1.0);
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
        check::attention(DType::F32, qkv, heads, segments, o, lse)?;
        let (cu, parent) = (segments.cu_seqlens.slice(), segments.parent.slice());
        check::segment_values("attention", cu, parent, qkv.rows())?;
        attention::attention(qkv.slice(), heads, cu, parent, o.slice_mut(), lse.slice_mut());
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
        check::attention_backward(DType::F32, qkv, o, lse, dout, heads, segments, dqkv)?;
        let (cu, parent) = (segments.cu_seqlens.slice(), segments.parent.slice());
        check::segment_values("attention_backward", cu, parent, qkv.rows())?;
        let (qkv, o, lse, dout) = (qkv.slice(), o.slice(), lse.slice(), dout.slice());
        let forward = attention_backward::Forward { qkv, o, lse, dout, heads, cu_seqlens: cu, parent };
        attention_backward::attention_backward(&forward, dqkv.slice_mut());
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
        oracle().kv_append(qkv, heads, slots, k_cache, v_cache)
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
        check::attention_paged(DType::F32, qkv, heads, k_cache, v_cache, block_size, block_table, lens, cu_q, o)?;
        let (table, lens, cu_q) = (block_table.slice(), lens.slice(), cu_q.slice());
        let blocks = k_cache.rows() / block_size;
        check::page_values("attention_paged", table, lens, cu_q, qkv.rows(), block_size, blocks)?;
        let pages = attention::Pages { k: k_cache.slice(), v: v_cache.slice(), block_size, table, lens };
        attention::attention_paged(qkv.slice(), heads, &pages, cu_q, o.slice_mut());
        Ok(())
    }

    fn swiglu(&self, gate_up: &Tensor, y: &mut Tensor) -> Result<()> {
        check::swiglu(DType::F32, gate_up, y)?;
        elementwise::swiglu(gate_up.slice(), y.columns(), y.slice_mut());
        Ok(())
    }

    fn swiglu_backward(&self, gate_up: &Tensor, dy: &Tensor, dgate_up: &mut Tensor) -> Result<()> {
        check::swiglu_backward(DType::F32, gate_up, dy, dgate_up)?;
        elementwise::swiglu_backward(gate_up.slice(), dy.columns(), dy.slice(), dgate_up.slice_mut());
        Ok(())
    }

    fn gather_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        oracle().gather_rows(x, rows, y)
    }

    fn scatter_add_rows(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
        oracle().scatter_add_rows(dy, rows, dx)
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
        check::linear_logprob(DType::F32, x, w, targets, temperature, logp, entropy, lse)?;
        check::indices("linear_logprob", "target", targets.slice(), "V", w.rows())?;
        let head = linear_logprob::Head::new(x, w, targets, temperature);
        linear_logprob::linear_logprob(&head, logp.slice_mut(), entropy.slice_mut(), lse.slice_mut());
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
        check::linear_logprob_backward(
            DType::F32,
            x,
            w,
            targets,
            temperature,
            entropy,
            lse,
            dlogp,
            dentropy,
            dx,
            dw.as_deref(),
        )?;
        check::indices("linear_logprob_backward", "target", targets.slice(), "V", w.rows())?;
        let head = linear_logprob::Head::new(x, w, targets, temperature);
        let (dentropy, dw) = (dentropy.map(|t| t.slice()), dw.map(|t| t.slice_mut()));
        let (entropy, lse, dlogp) = (entropy.slice(), lse.slice(), dlogp.slice());
        linear_logprob::linear_logprob_backward(&head, entropy, lse, dlogp, dentropy, dx.slice_mut(), dw);
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
        oracle().advance(block_size, block_table, positions, lens, slots, counter)
    }

    fn logits(&self, x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
        check::logits(DType::F32, x, w, out)?;
        linear::logits(x, w, out);
        Ok(())
    }

    fn sample(&self, logits: &Tensor, sampling: &Sampling, ids: &mut Tensor, logp: &mut Tensor) -> Result<()> {
        check::sample(DType::F32, logits, sampling, ids, logp)?;
        check::sampling_values(sampling.temperature.slice(), sampling.top_p.slice(), sampling.top_k.slice())?;
        sample::sample(logits.slice(), logits.columns(), sampling, ids.slice_mut(), logp.slice_mut())
    }

    fn value_head(&self, x: &Tensor, w: &Tensor, bias: &Tensor, value: &mut Tensor) -> Result<()> {
        oracle().value_head(x, w, bias, value)
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
        oracle().value_head_backward(x, w, dvalue, dx, dw, dbias)
    }

    fn ppo_loss(
        &self,
        params: &PpoParams,
        inputs: &PpoInputs,
        dlogp: &mut Tensor,
        dentropy: &mut Tensor,
    ) -> Result<PpoStats> {
        oracle().ppo_loss(params, inputs, dlogp, dentropy)
    }

    fn value_loss(&self, clip: Option<f32>, inputs: &ValueInputs, dvalue: &mut Tensor) -> Result<f64> {
        oracle().value_loss(clip, inputs, dvalue)
    }

    fn squared_norm(&self, tensors: &[&Tensor]) -> Result<f64> {
        oracle().squared_norm(tensors)
    }

    fn adamw(
        &self,
        step: &AdamW,
        params: &mut [&mut Tensor],
        grads: &[&Tensor],
        m: &mut [&mut Tensor],
        v: &mut [&mut Tensor],
    ) -> Result<()> {
        check::adamw(DType::F32, step.step, params, grads, m, v)?;
        elementwise::adamw(step, params, grads, m, v);
        Ok(())
    }

    fn merge_lora(&self, w: &mut Tensor, lora: &Lora) -> Result<()> {
        oracle().merge_lora(w, lora)
    }
}
