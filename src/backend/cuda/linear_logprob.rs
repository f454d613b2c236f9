//! From hidden states to log-probabilities: launches of kernels/linear_logprob.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn linear_logprob(
    be: &Cuda,
    x: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    temperature: f32,
    logp: &mut Tensor,
    entropy: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    Err(Error::system("linear_logprob: no kernel"))
}

pub(super) fn linear_logprob_backward(
    be: &Cuda,
    x: &Tensor,
    w: &Tensor,
    targets: &Tensor,
    temperature: f32,
    entropy: &Tensor,
    lse: &Tensor,
    dlogp: &Tensor,
    dentropy: Option<&Tensor>,
    dx: &mut Tensor,
    dw: Option<&mut Tensor>,
) -> Result<()> {
    Err(Error::system("linear_logprob_backward: no kernel"))
}

pub(super) fn logits(be: &Cuda, x: &Tensor, w: &Tensor, out: &mut Tensor) -> Result<()> {
    Err(Error::system("logits: no kernel"))
}
