//! The backend over its device, and what every op's launches are made with: arguments, and workspaces.

use super::device::{Arg, Device, Launch};
use super::kernels::Kernel;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};
use std::sync::Arc;

/// Method for a linear layer with an adapter or a bias. A device without a vendor's library always uses `Fused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearPath {
    /// The product with W by the vendor's library, then one pass over the output for the adapter and the bias.
    Library,
    /// Everything in one of the crate's own kernels.
    Fused,
}

/// The GPU backend over one device.
pub struct Cuda {
    pub(super) device: Arc<dyn Device>,
    pub(super) logits_bytes: usize,
    pub(super) linear_path: LinearPath,
}

/// Approximate bytes of f32 logits in memory at a time in `linear_logprob`: a few hundred rows of 150,000 tokens,
/// enough for large products.
pub(super) const LOGITS_BYTES: usize = 256 << 20;

impl Cuda {
    pub(super) fn launch(
        &self,
        kernel: Kernel,
        grid: [usize; 3],
        block: usize,
        shared: usize,
        args: &[Arg],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let extent = |n: usize| {
            u32::try_from(n)
                .map_err(|_| Error::system(format!("{}: {n} blocks are too many; use a smaller batch", kernel.name)))
        };
        let grid = [extent(grid[0])?, extent(grid[1])?, extent(grid[2])?];
        self.device.launch(&Launch { kernel, grid, block: extent(block)?, shared: extent(shared)?, args })
    }

    /// Allocates a tensor for the duration of one op, with undefined contents. Its memory may be given out again as
    /// soon as it is dropped: the device runs work in order, so work on it is done before anything that uses the memory
    /// next.
    pub(super) fn workspace(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Ok(Tensor::on_device(shape, dtype, self.device.alloc(bytes)?))
    }
}

/// Returns the argument for a tensor of the device. Error: it lies on the host.
pub(super) fn pointer(tensor: &Tensor) -> Result<Arg> {
    let address = tensor.device_address();
    address
        .map(Arg::Pointer)
        .ok_or_else(|| Error::system(format!("{tensor:?} lies on the host; the GPU needs it placed first")))
}

/// Returns the argument for an optional tensor: a null pointer for `None`.
pub(super) fn optional(tensor: Option<&Tensor>) -> Result<Arg> {
    tensor.map_or(Ok(Arg::Pointer(0)), pointer)
}

/// Returns an extent as the kernels' `int`. Error: it does not fit.
pub(super) fn int(n: usize) -> Result<Arg> {
    i32::try_from(n)
        .map(Arg::I32)
        .map_err(|_| Error::system(format!("an extent of {n} does not fit 32 bits; use a smaller batch")))
}

/// Returns an op's error for an element type that it has no kernel for.
pub(super) fn no_kernel(op: &str, name: &str, tensor: &Tensor) -> Error {
    Error::content(format!("{op}: {name} is {tensor:?}; on the GPU expected bf16 or f32"))
}
