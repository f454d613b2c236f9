//! Compares a whole small model on the CPU in f32 with the backend under test: log-probabilities, loss and every LoRA
//! gradient, beside the error of a plain bf16 computation of the same.

use super::compare;
use super::measure::Target;
use super::plain::Plain;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::ops::Heads;
use crate::batch::{self, Group, LossBatch};
use crate::error::{Error, Result};
use crate::model::config::{ModelConfig, RopeConfig, RopeScaling};
use crate::model::lora::{Adapter, LoraConfig, Module};
use crate::model::{Activations, Gradients, Model, Policy};
use crate::rng::Philox;
use crate::tensor::{DType, Tensor};

/// The models to compare: one of Qwen2's family and one of Qwen3's.
pub fn shapes(large: bool) -> [(&'static str, ModelConfig); 2] {
    let (vocab, hidden, layers, heads, mlp) = match large {
        true => (1031, 512, 2, Heads { nh: 4, nkv: 2, hs: 128 }, 1096),
        false => (37, 64, 2, Heads { nh: 2, nkv: 1, hs: 64 }, 72),
    };
    let qwen2 = ModelConfig {
        vocab,
        hidden,
        layers,
        heads,
        mlp,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 512,
    };
    let heads = Heads { hs: 64, ..heads };
    let qwen3 = ModelConfig { heads, tied: false, qkv_bias: false, qk_norm: true, ..qwen2.clone() };
    [("qwen2", qwen2), ("qwen3", qwen3)]
}

/// Results of a model for a batch: the losses of its rows (M), and the gradients of the adapter by name.
pub struct Answer {
    /// -log p of each target.
    pub losses: Vec<f64>,
    /// Gradients of the mean loss, by tensor name.
    pub gradients: Vec<(String, Vec<f64>)>,
}

impl Answer {
    /// Mean loss.
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len() as f64
    }
}

/// Makes a model and an adapter with the same values on every backend. Weights are exact in bf16, with deviations that
/// keep activations of order one; norms are around 1; biases and the adapter's B are not zero.
fn model(be: &dyn Backend, config: &ModelConfig) -> Result<(Model, Adapter)> {
    let mut random = Philox::new(3, 0);
    let model = Model::new(be, config.clone(), &mut |name, shape| {
        let (centre, deviation) = match name {
            _ if name.ends_with("norm.weight") => (1.0, 0.1),
            _ if name.ends_with("bias") => (0.0, 0.1),
            "model.embed_tokens.weight" => (0.0, 1.0 / (config.hidden as f64).sqrt()),
            _ => (0.0, 1.0 / (shape[1] as f64).sqrt()),
        };
        let mut host = Tensor::zeros(shape, DType::F32);
        let mut next = || half::bf16::from_f64(centre + deviation * random.normal()).to_f32();
        host.slice_mut::<f32>().fill_with(&mut next);
        be.place(host)
    })?;
    let lora = LoraConfig { rank: 8, alpha: 16.0, rslora: false, modules: Module::ALL.to_vec() };
    let mut adapter = Adapter::new(be, config, lora, &mut random)?;
    for tensor in &mut adapter.tensors {
        let deviation = 1.0 / (tensor.columns() as f64).sqrt() * if tensor.rows() == 8 { 1.0 } else { 0.2 };
        let mut host = Tensor::zeros(tensor.shape(), DType::F32);
        host.slice_mut::<f32>().fill_with(|| half::bf16::from_f64(deviation * random.normal()).to_f32());
        be.write(tensor, &host)?;
    }
    Ok((model, adapter))
}

/// Runs two prompts with replies and their mean loss, forward and backward.
pub fn answer(be: &dyn Backend, config: &ModelConfig, tokens: usize) -> Result<Answer> {
    let (model, adapter) = model(be, config)?;
    let mut random = Philox::new(4, 0);
    let mut ids = |n: usize| (0..n).map(|_| random.below(config.vocab) as u32).collect::<Vec<_>>();
    let groups = [
        Group { prompt: ids(tokens), replies: vec![ids(tokens / 2), ids(tokens / 3 + 1)] },
        Group { prompt: ids(tokens / 2 + 1), replies: vec![ids(tokens)] },
    ];
    let batch = LossBatch::from_groups(be, config, &groups, true)?;
    let policy = Policy { model: &model, adapter: Some(&adapter) };
    let mut acts = Activations::default();
    let scores = batch::forward(be, policy, &batch, 1.0, true, &mut acts)?;
    let mut grads = Gradients::new(be, policy, false)?;
    let mut dlogp = be.alloc(&[batch.loss_rows()], be.accumulator())?;
    be.fill(&mut dlogp, -1.0 / batch.loss_rows() as f32)?;
    batch::backward(be, policy, &batch, 1.0, &mut acts, &scores, &dlogp, None, &mut grads)?;
    let wide = |t: &Tensor| Ok::<_, Error>(be.read(t)?.into_iter().map(f64::from).collect::<Vec<_>>());
    let tensors = grads.adapter.as_deref().unwrap_or_default();
    let gradients = adapter.names.iter().zip(tensors).map(|(name, t)| Ok((name.clone(), wide(t)?)));
    let gradients = gradients.collect::<Result<Vec<_>>>()?;
    Ok(Answer { losses: wide(&scores.logp)?.into_iter().map(|x| -x).collect(), gradients })
}

/// One comparison. Errors of gradients are relative to the largest magnitude in the tensor.
pub struct Finding {
    /// `loss`, `log-probability` or a tensor's name.
    pub what: String,
    /// Error of the backend under test.
    pub error: f64,
    /// Largest error allowed; see `compare`.
    pub allowance: f64,
    /// Error of the plain bf16 computation.
    pub plain: f64,
}

/// Compares a model on `target` with the CPU. A gradient may be off by twice the plain computation's error in its worst
/// tensor: all gradients pass through the same layers, and the largest error of a single tensor is a matter of luck.
pub fn compare(target: &Target, config: &ModelConfig, large: bool) -> Result<Vec<Finding>> {
    let tokens = if large { 61 } else { 9 };
    let found = answer(target.backend, config, tokens)?;
    let (exact, plain) = (answer(&Cpu, config, tokens)?, answer(&Plain::new(), config, tokens)?);
    let off = |a: &Answer, i: usize| {
        let exact = &exact.gradients[i].1;
        let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        // A tensor without gradient shows nothing: it counts as wrong.
        if largest > 0.0 { compare::error(&a.gradients[i].1, exact) / largest } else { f64::INFINITY }
    };
    let worst = (0..exact.gradients.len()).map(|i| off(&plain, i)).fold(0.0, f64::max);
    let rows = [&found, &plain].map(|a| compare::error(&a.losses, &exact.losses));
    // The mean over rows cannot be further off than the worst row.
    let mean = [&found, &plain].map(|a| compare::error(&[a.loss()], &[exact.loss()]));
    let mut findings = vec![
        Finding { what: "log-probability".into(), error: rows[0], allowance: 2.0 * rows[1], plain: rows[1] },
        Finding { what: "loss".into(), error: mean[0], allowance: 2.0 * rows[1], plain: mean[1] },
    ];
    for (i, (name, _)) in exact.gradients.iter().enumerate() {
        let error = off(&found, i);
        findings.push(Finding { what: name.clone(), error, allowance: 2.0 * worst, plain: off(&plain, i) });
    }
    Ok(findings)
}
