//! Rows gathered, scattered, and appended to a cache: launches of kernels/rows.cu.
#![allow(unused_variables, unused_imports, clippy::too_many_arguments)]

use super::Cuda;
use crate::backend::{
    AdamW, Heads, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling, Segments, ValueInputs,
};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub(super) fn kv_append(
    be: &Cuda,
    qkv: &Tensor,
    heads: Heads,
    slots: &Tensor,
    k_cache: &mut Tensor,
    v_cache: &mut Tensor,
) -> Result<()> {
    Err(Error::system("kv_append: no kernel"))
}

pub(super) fn gather_rows(be: &Cuda, x: &Tensor, rows: &Tensor, y: &mut Tensor) -> Result<()> {
    Err(Error::system("gather_rows: no kernel"))
}

pub(super) fn scatter_add_rows(be: &Cuda, dy: &Tensor, rows: &Tensor, dx: &mut Tensor) -> Result<()> {
    Err(Error::system("scatter_add_rows: no kernel"))
}
