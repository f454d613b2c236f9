//! SwiGLU (arXiv 2002.05202). A row holds F gates, then F ups.

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// y = silu(gate) * up.
pub struct Swiglu<'a> {
    /// (T, 2F)
    pub gate_up: &'a Tensor,
    /// (T, F)
    pub y: &'a mut Tensor,
}

impl Operands for Swiglu<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("swiglu", types);
        let [t, f] = door.matrix("y (T, F)", self.y)?;
        door.input("gate_up (T, 2F)", self.gate_up, &[t, 2 * f])?;
        door.output("y (T, F)", self.y, &[t, f])
    }
}

/// The gradients of gates and ups.
pub struct SwigluBackward<'a> {
    /// (T, 2F)
    pub gate_up: &'a Tensor,
    /// (T, F)
    pub dy: &'a Tensor,
    /// (T, 2F), written whole.
    pub dgate_up: &'a mut Tensor,
}

impl Operands for SwigluBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("swiglu_backward", types);
        let [t, f] = door.matrix("dy (T, F)", self.dy)?;
        door.input("dy (T, F)", self.dy, &[t, f])?;
        door.input("gate_up (T, 2F)", self.gate_up, &[t, 2 * f])?;
        door.output("dgate_up (T, 2F)", self.dgate_up, &[t, 2 * f])
    }
}
