//! Matrix products for the ops: the vendor's library where the device has one, else kernels/gemm.cu.

use super::device::{Gemm, Matrix};
use super::{Cuda, pointer};
use crate::backend::Backend;
use crate::backend::cuda::device::Arg;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Does what `Gemm` says.
pub(super) fn gemm(be: &Cuda, gemm: &Gemm) -> Result<()> {
    if gemm.m == 0 || gemm.n == 0 || be.device.gemm(gemm)? {
        return Ok(());
    }
    Err(Error::system("gemm: no kernel"))
}

/// The matrix of a whole tensor (rows, columns).
pub(super) fn matrix(tensor: &Tensor) -> Result<Matrix> {
    columns(tensor, 0)
}

/// The matrix that begins at `column` of a tensor's rows.
pub(super) fn columns(tensor: &Tensor, column: usize) -> Result<Matrix> {
    let Arg::Pointer(address) = pointer(tensor)? else { return Err(Error::system("a tensor without an address")) };
    let (stride, dtype) = (tensor.columns(), tensor.dtype());
    Ok(Matrix { address: address + (column * dtype.size()) as u64, stride, dtype })
}

/// A weight as the tensor cores take it: itself when it is bf16, a copy rounded to bf16 when it is f32 (a trained weight).
pub(super) enum Operand<'a> {
    Own(Tensor),
    Borrowed(&'a Tensor),
}

impl Operand<'_> {
    pub(super) fn tensor(&self) -> &Tensor {
        match self {
            Operand::Own(tensor) => tensor,
            Operand::Borrowed(tensor) => tensor,
        }
    }
}

/// See `Operand`.
pub(super) fn operand<'a>(be: &Cuda, weight: &'a Tensor) -> Result<Operand<'a>> {
    if weight.dtype() == DType::BF16 {
        return Ok(Operand::Borrowed(weight));
    }
    let mut narrow = be.workspace(weight.shape(), DType::BF16)?;
    be.write(&mut narrow, weight)?;
    Ok(Operand::Own(narrow))
}
