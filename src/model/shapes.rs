//! Shapes of published models by name, for planning and timing without their weights.

use crate::backend::ops::Heads;
use crate::error::{Error, Result};
use crate::model::config::{ModelConfig, RopeConfig, RopeScaling};

/// The names that `named` knows.
pub const NAMES: [&str; 8] = [
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-3b",
    "qwen2.5-7b",
    "qwen2.5-14b",
    "qwen3-0.6b",
    "qwen3-8b",
    "llama3.1-8b",
];

/// Shape of the model published under `name` (for Qwen2.5: the Instruct version). Error: an unknown name; the known
/// ones are listed.
pub fn named(name: &str) -> Result<ModelConfig> {
    Ok(match name {
        "qwen2.5-0.5b" => qwen2(151_936, 896, 24, (14, 2), 4864, true),
        "qwen2.5-1.5b" => qwen2(151_936, 1536, 28, (12, 2), 8960, true),
        "qwen2.5-3b" => qwen2(151_936, 2048, 36, (16, 2), 11_008, true),
        "qwen2.5-7b" => qwen2(152_064, 3584, 28, (28, 4), 18_944, false),
        "qwen2.5-14b" => qwen2(152_064, 5120, 48, (40, 8), 13_824, false),
        "qwen3-0.6b" => qwen3(1024, 28, (16, 8), 3072, true),
        "qwen3-8b" => qwen3(4096, 36, (32, 8), 12_288, false),
        "llama3.1-8b" => ModelConfig {
            vocab: 128_256,
            hidden: 4096,
            layers: 32,
            heads: Heads { nh: 32, nkv: 8, hs: 128 },
            mlp: 14_336,
            rms_eps: 1e-5,
            rope: RopeConfig {
                theta: 500_000.0,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_positions: 8192,
                },
            },
            tied: false,
            qkv_bias: false,
            o_bias: false,
            qk_norm: false,
            max_positions: 131_072,
        },
        _ => {
            return Err(Error::usage(format!(
                "no model shape is called `{name}`; the known ones are {}",
                NAMES.join(", ")
            )));
        }
    })
}

fn qwen2(vocab: usize, hidden: usize, layers: usize, heads: (usize, usize), mlp: usize, tied: bool) -> ModelConfig {
    ModelConfig {
        vocab,
        hidden,
        layers,
        heads: Heads { nh: heads.0, nkv: heads.1, hs: hidden / heads.0 },
        mlp,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None },
        tied,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 32_768,
    }
}

fn qwen3(hidden: usize, layers: usize, heads: (usize, usize), mlp: usize, tied: bool) -> ModelConfig {
    ModelConfig {
        heads: Heads { nh: heads.0, nkv: heads.1, hs: 128 },
        qkv_bias: false,
        qk_norm: true,
        max_positions: 40_960,
        ..qwen2(151_936, hidden, layers, heads, mlp, tied)
    }
}
