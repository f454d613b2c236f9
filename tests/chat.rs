//! Conversations as text, as tokens and as loss masks, against transformers (tests/reference/chat.py): templates of Qwen2.5, Qwen3, Llama 3
//! and 3.2, ChatML, and one of everything that templates use; tokenizers with the pre-tokenizers of Qwen2 and Llama 3.
#![allow(clippy::unwrap_used)]

use onestep::chat::{CHATML, ChatTemplate, Masked};
use onestep::dataset::{Limit, load};
use onestep::message::Message;
use onestep::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}

fn reference() -> Value {
    serde_json::from_str(include_str!("reference/chat.json")).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::open(&folder().join("tokenizers").join(name)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Each case with its template, tokenizer and messages.
fn each_case(mut check: impl FnMut(&str, &Value, &ChatTemplate, &Tokenizer, &[Message])) {
    let reference = reference();
    let tokenizers = ["qwen", "llama3"].map(|name| (name, tokenizer(name)));
    let mut cases = 0;
    for template in reference["templates"].as_array().unwrap() {
        let name = text(&template["name"]);
        let (_, tokenizer) = tokenizers.iter().find(|(name, _)| *name == template["tokenizer"]).unwrap();
        let source = std::fs::read_to_string(folder().join(format!("templates/{name}.jinja"))).unwrap();
        let compiled =
            ChatTemplate::new(&source, tokenizer.bos().unwrap_or_default(), tokenizer.eos().unwrap_or_default());
        let compiled = compiled.unwrap();
        for case in reference["cases"].as_array().unwrap().iter().filter(|c| c["template"] == *name) {
            let label = text(&case["conversation"]);
            let messages: Vec<Message> = serde_json::from_value(reference["conversations"][label].clone()).unwrap();
            check(&format!("{name}, {label}"), case, &compiled, tokenizer, &messages);
            cases += 1;
        }
    }
    assert!(cases >= 90, "{cases}");
}

#[test]
fn conversations_render_and_tokenize_as_in_transformers() {
    let ours = ChatTemplate::new(CHATML, "", "").unwrap();
    each_case(|what, case, template, tokenizer, messages| {
        for (key, prompt) in [("whole", false), ("prompt", true)] {
            let found = template.render(messages, prompt).unwrap();
            assert_eq!(found, text(&case[key]["text"]), "{what}, {key}");
            assert_eq!(tokenizer.encode(&found).unwrap(), ids(&case[key]["ids"]), "{what}, {key}");
            if case["template"] == "chatml" {
                assert_eq!(ours.render(messages, prompt).unwrap(), found, "{what}: the built-in ChatML");
            }
        }
        assert_eq!(template.prompt_ids(messages, tokenizer).unwrap(), ids(&case["prompt"]["ids"]), "{what}");
    });
}

#[test]
fn masks_are_those_of_transformers() {
    let (mut compared, mut split) = (0, 0);
    each_case(|what, case, template, tokenizer, messages| {
        let Some(expected) = case["masked"].as_array() else { return };
        let stop = template.stop_ids(tokenizer).unwrap();
        let found = template.render_with_mask(&messages.to_vec().into(), tokenizer, &stop).unwrap();
        let sequence = |v: &Value| Masked {
            ids: ids(&v["ids"]),
            is_sampled: serde_json::from_value(v["is_sampled"].clone()).unwrap(),
        };
        assert_eq!(found, expected.iter().map(sequence).collect::<Vec<_>>(), "{what}");
        compared += 1;
        split += usize::from(found.len() > 1);
    });
    assert!(compared >= 60 && split >= 2, "{compared} compared, {split} in several sequences");
}

/// Items of data files, read as `sft` reads them: thoughts, tools, calls, template arguments.
#[test]
fn items_are_learnt_as_transformers_renders_them() {
    let reference = reference();
    let folder_of_data = tempfile::tempdir().unwrap();
    let path = folder_of_data.path().join("data.jsonl");
    let items = reference["items"].as_array().unwrap();
    for item in items {
        let (what, name) = (text(&item["label"]), text(&item["template"]));
        let tokenizer = tokenizer(text(&item["tokenizer"]));
        let source = std::fs::read_to_string(folder().join(format!("templates/{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, "", tokenizer.eos().unwrap()).unwrap();
        std::fs::write(&path, item["item"].to_string()).unwrap();
        let limit = Limit { max_tokens: 10_000, positions: 10_000 };
        let loaded = load(&path, &tokenizer, &template, limit).unwrap();
        assert!(loaded.notes.is_empty(), "{name}, {what}: {:?}", loaded.notes);
        let expected = item["masked"].as_array().unwrap();
        assert_eq!(loaded.examples.len(), expected.len(), "{name}, {what}");
        for (found, expected) in loaded.examples.iter().zip(expected) {
            let texts = || (tokenizer.decode(&found.ids), tokenizer.decode(&ids(&expected["ids"])));
            assert_eq!(found.ids, ids(&expected["ids"]), "{name}, {what}: {:?}", texts());
            assert_eq!(serde_json::json!(found.is_sampled), expected["is_sampled"], "{name}, {what}");
        }
    }
    assert!(items.len() >= 13);
}

#[test]
fn texts_tokenize_and_come_back_as_in_transformers() {
    for case in reference()["encodings"].as_array().unwrap() {
        let tokenizer = tokenizer(text(&case["tokenizer"]));
        let found = tokenizer.encode(text(&case["text"])).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{case}");
        assert_eq!(tokenizer.decode(&found), text(&case["decoded"]), "{case}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let special = prop::sample::select(vec!["<|im_end|>", "<|eot_id|>", "<think>", "\r\n", "  ", "'ll", "e\u{301}"]);
    let piece = prop_oneof!["\\PC{0,12}", "[ -~\\n\\t]{0,20}", special.prop_map(str::to_string)];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::with_cases(256) })]

    #[test]
    fn text_comes_back(text in any_text()) {
        thread_local!(static TOKENIZERS: [Tokenizer; 2] = ["llama3", "qwen"].map(tokenizer));
        TOKENIZERS.with(|[llama3, qwen]| {
            assert_eq!(llama3.decode(&llama3.encode(&text).unwrap()), text);
            // Qwen's normal form (NFC) comes back, and has the same ids as the text it is the form of.
            let ids = qwen.encode(&text).unwrap();
            let normal = qwen.decode(&ids);
            assert_eq!(qwen.encode(&normal).unwrap(), ids);
            assert_eq!(qwen.decode(&qwen.encode(&normal).unwrap()), normal);
            if text.is_ascii() {
                assert_eq!(normal, text);
            }
        });
    }
}
