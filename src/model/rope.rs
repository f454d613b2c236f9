//! Computes the table of rotary position embeddings (arXiv 2104.09864) with its scalings in f64, as in transformers
//! (modeling_rope_utils.py). The backend does the rotating.

use crate::backend::Backend;
use crate::error::Result;
use crate::model::config::{RopeConfig, RopeScaling};
use crate::tensor::{DType, Element, Tensor};
use rayon::prelude::*;
use std::f64::consts::TAU;

/// Rotation speeds in radians per position (HS/2 of them), and the factor on cosines and sines (attention factor).
pub fn frequencies(rope: &RopeConfig, hs: usize) -> (Vec<f64>, f64) {
    let plain: Vec<f64> = (0..hs / 2).map(|i| rope.theta.powf(-(2.0 * i as f64) / hs as f64)).collect();
    match &rope.scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let original = *original_max_positions as f64;
            let scale = |f: &f64| {
                let turns = original * f / TAU; // original / wavelength
                if turns < *low_freq_factor {
                    f / factor
                } else if turns > *high_freq_factor {
                    *f
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            };
            (plain.iter().map(scale).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, original_max_positions, attention_factor, beta_fast, beta_slow, truncate } => {
            let correction = |rotations: f64| {
                hs as f64 * (*original_max_positions as f64 / (rotations * TAU)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (correction(*beta_fast), correction(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(hs as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let blend = |(i, f): (usize, &f64)| {
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * ramp + f * (1.0 - ramp)
            };
            (plain.iter().enumerate().map(blend).collect(), *attention_factor)
        }
    }
}

/// Makes the table (P, HS) in the accumulator type: a row holds HS/2 cosines, then HS/2 sines, times the attention
/// factor.
pub fn table(be: &dyn Backend, rope: &RopeConfig, positions: usize, hs: usize) -> Result<Tensor> {
    let mut host = Tensor::zeros(&[positions, hs], be.accumulator());
    match host.dtype() {
        DType::F64 => fill(host.slice_mut::<f64>(), rope, hs, |x| x),
        _ => fill(host.slice_mut::<f32>(), rope, hs, |x| x as f32),
    }
    let mut table = be.alloc(&[positions, hs], be.accumulator())?;
    be.write(&mut table, &host)?;
    Ok(table)
}

/// Computes every row in f64 and rounds each number once with `narrow`. The table is long, so no second one is held in
/// f64.
fn fill<T: Element>(rows: &mut [T], rope: &RopeConfig, hs: usize, narrow: impl Fn(f64) -> T + Sync) {
    let (speeds, factor) = frequencies(rope, hs);
    rows.par_chunks_mut(hs).enumerate().for_each(|(position, row)| {
        let (cosines, sines) = row.split_at_mut(hs / 2);
        for ((cosine, sine), speed) in cosines.iter_mut().zip(sines).zip(&speeds) {
            let (s, c) = (position as f64 * speed).sin_cos();
            (*cosine, *sine) = (narrow(c * factor), narrow(s * factor));
        }
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backend::oracle::Oracle;

    /// The tolerance covers some dozen f64 operations, including powers and logarithms.
    fn check_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 64.0 * f64::EPSILON * expected.abs(), "{found} against {expected}");
    }

    #[test]
    fn llama3_as_transformers_writes_it() {
        // Formulas of _compute_llama3_parameters, in wavelengths, with the numbers of Llama-3.2-1B.
        let (factor, low, high, original) = (32.0, 1.0, 4.0, 8192.0);
        let scaling =
            RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions: 8192 };
        let (speeds, attention) = frequencies(&RopeConfig { theta: 5e5, scaling }, 64);
        assert_eq!(attention, 1.0);
        let mut branches = [0; 3];
        for (i, &speed) in speeds.iter().enumerate() {
            let inv_freq = 1.0 / 5e5f64.powf(2.0 * i as f64 / 64.0);
            let wavelen = TAU / inv_freq;
            let (branch, expected) = if wavelen < original / high {
                (0, inv_freq)
            } else if wavelen > original / low {
                (1, inv_freq / factor)
            } else {
                let smooth = (original / wavelen - low) / (high - low);
                (2, (1.0 - smooth) * inv_freq / factor + smooth * inv_freq)
            };
            branches[branch] += 1;
            check_close(speed, expected);
        }
        assert_eq!(branches, [15, 14, 3], "every branch is taken");
    }

    #[test]
    fn yarn_as_transformers_writes_it() {
        // _compute_yarn_parameters with Qwen's numbers: theta 1e6, 64 per head, 32768 positions, factor 4. By hand:
        // find_correction_dim(32) = 64 ln(32768 / 64 pi) / (2 ln 1e6) = 11.797 -> floor 11,
        // find_correction_dim(1) = 64 ln(32768 / 2 pi) / (2 ln 1e6) = 19.824 -> ceil 20.
        let yarn = |truncate| RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 32_768,
            attention_factor: 1.25,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate,
        };
        let exact = |rotations: f64| 64.0 * (32_768.0 / (rotations * TAU)).ln() / (2.0 * 1e6f64.ln());
        for (truncate, low, high) in [(true, 11.0, 20.0), (false, exact(32.0), exact(1.0))] {
            let (speeds, attention) = frequencies(&RopeConfig { theta: 1e6, scaling: yarn(truncate) }, 64);
            assert_eq!(attention, 1.25);
            for (i, &speed) in speeds.iter().enumerate() {
                let pos_freq = 1e6f64.powf(2.0 * i as f64 / 64.0);
                let extrapolation = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                check_close(speed, 1.0 / (4.0 * pos_freq) * (1.0 - extrapolation) + 1.0 / pos_freq * extrapolation);
            }
        }
    }

    #[test]
    fn the_table_holds_cosines_then_sines_times_the_attention_factor() {
        let scaling = RopeScaling::Yarn {
            factor: 1.0,
            original_max_positions: 16,
            attention_factor: 2.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        };
        let table = table(&Oracle::f64(), &RopeConfig { theta: 100.0, scaling }, 5, 4).unwrap();
        assert_eq!(table.shape(), [5, 4]);
        for (position, row) in table.slice::<f64>().chunks(4).enumerate() {
            let p = position as f64;
            for (found, expected) in row.iter().zip([p.cos(), (p / 10.0).cos(), p.sin(), (p / 10.0).sin()]) {
                // An extra rounding of the argument moves the result by at most that rounding's size.
                assert!((found - 2.0 * expected).abs() <= 64.0 * f64::EPSILON, "{found} against {}", 2.0 * expected);
            }
        }
    }
}
