//! Gradient norm and AdamW over lists of tensors: launches of kernels/adamw.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::{Cuda, int, pointer, tensor};
use crate::backend::AdamW;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Threads of a block and the elements it takes, as in the kernels.
const BLOCK: usize = 256;
const CHUNK: usize = 32768;

/// The list as the kernels read it, and its blocks: first (n + 1), the first block of every tensor and the number of all blocks; then
/// a row (length, addresses) a tensor.
fn table(be: &Cuda, rows: &[Vec<u64>]) -> Result<(Tensor, usize)> {
    let (mut words, mut blocks) = (vec![0], 0);
    for row in rows {
        blocks += (row[0] as usize).div_ceil(CHUNK);
        words.push(blocks as u64);
    }
    words.extend(rows.iter().flatten());
    let table = be.workspace(&[words.len(), 2], DType::I32)?; // a word of 64 bits a row
    be.device.upload(tensor::address(&table)?, bytemuck::cast_slice(&words))?;
    Ok((table, blocks))
}

pub(super) fn squared_norm(be: &Cuda, tensors: &[&Tensor]) -> Result<f64> {
    let rows: Result<Vec<_>> = tensors.iter().map(|t| Ok(vec![t.len() as u64, tensor::address(t)?])).collect();
    let (table, blocks) = table(be, &rows?)?;
    let partials = be.workspace(&[blocks], DType::F64)?;
    let args = [pointer(&table)?, int(tensors.len())?, pointer(&partials)?];
    be.launch(Kernel { file: "adamw", name: "squared_norm" }, [blocks, 1, 1], BLOCK, 0, &args)?;
    Ok(tensor::download(&partials)?.slice::<f64>().iter().sum())
}

pub(super) fn adamw(
    be: &Cuda,
    step: &AdamW,
    params: &mut [&mut Tensor],
    grads: &[&Tensor],
    m: &mut [&mut Tensor],
    v: &mut [&mut Tensor],
) -> Result<()> {
    let row = |i: usize| {
        let lists = [&*params[i], grads[i], &*m[i], &*v[i]];
        let addresses: Result<Vec<u64>> = lists.iter().map(|t| tensor::address(t)).collect();
        Ok([vec![params[i].len() as u64], addresses?].concat())
    };
    let rows: Result<Vec<_>> = (0..params.len()).map(row).collect();
    let (table, blocks) = table(be, &rows?)?;
    let correction = |beta: f32| Arg::F32((1.0 - f64::from(beta).powf(step.step.into())) as f32);
    let args = [
        pointer(&table)?,
        int(params.len())?,
        Arg::F32(step.lr),
        Arg::F32(step.beta1),
        Arg::F32(step.beta2),
        Arg::F32(step.eps),
        Arg::F32(step.weight_decay),
        Arg::F32(step.grad_scale),
        correction(step.beta1),
        correction(step.beta2),
    ];
    be.launch(Kernel { file: "adamw", name: "adamw" }, [blocks, 1, 1], BLOCK, 0, &args)
}
