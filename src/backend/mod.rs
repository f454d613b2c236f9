//! The `Backend` trait: tensors, and coarse fused ops over them (`ops`), forward and hand-written backward.
//!
//! The caller owns the outputs. Everything that changes between two decode steps is a tensor.

use crate::error::Result;
use crate::tensor::{DType, Tensor};
use ops::Execute;

pub mod cpu;
pub mod cuda;
pub mod ops;
pub mod oracle;

/// Recorded work that a backend can repeat more cheaply than op by op.
pub trait Recording: Send + Sync {
    /// Runs the recorded work again.
    fn replay(&self) -> Result<()>;
    /// Bytes of device memory that the recording holds.
    fn bytes(&self) -> usize {
        0
    }
}

/// Copies `tensor`, a tensor of the backend, into a new one.
pub fn duplicate(be: &dyn Backend, tensor: &Tensor) -> Result<Tensor> {
    let mut copy = be.alloc(tensor.shape(), tensor.dtype())?;
    be.copy(tensor, &mut copy)?;
    Ok(copy)
}

/// A backend: it holds tensors and computes ops.
pub trait Backend: Execute {
    /// `oracle`, `cpu` or `cuda`.
    fn name(&self) -> &'static str;

    /// True when `record` returns recordings.
    fn records(&self) -> bool {
        false
    }
    /// Records the ops of `work` without running them; returns `None` where the backend cannot record. Tensors passed
    /// to `work` must outlive the recording; tensors that `work` makes and drops belong to it. `work` must not read, or
    /// write from the host.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Recording>>> {
        let _ = work;
        Ok(None)
    }

    /// Writes the choices made by timing so far to the file where a resumed run finds them; does nothing where the
    /// backend chooses nothing. Called at the end of a step. Error: the file cannot be written.
    fn keep_choices(&self) -> Result<()> {
        Ok(())
    }

    /// Allocates a tensor of zeros.
    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;
    /// Allocates a tensor with undefined contents; all of it must be written before it is read.
    fn alloc_unset(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.alloc(shape, dtype)
    }
    /// Puts a frozen weight from a file where this backend computes with it: unchanged on the host; in device memory,
    /// in the activation type, on a GPU.
    fn place(&self, weight: Tensor) -> Result<Tensor> {
        Ok(weight)
    }
    /// Copies host values in; converts between float types.
    fn write(&self, tensor: &mut Tensor, values: &Tensor) -> Result<()>;
    /// Copies float values out to the host as f32.
    fn read(&self, tensor: &Tensor) -> Result<Vec<f32>>;
    /// Copies integer values out to the host.
    fn read_i32(&self, tensor: &Tensor) -> Result<Vec<i32>>;
    /// Copies between tensors of one shape and type.
    fn copy(&self, from: &Tensor, to: &mut Tensor) -> Result<()>;
    /// Sets every element.
    fn fill(&self, tensor: &mut Tensor, value: f32) -> Result<()>;
}
