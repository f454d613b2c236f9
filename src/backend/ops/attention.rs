//! Causal softmax attention inside packed segments, with scale 1/sqrt(HS). Query heads share key/value heads (GQA,
//! arXiv 2305.13245).

use super::door::{Door, Heads, Operands, Types, door, offsets};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Packed segments of a batch. A row sees its own segment causally and, where the segment has a parent, the whole
/// parent. A parent lies earlier and has no parent itself: one prompt serves many replies.
pub struct Segments<'a> {
    /// (S + 1), offsets into the T rows, from 0 to T.
    pub cu_seqlens: &'a Tensor,
    /// (S), the index of the parent segment or -1.
    pub parent: &'a Tensor,
}

impl Segments<'_> {
    /// Checks on the host that the offsets cover the `t` rows, and that a parent lies earlier and has no parent itself.
    fn check_values(&self, op: &str, t: usize) -> Result<()> {
        offsets(op, "cu_seqlens", self.cu_seqlens.slice(), t)?;
        let parent = self.parent.slice::<i32>();
        for (s, &p) in parent.iter().enumerate() {
            let good = p == -1 || usize::try_from(p).is_ok_and(|p| p < s && parent[p] == -1);
            if !good {
                return Err(Error::content(format!(
                    "{op}: segment {s} has parent {p}; expected -1 or an earlier segment that has no parent"
                )));
            }
        }
        Ok(())
    }
}

impl Door {
    /// Checks qkv and the segments; returns T.
    fn attention(&self, qkv: &Tensor, heads: Heads, segments: &Segments) -> Result<usize> {
        self.heads(heads)?;
        let [t, _] = self.matrix("qkv (T, D)", qkv)?;
        self.input("qkv (T, D)", qkv, &[t, heads.qkv_width()])?;
        let s = self.vector("parent (S)", segments.parent)?;
        self.int("parent (S)", segments.parent, &[s])?;
        self.int("cu_seqlens (S + 1)", segments.cu_seqlens, &[s + 1])?;
        Ok(t)
    }
}

/// Attention of every row.
pub struct Attention<'a> {
    /// (T, D)
    pub qkv: &'a Tensor,
    /// Head counts, which say how the columns of qkv are split.
    pub heads: Heads,
    /// Segments, which say which rows see which.
    pub segments: &'a Segments<'a>,
    /// (T, NH HS)
    pub o: &'a mut Tensor,
    /// (NH, T), the log of the sum of exponentials, in the accumulator type.
    pub lse: &'a mut Tensor,
}

impl Operands for Attention<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, heads) = (door("attention", types), self.heads);
        let t = door.attention(self.qkv, heads, self.segments)?;
        door.output("o (T, NH HS)", self.o, &[t, heads.nh * heads.hs])?;
        door.accumulated("lse (NH, T)", self.lse, &[heads.nh, t])
    }

    fn check_values(&self) -> Result<()> {
        self.segments.check_values("attention", self.qkv.rows())
    }
}

/// The gradients of q, k and v.
pub struct AttentionBackward<'a> {
    /// (T, D)
    pub qkv: &'a Tensor,
    /// (T, NH HS), from the forward.
    pub o: &'a Tensor,
    /// (NH, T), from the forward.
    pub lse: &'a Tensor,
    /// (T, NH HS)
    pub dout: &'a Tensor,
    /// Head counts, which say how the columns of qkv are split.
    pub heads: Heads,
    /// Segments, which say which rows see which.
    pub segments: &'a Segments<'a>,
    /// (T, D), written whole.
    pub dqkv: &'a mut Tensor,
}

impl Operands for AttentionBackward<'_> {
    fn check(&self, types: Types) -> Result<()> {
        let (door, heads) = (door("attention_backward", types), self.heads);
        let t = door.attention(self.qkv, heads, self.segments)?;
        door.input("o (T, NH HS)", self.o, &[t, heads.nh * heads.hs])?;
        door.input("dout (T, NH HS)", self.dout, &[t, heads.nh * heads.hs])?;
        door.statistic("lse (NH, T)", self.lse, &[heads.nh, t])?;
        door.output("dqkv (T, D)", self.dqkv, &[t, heads.qkv_width()])
    }

    fn check_values(&self) -> Result<()> {
        self.segments.check_values("attention_backward", self.qkv.rows())
    }
}
