//! Linear layers with adapters: launches of kernels/linear.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn linear(
    be: &Cuda,
    x: &Tensor,
    p: &Linear,
    y: &mut Tensor,
    column: usize,
    s: Option<&mut Tensor>,
) -> Result<()> {
    Err(Error::system("linear: no kernel"))
}

pub(super) fn linear_backward(
    be: &Cuda,
    x: &Tensor,
    p: &Linear,
    dy: &Tensor,
    column: usize,
    s: Option<&Tensor>,
    dx: Option<&mut Tensor>,
    grads: LinearGrads,
) -> Result<()> {
    Err(Error::system("linear_backward: no kernel"))
}

pub(super) fn merge_lora(be: &Cuda, w: &mut Tensor, lora: &Lora) -> Result<()> {
    Err(Error::system("merge_lora: no kernel"))
}
