//! The language-model head and its log-softmax in one op, chunk by chunk, so that the logits are never all in memory.
//! And plain logits, for sampling.

use super::door::{Door, Operands, Types, door, indices};
use crate::error::Result;
use crate::tensor::Tensor;

impl Door {
    /// Checks the shared operands; returns M.
    fn head(&self, x: &Tensor, w: &Tensor, targets: &Tensor, temperature: f32) -> Result<usize> {
        let ([m, c], [v, _]) = (self.matrix("x (M, C)", x)?, self.matrix("w (V, C)", w)?);
        self.input("x (M, C)", x, &[m, c])?;
        self.parameter("w (V, C)", w, &[v, c])?;
        self.int("targets (M)", targets, &[m])?;
        self.require(temperature > 0.0 && temperature.is_finite(), || {
            format!("temperature is {temperature}, expected a finite number above 0")
        })?;
        Ok(m)
    }
}

/// The log-probability of the target, the entropy and the log-sum-exp of the distribution softmax(x w^T / temperature).
/// Error: a target outside 0..V.
pub struct LinearLogprob<'a> {
    /// (M, C)
    pub x: &'a Tensor,
    /// (V, C), any float type.
    pub w: &'a Tensor,
    /// (M)
    pub targets: &'a Tensor,
    /// Finite, above 0.
    pub temperature: f32,
    /// (M), in the accumulator type.
    pub logp: &'a mut Tensor,
    /// (M), in the accumulator type.
    pub entropy: &'a mut Tensor,
    /// (M), in the accumulator type.
    pub lse: &'a mut Tensor,
}

impl Operands for LinearLogprob<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("linear_logprob", types);
        let m = door.head(self.x, self.w, self.targets, self.temperature)?;
        door.accumulated("logp (M)", self.logp, &[m])?;
        door.accumulated("entropy (M)", self.entropy, &[m])?;
        door.accumulated("lse (M)", self.lse, &[m])
    }

    fn check_values(&self) -> Result<()> {
        indices("linear_logprob", "target", self.targets, "V", self.w.rows())
    }
}

/// The gradient of x and, if wanted, of w. Error: a target outside 0..V.
pub struct LinearLogprobBackward<'a> {
    /// (M, C)
    pub x: &'a Tensor,
    /// (V, C), any float type.
    pub w: &'a Tensor,
    /// (M)
    pub targets: &'a Tensor,
    /// Finite, above 0.
    pub temperature: f32,
    /// (M), from the forward.
    pub entropy: &'a Tensor,
    /// (M), from the forward.
    pub lse: &'a Tensor,
    /// (M), in the accumulator type.
    pub dlogp: &'a Tensor,
    /// (M), in the accumulator type; zeros when left out.
    pub dentropy: Option<&'a Tensor>,
    /// (M, C), written whole.
    pub dx: &'a mut Tensor,
    /// (V, C), accumulates, in the accumulator type.
    pub dw: Option<&'a mut Tensor>,
}

impl Operands for LinearLogprobBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("linear_logprob_backward", types);
        let m = door.head(self.x, self.w, self.targets, self.temperature)?;
        for (name, t) in [("entropy (M)", self.entropy), ("lse (M)", self.lse), ("dlogp (M)", self.dlogp)] {
            door.statistic(name, t, &[m])?;
        }
        self.dentropy.map_or(Ok(()), |t| door.statistic("dentropy (M)", t, &[m]))?;
        door.output("dx (M, C)", self.dx, self.x.shape())?;
        self.dw.as_deref().map_or(Ok(()), |t| door.accumulated("dw (V, C)", t, self.w.shape()))
    }

    fn check_values(&self) -> Result<()> {
        indices("linear_logprob_backward", "target", self.targets, "V", self.w.rows())
    }
}

/// out = x w^T.
pub struct Logits<'a> {
    /// (B, C)
    pub x: &'a Tensor,
    /// (V, C), any float type.
    pub w: &'a Tensor,
    /// (B, V), in the accumulator type.
    pub out: &'a mut Tensor,
}

impl Operands for Logits<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let door = door("logits", types);
        let ([b, c], [_, v]) = (door.matrix("x (B, C)", self.x)?, door.matrix("out (B, V)", self.out)?);
        door.input("x (B, C)", self.x, &[b, c])?;
        door.parameter("w (V, C)", self.w, &[v, c])?;
        door.accumulated("out (B, V)", self.out, &[b, v])
    }
}
