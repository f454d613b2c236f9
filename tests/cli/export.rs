//! `export`: whole folders and GGUF files, adapters folded in, nothing half-written.

use crate::support::*;
use onestep::tensor::{DType, Tensor};
use onestep::weights::{WeightMap, converted, save};
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
    for (from, name) in [(out.join("model"), "model"), (checkpoint.join("model"), "checkpoint")] {
        let written = json_of(&from.join("config.json"));
        assert_eq!((&written["eos_token_id"], &written["torch_dtype"]), (&json!(2), &json!("float32")));
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
            assert!(from.join(file).exists(), "{} lacks {file}", from.display());
        }
        let to = folder.path().join(format!("{name}-again"));
        done(&["export", "--model", text(&from), "--out", text(&to), "--verify"]);
    }
    let weights = |name: &str| fs::read(folder.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("model-again"), weights("checkpoint-again"), "the last checkpoint rounded is the model");
}

#[test]
fn full_training_is_written_in_the_type_of_its_base_or_the_one_that_is_set() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), messages(folder.path()));
    let path = model.join("model.safetensors");
    let original = fs::read(&path).unwrap();
    let map = WeightMap::open_file(&path).unwrap();
    let names: Vec<String> = map.names().map(str::to_string).collect();
    let stored = |dtype: &dyn Fn(&str) -> DType| {
        let tensors = names.iter().map(|name| (name.clone(), converted(&map.get_any(name).unwrap(), dtype(name))));
        let tensors: Vec<(String, Tensor)> = tensors.collect();
        let list: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        save(&path, &list, None).unwrap();
    };
    let out = folder.path().join("run");
    let run = |more: &[&str]| {
        let _ = fs::remove_dir_all(&out);
        let named = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out), "epochs=1"];
        onestep(&[&named[..], more].concat())
    };
    let written = |more: &[&str]| {
        let ended = run(&[more, &["full=true", "learning_rate=1e-6"]].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let dtype = json_of(&out.join("model/config.json"))["torch_dtype"].as_str().unwrap().to_string();
        let types = WeightMap::open(&out.join("model")).unwrap().dtypes();
        (dtype, types.into_iter().map(|(dtype, _)| dtype).collect::<Vec<_>>(), ended.stderr)
    };
    for (base, more, dtype, name) in [
        (DType::F32, &[][..], DType::F32, "float32"),
        (DType::BF16, &[], DType::BF16, "bfloat16"),
        (DType::F16, &[], DType::F16, "float16"),
        (DType::BF16, &["save_dtype=f32"], DType::F32, "float32"),
        (DType::F32, &["sft.save_dtype=bf16"], DType::BF16, "bfloat16"),
    ] {
        stored(&|_| base);
        let (found, types, said) = written(more);
        assert_eq!((found.as_str(), types), (name, vec![dtype]), "{base:?} {more:?}");
        assert!(!said.contains("are stored in"), "{said}");
    }
    // What small steps change is there: not one element in a hundred is as it was.
    fs::write(&path, &original).unwrap();
    written(&[]);
    let (before, after) = (WeightMap::open(&model).unwrap(), WeightMap::open(&out.join("model")).unwrap());
    let [before, after] = [&before, &after].map(|map| map.get_any("model.layers.0.mlp.up_proj.weight").unwrap());
    let same = before.slice::<f32>().iter().zip(after.slice::<f32>()).filter(|(a, b)| a == b).count();
    assert!(100 * same < before.len(), "{same} of {} weights did not move", before.len());

    stored(&|name| if name.contains("norm") { DType::F32 } else { DType::BF16 });
    let (found, types, said) = written(&[]);
    assert_eq!((found.as_str(), types), ("bfloat16", vec![DType::BF16]));
    assert!(said.contains("its weights are stored in") && said.contains("BF16 is written"), "{said}");
    fs::remove_dir_all(&out).unwrap();
    let arguments = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    refused(folder.path(), &[&arguments[..], &["save_dtype=f16"]].concat(), &["sft.save_dtype without sft.full=true"]);
    refused(folder.path(), &[&arguments[..], &["full=true", "save_dtype=q8_0"]].concat(), &["save_dtype", "base"]);
}

#[test]
fn weights_that_a_type_cannot_hold_are_refused_by_name() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let path = model.join("model.safetensors");
    let map = WeightMap::open_file(&path).unwrap();
    let names: Vec<String> = map.names().map(str::to_string).collect();
    let mut tensors: Vec<Tensor> =
        names.iter().map(|name| converted(&map.get_any(name).unwrap(), DType::F32)).collect();
    let place = names.iter().position(|name| name == "model.norm.weight").unwrap();
    tensors[place].slice_mut::<f32>()[3] = 70_000.0;
    let list: Vec<(String, &Tensor)> = names.iter().cloned().zip(&tensors).collect();
    save(&path, &list, None).unwrap();
    let out = folder.path().join("out");
    let arguments = ["export", "--model", text(&model), "--out", text(&out), "--dtype"];
    refused(
        folder.path(),
        &[&arguments[..], &["f16"]].concat(),
        &["tensor model.norm.weight holds 7e4, which F16 cannot"],
    );
    done(&[&arguments[..], &["bf16"]].concat());
}

#[test]
fn the_ends_of_a_reply_in_training_come_first_in_what_is_exported() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let (adapter, _) = adapter(folder.path());
    // As of a base: its end is <|endoftext|>, its template closes replies with <|im_end|>.
    let path = model.join("tokenizer_config.json");
    let mut config = json_of(&path);
    config["eos_token"] = json!("<|endoftext|>");
    fs::write(&path, config.to_string()).unwrap();
    let tokenizer = json_of(&model.join("tokenizer.json"));
    let id = |text: &str| {
        let added = tokenizer["added_tokens"].as_array().unwrap();
        added.iter().find(|token| token["content"] == text).unwrap()["id"].clone()
    };
    let (end, closing) = (id("<|endoftext|>"), id("<|im_end|>"));
    let generation = json!({"eos_token_id": end, "max_new_tokens": 2048, "temperature": 0.6});
    fs::write(model.join("generation_config.json"), generation.to_string()).unwrap();
    let check = |folder: &Path| {
        let written = json_of(&folder.join("generation_config.json"));
        let expected = json!({"eos_token_id": [closing, end], "max_new_tokens": 2048, "temperature": 0.6});
        assert_eq!(written, expected, "{}", folder.display());
    };
    let out = folder.path().join("merged-again");
    done(&["export", "--model", text(&model), "--adapter", text(&adapter), "--merge", "--out", text(&out)]);
    check(&out);
    let (data, run) = (messages(folder.path()), folder.path().join("run"));
    done(&["sft", "--model", text(&model), "--data", text(&data), "--out", text(&run), "full=true", "epochs=1"]);
    check(&run.join("model"));
    let file = folder.path().join("m.gguf");
    done(&["export", "--model", text(&model), "--format", "gguf", "--out", text(&file)]);
    let bytes = fs::read(&file).unwrap();
    for key in ["eos", "eot"] {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
        assert_eq!(json!(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())), closing, "{key}");
    }
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
        (&["--shard-size", "many"], "'--shard-size <BYTES>': expected a number of bytes with a unit"),
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
