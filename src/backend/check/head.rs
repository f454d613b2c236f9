//! Types and shapes of the ops from the head on: log-probabilities, sampling, losses and the optimiser.

use super::{Door, Types, door};
use crate::backend::{Lora, PpoInputs, Sampling, ValueInputs};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

impl Door {
    fn head(&self, x: &Tensor, w: &Tensor, targets: &Tensor, temperature: f32) -> Result<usize> {
        let ([m, c], [v, _]) = (self.matrix("x (M, C)", x)?, self.matrix("w (V, C)", w)?);
        self.input("x (M, C)", x, &[m, c])?;
        self.parameter("w (V, C)", w, &[v, c])?;
        self.int("targets (M)", targets, &[m])?;
        self.require(temperature > 0.0 && temperature.is_finite(), || {
            format!("temperature is {temperature}, expected a finite number above 0")
        })?;
        Ok(m)
    }
}

/// `linear_logprob`.
#[allow(clippy::too_many_arguments)]
pub fn linear_logprob(
    types: impl Into<Types>,
    x: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    temperature: f32,
    logp: &Tensor,
    entropy: &Tensor,
    lse: &Tensor,
) -> Result<()> {
    let door = door("linear_logprob", types);
    let m = door.head(x, w, targets, temperature)?;
    door.accumulated("logp (M)", logp, &[m])?;
    door.accumulated("entropy (M)", entropy, &[m])?;
    door.accumulated("lse (M)", lse, &[m])
}

/// `linear_logprob_backward`.
#[allow(clippy::too_many_arguments)]
pub fn linear_logprob_backward(
    types: impl Into<Types>,
    x: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    temperature: f32,
    entropy: &Tensor,
    lse: &Tensor,
    dlogp: &Tensor,
    dentropy: Option<&Tensor>,
    dx: &Tensor,
    dw: Option<&Tensor>,
) -> Result<()> {
    let door = door("linear_logprob_backward", types);
    let m = door.head(x, w, targets, temperature)?;
    for (name, t) in [("entropy (M)", entropy), ("lse (M)", lse), ("dlogp (M)", dlogp)] {
        door.statistic(name, t, &[m])?;
    }
    dentropy.map_or(Ok(()), |t| door.statistic("dentropy (M)", t, &[m]))?;
    door.output("dx (M, C)", dx, x.shape())?;
    dw.map_or(Ok(()), |t| door.accumulated("dw (V, C)", t, w.shape()))
}

/// `advance`.
pub fn advance(
    block_size: usize,
    block_table: &Tensor,
    positions: &Tensor,
    lens: &Tensor,
    slots: &Tensor,
    counter: &Tensor,
) -> Result<()> {
    let door = door("advance", DType::F32);
    let [b, p] = door.matrix("block_table (B, P)", block_table)?;
    door.int("block_table (B, P)", block_table, &[b, p])?;
    door.require(block_size > 0, || "block_size is 0".into())?;
    for (name, t) in [("positions (B)", positions), ("lens (B)", lens), ("slots (B)", slots), ("counter (B)", counter)]
    {
        door.int(name, t, &[b])?;
        door.writable(name, t)?;
    }
    Ok(())
}

/// `logits`.
pub fn logits(types: impl Into<Types>, x: &Tensor, w: &Tensor, out: &Tensor) -> Result<()> {
    let door = door("logits", types);
    let ([b, c], [_, v]) = (door.matrix("x (B, C)", x)?, door.matrix("out (B, V)", out)?);
    door.input("x (B, C)", x, &[b, c])?;
    door.parameter("w (V, C)", w, &[v, c])?;
    door.accumulated("out (B, V)", out, &[b, v])
}

/// `sample`.
pub fn sample(
    types: impl Into<Types>,
    logits: &Tensor,
    sampling: &Sampling,
    ids: &Tensor,
    logp: &Tensor,
) -> Result<()> {
    let door = door("sample", types);
    let [b, v] = door.matrix("logits (B, V)", logits)?;
    door.statistic("logits (B, V)", logits, &[b, v])?;
    door.typed("temperature (B)", sampling.temperature, DType::F32, &[b])?;
    door.typed("top_p (B)", sampling.top_p, DType::F32, &[b])?;
    door.int("top_k (B)", sampling.top_k, &[b])?;
    door.int("seed (B, 2)", sampling.seed, &[b, 2])?;
    door.int("counter (B)", sampling.counter, &[b])?;
    door.int("ids (B)", ids, &[b])?;
    door.writable("ids (B)", ids)?;
    door.accumulated("logp (B)", logp, &[b])
}

