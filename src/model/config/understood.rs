//! Checks what each key of config.json means to this program: used, without effect on a forward pass, or refused unless
//! it has the one value that this program computes. Any other key is noted by name.

use super::keys::Keys;
use crate::error::Result;
use serde_json::{Value, json};

/// Keys that `ModelConfig` is read from.
const USED: [&str; 25] = [
    "architectures",
    "attention_bias",
    "dtype",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
];

/// Keys without effect on a forward pass: initialisation of the weights, labels, names and versions, token ids (the
/// tokenizer reads `eos_token_id`), and generation settings, which transformers ignores here too.
const WITHOUT_EFFECT: [&str; 68] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_name_or_path",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "length_penalty",
    "mask_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_name",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_last_hidden_states",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    "_experts_implementation",
];

/// Keys that change the arithmetic, each with the one value under which it is that of qwen2, qwen3 and llama. Null: the
/// key must be absent, false, 0 or empty.
fn only() -> [(&'static str, Value); 49] {
    [
        ("add_cross_attention", json!(false)),
        ("alibi", json!(false)),
        ("attention_chunk_size", json!(null)),
        ("attention_multiplier", json!(null)),
        ("attn_logit_softcapping", json!(null)),
        ("attn_temperature_tuning", json!(false)),
        ("chunk_size_feed_forward", json!(0)),
        ("clip_qkv", json!(null)),
        ("compression_config", json!(null)),
        ("cross_attention_hidden_size", json!(null)),
        ("dim_model_base", json!(null)),
        ("embedding_multiplier", json!(1)),
        ("final_logit_softcapping", json!(null)),
        ("first_k_dense_replace", json!(null)),
        ("hidden_activation", json!("silu")),
        ("is_causal", json!(true)),
        ("is_encoder_decoder", json!(false)),
        ("kv_lora_rank", json!(null)),
        ("lm_head_bias", json!(false)),
        ("logit_scale", json!(1)),
        ("logits_scaling", json!(1)),
        ("mlp_bias", json!(false)),
        ("mrope_section", json!(null)),
        ("n_routed_experts", json!(null)),
        ("no_rope_layer_interval", json!(null)),
        ("no_rope_layers", json!(null)),
        ("num_experts", json!(null)),
        ("num_local_experts", json!(null)),
        ("parallel_attn", json!(false)),
        ("per_layer_config", json!(null)),
        ("pruned_heads", json!({})),
        ("q_lora_rank", json!(null)),
        ("quantization", json!(null)),
        ("quantization_config", json!(null)),
        ("query_pre_attn_scalar", json!(null)),
        ("residual_multiplier", json!(1)),
        ("rope_interleave", json!(false)),
        ("rope_interleaved", json!(false)),
        ("rope_local_base_freq", json!(null)),
        ("rotary_dim", json!(null)),
        ("rotary_pct", json!(1)),
        ("scale_depth", json!(null)),
        ("scale_emb", json!(1)),
        ("sliding_window_pattern", json!(null)),
        ("text_config", json!(null)),
        ("tie_encoder_decoder", json!(false)),
        ("use_bidirectional_attention", json!(false)),
        ("use_parallel_residual", json!(false)),
        ("vision_config", json!(null)),
    ]
}

/// Dropout rates, which transformers applies in training and this program does not.
const DROPOUT: [&str; 9] = [
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
];

/// Checks every key of config.json. Returns a note for each that is not understood or ignored. Error: a key that
/// changes the arithmetic.
pub(super) fn check(keys: &Keys) -> Result<Vec<String>> {
    let mut only = only().to_vec();
    let normalises = keys.text("model_type")? == Some("qwen3");
    only.extend(["qk_layernorm", "use_qk_norm"].map(|key| (key, json!(normalises))));
    let mut notes = vec![];
    for (key, value) in keys.map.iter().filter(|(_, value)| !value.is_null()) {
        let name = key.as_str();
        if USED.contains(&name) || WITHOUT_EFFECT.contains(&name) {
            continue;
        }
        if let Some((_, valid)) = only.iter().find(|(known, _)| *known == name) {
            if !is_same(value, valid) {
                return Err(keys.error(name, refusal(value, valid)));
            }
        } else if DROPOUT.contains(&name) {
            if !is_same(value, &json!(0)) {
                notes.push(keys.note(name, format!("{value} has no effect: this program trains without dropout")));
            }
        } else if name == "auto_map" {
            notes.push(
                keys.note(name, "code in a model's folder is not run; the model is computed as its model_type says"),
            );
        } else {
            notes.push(keys.note(name, "this key is not understood and has no effect"));
        }
    }
    Ok(notes)
}

/// Whether `value` means the same as `valid`: 1 is 1.0, "swish" is another name of "silu", and where `valid` is null,
/// false, 0 or empty, any of these means the same.
fn is_same(value: &Value, valid: &Value) -> bool {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(_) => false,
    };
    match (value, valid) {
        _ if is_nothing(valid) => is_nothing(value),
        (Value::Number(value), Value::Number(valid)) => value.as_f64() == valid.as_f64(),
        (Value::String(text), Value::String(_)) => text == "silu" || text == "swish",
        _ => value == valid,
    }
}

fn refusal(value: &Value, valid: &Value) -> String {
    match valid {
        Value::Null => format!("found {value}, which is not supported; only a model without this key is"),
        valid => format!("found {value}, which is not supported; valid is {valid}"),
    }
}
