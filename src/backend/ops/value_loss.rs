//! The critic's squared error with PPO2's clip around the old value.

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// Inputs of [`ValueLoss`], each (M) in the accumulator type.
pub struct ValueInputs<'a> {
    /// Values under the critic being trained.
    pub value: &'a Tensor,
    /// Values when the batch was collected.
    pub old_value: &'a Tensor,
    /// Targets.
    pub target: &'a Tensor,
    /// The token's share of the loss.
    pub weight: &'a Tensor,
}

/// Half the squared error of the value. With a clip: the larger of this and the same error of the value clipped to
/// old_value +- clip.
pub struct ValueLoss<'a> {
    /// The clip; `None` for the plain error.
    pub clip: Option<f32>,
    /// Values, targets and weights of the tokens.
    pub inputs: &'a ValueInputs<'a>,
    /// (M), in the accumulator type.
    pub dvalue: &'a mut Tensor,
    /// Receives the weighted sum.
    pub loss: &'a mut f64,
}

impl Operands for ValueLoss<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("value_loss", types);
        let ValueInputs { value, old_value, target, weight } = self.inputs;
        let m = door.vector("value (M)", value)?;
        for (name, t) in
            [("value (M)", value), ("old_value (M)", old_value), ("target (M)", target), ("weight (M)", weight)]
        {
            door.statistic(name, t, &[m])?;
        }
        door.accumulated("dvalue (M)", self.dvalue, &[m])
    }
}
