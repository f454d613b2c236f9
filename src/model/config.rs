//! Reads the shape of a model from the text of a Hugging Face config.json (Qwen2/Qwen2.5, Qwen3, Llama 2/3), checks it
//! field by field, and writes it back. Opens no file.

mod attention;
mod keys;
mod rope;
mod shape;
mod understood;

pub use shape::{ModelConfig, RopeConfig, RopeScaling};

use super::parameters::parameter_shapes;
use crate::backend::ops::Heads;
use crate::error::{Error, Result};
use keys::Keys;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Numbers (P * HS) that the rotary table of any model may have, however small the model is; Llama 3.1 has as many.
const MOST_ROTARY: usize = 1 << 24;

const MODEL_TYPES: &str = "qwen2, qwen3, llama";

impl ModelConfig {
    /// Reads the text of the config.json at `path` (used in messages only). Errors name the key, what was found and
    /// what is valid: a missing or wrong field, another model type, activation or rope scaling, sliding-window
    /// attention, quantised weights.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        Ok(Self::read(text, path)?.0)
    }

    /// Same as `from_json`, plus a note for the user on each key that is not understood or has no effect.
    pub fn read(text: &str, path: &Path) -> Result<(Self, Vec<String>)> {
        let map: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| Error::content(format!("{}: {e}; expected a JSON object", path.display())))?;
        let keys = Keys { map: &map, file: path, text, prefix: "" };
        let family = keys.text("model_type")?.ok_or_else(|| keys.missing("model_type", MODEL_TYPES))?;
        if !matches!(family, "qwen2" | "qwen3" | "llama") {
            return Err(keys.error("model_type", format!("{family:?} is not supported; valid are {MODEL_TYPES}")));
        }
        let mut notes = understood::check(&keys)?;
        check_names(&keys, family)?;

        let hidden = keys.count("hidden_size", 1 << 17)?;
        let nh = keys.count("num_attention_heads", 1 << 12)?;
        let nkv = keys.opt_count("num_key_value_heads", 1 << 12)?.unwrap_or(nh);
        let hs = match keys.opt_count("head_dim", 1 << 10)? {
            Some(hs) => hs,
            None if family == "qwen3" => 128, // the default of Qwen3Config
            None if hidden.is_multiple_of(nh) => hidden / nh,
            None => {
                return Err(
                    keys.error("head_dim", format!("missing, and {nh} heads do not divide hidden_size {hidden}"))
                );
            }
        };
        let max_positions = keys.count("max_position_embeddings", 1 << 24)?;
        let layers = keys.count("num_hidden_layers", 1 << 10)?;
        attention::check(&keys, layers, max_positions)?;
        let attention_bias = keys.flag("attention_bias", false)?;
        if family == "qwen2" && keys.get("attention_bias").is_some() {
            notes.push(
                keys.note("attention_bias", "it has no effect: q, k and v of qwen2 always have a bias, o has none"),
            );
        }
        let config = Self {
            vocab: keys.count("vocab_size", 1 << 24)?,
            hidden,
            layers,
            heads: Heads { nh, nkv, hs },
            mlp: keys.count("intermediate_size", 1 << 20)?,
            rms_eps: keys.opt_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: rope::read(&keys, max_positions, &mut notes)?,
            tied: keys.flag("tie_word_embeddings", false)?,
            qkv_bias: family == "qwen2" || attention_bias,
            o_bias: family != "qwen2" && attention_bias,
            qk_norm: family == "qwen3",
            max_positions,
        };
        config.validate().map_err(|e| e.context(path.display()))?;
        Ok((config, notes))
    }

    /// Checks the shape. Errors: an extent of zero, NKV does not divide NH, HS is odd, a mix of biases and norms that
    /// no supported family has, or a rotary table larger than both the weights and `MOST_ROTARY`.
    pub fn validate(&self) -> Result<()> {
        let Heads { nh, nkv, hs } = self.heads;
        if [self.vocab, self.hidden, self.layers, nh, nkv, hs, self.mlp, self.max_positions].contains(&0) {
            return Err(Error::content(format!("the model has an extent of zero: {self:?}")));
        }
        if !nh.is_multiple_of(nkv) {
            return Err(Error::content(format!("num_key_value_heads {nkv} does not divide num_attention_heads {nh}")));
        }
        if !hs.is_multiple_of(2) {
            return Err(Error::content(format!("head_dim {hs} is odd; rotary embedding needs an even one")));
        }
        if self.o_bias && !self.qkv_bias || self.qk_norm && self.qkv_bias && !self.o_bias {
            return Err(Error::content(
                "a bias in only some of q, k, v and o fits no supported family (qwen2, qwen3, llama)",
            ));
        }
        // The table is made whole, so a wrong number of positions must not ask for more memory than the model itself.
        let parameters = parameter_shapes(self).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let positions = self.max_positions;
        if positions * hs > MOST_ROTARY.max(parameters) {
            return Err(Error::content(format!(
                "max_position_embeddings {positions} with head_dim {hs} needs a rotary table larger than all {parameters} weights; \
                 expected a number of positions like 32768"
            )));
        }
        Ok(())
    }

    /// The `model_type` of this shape: qwen2, qwen3 or llama.
    pub fn family(&self) -> &'static str {
        match (self.qk_norm, self.qkv_bias, self.o_bias) {
            (true, ..) => "qwen3",
            (false, true, false) => "qwen2",
            _ => "llama",
        }
    }

    /// Writes the text of a config.json that `from_json` and transformers read back as this model; `torch_dtype` is the
    /// type of the weights.
    pub fn to_json(&self, torch_dtype: &str) -> String {
        let family = self.family();
        let mut out = json!({
            "architectures": [format!("{}ForCausalLM", class_prefix(family))],
            "model_type": family,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads.nh,
            "num_key_value_heads": self.heads.nkv,
            "head_dim": self.heads.hs,
            "intermediate_size": self.mlp,
            "hidden_act": "silu",
            "rms_norm_eps": short(self.rms_eps),
            "rope_theta": self.rope.theta,
            "rope_scaling": self.rope.scaling.to_json(),
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.max_positions,
            "torch_dtype": torch_dtype,
        });
        if family != "qwen2" {
            out["attention_bias"] = self.o_bias.into();
        }
        format!("{out:#}\n")
    }
}

