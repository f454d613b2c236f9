//! The seam between the ops and what runs their kernels: a GPU (`driver`), or the CPU emulation that the tests bring. Knows no ops.

use super::kernels::Kernel;
use crate::backend::Recording;
use crate::error::Result;
use crate::tensor::{DType, DeviceMemory};
use std::sync::Arc;

/// One argument of a kernel, passed by value as CUDA passes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// An address in device memory, or 0 for a null pointer.
    Pointer(u64),
    /// `int`
    I32(i32),
    /// `long long`
    I64(i64),
    /// `float`
    F32(f32),
}

/// A kernel with its geometry and arguments.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// What runs.
    pub kernel: Kernel,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, in x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// In the order of the kernel's parameters.
    pub args: &'a [Arg],
}

/// A matrix in device memory, row-major with `stride` elements from row to row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Of the first element.
    pub address: u64,
    /// Elements between the starts of two rows.
    pub stride: usize,
    /// F32 or BF16.
    pub dtype: DType,
}

/// c (M, N) = alpha * op(a) op(b) + beta * c, accumulated in f32. op(a) is (M, K), op(b) is (K, N).
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// Rows of c.
    pub m: usize,
    /// Columns of c.
    pub n: usize,
    /// The contraction.
    pub k: usize,
    /// (M, K), or (K, M) when transposed.
    pub a: Matrix,
    /// `a` is stored as (K, M).
    pub transpose_a: bool,
    /// (K, N), or (N, K) when transposed.
    pub b: Matrix,
    /// `b` is stored as (N, K).
    pub transpose_b: bool,
    /// (M, N), BF16 or F32.
    pub c: Matrix,
    /// On the product.
    pub alpha: f32,
    /// On what is there; with 0, c is not read.
    pub beta: f32,
}

/// What runs kernels. Work is done in the order it was given. The addresses in a launch are those of live tensors of this device and
/// the ops have checked shapes at their door: that is the contract under which an implementation dereferences them.
pub trait Device: Send + Sync {
    /// As the maker names it, for example "NVIDIA H200".
    fn name(&self) -> &str;
    /// Streaming multiprocessors: how many blocks run side by side, about.
    fn multiprocessors(&self) -> usize;
    /// Memory with anything in it, aligned to 256 bytes. Error: what was asked, what is free, what to do.
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn DeviceMemory>>;
    /// Host to device.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Device to device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Sets bytes to zero.
    fn zero(&self, at: u64, bytes: usize) -> Result<()>;
    /// Gives a kernel its turn. Errors name the kernel: it does not compile, a wrong geometry, an earlier launch that failed.
    fn launch(&self, launch: &Launch) -> Result<()>;
    /// A matrix product of the vendor's library; false when this device has none for it, and nothing was done.
    fn gemm(&self, gemm: &Gemm) -> Result<bool>;
    /// Error: why there is no vendor's library for matrix products, so that `gemm` does none.
    fn gemm_library(&self) -> Result<()> {
        Ok(())
    }
    /// Writes what was chosen by timing (algorithms of matrix products) to where a resumed run finds it. Does nothing on a device that
    /// chooses nothing. Error: the file cannot be written.
    fn keep_choices(&self) -> Result<()> {
        Ok(())
    }
    /// Waits for all work given so far.
    fn synchronize(&self) -> Result<()>;
    /// Seconds that the device takes for the work that `work` gives it, by its own clock.
    fn elapsed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
    /// (free, total) bytes of memory that `alloc` can give out.
    fn memory(&self) -> Result<(usize, usize)>;
    /// True when `record` gives recordings.
    fn records(&self) -> bool {
        true
    }
    /// Records what `work` gives the device, without doing it. Memory that `work` takes and frees stays the recording's own, and is taken
    /// again by `work` itself; tensors that it was given must outlive it. `work` must not copy from or to the host.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>>;
}
