//! The update of a batch's positions from one decode step to the next.

use super::door::{Operands, Types, door};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Adds one to positions, lens and counter, and sets slots to the cache rows of the tokens that are now last (see
/// [`super::AttentionPaged`]). Error on the host: a sequence has no page for its next token.
pub struct Advance<'a> {
    /// Rows per page.
    pub block_size: usize,
    /// (B, P)
    pub block_table: &'a Tensor,
    /// (B)
    pub positions: &'a mut Tensor,
    /// (B)
    pub lens: &'a mut Tensor,
    /// (B)
    pub slots: &'a mut Tensor,
    /// (B)
    pub counter: &'a mut Tensor,
}

impl Operands for Advance<'_> {
    fn check(&self, _: Types) -> Result<()> {
        let door = door("advance", DType::F32);
        let [b, p] = door.matrix("block_table (B, P)", self.block_table)?;
        door.int("block_table (B, P)", self.block_table, &[b, p])?;
        door.require(self.block_size > 0, || "block_size is 0".into())?;
        let (positions, lens) = (&*self.positions, &*self.lens);
        let (slots, counter) = (&*self.slots, &*self.counter);
        for (name, t) in
            [("positions (B)", positions), ("lens (B)", lens), ("slots (B)", slots), ("counter (B)", counter)]
        {
            door.int(name, t, &[b])?;
            door.writable(name, t)?;
        }
        Ok(())
    }
}
