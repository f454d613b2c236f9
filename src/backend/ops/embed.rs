//! Token embedding.

use super::door::{Operands, Types, door, indices};
use crate::error::Result;
use crate::tensor::Tensor;

/// Copies row `ids[t]` of a table to row t of the output. Error: an id outside 0..V.
pub struct Embed<'a> {
    /// (T)
    pub ids: &'a Tensor,
    /// (V, C), any float type.
    pub wte: &'a Tensor,
    /// (T, C)
    pub out: &'a mut Tensor,
}

impl Operands for Embed<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("embed", types);
        let (t, [v, c]) = (door.vector("ids (T)", self.ids)?, door.matrix("wte (V, C)", self.wte)?);
        door.int("ids (T)", self.ids, &[t])?;
        door.parameter("wte (V, C)", self.wte, &[v, c])?;
        door.output("out (T, C)", self.out, &[t, c])
    }

    fn check_values(&self) -> Result<()> {
        indices("embed", "id", self.ids, "V", self.wte.rows())
    }
}

/// The gradient of the table. Error: an id outside 0..V.
pub struct EmbedBackward<'a> {
    /// (T)
    pub ids: &'a Tensor,
    /// (T, C)
    pub dout: &'a Tensor,
    /// (V, C), accumulates in token order.
    pub dwte: &'a mut Tensor,
}

impl Operands for EmbedBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("embed_backward", types);
        let (t, [v, c]) = (door.vector("ids (T)", self.ids)?, door.matrix("dwte (V, C)", self.dwte)?);
        door.int("ids (T)", self.ids, &[t])?;
        door.input("dout (T, C)", self.dout, &[t, c])?;
        door.accumulated("dwte (V, C)", self.dwte, &[v, c])
    }

    fn check_values(&self) -> Result<()> {
        indices("embed_backward", "id", self.ids, "V", self.dwte.rows())
    }
}
