//! Embedding: rows of a table gathered, their gradients added back, both by the kernels of kernels/rows.cu.

use super::{Cuda, rows};
use crate::error::Result;
use crate::tensor::Tensor;

pub(super) fn embed(be: &Cuda, ids: &Tensor, wte: &Tensor, out: &mut Tensor) -> Result<()> {
    rows::gather(be, "embed", wte, ids, out)
}

pub(super) fn embed_backward(be: &Cuda, ids: &Tensor, dout: &Tensor, dwte: &mut Tensor) -> Result<()> {
    rows::scatter_add(be, "embed_backward", dout, ids, dwte)
}
