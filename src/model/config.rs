//! The shape of a model, from and to the text of a Hugging Face config.json (Qwen2/Qwen2.5, Qwen3, Llama 2/3), checked field by
//! field. Opens no file.

use super::parameter_shapes;
use crate::backend::Heads;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Numbers of a rotary table that any model may have (P * HS; Llama 3.1 has as many), however small it is.
const MOST_ROTARY: usize = 1 << 24;

/// A decoder-only transformer with RMSNorm, rotary embedding, grouped-query attention and SwiGLU.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// V
    pub vocab: usize,
    /// C
    pub hidden: usize,
    /// L
    pub layers: usize,
    /// NH, NKV, HS
    pub heads: Heads,
    /// F
    pub mlp: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// The lm-head is the embedding.
    pub tied: bool,
    /// q, k and v have a bias.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias; only together with `qkv_bias`.
    pub o_bias: bool,
    /// Queries and keys are normalised per head (Qwen3).
    pub qk_norm: bool,
    /// P, positions a sequence may have.
    pub max_positions: usize,
}

/// Rotary embedding: base and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// The base of the wavelengths.
    pub theta: f64,
    /// How positions beyond the pre-trained ones are reached.
    pub scaling: RopeScaling,
}

/// Scalings of the rotary embedding; fields as in transformers.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// The stretch.
        factor: f64,
        /// Fewer turns than this in the original context: stretched.
        low_freq_factor: f64,
        /// More turns than this: kept.
        high_freq_factor: f64,
        /// Positions of the pre-training.
        original_max_positions: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// The stretch.
        factor: f64,
        /// Positions of the pre-training.
        original_max_positions: usize,
        /// Factor on cosines and sines (the paper's square root of 1/t).
        attention_factor: f64,
        /// Turns above which a dimension is kept.
        beta_fast: f64,
        /// Turns below which it is stretched whole.
        beta_slow: f64,
        /// Whether the ends of the ramp are whole dimensions.
        truncate: bool,
    },
}

const MODEL_TYPES: &str = "qwen2, qwen3, llama";
const ROPE_TYPES: &str = "default, linear, llama3, yarn";

/// The keys of one JSON object, with the file and the path in it for messages.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    file: &'a Path,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    fn error(&self, key: &str, what: impl std::fmt::Display) -> Error {
        Error::content(format!("{}: {}{key}: {what}", self.file.display(), self.prefix))
    }

    /// The value; null counts as absent, as in transformers.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn missing(&self, key: &str, expected: &str) -> Error {
        self.error(key, format!("missing; expected {expected}"))
    }

    fn opt_count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n >= 1 && n <= max as u64 => Ok(Some(n as usize)),
            _ => Err(self.error(key, format!("found {value}, expected a whole number from 1 to {max}"))),
        }
    }

    fn count(&self, key: &str, max: usize) -> Result<usize> {
        self.opt_count(key, max)?.ok_or_else(|| self.missing(key, &format!("a whole number from 1 to {max}")))
    }

    fn opt_positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            _ => Err(self.error(key, format!("found {value}, expected a positive number such as 10000.0"))),
        }
    }

    fn positive(&self, key: &str) -> Result<f64> {
        self.opt_positive(key)?.ok_or_else(|| self.missing(key, "a positive number"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(value) => Err(self.error(key, format!("found {value}, expected true or false"))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(value) => Err(self.error(key, format!("found {value}, expected a string"))),
        }
    }

    fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(value) => Err(self.error(key, format!("found {value}, expected an object"))),
        }
    }
}