/// Prefix of the class names of a family in transformers.
fn class_prefix(family: &str) -> &'static str {
    match family {
        "qwen3" => "Qwen3",
        "qwen2" => "Qwen2",
        _ => "Llama",
    }
}

/// Checks the keys that hold names: the classes, the activation, the type of the weights.
fn check_names(keys: &Keys, family: &str) -> Result<()> {
    let class = class_prefix(family);
    for name in keys.texts("architectures")?.unwrap_or_default() {
        if !name.strip_prefix(class).is_some_and(|rest| matches!(rest, "ForCausalLM" | "Model")) {
            let valid = format!("{class}ForCausalLM and {class}Model for model_type {family:?}");
            return Err(keys.error("architectures", format!("{name:?} is not supported; valid are {valid}")));
        }
    }
    let activation = keys.text("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return Err(keys.error("hidden_act", format!("{activation:?} is not supported; valid is silu")));
    }
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = keys.text(key)?
            && !matches!(dtype.strip_prefix("torch.").unwrap_or(dtype), "float32" | "float16" | "bfloat16")
        {
            return Err(keys.error(key, format!("{dtype:?} is not supported; valid are float32, float16, bfloat16")));
        }
    }
    Ok(())
}

/// The shortest decimal of an f32, so that 1e-6 is not written as 9.999999974752427e-7.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x.into())
}

impl RopeScaling {
    fn to_json(&self) -> Value {
        match self {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_positions,
            }),
            RopeScaling::Yarn { factor, original_max_positions, attention_factor, beta_fast, beta_slow, truncate } => {
                json!({
                    "rope_type": "yarn",
                    "factor": factor,
                    "original_max_position_embeddings": original_max_positions,
                    "attention_factor": attention_factor,
                    "beta_fast": beta_fast,
                    "beta_slow": beta_slow,
                    "truncate": truncate,
                })
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
