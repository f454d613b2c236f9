//! The clipped policy loss: launches of kernels/ppo_loss.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::{Cuda, pointer, tensor};
use crate::backend::{KlEstimator, PpoInputs, PpoParams, PpoStats};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Threads of a block, and the most blocks: as many partial sums are read back. Not the device's size, so that equal inputs give equal
/// sums on every GPU.
const BLOCK: usize = 256;
const MOST_BLOCKS: usize = 256;

pub(super) fn ppo_loss(
    be: &Cuda,
    params: &PpoParams,
    inputs: &PpoInputs,
    dlogp: &mut Tensor,
    dentropy: &mut Tensor,
) -> Result<PpoStats> {
    let m = dlogp.len();
    let blocks = m.div_ceil(BLOCK).min(MOST_BLOCKS);
    let partials = be.workspace(&[blocks, 5], DType::F64)?;
    let args = [
        pointer(inputs.logp)?,
        pointer(inputs.entropy)?,
        pointer(inputs.behaviour)?,
        pointer(inputs.reference)?,
        pointer(inputs.advantage)?,
        pointer(inputs.weight)?,
        pointer(dlogp)?,
        pointer(dentropy)?,
        pointer(&partials)?,
        Arg::I64(m as i64),
        Arg::F32(params.clip_low),
        Arg::F32(params.clip_high),
        Arg::F32(params.dual_clip.unwrap_or(0.0)),
        Arg::I32(match params.kl_estimator {
            KlEstimator::K1 => 0,
            KlEstimator::K2 => 1,
            KlEstimator::K3 => 2,
        }),
        Arg::F32(params.kl_coefficient),
        Arg::F32(params.entropy_coefficient),
    ];
    be.launch(Kernel { file: "ppo_loss", name: "ppo_loss" }, [blocks, 1, 1], BLOCK, 0, &args)?;
    let mut stats = PpoStats::default();
    for sums in tensor::download(&partials)?.slice::<f64>().chunks_exact(5) {
        stats.policy_loss += sums[0];
        stats.kl += sums[1];
        stats.entropy += sums[2];
        stats.clip_fraction += sums[3];
        stats.approx_kl += sums[4];
    }
    stats.loss = stats.policy_loss + f64::from(params.kl_coefficient) * stats.kl
        - f64::from(params.entropy_coefficient) * stats.entropy;
    Ok(stats)
}
