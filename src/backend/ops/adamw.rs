//! The optimiser: the norm of gradients and AdamW (arXiv 1711.05101).

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// Settings of one AdamW step (arXiv 1711.05101): decoupled weight decay, bias-corrected moments.
#[derive(Debug, Clone, Copy)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay, multiplied by lr.
    pub weight_decay: f32,
    /// Steps taken including this one, from 1.
    pub step: u32,
    /// Gradients are multiplied by this first (clipping, averaging).
    pub grad_scale: f32,
}

/// A parameter with its gradient and moments, all of one shape and in the accumulator type.
pub struct Trained<'a> {
    /// The parameter.
    pub param: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// The first moment.
    pub m: &'a mut Tensor,
    /// The second moment.
    pub v: &'a mut Tensor,
}

impl<'a> Trained<'a> {
    /// Zips four lists of tensors that have one order; stops at the end of the shortest.
    pub fn of(param: &'a mut [Tensor], grad: &'a [Tensor], m: &'a mut [Tensor], v: &'a mut [Tensor]) -> Vec<Self> {
        let moments = m.iter_mut().zip(v);
        param.iter_mut().zip(grad).zip(moments).map(|((param, grad), (m, v))| Self { param, grad, m, v }).collect()
    }
}

/// One AdamW step on every tensor of a list; updates parameters and moments.
pub struct AdamWStep<'a> {
    /// Settings of the step.
    pub settings: AdamW,
    /// Tensors to update.
    pub tensors: Vec<Trained<'a>>,
}

impl Operands for AdamWStep<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("adamw", types);
        door.require(self.settings.step > 0, || "step is 0, but steps count from 1".into())?;
        for (i, Trained { param, grad, m, v }) in self.tensors.iter().enumerate() {
            let shape = param.shape();
            door.accumulated(&format!("param {i}"), param, shape)?;
            door.statistic(&format!("grad {i}"), grad, shape)?;
            door.accumulated(&format!("m {i}"), m, shape)?;
            door.accumulated(&format!("v {i}"), v, shape)?;
        }
        Ok(())
    }
}

/// The sum of squares over all tensors, in f64 in a fixed order.
pub struct SquaredNorm<'a> {
    /// Tensors in the accumulator type.
    pub tensors: &'a [&'a Tensor],
    /// Receives the sum.
    pub sum: &'a mut f64,
}

impl Operands for SquaredNorm<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("squared_norm", types);
        self.tensors.iter().enumerate().try_for_each(|(i, t)| door.statistic(&format!("tensor {i}"), t, t.shape()))
    }
}
