//! The table of rotary position embeddings (arXiv 2104.09864) with its scalings, as transformers computes them
//! (modeling_rope_utils.py), in f64. Rotating is the backend's.

use crate::backend::Backend;
use crate::error::Result;
use crate::model::config::{RopeConfig, RopeScaling};
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::f64::consts::TAU;

/// The rotation speeds in radians per position, HS/2 of them, and the factor on cosines and sines (attention factor).
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

/// The table (P, HS) in the activation type: a row holds HS/2 cosines, then HS/2 sines, times the attention factor.
pub fn table(be: &dyn Backend, rope: &RopeConfig, positions: usize, hs: usize) -> Result<Tensor> {
    let (speeds, factor) = frequencies(rope, hs);
    let mut host = Tensor::zeros(&[positions, hs], crate::tensor::DType::F64);
    host.slice_mut::<f64>().par_chunks_mut(hs).enumerate().for_each(|(position, row)| {
        let (cosines, sines) = row.split_at_mut(hs / 2);
        for ((cosine, sine), speed) in cosines.iter_mut().zip(sines).zip(&speeds) {
            let (s, c) = (position as f64 * speed).sin_cos();
            (*cosine, *sine) = (c * factor, s * factor);
        }
    });
    let mut table = be.alloc(&[positions, hs], be.activation())?;
    be.write(&mut table, &host)?;
    Ok(table)
}
