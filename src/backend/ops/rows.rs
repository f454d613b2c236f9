//! Gathering rows of a matrix, and adding rows back into one.

use super::door::{Operands, Types, door, indices};
use crate::error::Result;
use crate::tensor::Tensor;

/// Copies row `rows[m]` of x to row m of y. Error: a row outside x.
pub struct GatherRows<'a> {
    /// (T, C)
    pub x: &'a Tensor,
    /// (M)
    pub rows: &'a Tensor,
    /// (M, C)
    pub y: &'a mut Tensor,
}

impl Operands for GatherRows<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("gather_rows", types);
        let ([t, c], m) = (door.matrix("x (T, C)", self.x)?, door.vector("rows (M)", self.rows)?);
        door.input("x (T, C)", self.x, &[t, c])?;
        door.int("rows (M)", self.rows, &[m])?;
        door.output("y (M, C)", self.y, &[m, c])
    }

    fn check_values(&self) -> Result<()> {
        indices("gather_rows", "row", self.rows, "T", self.x.rows())
    }
}

/// Adds row m of dy to row `rows[m]` of dx, in row order; a row may be named more than once. Error: a row outside dx.
pub struct ScatterAddRows<'a> {
    /// (M, C)
    pub dy: &'a Tensor,
    /// (M)
    pub rows: &'a Tensor,
    /// (T, C), accumulates.
    pub dx: &'a mut Tensor,
}

impl Operands for ScatterAddRows<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("scatter_add_rows", types);
        let ([t, c], m) = (door.matrix("dx (T, C)", self.dx)?, door.vector("rows (M)", self.rows)?);
        door.input("dy (M, C)", self.dy, &[m, c])?;
        door.int("rows (M)", self.rows, &[m])?;
        door.output("dx (T, C)", self.dx, &[t, c])
    }

    fn check_values(&self) -> Result<()> {
        indices("scatter_add_rows", "row", self.rows, "T", self.dx.rows())
    }
}
