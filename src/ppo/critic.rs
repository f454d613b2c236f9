//! The value function: its own adapter over the base, a linear head in the accumulator type, and one optimizer for
//! both.

use super::round::Micro;
use crate::backend::Backend;
use crate::backend::ops::{self, ValueInputs};
use crate::batch::{self, LossBatch};
use crate::checkpoint;
use crate::error::Result;
use crate::model::lora::Adapter;
use crate::model::{Activations, Gradients, Model, Policy};
use crate::optimizer::{AdamWConfig, Optimizer};
use crate::tensor::Tensor;
use crate::weights::{self, WeightMap};
use std::path::Path;

/// The value function of hidden states, with its optimizer.
pub struct Critic {
    /// Low-rank change of the base.
    pub adapter: Adapter,
    /// w (1, C) and b (1), in the accumulator type.
    pub head: Vec<Tensor>,
    /// `weight` and `bias`, one per tensor of `head`.
    pub head_names: [String; 2],
    /// Optimizer of the adapter's tensors, then the head's: one list with one norm.
    pub optimizer: Optimizer,
}

/// Gradients of a critic.
pub(super) struct CriticGradients {
    adapter: Gradients,
    head: Vec<Tensor>,
}

/// Inputs of one pass's value loss beside the values; tensors are (M).
pub(super) struct CriticInputs<'a> {
    /// See [`ops::ValueLoss`].
    pub clip: Option<f32>,
    pub old_value: &'a Tensor,
    pub target: &'a Tensor,
    pub weight: &'a Tensor,
}

impl Critic {
    /// A critic with `adapter` and a zero head: its value is 0 everywhere.
    pub fn new(backend: &dyn Backend, model: &Model, adapter: Adapter, constants: AdamWConfig) -> Result<Self> {
        let dtype = backend.accumulator();
        let head = vec![backend.alloc(&[1, model.config.hidden], dtype)?, backend.alloc(&[1], dtype)?];
        let optimizer = Optimizer::new(backend, adapter.tensors.iter().chain(&head), constants)?;
        Ok(Self { adapter, head, head_names: ["weight", "bias"].map(String::from), optimizer })
    }

    /// Values (M) of the loss rows, in the accumulator type, and their hidden states (M, C).
    pub fn values(
        &self,
        backend: &dyn Backend,
        model: &Model,
        batch: &LossBatch,
        keep: bool,
        acts: &mut Activations,
    ) -> Result<(Tensor, Tensor)> {
        let hidden = batch::forward_hidden(backend, self.policy(model), batch, keep, acts)?;
        let mut values = backend.alloc(&[batch.loss_rows()], backend.accumulator())?;
        ops::ValueHead { x: &hidden, w: &self.head[0], bias: &self.head[1], value: &mut values }.run(backend)?;
        Ok((values, hidden))
    }

    fn policy<'b>(&'b self, model: &'b Model) -> Policy<'b> {
        Policy { model, adapter: Some(&self.adapter) }
    }

    /// Zero gradients.
    pub(super) fn gradients(&self, backend: &dyn Backend, model: &Model) -> Result<CriticGradients> {
        let head = self.head.iter().map(|t| backend.alloc(t.shape(), backend.accumulator())).collect::<Result<_>>()?;
        Ok(CriticGradients { adapter: Gradients::new(backend, self.policy(model), false)?, head })
    }

    /// Forward, loss and backward on one part; returns the weighted loss.
    pub(super) fn pass(
        &self,
        backend: &dyn Backend,
        model: &Model,
        micro: &Micro,
        inputs: &CriticInputs,
        acts: &mut Activations,
        grads: &mut CriticGradients,
    ) -> Result<f64> {
        let (value, hidden) = self.values(backend, model, &micro.batch, true, acts)?;
        let mut dvalue = backend.alloc(value.shape(), backend.accumulator())?;
        let CriticInputs { clip, old_value, target, weight } = *inputs;
        let inputs = ValueInputs { value: &value, old_value, target, weight };
        let mut loss = 0.0;
        ops::ValueLoss { clip, inputs: &inputs, dvalue: &mut dvalue, loss: &mut loss }.run(backend)?;
        let mut drows = backend.alloc(hidden.shape(), backend.activation())?;
        if let [dw, dbias] = &mut grads.head[..] {
            ops::ValueHeadBackward { x: &hidden, w: &self.head[0], dvalue: &dvalue, dx: &mut drows, dw, dbias }
                .run(backend)?;
        }
        batch::backward_hidden(backend, self.policy(model), &micro.batch, acts, &drows, &mut grads.adapter)?;
        Ok(loss)
    }

    /// One optimizer step, after which the gradients are zero again. Returns their norm before clipping.
    pub(super) fn step(
        &mut self,
        backend: &dyn Backend,
        grads: &mut CriticGradients,
        lr: f32,
        max_norm: f32,
    ) -> Result<f32> {
        let params = self.adapter.tensors.iter_mut().chain(&mut self.head).collect();
        let list: Vec<&Tensor> = grads.adapter.adapter.iter().flatten().chain(&grads.head).collect();
        let norm = self.optimizer.step_lists(backend, params, &list, lr, max_norm)?;
        grads.adapter.zero(backend)?;
        grads.head.iter_mut().try_for_each(|t| backend.fill(t, 0.0))?;
        Ok(norm)
    }

    /// Writes adapter, head and optimizer into `dir`.
    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        checkpoint::save_adapter(&dir.join("critic"), &self.adapter, "")?;
        let tensors: Vec<_> = self.head_names.iter().cloned().zip(&self.head).collect();
        weights::save(&dir.join("critic_head.safetensors"), &tensors, None)?;
        checkpoint::save_optimizer(&dir.join("critic_optimizer.safetensors"), &self.optimizer)
    }

    /// Reads back what `save` wrote.
    pub(super) fn load(&mut self, backend: &dyn Backend, model: &Model, dir: &Path) -> Result<()> {
        self.adapter = checkpoint::load_adapter(backend, &model.config, &dir.join("critic"))?;
        let map = WeightMap::open_file(&dir.join("critic_head.safetensors"))?;
        for (tensor, name) in self.head.iter_mut().zip(&self.head_names) {
            backend.write(tensor, &map.get(name, tensor.shape())?)?;
        }
        checkpoint::load_optimizer(backend, &dir.join("critic_optimizer.safetensors"), &mut self.optimizer)
    }
}
