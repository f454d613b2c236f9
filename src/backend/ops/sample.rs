//! Sampling of tokens: temperature, top-k, top-p, then inverse transform with one Philox number.

use super::door::{Operands, Types, door};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Sampling settings, one entry per row.
pub struct Sampling<'a> {
    /// (B) f32; 0 is greedy.
    pub temperature: &'a Tensor,
    /// (B) f32 in (0, 1]; 1 keeps all.
    pub top_p: &'a Tensor,
    /// (B) i32; 0 keeps all.
    pub top_k: &'a Tensor,
    /// (B, 2) i32, the two key words of the row's Philox stream.
    pub seed: &'a Tensor,
    /// (B) i32, the token's index in its sample: the Philox counter.
    pub counter: &'a Tensor,
}

/// Draws one id per row, by inverse transform over ids in ascending order with Philox word 0 at `counter`. Error on the
/// host: settings out of range, a row without a distribution.
pub struct Sample<'a> {
    /// (B, V), in the accumulator type.
    pub logits: &'a Tensor,
    /// Settings of each row.
    pub sampling: &'a Sampling<'a>,
    /// (B)
    pub ids: &'a mut Tensor,
    /// (B), the id's log-probability at the row's temperature, before top-k and top-p (greedy: at temperature 1).
    pub logp: &'a mut Tensor,
}

impl Operands for Sample<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, sampling) = (door("sample", types), self.sampling);
        let [b, v] = door.matrix("logits (B, V)", self.logits)?;
        door.statistic("logits (B, V)", self.logits, &[b, v])?;
        door.typed("temperature (B)", sampling.temperature, DType::F32, &[b])?;
        door.typed("top_p (B)", sampling.top_p, DType::F32, &[b])?;
        door.int("top_k (B)", sampling.top_k, &[b])?;
        door.int("seed (B, 2)", sampling.seed, &[b, 2])?;
        door.int("counter (B)", sampling.counter, &[b])?;
        door.int("ids (B)", self.ids, &[b])?;
        door.writable("ids (B)", self.ids)?;
        door.accumulated("logp (B)", self.logp, &[b])
    }

    /// Checks that temperature is finite and at least 0, top_p in (0, 1] and top_k at least 0.
    fn check_values(&self) -> Result<()> {
        let Sampling { temperature, top_p, top_k, .. } = self.sampling;
        let rows = temperature.slice::<f32>().iter().zip(top_p.slice::<f32>()).zip(top_k.slice::<i32>());
        for (b, ((&t, &p), &k)) in rows.enumerate() {
            if !(t >= 0.0 && t.is_finite() && p > 0.0 && p <= 1.0 && k >= 0) {
                return Err(Error::content(format!(
                    "sample: row {b} has temperature {t}, top_p {p}, top_k {k}; expected temperature >= 0, 0 < top_p <= 1, \
                     top_k >= 0"
                )));
            }
        }
        Ok(())
    }
}

/// Returns the error for row `b`, from which nothing can be drawn.
pub(in crate::backend) fn no_distribution(b: usize) -> Error {
    Error::content(format!(
        "sample: row {b} of logits has NaN, +inf or no finite logit: the weights or the adapter are broken, or a value overflowed"
    ))
}
