//! The interface between the ops and the machine that runs their kernels: a GPU (`driver`), or the CPU emulation of the
//! tests. It knows no ops.

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
    /// The kernel to run.
    pub kernel: Kernel,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads per block, in x.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Arguments, in the order of the kernel's parameters.
    pub args: &'a [Arg],
}

/// A row-major matrix in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Address of the first element.
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
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the old c; with 0, c is not read.
    pub beta: f32,
}

/// A device that runs kernels. It does work in the order in which it was given. The addresses in a launch are those of
/// live tensors of this device, and the ops have checked the shapes: under this contract an implementation dereferences
/// them.
pub trait Device: Send + Sync {
    /// The maker's name, for example "NVIDIA H200".
    fn name(&self) -> &str;
    /// The number of streaming multiprocessors, which is roughly the number of blocks that run at the same time.
    fn multiprocessors(&self) -> usize;
    /// Allocates memory with undefined contents, aligned to 256 bytes. Error: what was asked for, what is free, what to
    /// do.
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn DeviceMemory>>;
    /// Copies from host to device.
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;
    /// Copies from device to device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Sets bytes to zero.
    fn zero(&self, at: u64, bytes: usize) -> Result<()>;
    /// Queues a kernel. Errors name the kernel: it does not compile, the geometry is wrong, or an earlier launch
    /// failed.
    fn launch(&self, launch: &Launch) -> Result<()>;
    /// Computes a matrix product with the vendor's library; returns false, with nothing done, when the device has none
    /// for it.
    fn gemm(&self, gemm: &Gemm) -> Result<bool>;
    /// Tells whether there is a vendor's library for matrix products. Error: why there is none, so that `gemm` does
    /// nothing.
    fn gemm_library(&self) -> Result<()> {
        Ok(())
    }
    /// Writes the choices made by timing (algorithms of matrix products) to the file where a resumed run finds them;
    /// does nothing on a device that chooses nothing. Error: the file cannot be written.
    fn keep_choices(&self) -> Result<()> {
        Ok(())
    }
    /// Waits for all work given so far.
    fn synchronize(&self) -> Result<()>;
    /// Returns the seconds that the device takes for the work that `work` gives it, by its own clock.
    fn elapsed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64>;
    /// Returns the (free, total) bytes of memory that `alloc` can give out.
    fn memory(&self) -> Result<(usize, usize)>;
    /// True when `record` returns recordings.
    fn records(&self) -> bool {
        true
    }
    /// Records the work that `work` gives the device, without doing it. Memory that `work` takes and frees stays with
    /// the recording, and `work` itself takes it again; tensors passed to `work` must outlive the recording. `work`
    /// must not copy from or to the host.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>>;
}
