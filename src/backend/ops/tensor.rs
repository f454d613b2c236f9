//! Operand checks of the backend's whole-tensor methods.

use super::door::door;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Checks `write`: the shapes are equal, and both tensors are floats or both are integers.
pub(in crate::backend) fn write(tensor: &Tensor, values: &Tensor) -> Result<()> {
    let door = door("write", tensor.dtype());
    door.require((tensor.dtype() == DType::I32) == (values.dtype() == DType::I32), || {
        format!("cannot write {values:?} into {tensor:?}: floats and integers do not mix")
    })?;
    door.require(tensor.shape() == values.shape(), || format!("values are {values:?}, the tensor is {tensor:?}"))?;
    door.writable("the tensor", tensor)
}

/// Checks `read`: a float tensor.
pub(in crate::backend) fn read(tensor: &Tensor) -> Result<()> {
    door("read", tensor.dtype()).parameter("the tensor", tensor, tensor.shape())
}

/// Checks `read_i32`: an integer tensor.
pub(in crate::backend) fn read_i32(tensor: &Tensor) -> Result<()> {
    door("read_i32", tensor.dtype()).int("the tensor", tensor, tensor.shape())
}

/// Checks `copy`: equal shapes and types.
pub(in crate::backend) fn copy(from: &Tensor, to: &Tensor) -> Result<()> {
    let door = door("copy", from.dtype());
    door.output("to", to, from.shape())
}

/// Checks `fill`: a writable tensor.
pub(in crate::backend) fn fill(tensor: &Tensor) -> Result<()> {
    door("fill", tensor.dtype()).writable("the tensor", tensor)
}
