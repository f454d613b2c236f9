//! Tests published configurations, as they are and with single keys changed.

use super::*;

fn parse(text: &str) -> Result<ModelConfig> {
    ModelConfig::from_json(text, Path::new("m/config.json"))
}

/// Puts the keys of `change` into `base`; null removes a key.
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

/// A small Qwen3 as transformers 5 writes it.
const TWO: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "dtype": "bfloat16",
    "head_dim": 16, "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.2, "intermediate_size": 128,
    "max_position_embeddings": 8192, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": null, "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": null, "tie_word_embeddings": true,
    "transformers_version": "5.24.0", "use_cache": true, "use_sliding_window": false, "vocab_size": 300}"#;

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
    let scaling =
        RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    assert_eq!(llama.rope, RopeConfig { theta: 5e5, scaling });
}

#[test]
fn both_layouts_and_defaults_mean_the_same() {
    let new = r#"{"rope_theta": null, "torch_dtype": null, "dtype": "bfloat16",
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "head_dim": 64,
        "layer_types": null}"#;
    assert_eq!(parse(&changed(QWEN2, new)).unwrap(), parse(QWEN2).unwrap());
    let old = r#"{"rope_scaling": {"type": "linear", "factor": 2}}"#;
    let with_rope_type = r#"{"rope_scaling": {"rope_type": "linear", "factor": 2.0}}"#;
    let linear = parse(&changed(QWEN2, old)).unwrap();
    assert_eq!(linear, parse(&changed(QWEN2, with_rope_type)).unwrap());
    assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
    let llama2 =
        parse(&changed(LLAMA3, r#"{"rope_theta": null, "rope_scaling": null, "num_key_value_heads": null}"#)).unwrap();
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
        (QWEN2, r#"{"model_type": "gemma"}"#, r#"model_type: "gemma" is not supported; valid are qwen2, qwen3, llama"#),
        (QWEN2, r#"{"model_type": null}"#, "model_type: missing; expected qwen2, qwen3, llama"),
        (QWEN2, r#"{"hidden_act": "gelu"}"#, r#"hidden_act: "gelu" is not supported; valid is silu"#),
        (
            QWEN2,
            r#"{"use_sliding_window": true, "sliding_window": 4096}"#,
            "use_sliding_window: sliding-window attention is not supported (layers 21, 22, 23 would attend to the last 4096 tokens only)",
        ),
        (
            TWO,
            r#"{"layer_types": ["full_attention", "sliding_attention"]}"#,
            "layer_types: sliding-window attention is not supported (layer 1 would attend to a window only)",
        ),
        (
            QWEN2,
            r#"{"quantization_config": {"bits": 4}}"#,
            r#"quantization_config: found {"bits":4}, which is not supported"#,
        ),
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
            r#"rope_scaling.type: scaling "dynamic" is not supported; valid are default, linear, llama3, yarn"#,
        ),
        (QWEN2, r#"{"rope_parameters": {"rope_type": "linear"}}"#, "rope_parameters.factor: missing"),
        (
            LLAMA3,
            r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}"#,
            "rope_scaling.low_freq_factor: missing",
        ),
        (LLAMA3, r#"{"mlp_bias": true}"#, "mlp_bias: found true, which is not supported; valid is false"),
        (
            LLAMA3,
            r#"{"partial_rotary_factor": 0.5}"#,
            "partial_rotary_factor: found 0.5, which is not supported; valid is 1.0",
        ),
        (
            LLAMA3,
            r#"{"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}"#,
            "rope_scaling.partial_rotary_factor: found 0.5",
        ),
        (
            QWEN3,
            r#"{"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}}"#,
            "rope_parameters.full_attention: parameters for each layer type",
        ),
        (
            LLAMA3,
            r#"{"rope_scaling": {"rope_type": "default", "sliding_attention": {"rope_theta": 1e4}}}"#,
            "rope_scaling.sliding_attention: parameters for each",
        ),
        (
            QWEN3,
            r#"{"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}"#,
            r#"rope_scaling.rope_type: scaling "longrope""#,
        ),
        (
            QWEN3,
            r#"{"layer_types": ["full_attention"]}"#,
            "layer_types: 1 types; expected one for each of num_hidden_layers 28",
        ),
        (
            TWO,
            r#"{"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1}"#,
            "use_sliding_window: sliding-window attention is not supported (layer 1 would attend to the last 4 tokens only)",
        ),
        (
            TWO,
            r#"{"use_sliding_window": true, "max_window_layers": 0}"#,
            "(layers 0, 1 would attend to the last 4096 tokens only)",
        ),
        (
            TWO,
            r#"{"use_sliding_window": true, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}"#,
            "layer_types: sliding-window attention is not supported (layer 0",
        ),
        (
            TWO,
            r#"{"layer_types": ["full_attention", "chunked_attention"]}"#,
            "layer_types: \"chunked_attention\" is not supported",
        ),
        (
            QWEN2,
            r#"{"architectures": ["Qwen2ForSequenceClassification"]}"#,
            "architectures: \"Qwen2ForSequenceClassification\" is not supported; valid are Qwen2ForCausalLM",
        ),
        (LLAMA3, r#"{"architectures": ["Qwen2ForCausalLM"]}"#, "valid are LlamaForCausalLM"),
        (QWEN2, r#"{"is_causal": false}"#, "is_causal: found false, which is not supported; valid is true"),
        (LLAMA3, r#"{"logits_scaling": 8.0}"#, "logits_scaling: found 8.0, which is not supported; valid is 1"),
        (
            LLAMA3,
            r#"{"attn_logit_softcapping": 50.0}"#,
            "attn_logit_softcapping: found 50.0, which is not supported; only a model without this key is",
        ),
        (LLAMA3, r#"{"use_qk_norm": true}"#, "use_qk_norm: found true"),
        (QWEN3, r#"{"hidden_activation": "gelu_pytorch_tanh"}"#, "hidden_activation: found \"gelu_pytorch_tanh\""),
    ] {
        let error = parse(&changed(base, change)).unwrap_err().to_string();
        assert!(error.starts_with("m/config.json: "), "{error}");
        assert!(error.contains(expected), "{error} should contain {expected:?}");
    }
    assert!(parse("[]").unwrap_err().to_string().contains("expected a JSON object"));
}

#[test]
fn of_the_places_of_the_rotary_embedding_those_count_that_count_in_transformers() {
    let linear = |factor| RopeScaling::Linear { factor };
    let llama3 = |original_max_positions| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions,
    };
    let outer = r#", "original_max_position_embeddings": 64"#;
    let of_llama3 = r#""rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4"#;
    for (change, theta, scaling, notes) in [
        (
            r#""rope_scaling": {"rope_type": "linear", "factor": 4}"#.to_string(),
            1e4,
            linear(4.0),
            &["rope_parameters: it has no effect beside rope_scaling"][..],
        ),
        // The theta of rope_parameters has no effect either.
        (
            r#""rope_scaling": {"type": "linear", "factor": 4}, "rope_parameters": {"rope_theta": 5e5}"#.into(),
            1e4,
            linear(4.0),
            &["rope_parameters: it has no effect"],
        ),
        (
            r#""rope_theta": 7e5, "rope_scaling": {"type": "linear", "factor": 4}"#.into(),
            7e5,
            linear(4.0),
            &["rope_parameters: it"],
        ),
        (
            r#""rope_theta": 7e5, "rope_scaling": {"type": "linear", "factor": 4, "rope_theta": 3e4}"#.into(),
            3e4,
            linear(4.0),
            &["rope_parameters: it", "rope_theta: it has no effect: rope_scaling.rope_theta 30000 counts"],
        ),
        (r#""rope_scaling": {}"#.into(), 1e4, RopeScaling::None, &[]),
        (r#""rope_theta": 7e5"#.into(), 1e4, RopeScaling::None, &["rope_theta: it has no effect"]),
        (r#""rope_parameters": {"rope_type": "default"}, "rope_theta": 7e5"#.into(), 7e5, RopeScaling::None, &[]),
        (r#""rope_parameters": {}, "rope_theta": 7e5"#.into(), 7e5, RopeScaling::None, &[]),
        (
            r#""rope_parameters": {"type": "linear", "rope_type": "default", "factor": 3}"#.into(),
            1e4,
            RopeScaling::None,
            &[
                "rope_parameters.type: it has no effect",
                "rope_parameters.factor: it has no effect with rope_type \"default\"",
            ],
        ),
        (format!(r#""rope_parameters": {{{of_llama3}}}"#), 1e4, llama3(8192), &[]),
        (format!(r#""rope_parameters": {{{of_llama3}}}{outer}"#), 1e4, llama3(64), &[]),
        (
            format!(r#""rope_parameters": {{{of_llama3}, "original_max_position_embeddings": 32}}{outer}"#),
            1e4,
            llama3(64),
            &[
                "rope_parameters.original_max_position_embeddings: it has no effect: original_max_position_embeddings 64 outside",
            ],
        ),
        (outer[2..].into(), 1e4, RopeScaling::None, &["original_max_position_embeddings: it has no effect with"]),
    ] {
        let text = changed(TWO, &format!("{{{change}}}"));
        let (config, found) = ModelConfig::read(&text, Path::new("config.json")).unwrap();
        assert_eq!(config.rope, RopeConfig { theta, scaling }, "{change}");
        assert_eq!(found.len(), notes.len(), "{change}: {found:?}");
        for (found, part) in found.iter().zip(notes) {
            assert!(
                found.starts_with("config.json, line 1: ") && found.contains(part),
                "{found} should contain {part:?}"
            );
        }
    }
}

#[test]
fn a_window_that_no_layer_has_or_that_hides_nothing_is_full_attention() {
    for change in [
        r#"{"use_sliding_window": true, "sliding_window": 4}"#,
        r#"{"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 2}"#,
        r#"{"use_sliding_window": true, "max_window_layers": 0, "sliding_window": 8192}"#,
        r#"{"use_sliding_window": false, "sliding_window": 4, "max_window_layers": 0}"#,
        r#"{"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 0, "layer_types": ["full_attention", "full_attention"]}"#,
    ] {
        assert_eq!(parse(&changed(TWO, change)).unwrap(), parse(TWO).unwrap(), "{change}");
    }
    // Null is not the same as absent here: transformers uses a window of 4096 when the key is missing, and none when it
    // is null.
    let null = TWO
        .replace("\"use_sliding_window\": false", "\"use_sliding_window\": true")
        .replace("\"max_window_layers\": 28", "\"max_window_layers\": 0");
    assert_eq!(parse(&null).unwrap(), parse(TWO).unwrap());
    assert!(
        parse(&null.replace("\"sliding_window\": null,", "")).unwrap_err().to_string().contains("use_sliding_window: ")
    );
}

#[test]
fn keys_that_are_not_understood_are_noted_once_with_their_line() {
    let text = TWO.replace("\"use_cache\": true", "\"use_cache\": true,\n \"sliding_windows\": 4,\n \"attention_dropout\": 0.1,\n \"auto_map\": {\"AutoConfig\": \"x.Y\"}");
    let text = text
        .replacen("\"attention_dropout\": 0.0, ", "", 1)
        .replace("\"rope_type\": \"default\"", "\"rope_type\": \"default\", \"finetuned\": true");
    let (config, notes) = ModelConfig::read(&text, Path::new("m/config.json")).unwrap();
    assert_eq!(config, parse(TWO).unwrap());
    let first = text.lines().position(|line| line.contains("sliding_windows")).unwrap() + 1;
    let expected = [
        format!("m/config.json, line {first}: sliding_windows: this key is not understood"),
        format!("m/config.json, line {}: attention_dropout: 0.1 has no effect", first + 1),
        format!("m/config.json, line {}: auto_map: code in a model's folder is not run", first + 2),
        "rope_parameters.finetuned: it has no effect with rope_type \"default\"".into(),
    ];
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    for part in expected {
        assert!(notes.iter().any(|note| note.contains(&part)), "{notes:?} lack {part:?}");
    }
    for (published, name) in [(QWEN2, "QWEN2"), (QWEN3, "QWEN3"), (LLAMA3, "LLAMA3"), (TWO, "TWO")] {
        assert_eq!(ModelConfig::read(published, Path::new("c")).unwrap().1, Vec::<String>::new(), "{name}");
    }
    let prefixed =
        parse(&changed(TWO, r#"{"dtype": "torch.float16", "hidden_act": "swish", "quantization_config": {}}"#))
            .unwrap();
    assert_eq!(prefixed, config);
}