/// `ppo_loss`.
pub fn ppo_loss(types: impl Into<Types>, inputs: &PpoInputs, dlogp: &Tensor, dentropy: &Tensor) -> Result<()> {
    let door = door("ppo_loss", types);
    let m = door.vector("logp (M)", inputs.logp)?;
    let PpoInputs { logp, entropy, behaviour, reference, advantage, weight } = inputs;
    for (name, t) in [
        ("logp (M)", logp),
        ("entropy (M)", entropy),
        ("behaviour (M)", behaviour),
        ("reference (M)", reference),
        ("advantage (M)", advantage),
        ("weight (M)", weight),
    ] {
        door.statistic(name, t, &[m])?;
    }
    door.accumulated("dlogp (M)", dlogp, &[m])?;
    door.accumulated("dentropy (M)", dentropy, &[m])
}

/// `value_loss`.
pub fn value_loss(types: impl Into<Types>, inputs: &ValueInputs, dvalue: &Tensor) -> Result<()> {
    let door = door("value_loss", types);
    let m = door.vector("value (M)", inputs.value)?;
    let ValueInputs { value, old_value, target, weight } = inputs;
    for (name, t) in
        [("value (M)", value), ("old_value (M)", old_value), ("target (M)", target), ("weight (M)", weight)]
    {
        door.statistic(name, t, &[m])?;
    }
    door.accumulated("dvalue (M)", dvalue, &[m])
}

/// `value_head`.
pub fn value_head(types: impl Into<Types>, x: &Tensor, w: &Tensor, bias: &Tensor, value: &Tensor) -> Result<()> {
    let door = door("value_head", types);
    let [m, c] = door.matrix("x (M, C)", x)?;
    door.input("x (M, C)", x, &[m, c])?;
    door.statistic("w (1, C)", w, &[1, c])?;
    door.statistic("bias (1)", bias, &[1])?;
    door.accumulated("value (M)", value, &[m])
}

/// `value_head_backward`.
pub fn value_head_backward(
    types: impl Into<Types>,
    x: &Tensor,
    w: &Tensor,
    dvalue: &Tensor,
    dx: &Tensor,
    dw: &Tensor,
    dbias: &Tensor,
) -> Result<()> {
    let door = door("value_head_backward", types);
    let [m, c] = door.matrix("x (M, C)", x)?;
    door.input("x (M, C)", x, &[m, c])?;
    door.statistic("w (1, C)", w, &[1, c])?;
    door.statistic("dvalue (M)", dvalue, &[m])?;
    door.output("dx (M, C)", dx, &[m, c])?;
    door.accumulated("dw (1, C)", dw, &[1, c])?;
    door.accumulated("dbias (1)", dbias, &[1])
}

/// `squared_norm`: tensors of the accumulator type.
pub fn squared_norm(types: impl Into<Types>, tensors: &[&Tensor]) -> Result<()> {
    let door = door("squared_norm", types);
    tensors.iter().enumerate().try_for_each(|(i, t)| door.statistic(&format!("tensor {i}"), t, t.shape()))
}

/// `adamw`: four lists of equal length, tensor by tensor of equal shape, all of the accumulator type; steps count from 1.
pub fn adamw(
    types: impl Into<Types>,
    step: u32,
    params: &[&mut Tensor],
    grads: &[&Tensor],
    m: &[&mut Tensor],
    v: &[&mut Tensor],
) -> Result<()> {
    let door = door("adamw", types);
    let n = params.len();
    door.require(grads.len() == n && m.len() == n && v.len() == n, || {
        format!("{n} params, {} grads, {} m and {} v: the lists must be of one length", grads.len(), m.len(), v.len())
    })?;
    door.require(step > 0, || "step is 0, but steps count from 1".into())?;
    for i in 0..n {
        let shape = params[i].shape();
        door.accumulated(&format!("param {i}"), params[i], shape)?;
        door.statistic(&format!("grad {i}"), grads[i], shape)?;
        door.accumulated(&format!("m {i}"), m[i], shape)?;
        door.accumulated(&format!("v {i}"), v[i], shape)?;
    }
    Ok(())
}

/// `merge_lora`.
pub fn merge_lora(w: &Tensor, lora: &Lora) -> Result<()> {
    let door = door("merge_lora", w.dtype());
    let [n, k] = door.matrix("w (N, K)", w)?;
    door.parameter("w (N, K)", w, &[n, k])?;
    door.writable("w (N, K)", w)?;
    door.lora(lora, n, k)
}
