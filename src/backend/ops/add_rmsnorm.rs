//! Residual addition and RMSNorm (arXiv 1910.07467).

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::Tensor;

/// sum = residual + x, y = sum / rms(sum) * w with rms^2 = mean(sum^2) + eps. `x` and `sum` are given together; without
/// them `residual` itself is normalised.
pub struct AddRmsnorm<'a> {
    /// (T, C)
    pub residual: &'a Tensor,
    /// (T, C)
    pub x: Option<&'a Tensor>,
    /// (C), any float type.
    pub w: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
    /// (T, C)
    pub sum: Option<&'a mut Tensor>,
    /// (T, C)
    pub y: &'a mut Tensor,
    /// (T), 1 / rms, in the accumulator type.
    pub rstd: &'a mut Tensor,
}

impl Operands for AddRmsnorm<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("add_rmsnorm", types);
        let [t, c] = door.matrix("residual (T, C)", self.residual)?;
        door.input("residual (T, C)", self.residual, &[t, c])?;
        match (self.x, self.sum.as_deref()) {
            (Some(x), Some(sum)) => {
                door.input("x (T, C)", x, &[t, c])?;
                door.output("sum (T, C)", sum, &[t, c])?;
            }
            (None, None) => {}
            (x, sum) => return Err(door.error(format!("x and sum come together: x is {x:?}, sum is {sum:?}"))),
        }
        door.parameter("w (C)", self.w, &[c])?;
        door.output("y (T, C)", self.y, &[t, c])?;
        door.accumulated("rstd (T)", self.rstd, &[t])
    }
}

/// The gradients of the norm and of the addition.
pub struct AddRmsnormBackward<'a> {
    /// (T, C), the rows that the forward normalised.
    pub sum: &'a Tensor,
    /// (C), any float type.
    pub w: &'a Tensor,
    /// (T), in the accumulator type.
    pub rstd: &'a Tensor,
    /// (T, C)
    pub dy: &'a Tensor,
    /// (T, C), accumulates; the gradient of both x and the residual.
    pub dsum: &'a mut Tensor,
    /// (C), accumulates, in the accumulator type.
    pub dw: Option<&'a mut Tensor>,
}

impl Operands for AddRmsnormBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("add_rmsnorm_backward", types);
        let [t, c] = door.matrix("sum (T, C)", self.sum)?;
        door.input("sum (T, C)", self.sum, &[t, c])?;
        door.parameter("w (C)", self.w, &[c])?;
        door.statistic("rstd (T)", self.rstd, &[t])?;
        door.input("dy (T, C)", self.dy, &[t, c])?;
        door.output("dsum (T, C)", self.dsum, &[t, c])?;
        self.dw.as_deref().map_or(Ok(()), |dw| door.accumulated("dw (C)", dw, &[c]))
    }
}
