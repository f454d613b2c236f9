//! Packed causal attention: launches of kernels/attention.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn attention(
    be: &Cuda,
    qkv: &Tensor,
    heads: Heads,
    segments: &Segments,
    o: &mut Tensor,
    lse: &mut Tensor,
) -> Result<()> {
    Err(Error::system("attention: no kernel"))
}

pub(super) fn attention_backward(
    be: &Cuda,
    qkv: &Tensor,
    o: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    heads: Heads,
    segments: &Segments,
    dqkv: &mut Tensor,
) -> Result<()> {
    Err(Error::system("attention_backward: no kernel"))
}
