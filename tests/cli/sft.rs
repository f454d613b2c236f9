//! `sft`: what it reads and writes, that it learns, and that neither threads nor interruptions change a bit of the result.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

const SETTINGS: [&str; 6] = [
    "learning_rate=1e-2",
    "batch_tokens=64",
    "micro_tokens=32",
    "validation_share=0.25",
    "lora.rank=4",
    "run.checkpoint_every=1000",
];

fn arguments<'a>(model: &'a Path, data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let named = ["sft", "--model", text(model), "--data", text(data), "--out", text(out), "--seed", "7"];
    [&named, &SETTINGS[..], more].concat()
}

fn weights(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

fn losses(out: &Path, key: &str) -> Vec<f64> {
    lines(&out.join("metrics.jsonl")).iter().filter_map(|r| r[key].as_f64()).collect()
}

/// `conversations` as one ShareGPT array.
fn sharegpt(folder: &Path) -> PathBuf {
    let item = |(question, answer): (String, String)| json!({"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]});
    let path = folder.join("sharegpt.json");
    fs::write(&path, Value::from_iter(conversations().into_iter().map(item)).to_string()).unwrap();
    path
}

#[test]
fn it_learns_from_both_formats_and_writes_a_peft_adapter() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let out = |name: &str| folder.path().join(name);
    let (messages, sharegpt) = (messages(folder.path()), sharegpt(folder.path()));
    done(&arguments(&model, &messages, &out("a"), &["epochs=40"]));
    done(&arguments(&model, &sharegpt, &out("b"), &["epochs=40"]));
    assert_eq!(weights(&out("a")), weights(&out("b")), "the same conversations in another format");

    let loss = losses(&out("a"), "loss");
    assert!(loss[loss.len() - 1] < 0.7 * loss[0], "{loss:?}");
    assert_eq!(losses(&out("a"), "validation_loss").len(), 40);
    for record in lines(&out("a/metrics.jsonl")) {
        assert_eq!(record["phase"], "sft");
        assert!(record["step"].is_u64());
    }
    let config: Value =
        serde_json::from_str(&fs::read_to_string(out("a/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["peft_type"], &config["r"]), (&json!("LORA"), &json!(4)));
    assert_eq!(config["base_model_name_or_path"], text(&model));
    let resolved = fs::read_to_string(out("a/config.toml")).unwrap();
    assert!(resolved.contains("seed = 7") && resolved.contains("batch_tokens = 64"), "{resolved}");

    // The settings written beside the results make the same run.
    let (again, config) = (out("c"), out("a/config.toml"));
    let named = ["sft", "--model", text(&model), "--data", text(&messages), "--out", text(&again)];
    done(&[&named[..], &["--config", text(&config)]].concat());
    assert_eq!(weights(&again), weights(&out("a")));
    // Another seed does not.
    done(&arguments(&model, &messages, &out("d"), &["epochs=40", "run.seed=7"]));
    done(&[&named[..5], &["--out", text(&out("e")), "--config", text(&config), "--seed", "8"]].concat());
    assert_eq!(weights(&out("d")), weights(&out("a")));
    assert_ne!(weights(&out("e")), weights(&out("a")));
}

#[test]
fn full_training_writes_a_model_folder_that_speaks() {
    let folder = tempdir().unwrap();
    let (model, data, out) = (model(folder.path()), messages(folder.path()), folder.path().join("run"));
    // Without lora.rank, which would be refused: there is no adapter.
    let full = arguments(&model, &data, &out, &["epochs=20", "full=true"]);
    done(&full.into_iter().filter(|word| *word != "lora.rank=4").collect::<Vec<_>>());
    let loss = losses(&out, "loss");
    assert!(loss[loss.len() - 1] < 0.5 * loss[0], "{loss:?}");
    let trained = out.join("model");
    done(&["generate", "--model", text(&trained), "--prompt", "What is data?", "max_tokens=4"]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), messages(folder.path()));
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    done(&arguments(&model, &data, &one, &["epochs=3", "run.threads=1"]));
    done(&arguments(&model, &data, &two, &["epochs=3", "run.threads=2"]));
    assert_eq!(weights(&one), weights(&two));
    assert_eq!(losses(&one, "loss"), losses(&two, "loss"));
}

/// Ctrl-C leaves a checkpoint where none was due; a kill leaves those that were. Both go on to the same end.
#[test]
fn stopped_and_resumed_equals_never_stopped() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), messages(folder.path()));
    let out = |name: &str| folder.path().join(name);
    let log = |name: &str| fs::read_to_string(out(name).join("metrics.jsonl")).unwrap();
    let (whole, interrupted, killed) = (out("whole"), out("interrupted"), out("killed"));
    done(&arguments(&model, &data, &whole, &["epochs=200"]));

    let stopped = arguments(&model, &data, &interrupted, &["epochs=200"]);
    let code = start(&stopped).signalled("INT", || line_count(&interrupted.join("metrics.jsonl")) >= 3);
    assert_eq!(code, Some(130));
    assert!(!interrupted.join("adapter").exists());
    let checkpoints: Vec<_> = fs::read_dir(interrupted.join("checkpoints/sft")).unwrap().collect();
    assert_eq!(checkpoints.len(), 1);
    assert!(log("interrupted").len() < log("whole").len() / 2);
    done(&[&stopped[..], &["--resume"]].concat());
    assert_eq!(weights(&interrupted), weights(&whole));
    assert_eq!(log("interrupted"), log("whole"));

    let stopped = arguments(&model, &data, &killed, &["epochs=200", "run.checkpoint_every=5"]);
    let reached = || line_count(&killed.join("metrics.jsonl")) >= 13;
    assert_eq!(start(&stopped).signalled("KILL", reached), None);
    done(&[&stopped[..], &["--resume"]].concat());
    assert_eq!(weights(&killed), weights(&whole));
    assert_eq!(log("killed"), log("whole"));
    // run.keep = 2, and nothing half-made.
    assert_eq!(fs::read_dir(killed.join("checkpoints/sft")).unwrap().count(), 2);
}
