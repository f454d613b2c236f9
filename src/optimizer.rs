//! AdamW over a flat list of tensors, gradient clipping by global norm, and learning-rate schedules. Writes no files.

use crate::backend::{AdamW, Backend};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The constants of AdamW (arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, times the learning rate; on matrices only, not on norms and biases.
    pub weight_decay: f32,
}

/// AdamW's state for one flat list of parameters.
pub struct Optimizer {
    /// Its constants.
    pub config: AdamWConfig,
    /// Steps taken.
    pub steps: u32,
    /// First moments, one a parameter tensor.
    pub m: Vec<Tensor>,
    /// Second moments.
    pub v: Vec<Tensor>,
}

impl Optimizer {
    /// Fresh state for `params`.
    pub fn new(be: &dyn Backend, params: &[Tensor], config: AdamWConfig) -> Result<Self> {
        let zeros = || params.iter().map(|p| be.alloc(p.shape(), be.activation())).collect::<Result<Vec<_>>>();
        Ok(Self { config, steps: 0, m: zeros()?, v: zeros()? })
    }

    /// One step with learning rate `lr`; gradients whose global norm is above `max_norm` are scaled down to it first
    /// (`f32::INFINITY`: never). Returns the norm before clipping. Errors, all before anything is changed: lists that do not
    /// belong together, frozen parameters, a gradient that is not finite.
    pub fn step(
        &mut self,
        be: &dyn Backend,
        params: &mut [Tensor],
        grads: &[Tensor],
        lr: f32,
        max_norm: f32,
    ) -> Result<f32> {
        if params.len() != self.m.len() || grads.len() != self.m.len() {
            let (p, g, m) = (params.len(), grads.len(), self.m.len());
            return Err(Error::system(format!("optimizer for {m} tensors was given {p} parameters and {g} gradients")));
        }
        if let Some(frozen) = params.iter().find(|p| p.is_mapped() || p.dtype() != be.activation()) {
            return Err(Error::system(format!("{frozen:?} cannot be trained; widen the model first")));
        }
        let norm = be.squared_norm(&grads.iter().collect::<Vec<_>>())?.sqrt();
        if !norm.is_finite() {
            return Err(Error::system(format!(
                "gradient is not finite (global norm {norm}) at optimizer step {}; nothing was updated; a lower learning rate helps",
                self.steps + 1
            )));
        }
        let grad_scale = if norm > f64::from(max_norm) { (f64::from(max_norm) / norm) as f32 } else { 1.0 };
        self.steps += 1;
        for decays in [true, false] {
            let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
            let weight_decay = if decays { weight_decay } else { 0.0 };
            let step = AdamW { lr, beta1, beta2, eps, weight_decay, step: self.steps, grad_scale };
            let chosen = |param: &Tensor| (param.shape().len() > 1) == decays;
            let (mut p, mut g, mut m, mut v) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let state = self.m.iter_mut().zip(&mut self.v);
            for ((param, grad), (first, second)) in params.iter_mut().zip(grads).zip(state) {
                if chosen(param) {
                    p.push(param);
                    g.push(grad);
                    m.push(first);
                    v.push(second);
                }
            }
            be.adamw(&step, &mut p, &g, &mut m, &mut v)?;
        }
        Ok(norm as f32)
    }
}

/// How the learning rate goes over the steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Schedule {
    /// Linear warm-up, then 1.
    Constant {
        /// Steps of the warm-up.
        warmup: u32,
    },
    /// Linear warm-up, then half a cosine down to `floor` at step `total`.
    Cosine {
        /// Steps of the warm-up.
        warmup: u32,
        /// Steps of the run.
        total: u32,
        /// Where it ends, as a share of the peak.
        floor: f32,
    },
}

impl Schedule {
    /// The factor on the peak learning rate in step `step`, counted from 0.
    pub fn factor(&self, step: u32) -> f32 {
        let warm = |warmup: u32| (step + 1) as f32 / (warmup as f32 + 1.0);
        match *self {
            Schedule::Constant { warmup } if step < warmup => warm(warmup),
            Schedule::Constant { .. } => 1.0,
            Schedule::Cosine { warmup, .. } if step < warmup => warm(warmup),
            Schedule::Cosine { warmup, total, floor } => {
                let done = f64::from(step - warmup) / f64::from(total.saturating_sub(warmup).max(1));
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
                (f64::from(floor) + (1.0 - f64::from(floor)) * cosine) as f32
            }
        }
    }
}
