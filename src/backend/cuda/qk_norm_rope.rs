//! Per-head RMSNorm and rotary embedding of q and k: launches of kernels/qk_norm_rope.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn qk_norm_rope(
    be: &Cuda,
    qkv: &mut Tensor,
    heads: Heads,
    norm: Option<QkNorm>,
    positions: &Tensor,
    table: &Tensor,
    raw: Option<&mut Tensor>,
) -> Result<()> {
    Err(Error::system("qk_norm_rope: no kernel"))
}

pub(super) fn qk_norm_rope_backward(
    be: &Cuda,
    dqkv: &mut Tensor,
    heads: Heads,
    norm: Option<QkNorm>,
    positions: &Tensor,
    table: &Tensor,
    raw: Option<&Tensor>,
    dnorm: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<()> {
    Err(Error::system("qk_norm_rope_backward: no kernel"))
}
