//! The files of a small byte-level tokenizer, for tests.

use serde_json::{Value, json};
use std::path::Path;

/// A byte-level tokenizer: 256 bytes, then `<|im_start|>` 256, `<|im_end|>` 257 and what else is asked for.
pub fn byte_tokenizer_files(dir: &Path, extra: &[&str], config: &Value) {
    // The GPT-2 alphabet: printable bytes stand for themselves, the others for U+0100 and up.
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut shifted = 0;
    let mut vocab = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) {
            byte
        } else {
            shifted += 1;
            255 + shifted
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let specials = ["<|im_start|>", "<|im_end|>"].iter().chain(extra).enumerate();
    let added: Vec<Value> = specials
        .map(|(i, content)| {
            json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "vocab": vocab, "merges": []}
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
}
