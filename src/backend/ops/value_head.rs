//! A critic's linear head on hidden states. It is in the accumulator type whatever type the activations have.

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// value = x w^T + bias.
pub struct ValueHead<'a> {
    /// (M, C)
    pub x: &'a Tensor,
    /// (1, C), in the accumulator type.
    pub w: &'a Tensor,
    /// (1), in the accumulator type.
    pub bias: &'a Tensor,
    /// (M), in the accumulator type.
    pub value: &'a mut Tensor,
}

impl Operands for ValueHead<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("value_head", types);
        let [m, c] = door.matrix("x (M, C)", self.x)?;
        door.input("x (M, C)", self.x, &[m, c])?;
        door.statistic("w (1, C)", self.w, &[1, c])?;
        door.statistic("bias (1)", self.bias, &[1])?;
        door.accumulated("value (M)", self.value, &[m])
    }
}

/// The gradients of [`ValueHead`].
pub struct ValueHeadBackward<'a> {
    /// (M, C)
    pub x: &'a Tensor,
    /// (1, C), in the accumulator type.
    pub w: &'a Tensor,
    /// (M), in the accumulator type.
    pub dvalue: &'a Tensor,
    /// (M, C), written whole.
    pub dx: &'a mut Tensor,
    /// (1, C), accumulates.
    pub dw: &'a mut Tensor,
    /// (1), accumulates.
    pub dbias: &'a mut Tensor,
}

impl Operands for ValueHeadBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("value_head_backward", types);
        let [m, c] = door.matrix("x (M, C)", self.x)?;
        door.input("x (M, C)", self.x, &[m, c])?;
        door.statistic("w (1, C)", self.w, &[1, c])?;
        door.statistic("dvalue (M)", self.dvalue, &[m])?;
        door.output("dx (M, C)", self.dx, &[m, c])?;
        door.accumulated("dw (1, C)", self.dw, &[1, c])?;
        door.accumulated("dbias (1)", self.dbias, &[1])
    }
}
