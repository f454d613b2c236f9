//! Whole-tensor operations: transfers between host and device, copies, fills, casts. Launches of kernels/tensor.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, no_kernel, pointer};
use crate::backend::Backend;
use crate::backend::oracle::Oracle;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Threads per block, and the most blocks: the kernels stride over the rest.
const BLOCK: usize = 256;
const MOST_BLOCKS: usize = 4096;

fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "tensor", name }
}

/// Returns the device address of the first element.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    match pointer(tensor)? {
        Arg::Pointer(address) => Ok(address),
        _ => Err(Error::system("a tensor without an address")),
    }
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.len() * tensor.dtype().size()
}

/// Writes values into the tensor: host values are rounded to its type on the host, device values are cast on the
/// device.
pub(super) fn write(be: &Cuda, tensor: &mut Tensor, values: &Tensor) -> Result<()> {
    if values.device_address().is_some() {
        return cast(be, values, tensor);
    }
    if tensor.dtype() == values.dtype() {
        return be.device.upload(address(tensor)?, values.as_bytes());
    }
    let mut rounded = Tensor::zeros(values.shape(), tensor.dtype());
    Oracle::f32().write(&mut rounded, values)?;
    be.device.upload(address(tensor)?, rounded.as_bytes())
}

/// Copies the tensor to the host.
pub(super) fn download(tensor: &Tensor) -> Result<Tensor> {
    tensor
        .host_copy()?
        .ok_or_else(|| Error::system(format!("{tensor:?} lies on the host; the GPU backend reads its own")))
}

pub(super) fn read(tensor: &Tensor) -> Result<Vec<f32>> {
    Oracle::f32().read(&download(tensor)?)
}

pub(super) fn read_i32(tensor: &Tensor) -> Result<Vec<i32>> {
    Oracle::f32().read_i32(&download(tensor)?)
}

pub(super) fn copy(be: &Cuda, from: &Tensor, to: &mut Tensor) -> Result<()> {
    be.device.copy(address(from)?, address(to)?, bytes(to))
}

pub(super) fn fill(be: &Cuda, tensor: &mut Tensor, value: f32) -> Result<()> {
    if value == 0.0 {
        return be.device.zero(address(tensor)?, bytes(tensor));
    }
    let name = match tensor.dtype() {
        DType::F32 => "fill_f32",
        DType::BF16 => "fill_bf16",
        _ => return Err(no_kernel("fill", "the tensor", tensor)),
    };
    let args = [pointer(tensor)?, Arg::F32(value), Arg::I64(tensor.len() as i64)];
    be.launch(kernel(name), blocks(tensor), BLOCK, 0, &args)
}

/// Casts between bf16 and f32 on the device; a plain copy for equal types.
pub(super) fn cast(be: &Cuda, from: &Tensor, to: &mut Tensor) -> Result<()> {
    let name = match (from.dtype(), to.dtype()) {
        (DType::F32, DType::BF16) => "cast_f32_bf16",
        (DType::BF16, DType::F32) => "cast_bf16_f32",
        (a, b) if a == b => return copy(be, from, to),
        _ => return Err(no_kernel("write", "the tensor", to)),
    };
    let args = [pointer(from)?, pointer(to)?, Arg::I64(to.len() as i64)];
    be.launch(kernel(name), blocks(to), BLOCK, 0, &args)
}

fn blocks(tensor: &Tensor) -> [usize; 3] {
    [tensor.len().div_ceil(BLOCK).min(MOST_BLOCKS), 1, 1]
}

/// Fills the tensor with normal numbers of this standard deviation; see kernels/tensor.cu.
pub(super) fn random_normal(be: &Cuda, tensor: &mut Tensor, deviation: f32, seed: u64) -> Result<()> {
    let name = match tensor.dtype() {
        DType::F32 => "random_normal_f32",
        DType::BF16 => "random_normal_bf16",
        _ => return Err(no_kernel("random_normal", "the tensor", tensor)),
    };
    let word = |bits: u64| Arg::I32(bits as u32 as i32);
    let args = [pointer(tensor)?, Arg::I64(tensor.len() as i64), Arg::F32(deviation), word(seed), word(seed >> 32)];
    be.launch(kernel(name), blocks(tensor), BLOCK, 0, &args)
}
