//! The update of a batch's positions from one decode step to the next: launches of kernels/advance.cu.

use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use crate::backend::ops;
use crate::error::Result;

const ADVANCE: Kernel = Kernel { file: "advance", name: "advance" };
const BLOCK: usize = 128;

pub(super) fn advance(be: &Cuda, op: ops::Advance) -> Result<()> {
    let ops::Advance { block_size, block_table, positions, lens, slots, counter } = op;
    let rows = lens.len();
    let args = [
        pointer(block_table)?,
        pointer(positions)?,
        pointer(lens)?,
        pointer(slots)?,
        pointer(counter)?,
        int(rows)?,
        int(block_table.columns())?,
        int(block_size)?,
    ];
    be.launch(ADVANCE, [rows.div_ceil(BLOCK), 1, 1], BLOCK, 0, &args)
}