impl ModelConfig {
    /// Reads the text of the config.json at `path` (named in messages only). Errors name the key, what was found, what is valid:
    /// a missing or wrong field, another model type, activation or rope scaling, sliding-window attention, quantised weights.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        let map: Map<String, Value> = serde_json::from_str(text)
            .map_err(|e| Error::content(format!("{}: {e}; expected a JSON object", path.display())))?;
        let keys = Keys { map: &map, file: path, prefix: "" };
        let family = keys.text("model_type")?.ok_or_else(|| keys.missing("model_type", MODEL_TYPES))?;
        if !matches!(family, "qwen2" | "qwen3" | "llama") {
            return Err(keys.error("model_type", format!("{family:?} is not supported; valid are {MODEL_TYPES}")));
        }
        check_unsupported(&keys)?;

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
        let attention_bias = keys.flag("attention_bias", false)?;
        let config = Self {
            vocab: keys.count("vocab_size", 1 << 24)?,
            hidden,
            layers: keys.count("num_hidden_layers", 1 << 10)?,
            heads: Heads { nh, nkv, hs },
            mlp: keys.count("intermediate_size", 1 << 20)?,
            rms_eps: keys.opt_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: read_rope(&keys, max_positions)?,
            tied: keys.flag("tie_word_embeddings", false)?,
            qkv_bias: family == "qwen2" || attention_bias,
            o_bias: family != "qwen2" && attention_bias,
            qk_norm: family == "qwen3",
            max_positions,
        };
        config.validate().map_err(|e| e.context(path.display()))?;
        Ok(config)
    }

    /// Errors: an extent of zero, NKV does not divide NH, HS is odd, a mix of biases and norms that no supported family has, or a rotary
    /// table far larger than the weights.
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
        // It is made whole, so a wrong number of positions must not ask for more than the model itself does.
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

    /// The text of a config.json that `from_json` and transformers read back as this model; `torch_dtype` is the weights' type.
    pub fn to_json(&self, torch_dtype: &str) -> String {
        let family = self.family();
        let architecture = match family {
            "qwen3" => "Qwen3ForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        let mut out = json!({
            "architectures": [architecture],
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

/// The shortest decimal of an f32, so that 1e-6 is not written as 9.999999974752427e-7.
fn short(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x.into())
}

fn check_unsupported(keys: &Keys) -> Result<()> {
    let activation = keys.text("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(keys.error("hidden_act", format!("{activation:?} is not supported; valid is silu")));
    }
    if keys.flag("mlp_bias", false)? {
        return Err(keys.error("mlp_bias", "true is not supported; valid is false"));
    }
    if keys.flag("use_sliding_window", false)? {
        return Err(keys.error("use_sliding_window", "sliding-window attention is not supported; valid is false"));
    }
    if let Some(Value::Array(types)) = keys.get("layer_types")
        && let Some(other) = types.iter().find(|t| t.as_str() != Some("full_attention"))
    {
        return Err(keys.error("layer_types", format!("{other} is not supported; valid is \"full_attention\"")));
    }
    if keys.get("quantization_config").is_some() {
        return Err(
            keys.error("quantization_config", "quantised weights are not supported; take the f32, f16 or bf16 model")
        );
    }
    if keys.opt_positive("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
        return Err(keys.error("partial_rotary_factor", "not supported; valid is 1.0"));
    }
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = keys.text(key)?
            && !matches!(dtype, "float32" | "float16" | "bfloat16")
        {
            return Err(keys.error(key, format!("{dtype:?} is not supported; valid are float32, float16, bfloat16")));
        }
    }
    Ok(())
}

fn read_theta(keys: &Keys) -> Result<Option<f64>> {
    match keys.opt_positive("rope_theta")? {
        Some(theta) if theta <= 1.0 => Err(keys.error("rope_theta", format!("found {theta}, expected more than 1"))),
        theta => Ok(theta),
    }
}

