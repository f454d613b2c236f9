//! Per-head RMSNorm of queries and keys (Qwen3), then rotary embedding (arXiv 2104.09864, halves rotated as in Hugging
//! Face).

use super::door::{Door, Heads, Operands, Types, door, indices};
use crate::error::Result;
use crate::tensor::Tensor;

/// Per-head RMSNorm weights of queries and keys.
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    /// (HS)
    pub q: &'a Tensor,
    /// (HS)
    pub k: &'a Tensor,
    /// Added to the mean square.
    pub eps: f32,
}

impl Door {
    fn norm(&self, norm: Option<QkNorm>, hs: usize) -> Result<()> {
        if let Some(norm) = norm {
            self.parameter("norm q (HS)", norm.q, &[hs])?;
            self.parameter("norm k (HS)", norm.k, &[hs])?;
        }
        Ok(())
    }

    fn rope(&self, qkv: &Tensor, heads: Heads, positions: &Tensor, table: &Tensor) -> Result<usize> {
        self.heads(heads)?;
        let [t, _] = self.matrix("qkv (T, D)", qkv)?;
        self.output("qkv (T, D)", qkv, &[t, heads.qkv_width()])?;
        self.int("positions (T)", positions, &[t])?;
        let [p, _] = self.matrix("table (P, HS)", table)?;
        self.parameter("table (P, HS)", table, &[p, heads.hs])?;
        Ok(t)
    }
}

/// Normalises and rotates the q and k parts of qkv in place. Error: a position outside the table.
pub struct QkNormRope<'a> {
    /// (T, D)
    pub qkv: &'a mut Tensor,
    /// Head counts, which say how the columns of qkv are split.
    pub heads: Heads,
    /// The norm, where the model has one.
    pub norm: Option<QkNorm<'a>>,
    /// (T)
    pub positions: &'a Tensor,
    /// (P, HS): HS/2 cosines, then HS/2 sines, any scaling folded in.
    pub table: &'a Tensor,
    /// (T, (NH + NKV) HS), receives q and k as they were before; needed with a norm.
    pub raw: Option<&'a mut Tensor>,
}

impl Operands for QkNormRope<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, heads) = (door("qk_norm_rope", types), self.heads);
        let t = door.rope(self.qkv, heads, self.positions, self.table)?;
        door.norm(self.norm, heads.hs)?;
        if self.norm.is_some() {
            let raw = door.given("a norm needs raw (T, (NH + NKV) HS)", self.raw.as_deref())?;
            door.output("raw (T, (NH + NKV) HS)", raw, &[t, (heads.nh + heads.nkv) * heads.hs])?;
        }
        Ok(())
    }

    fn check_values(&self) -> Result<()> {
        indices("qk_norm_rope", "position", self.positions, "P", self.table.rows())
    }
}

/// The gradient of [`QkNormRope`], in place on the gradient of qkv. Error: a position outside the table.
pub struct QkNormRopeBackward<'a> {
    /// (T, D)
    pub dqkv: &'a mut Tensor,
    /// Head counts, which say how the columns of qkv are split.
    pub heads: Heads,
    /// The norm, where the model has one.
    pub norm: Option<QkNorm<'a>>,
    /// (T)
    pub positions: &'a Tensor,
    /// (P, HS), as in the forward.
    pub table: &'a Tensor,
    /// (T, (NH + NKV) HS), from the forward; needed with a norm.
    pub raw: Option<&'a Tensor>,
    /// (HS) each, the gradients of the norm weights of q and of k; accumulate.
    pub dnorm: Option<(&'a mut Tensor, &'a mut Tensor)>,
}

impl Operands for QkNormRopeBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, heads) = (door("qk_norm_rope_backward", types), self.heads);
        let t = door.rope(self.dqkv, heads, self.positions, self.table)?;
        door.norm(self.norm, heads.hs)?;
        if self.norm.is_some() {
            let raw = door.given("a norm needs raw (T, (NH + NKV) HS)", self.raw)?;
            door.input("raw (T, (NH + NKV) HS)", raw, &[t, (heads.nh + heads.nkv) * heads.hs])?;
        }
        if let Some((dq, dk)) = &self.dnorm {
            door.require(self.norm.is_some(), || "gradients of a norm are wanted without a norm".into())?;
            door.accumulated("dnorm q (HS)", dq, &[heads.hs])?;
            door.accumulated("dnorm k (HS)", dk, &[heads.hs])?;
        }
        Ok(())
    }

    fn check_values(&self) -> Result<()> {
        indices("qk_norm_rope_backward", "position", self.positions, "P", self.table.rows())
    }
}
