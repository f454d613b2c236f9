//! Gradient norm and AdamW over lists of tensors: launches of kernels/adamw.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, int, pointer};
use super::tensor;
use crate::backend::ops;
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Threads per block and elements per block, as in the kernels.
const BLOCK: usize = 256;
const CHUNK: usize = 32768;

/// Uploads the list as the kernels read it and returns it with the number of blocks. The table holds first (n + 1),
/// which is the first block of every tensor and the number of all blocks, then a row (length, addresses) per tensor.
fn table(be: &Cuda, rows: &[Vec<u64>]) -> Result<(Tensor, usize)> {
    let (mut words, mut blocks) = (vec![0], 0);
    for row in rows {
        blocks += (row[0] as usize).div_ceil(CHUNK);
        words.push(blocks as u64);
    }
    words.extend(rows.iter().flatten());
    let table = be.workspace(&[words.len(), 2], DType::I32)?; // one 64-bit word per row
    be.device.upload(tensor::address(&table)?, bytemuck::cast_slice(&words))?;
    Ok((table, blocks))
}

pub(super) fn squared_norm(be: &Cuda, op: ops::SquaredNorm) -> Result<()> {
    let ops::SquaredNorm { tensors, sum } = op;
    let rows: Result<Vec<_>> = tensors.iter().map(|t| Ok(vec![t.len() as u64, tensor::address(t)?])).collect();
    let (table, blocks) = table(be, &rows?)?;
    let partials = be.workspace(&[blocks], DType::F64)?;
    let args = [pointer(&table)?, int(tensors.len())?, pointer(&partials)?];
    be.launch(Kernel { file: "adamw", name: "squared_norm" }, [blocks, 1, 1], BLOCK, 0, &args)?;
    *sum = tensor::download(&partials)?.slice::<f64>().iter().sum();
    Ok(())
}

pub(super) fn adamw(be: &Cuda, op: ops::AdamWStep) -> Result<()> {
    let ops::AdamWStep { settings, tensors } = op;
    let row = |ops::Trained { param, grad, m, v }: &ops::Trained| {
        let addresses: Result<Vec<u64>> = [&**param, grad, m, v].into_iter().map(tensor::address).collect();
        Ok([vec![param.len() as u64], addresses?].concat())
    };
    let rows: Result<Vec<_>> = tensors.iter().map(row).collect();
    let (table, blocks) = table(be, &rows?)?;
    let correction = |beta: f32| Arg::F32((1.0 - f64::from(beta).powf(settings.step.into())) as f32);
    let args = [
        pointer(&table)?,
        int(tensors.len())?,
        Arg::F32(settings.lr),
        Arg::F32(settings.beta1),
        Arg::F32(settings.beta2),
        Arg::F32(settings.eps),
        Arg::F32(settings.weight_decay),
        Arg::F32(settings.grad_scale),
        correction(settings.beta1),
        correction(settings.beta2),
    ];
    be.launch(Kernel { file: "adamw", name: "adamw" }, [blocks, 1, 1], BLOCK, 0, &args)
}
