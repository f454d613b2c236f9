//! Embedding: gathers rows of a table and adds their gradients back, both with the kernels of kernels/rows.cu.

use super::launch::Cuda;
use super::rows;
use crate::backend::ops;
use crate::error::Result;

pub(super) fn embed(be: &Cuda, op: ops::Embed) -> Result<()> {
    rows::gather(be, "embed", op.wte, op.ids, op.out)
}

pub(super) fn embed_backward(be: &Cuda, op: ops::EmbedBackward) -> Result<()> {
    rows::scatter_add(be, "embed_backward", op.dout, op.ids, op.dwte)
}
