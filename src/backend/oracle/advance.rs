//! The update of a batch's positions from one decode step to the next.

use crate::backend::ops;
use crate::error::{Error, Result};

/// Advances every sequence. Error: a sequence has no page for its next token.
pub(super) fn advance(op: ops::Advance) -> Result<()> {
    let ops::Advance { block_size, block_table, positions, lens, slots, counter } = op;
    for (b, blocks) in block_table.slice::<i32>().chunks(block_table.columns()).enumerate() {
        let len = lens.slice::<i32>()[b];
        let place = usize::try_from(len).ok().filter(|&place| place < blocks.len() * block_size);
        let Some(place) = place else {
            let room = blocks.len() * block_size;
            return Err(Error::content(format!(
                "advance: sequence {b} has {len} tokens; its pages have room for {room}"
            )));
        };
        slots.slice_mut::<i32>()[b] = blocks[place / block_size] * block_size as i32 + (place % block_size) as i32;
        lens.slice_mut::<i32>()[b] += 1;
        positions.slice_mut::<i32>()[b] += 1;
        counter.slice_mut::<i32>()[b] += 1;
    }
    Ok(())
}
