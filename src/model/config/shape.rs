//! The shape of a model.

use crate::backend::ops::Heads;

/// A decoder-only transformer with RMSNorm, rotary embedding, grouped-query attention and SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// V, size of the vocabulary.
    pub vocab: usize,
    /// C, width of the hidden states.
    pub hidden: usize,
    /// L, number of layers.
    pub layers: usize,
    /// NH, NKV, HS: query heads, key and value heads, size of a head.
    pub heads: Heads,
    /// F, width of the MLP.
    pub mlp: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// True when the lm-head is the embedding.
    pub tied: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias; only together with `qkv_bias`.
    pub o_bias: bool,
    /// Queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// P, the most positions that a sequence may have.
    pub max_positions: usize,
}

/// Rotary embedding: base and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Scaling, to reach positions beyond those of the pre-training.
    pub scaling: RopeScaling,
}

/// Scalings of the rotary embedding; fields as in transformers.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Factor of the stretch.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Factor of the stretch.
        factor: f64,
        /// Dimensions with fewer turns than this in the original context are stretched.
        low_freq_factor: f64,
        /// Dimensions with more turns than this are kept.
        high_freq_factor: f64,
        /// Positions of the pre-training.
        original_max_positions: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Factor of the stretch.
        factor: f64,
        /// Positions of the pre-training.
        original_max_positions: usize,
        /// Factor on cosines and sines (the paper's square root of 1/t).
        attention_factor: f64,
        /// Turns above which a dimension is kept.
        beta_fast: f64,
        /// Turns below which a dimension is stretched fully.
        beta_slow: f64,
        /// Whether the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
}
