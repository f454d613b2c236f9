//! `export`: whole folders and GGUF files, adapters folded in, nothing half-written.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::tempdir;

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn scored(folder: &Path, model: &Path, more: &[&str]) -> String {
    let (input, output) = (folder.join("in.jsonl"), folder.join("out.jsonl"));
    fs::write(&input, format!("{}\n", json!({"ids": [5, 9, 300, 7, 7, 2, 41]}))).unwrap();
    let arguments = ["score", "--model", text(model), "--input", text(&input), "--output", text(&output)];
    done(&[&arguments[..], more].concat());
    fs::read_to_string(output).unwrap()
}

#[test]
fn a_merged_folder_is_whole_and_says_what_base_and_adapter_say() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let (adapter, merged) = adapter(folder.path());
    let mut config = tiny_config();
    (config["bos_token_id"], config["eos_token_id"], config["initializer_range"]) =
        (json!(3), json!([2, 4]), json!(0.02));
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let arguments = |out: &Path, more: &[&str]| {
        let named =
            ["export", "--model", text(&model), "--adapter", text(&adapter), "--merge", "--verify", "--out", text(out)];
        done(&[&named[..], more].concat())
    };
    let out = |name: &str| folder.path().join(name);
    let said = arguments(&out("f32"), &["--dtype", "f32"]);
    assert!(said.contains("1 weight files of F32") && said.contains("verified: every tensor"), "{said}");
    let files =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names(&out("f32")), files);
    let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(weights(&out("f32")), weights(&merged), "folding into f32 weights rounds nothing else");

    arguments(&out("bf16"), &["--shard-size", "15kB"]);
    let index = json_of(&out("bf16").join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    let shards: std::collections::BTreeSet<&str> = map.values().map(|v| v.as_str().unwrap()).collect();
    assert!(shards.len() > 2);
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!(*shard, format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len()));
        let bytes = fs::metadata(out("bf16").join(shard)).unwrap().len();
        let alone = map.values().filter(|name| *name == shard).count() == 1;
        assert!(alone || bytes <= 15_000 + 4_096, "{shard} has {bytes} bytes with its header");
    }
    let mut written = json_of(&out("bf16").join("config.json"));
    assert_eq!(written["torch_dtype"], "bfloat16");
    written["torch_dtype"] = config["torch_dtype"].clone();
    assert_eq!(written, config, "every other key is carried over");
    assert_eq!(json_of(&out("bf16").join("generation_config.json"))["eos_token_id"], json!([2, 4]));

    // One file and many shards are the same model, and what is exported exports again to the same bytes.
    let single = out("single");
    arguments(&single, &[]);
    assert_eq!(scored(folder.path(), &single, &[]), scored(folder.path(), &out("bf16"), &[]));
    done(&["export", "--model", text(&out("bf16")), "--out", text(&out("again")), "--verify"]);
    assert_eq!(weights(&out("again")), weights(&single));
    assert_ne!(
        scored(folder.path(), &single, &[]),
        scored(folder.path(), &model, &[]),
        "the adapter changed something"
    );
}

#[test]
fn full_training_is_exported_from_its_model_and_its_checkpoints() {
    let folder = tempdir().unwrap();
    let (model, data, out) = (model(folder.path()), messages(folder.path()), folder.path().join("run"));
    let mut config = tiny_config();
    config["eos_token_id"] = json!(2);
    fs::write(model.join("config.json"), config.to_string()).unwrap();
    let named = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out), "full=true", "epochs=1"];
    done(&named);
    let checkpoint = fs::read_dir(out.join("checkpoints/sft")).unwrap().next().unwrap().unwrap().path();
    for (from, dtype) in [(out.join("model"), "bfloat16"), (checkpoint.join("model"), "float32")] {
        let written = json_of(&from.join("config.json"));
        assert_eq!((&written["eos_token_id"], &written["torch_dtype"]), (&json!(2), &json!(dtype)));
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert!(from.join(file).exists(), "{} lacks {file}", from.display());
        }
        let to = folder.path().join(dtype);
        done(&["export", "--model", text(&from), "--out", text(&to), "--verify"]);
    }
    let weights = |name: &str| fs::read(folder.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("bfloat16"), weights("float32"), "the last checkpoint rounded is the model");
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_left() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let (adapter, _) = adapter(folder.path());
    let (out, taken) = (folder.path().join("out"), folder.path().join("taken"));
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("precious"), "x").unwrap();
    let arguments = ["export", "--model", text(&model), "--out", text(&out)];
    for (more, part) in [
        (&["--adapter", text(&adapter)][..], "add --merge"),
        (&["--merge"], "--merge without --adapter"),
        (&["--dtype", "q8_0"], "add --format gguf"),
        (&["--dtype", "int4"], "q8_0"),
        (&["--shard-size", "many"], "--shard-size many: expected a number with a unit"),
        (&["--format", "gguf", "--verify"], "--verify is for --format hf"),
        (&["--format", "gguf", "--shard-size", "1GB"], "--shard-size is for --format hf"),
        (&["--adapter", "/nowhere", "--merge"], "/nowhere"),
    ] {
        refused(folder.path(), &[&arguments[..], more].concat(), &[part]);
    }
    let there = ["export", "--model", text(&model), "--out", text(&taken)];
    refused(folder.path(), &there, &[text(&taken), "is there already"]);
    // As on a full disk, in the middle of the weights.
    for more in [&[][..], &["--format", "gguf"]] {
        let before = tree(folder.path());
        let ended = onestep_on_full_disk(40, &[&arguments[..], more].concat());
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert_eq!(tree(folder.path()), before);
    }
    let tokenizer = model.join("tokenizer.json");
    let mut unigram = json_of(&tokenizer);
    unigram["decoder"] = json!({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true});
    fs::write(&tokenizer, unigram.to_string()).unwrap();
    let gguf = [&arguments[..], &["--format", "gguf"]].concat();
    refused(folder.path(), &gguf, &[text(&tokenizer), "GGUF export takes byte-level BPE"]);
}
