//! SwiGLU: launches of kernels/swiglu.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn swiglu(be: &Cuda, gate_up: &Tensor, y: &mut Tensor) -> Result<()> {
    Err(Error::system("swiglu: no kernel"))
}

pub(super) fn swiglu_backward(be: &Cuda, gate_up: &Tensor, dy: &Tensor, dgate_up: &mut Tensor) -> Result<()> {
    Err(Error::system("swiglu_backward: no kernel"))
}