/// Both layouts: rope_theta beside rope_scaling {type or rope_type}, and rope_parameters with everything in it.
fn read_rope(keys: &Keys, max_positions: usize) -> Result<RopeConfig> {
    let name = if keys.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let outer_theta = read_theta(keys)?;
    let Some(map) = keys.object(name)? else {
        return Ok(RopeConfig { theta: outer_theta.unwrap_or(10_000.0), scaling: RopeScaling::None });
    };
    let prefix = format!("{name}.");
    let rope = Keys { map, file: keys.file, prefix: &prefix };
    let theta = read_theta(&rope)?.or(outer_theta).unwrap_or(10_000.0);
    if rope.opt_positive("partial_rotary_factor")?.is_some_and(|x| x != 1.0) {
        return Err(rope.error("partial_rotary_factor", "not supported; valid is 1.0"));
    }
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let original = rope.opt_count("original_max_position_embeddings", 1 << 24)?;
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: rope.positive("factor")? },
        "llama3" => {
            let (low, high) = (rope.positive("low_freq_factor")?, rope.positive("high_freq_factor")?);
            if low >= high {
                return Err(rope.error("low_freq_factor", format!("{low} is not below high_freq_factor {high}")));
            }
            RopeScaling::Llama3 {
                factor: rope.positive("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original
                    .ok_or_else(|| rope.missing("original_max_position_embeddings", "a whole number such as 8192"))?,
            }
        }
        "yarn" => {
            let factor = rope.positive("factor")?;
            let mscale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let derived = match (rope.opt_positive("mscale")?, rope.opt_positive("mscale_all_dim")?) {
                (Some(part), Some(all)) => mscale(part) / mscale(all),
                _ => mscale(1.0),
            };
            RopeScaling::Yarn {
                factor,
                original_max_positions: original.unwrap_or(max_positions),
                attention_factor: rope.opt_positive("attention_factor")?.unwrap_or(derived),
                beta_fast: rope.opt_positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.opt_positive("beta_slow")?.unwrap_or(1.0),
                truncate: rope.flag("truncate", true)?,
            }
        }
        other => {
            return Err(rope.error("rope_type", format!("scaling {other:?} is not supported; valid are {ROPE_TYPES}")));
        }
    };
    Ok(RopeConfig { theta, scaling })
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
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelConfig> {
        ModelConfig::from_json(text, Path::new("m/config.json"))
    }

    /// `base` with the keys of `change` put in (null takes one away).
    fn changed(base: &str, change: &str) -> String {
        let mut map: Map<String, Value> = serde_json::from_str(base).unwrap();
        map.extend(serde_json::from_str::<Map<String, Value>>(change).unwrap());
        map.retain(|_, value| !value.is_null());
        serde_json::to_string(&map).unwrap()
    }

    /// As published for Qwen2.5-0.5B-Instruct.
    const QWEN2: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
        "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
        "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#;
    /// As published for Qwen3-0.6B.
    const QWEN3: &str = r#"{"attention_bias": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "model_type": "qwen3", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
        "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 151936}"#;
    /// As published for Llama-3.2-1B.
    const LLAMA3: &str = r#"{"attention_bias": false, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 128256}"#;

    #[test]
    fn published_configurations_are_read() {
        let qwen2 = parse(QWEN2).unwrap();
        assert_eq!((qwen2.vocab, qwen2.hidden, qwen2.layers, qwen2.mlp), (151_936, 896, 24, 4864));
        assert_eq!(qwen2.heads, Heads { nh: 14, nkv: 2, hs: 64 });
        assert!(qwen2.tied && qwen2.qkv_bias && !qwen2.o_bias && !qwen2.qk_norm);
        assert_eq!((qwen2.rms_eps, qwen2.max_positions), (1e-6, 32_768));
        assert_eq!(qwen2.rope, RopeConfig { theta: 1e6, scaling: RopeScaling::None });
        let qwen3 = parse(QWEN3).unwrap();
        assert_eq!(qwen3.heads, Heads { nh: 16, nkv: 8, hs: 128 });
        assert!(qwen3.qk_norm && !qwen3.qkv_bias && !qwen3.o_bias);
        let llama = parse(LLAMA3).unwrap();
        assert!(!llama.qk_norm && !llama.qkv_bias && llama.rms_eps == 1e-5);
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        assert_eq!(llama.rope, RopeConfig { theta: 5e5, scaling });
    }

    #[test]
    fn both_layouts_and_defaults_mean_the_same() {
        let new = r#"{"rope_theta": null, "torch_dtype": null, "dtype": "bfloat16",
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "head_dim": 64,
            "layer_types": ["full_attention"]}"#;
        assert_eq!(parse(&changed(QWEN2, new)).unwrap(), parse(QWEN2).unwrap());
        let old = r#"{"rope_scaling": {"type": "linear", "factor": 2}}"#;
        let with_rope_type = r#"{"rope_scaling": {"rope_type": "linear", "factor": 2.0}}"#;
        let linear = parse(&changed(QWEN2, old)).unwrap();
        assert_eq!(linear, parse(&changed(QWEN2, with_rope_type)).unwrap());
        assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
        let llama2 =
            parse(&changed(LLAMA3, r#"{"rope_theta": null, "rope_scaling": null, "num_key_value_heads": null}"#))
                .unwrap();
        assert_eq!((llama2.rope.theta, llama2.heads.nkv), (10_000.0, 32));
        assert_eq!(parse(&changed(QWEN3, r#"{"head_dim": null}"#)).unwrap().heads.hs, 128);
        let biased = parse(&changed(QWEN3, r#"{"attention_bias": true}"#)).unwrap();
        assert!(biased.qkv_bias && biased.o_bias);
        assert_eq!(parse(&changed(QWEN2, r#"{"attention_bias": true}"#)).unwrap(), parse(QWEN2).unwrap());
    }

    #[test]
    fn yarn_derives_its_attention_factor() {
        let yarn = |more: &str| {
            let text = format!(r#"{{"rope_scaling": {{"type": "yarn", "factor": 4.0 {more}}}}}"#);
            parse(&changed(QWEN2, &text)).unwrap().rope.scaling
        };
        let expected = RopeScaling::Yarn {
            factor: 4.0,
            original_max_positions: 32_768,
            attention_factor: 0.1 * 4f64.ln() + 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
        };
        assert_eq!(yarn(""), expected);
        let RopeScaling::Yarn { attention_factor, original_max_positions, .. } =
            yarn(r#", "original_max_position_embeddings": 8192, "mscale": 0.5, "mscale_all_dim": 2.0"#)
        else {
            panic!("not yarn")
        };
        assert_eq!(original_max_positions, 8192);
        assert_eq!(attention_factor, (0.05 * 4f64.ln() + 1.0) / (0.2 * 4f64.ln() + 1.0));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let yarn = r#"{"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": false}}"#;
        let linear = r#"{"rope_scaling": {"type": "linear", "factor": 2.5}, "tie_word_embeddings": false}"#;
        let biased = r#"{"attention_bias": true}"#;
        for text in [
            QWEN2.into(),
            QWEN3.into(),
            LLAMA3.into(),
            changed(QWEN2, yarn),
            changed(QWEN2, linear),
            changed(QWEN3, biased),
            changed(LLAMA3, biased),
        ] {
            let config = parse(&text).unwrap();
            assert_eq!(parse(&config.to_json("float32")).unwrap(), config);
        }
    }

    #[test]
    fn wrong_fields_are_named_with_what_is_valid() {
        for (base, change, expected) in [
            (
                QWEN2,
                r#"{"model_type": "gemma"}"#,
                r#"model_type: "gemma" is not supported; valid are qwen2, qwen3, llama"#,
            ),
            (QWEN2, r#"{"model_type": null}"#, "model_type: missing; expected qwen2, qwen3, llama"),
            (QWEN2, r#"{"hidden_act": "gelu"}"#, r#"hidden_act: "gelu" is not supported; valid is silu"#),
            (QWEN2, r#"{"use_sliding_window": true}"#, "use_sliding_window: sliding-window attention is not supported"),
            (
                QWEN2,
                r#"{"layer_types": ["full_attention", "sliding_attention"]}"#,
                "layer_types: \"sliding_attention\"",
            ),
            (QWEN2, r#"{"quantization_config": {"bits": 4}}"#, "quantization_config: quantised weights"),
            (QWEN2, r#"{"torch_dtype": "float8"}"#, r#"torch_dtype: "float8" is not supported"#),
            (QWEN2, r#"{"dtype": "int8"}"#, r#"dtype: "int8" is not supported"#),
            (QWEN2, r#"{"vocab_size": null}"#, "vocab_size: missing; expected a whole number"),
            (QWEN2, r#"{"hidden_size": 0}"#, "hidden_size: found 0, expected a whole number from 1"),
            (QWEN2, r#"{"hidden_size": "896"}"#, "hidden_size: found \"896\", expected a whole number"),
            (QWEN2, r#"{"num_hidden_layers": 2.5}"#, "num_hidden_layers: found 2.5, expected"),
            (QWEN2, r#"{"num_hidden_layers": 99999999}"#, "expected a whole number from 1 to 1024"),
            (QWEN2, r#"{"hidden_size": 897}"#, "head_dim: missing, and 14 heads do not divide hidden_size 897"),
            (QWEN2, r#"{"num_key_value_heads": 3}"#, "num_key_value_heads 3 does not divide num_attention_heads 14"),
            (QWEN2, r#"{"head_dim": 63}"#, "head_dim 63 is odd"),
            (QWEN2, r#"{"rms_norm_eps": -1}"#, "rms_norm_eps: found -1, expected a positive number"),
            (QWEN2, r#"{"tie_word_embeddings": 1}"#, "tie_word_embeddings: found 1, expected true or false"),
            (QWEN2, r#"{"rope_theta": 1.0}"#, "rope_theta: found 1, expected more than 1"),
            (QWEN2, r#"{"rope_scaling": "yarn"}"#, "rope_scaling: found \"yarn\", expected an object"),
            (
                QWEN2,
                r#"{"rope_scaling": {"type": "dynamic", "factor": 2.0}}"#,
                r#"rope_scaling.rope_type: scaling "dynamic" is not supported; valid are default, linear, llama3, yarn"#,
            ),
            (QWEN2, r#"{"rope_parameters": {"rope_type": "linear"}}"#, "rope_parameters.factor: missing"),
            (
                LLAMA3,
                r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}"#,
                "rope_scaling.low_freq_factor: missing",
            ),
            (LLAMA3, r#"{"mlp_bias": true}"#, "mlp_bias: true is not supported"),
            (LLAMA3, r#"{"partial_rotary_factor": 0.5}"#, "partial_rotary_factor: not supported"),
        ] {
            let error = parse(&changed(base, change)).unwrap_err().to_string();
            assert!(error.starts_with("m/config.json: "), "{error}");
            assert!(error.contains(expected), "{error} should contain {expected:?}");
        }
        assert!(parse("[]").unwrap_err().to_string().contains("expected a JSON object"));
    }
}
