//! Attention over a paged cache: launches of kernels/attention_paged.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn attention_paged(
    be: &Cuda,
    qkv: &Tensor,
    heads: Heads,
    k_cache: &Tensor,
    v_cache: &Tensor,
    block_size: usize,
    block_table: &Tensor,
    lens: &Tensor,
    cu_q: &Tensor,
    o: &mut Tensor,
) -> Result<()> {
    Err(Error::system("attention_paged: no kernel"))
}
