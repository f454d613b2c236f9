//! The policy loss: launches of kernels/ppo_loss.cu.

use super::device::Arg;
use super::kernels::Kernel;
use super::launch::{Cuda, pointer};
use super::tensor;
use crate::backend::ops::{self, KlEstimator, PpoStats, Surrogate};
use crate::error::Result;
use crate::tensor::DType;

/// Threads per block, and the most blocks; each block's partial sums are read back. The number does not depend on the
/// device, so that equal inputs give equal sums on every GPU.
const BLOCK: usize = 256;
const MOST_BLOCKS: usize = 256;
/// Values that a block writes: six sums and the greatest ratio.
const STATISTICS: usize = 7;

pub(super) fn ppo_loss(be: &Cuda, op: ops::PpoLoss) -> Result<()> {
    let ops::PpoLoss { params, inputs, dlogp, dentropy, stats } = op;
    let m = dlogp.len();
    let blocks = m.div_ceil(BLOCK).min(MOST_BLOCKS);
    let partials = be.workspace(&[blocks, STATISTICS], DType::F64)?;
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
        Arg::I32((params.surrogate == Surrogate::Cispo).into()),
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
    let mut kl_loss = 0.0;
    *stats = PpoStats::default();
    for part in tensor::download(&partials)?.slice::<f64>().chunks_exact(STATISTICS) {
        stats.policy_loss += part[0];
        kl_loss += part[1];
        stats.kl += part[2];
        stats.entropy += part[3];
        stats.clip_fraction += part[4];
        stats.approx_kl += part[5];
        stats.ratio_max = stats.ratio_max.max(part[6]);
    }
    stats.loss = stats.policy_loss + f64::from(params.kl_coefficient) * kl_loss
        - f64::from(params.entropy_coefficient) * stats.entropy;
    Ok(())
}
