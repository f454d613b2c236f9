//! The contract of every backend: tensors, and coarse fused ops over them (`ops`), forward and hand-written backward.
//!
//! Outputs are the caller's; whatever changes between two decode steps is a tensor.

use crate::error::Result;
use crate::tensor::{DType, Tensor};
use ops::{Op, Types};

pub mod cpu;
pub mod cuda;
pub mod ops;
pub mod oracle;

/// Work that a backend can do again and again, cheaper than op by op.
pub trait Recording: Send + Sync {
    /// Does it once more.
    fn replay(&self) -> Result<()>;
    /// Bytes of the device's memory that it holds.
    fn bytes(&self) -> usize {
        0
    }
}

/// A copy of `tensor`, a tensor of the backend.
pub fn duplicate(be: &dyn Backend, tensor: &Tensor) -> Result<Tensor> {
    let mut copy = be.alloc(tensor.shape(), tensor.dtype())?;
    be.copy(tensor, &mut copy)?;
    Ok(copy)
}

/// Where tensors live and ops are computed.
pub trait Backend: Send + Sync {
    /// `oracle`, `cpu` or `cuda`.
    fn name(&self) -> &'static str;
    /// The type of activations and of their gradients.
    fn activation(&self) -> DType;
    /// The type of what must not be rounded as activations may be: statistics (rstd, lse, log-probabilities, logits), losses, trained
    /// parameters, their gradients and moments.
    fn accumulator(&self) -> DType {
        self.activation()
    }
    /// True when the values of its tensors can be looked at where they lie: index values are checked before an op then. Elsewhere
    /// whoever makes the index tensors has checked them.
    fn is_host(&self) -> bool {
        true
    }

    /// True when `record` gives recordings.
    fn records(&self) -> bool {
        false
    }
    /// Records the ops of `work` without doing them, where the backend can. Tensors that `work` was given must outlive the recording;
    /// those it makes and drops belong to it. `work` must not read, or write from the host.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Box<dyn Recording>>> {
        let _ = work;
        Ok(None)
    }

    /// Writes what was chosen by timing so far to where a resumed run finds it, where the backend chooses anything: called at the end of a
    /// step. Error: the file cannot be written.
    fn keep_choices(&self) -> Result<()> {
        Ok(())
    }

    /// Zeros of this backend.
    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;
    /// A tensor with anything in it, to be written whole before it is read.
    fn alloc_unset(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.alloc(shape, dtype)
    }
    /// A frozen weight from a file, where and as this backend computes with it: as it is on the host; in device memory, in the activation
    /// type, on a GPU.
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

    /// Does an op whose operands have passed its door.
    fn execute(&self, op: Op) -> Result<()>;
    /// Does an op, or says at its door what is wrong with an operand: the op's name, the tensor, both shapes.
    fn run(&self, op: Op) -> Result<()> {
        op.check(Types { activation: self.activation(), accumulator: self.accumulator() }, self.is_host())?;
        self.execute(op)
    }
}
