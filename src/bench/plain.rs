//! The yardstick of whole models: a plain bf16 computation, f32 inside each op and every activation that an op writes rounded to
//! bf16, as PyTorch does it. Statistics, log-probabilities and gradients of parameters stay f32.

use crate::backend::oracle::Oracle;
use crate::backend::{
    AdamW, Backend, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments,
    ValueInputs,
};
use crate::error::Result;
use crate::tensor::{DType, Tensor};
use half::bf16;

/// See the file.
pub struct Plain {
    inner: Oracle,
}

impl Default for Plain {
    fn default() -> Self {
        Self::new()
    }
}

impl Plain {
    /// Stateless.
    pub fn new() -> Self {
        Self { inner: Oracle::f32() }
    }
}

fn round(tensor: &mut Tensor) {
    tensor.slice_mut::<f32>().iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
}

impl Backend for Plain {
    fn name(&self) -> &'static str {
        "plain bf16"
    }
    fn activation(&self) -> DType {
        DType::F32
    }
    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.inner.alloc(shape, dtype)
    }
    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
        self.inner.write(tensor, values)
    }
    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        self.inner.read(tensor)
    }
    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>> {
        self.inner.read_i32(tensor)
    }
    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()> {
        self.inner.copy(from, to)
    }
    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()> {
        self.inner.fill(tensor, value)
    }
    fn embed(&self, ids: &Tensor, wte: &Tensor, out: &mut Tensor) -> Result<()> {
        self.inner.embed(ids, wte, out)?;
        round(out);
        Ok(())
    }
    fn embed_backward(&self, ids: &Tensor, dout: &Tensor, dwte: &mut Tensor) -> Result<()> {
        self.inner.embed_backward(ids, dout, dwte)
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
        match (x, sum) {
            (Some(x), Some(sum)) => {
                self.inner.add_rmsnorm(residual, Some(x), w, eps, Some(sum), y, rstd)?;
                round(sum);
                self.inner.add_rmsnorm(sum, None, w, eps, None, y, rstd)?;
            }
            (x, sum) => self.inner.add_rmsnorm(residual, x, w, eps, sum, y, rstd)?,
        }
        round(y);
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
        self.inner.add_rmsnorm_backward(sum, w, rstd, dy, dsum, dw)?;
        round(dsum);
        Ok(())
    }
    fn linear(&self, x: &Tensor, p: &Linear, y: &mut Tensor, column: usize, s: Option<&mut Tensor>) -> Result<()> {
        match s {
            Some(s) => {
                self.inner.linear(x, p, y, column, Some(s))?;
                round(s);
            }
            None => self.inner.linear(x, p, y, column, None)?,
        }
        round(y);
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
        match dx {
            Some(dx) => {
                self.inner.linear_backward(x, p, dy, column, s, Some(dx), grads)?;
                round(dx);
                Ok(())
            }
            None => self.inner.linear_backward(x, p, dy, column, s, None, grads),
        }
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
        self.inner.qk_norm_rope(qkv, heads, norm, positions, table, raw)?;
        round(qkv);
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
        self.inner.qk_norm_rope_backward(dqkv, heads, norm, positions, table, raw, dnorm)?;
        round(dqkv);
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
        self.inner.attention(qkv, heads, segments, o, lse)?;
        round(o);
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
        self.inner.attention_backward(qkv, o, lse, dout, heads, segments, dqkv)?;
        round(dqkv);
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
        self.inner.kv_append(qkv, heads, slots, k_cache, v_cache)
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
        self.inner.attention_paged(qkv, heads, k_cache, v_cache, block_size, block_table, lens, cu_q, o)?;
        round(o);
        Ok(())
    }
    fn swiglu(&self, gate_up: &Tensor, y: &mut Tensor) -> Result<()> {
        self.inner.swiglu(gate_up, y)?;
        round(y);
        Ok(())
    }
    fn swiglu_backward(&self, gate_up: &Tensor, dy: &Tensor, dgate_up: &mut Tensor) -> Result<()> {
        self.inner.swiglu_backward(gate_up, dy, dgate_up)?;
        round(dgate_up);
        Ok(())
    }
    fn gather_rows(&self, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
        self.inner.gather_rows(x, rows, y)
    }
    fn scatter_add_rows(&self, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
        self.inner.scatter_add_rows(dy, rows, dx)?;
        round(dx);
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
        self.inner.linear_logprob(x, w, targets, temperature, logp, entropy, lse)
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
        self.inner.linear_logprob_backward(x, w, targets, temperature, entropy, lse, dlogp, dentropy, dx, dw)?;
        round(dx);
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
        self.inner.advance(block_size, block_table, positions, lens, slots, counter)
    }
    fn logits(&self, x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
        self.inner.logits(x, w, out)
    }
    fn sample(&self, logits: &Tensor, sampling: &Sampling, ids: &mut Tensor, logp: &mut Tensor) -> Result<()> {
        self.inner.sample(logits, sampling, ids, logp)
    }
    fn value_head(&self, x: &Tensor, w: &Tensor, bias: &Tensor, value: &mut Tensor) -> Result<()> {
        self.inner.value_head(x, w, bias, value)
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
        self.inner.value_head_backward(x, w, dvalue, dx, dw, dbias)
    }
    fn ppo_loss(
        &self,
        params: &PpoParams,
        inputs: &PpoInputs,
        dlogp: &mut Tensor,
        dentropy: &mut Tensor,
    ) -> Result<PpoStats> {
        self.inner.ppo_loss(params, inputs, dlogp, dentropy)
    }
    fn value_loss(&self, clip: Option<f32>, inputs: &ValueInputs, dvalue: &mut Tensor) -> Result<f64> {
        self.inner.value_loss(clip, inputs, dvalue)
    }
    fn squared_norm(&self, tensors: &[&Tensor]) -> Result<f64> {
        self.inner.squared_norm(tensors)
    }
    fn adamw(
        &self,
        step: &AdamW,
        params: &mut [&mut Tensor],
        grads: &[&Tensor],
        m: &mut [&mut Tensor],
        v: &mut [&mut Tensor],
    ) -> Result<()> {
        self.inner.adamw(step, params, grads, m, v)
    }
    fn merge_lora(&self, w: &mut Tensor, lora: &Lora) -> Result<()> {
        self.inner.merge_lora(w, lora)
    }
}
