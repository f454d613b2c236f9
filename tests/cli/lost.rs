//! Numbers that are not finite, damaged checkpoints, holes in the log, folders in use: told by name, never published.

use crate::support::*;
use onestep::backend::cpu::Cpu;
use onestep::checkpoint::{load_adapter, load_model, read_config, save_adapter, save_model};
use onestep::tensor::DType;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

struct Stage {
    folder: TempDir,
    model: PathBuf,
    data: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let (model, data) = (model(folder.path()), messages(folder.path()));
        Self { folder, model, data }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sft(&self, out: &Path, more: &[&str]) -> Ended {
        let named = ["sft", "--model", text(&self.model), "--data", text(&self.data), "--out", text(out)];
        let settings = ["batch_tokens=64", "micro_tokens=32", "run.checkpoint_every=2", "run.keep=3", "lora.rank=4"];
        onestep(&[&named[..], &settings, more].concat())
    }

    /// Puts `value` into a weight of the base.
    fn poison(&self, name: &str, value: f32) {
        let (mut model, _) = load_model(&Cpu, &self.model).unwrap();
        model = model.widen(&Cpu).unwrap();
        let place = model.names.iter().position(|other| other == name).unwrap();
        model.weights[place].slice_mut::<f32>()[3] = value;
        save_model(&self.model, &model, DType::F32).unwrap();
    }
}

fn report(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join("failed_step.json")).unwrap()).unwrap()
}

#[test]
fn a_base_with_a_broken_weight_is_named_and_nothing_published() {
    for value in [f32::NAN, f32::INFINITY] {
        let stage = Stage::new();
        stage.poison("model.layers.1.mlp.up_proj.weight", value);
        let out = stage.out("run");
        let ended = stage.sft(&out, &[]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for part in [
            "sft step 1: ",
            "the base itself is broken",
            "model.layers.1.mlp.up_proj.weight holds 1 of",
            "failed_step.json",
        ] {
            assert!(ended.stderr.contains(part), "{part:?}: {ended:?}");
        }
        assert!(!out.join("adapter").exists() && !out.join("checkpoints").exists());
        let (model, exported) = (text(&stage.model), stage.out("exported"));
        for format in ["hf", "gguf"] {
            let export = ["export", "--model", model, "--format", format, "--out", text(&exported)];
            refused(stage.folder.path(), &export, &["model.layers.1.mlp.up_proj.weight holds 1 of"]);
        }
        let examples = report(&out)["batch"]["examples"].as_array().unwrap().clone();
        assert!(
            !examples.is_empty() && examples.iter().all(|e| e["source"].as_str().unwrap().contains("messages.jsonl:"))
        );
    }
}

#[test]
fn an_adapter_with_a_broken_weight_is_refused_by_every_verb() {
    let stage = Stage::new();
    let (dir, _) = adapter(stage.folder.path());
    let mut broken = load_adapter(&Cpu, &read_config(&stage.model).unwrap(), &dir).unwrap();
    let name = broken.names[5].clone();
    broken.tensors[5].slice_mut::<f32>()[0] = f32::NAN;
    save_adapter(&dir, &broken, "model").unwrap();
    let (model, dir, data) = (text(&stage.model), text(&dir), text(&stage.data));
    let out = stage.out("run");
    for arguments in [
        &["sft", "--model", model, "--adapter", dir, "--data", data, "--out", text(&out)][..],
        &["generate", "--model", model, "--adapter", dir, "--prompt", "x"],
        &["export", "--model", model, "--adapter", dir, "--merge", "--out", text(&out)],
    ] {
        refused(stage.folder.path(), arguments, &[&name, "not finite"]);
    }
}

#[test]
fn a_rate_that_breaks_what_is_trained_is_told_from_the_rest() {
    let stage = Stage::new();
    let out = stage.out("run");
    // A decay that multiplies every parameter by -1e12 a step: activations overflow first, or the parameters.
    let ended = stage.sft(&out, &["sft.learning_rate=1e9", "sft.weight_decay=1000", "epochs=9"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for part in ["the adapter", "_proj.lora_", "the learning rate ", "is too high"] {
        assert!(ended.stderr.contains(part), "{part:?}: {ended:?}");
    }
    assert!(!out.join("adapter").exists() && out.join("failed_step.json").exists());
    // A folder with that file is still a run's: a new run renames it.
    let again = stage.sft(&out, &[]);
    assert_eq!(again.code, Some(0), "{again:?}");
    assert!(!out.join("failed_step.json").exists());
}

#[test]
fn training_that_falls_apart_is_told_and_ended() {
    let stage = Stage::new();
    let out = stage.out("run");
    let wild = ["sft.learning_rate=1e8", "epochs=40"];
    let ended = stage.sft(&out, &wild);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("training diverges: ") && ended.stderr.contains("16 steps in a row"), "{ended:?}");
    assert!(!out.join("adapter").exists());
    // Resumed, it ends at the same step again: what was seen before counts.
    let again = stage.sft(&out, &[&wild[..], &["--resume"]].concat());
    assert_eq!(again.code, Some(1), "{again:?}");
    assert_eq!(again.stderr.lines().last(), ended.stderr.lines().last());
    let ended = stage.sft(&out, &[&wild[..], &["run.divergence_patience=0"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("warning: sft step ") && ended.stderr.contains("training diverges: "), "{ended:?}");
}

#[test]
fn a_damaged_checkpoint_costs_its_steps_and_no_bit() {
    let stage = Stage::new();
    let (whole, out) = (stage.out("whole"), stage.out("run"));
    let weights = |out: &Path| fs::read(out.join("adapter/adapter_model.safetensors")).unwrap();
    let log = |out: &Path| fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    for out in [&whole, &out] {
        assert_eq!(stage.sft(out, &["epochs=6"]).code, Some(0));
    }
    fs::remove_dir_all(out.join("adapter")).unwrap();
    let mut steps: Vec<_> = fs::read_dir(out.join("checkpoints/sft")).unwrap().map(|e| e.unwrap().path()).collect();
    steps.sort();
    let damaged = steps[2].join("adapter/adapter_model.safetensors");
    let mut bytes = fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 64;
    fs::write(&damaged, bytes).unwrap();
    let ended = stage.sft(&out, &["epochs=6", "--resume"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let told = format!("{} is damaged: adapter/adapter_model.safetensors has other bytes", steps[2].display());
    assert!(ended.stderr.contains(&told) && ended.stderr.contains(text(&steps[1])), "{ended:?}");
    assert_eq!(weights(&out), weights(&whole));
    assert_eq!(log(&out), log(&whole));
    // It lies beside the others, and does not count among them.
    assert!(steps[2].exists() && steps[2].with_extension("1").exists());

    // A log that lost lines is told; the training is not touched.
    let path = out.join("metrics.jsonl");
    let kept: String =
        log(&out).split_inclusive('\n').enumerate().filter(|(i, _)| *i != 0).map(|(_, line)| line).collect();
    fs::write(&path, kept).unwrap();
    let ended = stage.sft(&out, &["epochs=6", "--resume"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("metrics.jsonl: 1 of the "), "{ended:?}");
    assert_eq!(weights(&out), weights(&whole));

    for step in &steps {
        fs::write(step.join("state.json"), "{\"step\": 1}").unwrap();
    }
    let names: Vec<&str> = steps.iter().map(|step| text(step)).collect();
    let ended = stage.sft(&out, &["epochs=6", "--resume"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(names.iter().all(|name| ended.stderr.contains(name)), "{ended:?}");
}

#[test]
fn a_folder_in_use_names_its_holder() {
    let stage = Stage::new();
    let out = stage.out("run");
    fs::create_dir(&out).unwrap();
    let held = fs::File::open(&out).unwrap();
    held.lock().unwrap();
    let ended = stage.sft(&out, &[]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let holder = format!("another run is writing there, process {} (", std::process::id());
    assert!(ended.stderr.contains(&holder), "{ended:?}");
}

/// Arguments of `pretrain` that make it a matter of seconds.
const TINY: [&str; 7] = ["exercises=1", "replies=1", "hidden=16", "layers=1", "heads=2", "kv_heads=1", "mlp=16"];

#[test]
fn pretraining_that_falls_apart_is_ended() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    let wild = ["pretrain.learning_rate=100", "pretrain.steps=30", "run.divergence_patience=4"];
    let ended = onestep(&[&["pretrain", "--out", text(&out)], &TINY[..], &wild].concat());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("pretrain step ") && ended.stderr.contains("training diverges: "), "{ended:?}");
    assert!(!out.join("model").exists());
}

/// The bundled model is a file like any other: no run writes to it.
#[test]
fn pretraining_writes_below_its_own_folder_only() {
    let folder = tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights");
    // The tokenizer has the same bytes when it is written again, and another time.
    let written = || -> Vec<_> {
        let times = tree(&bundled).into_keys().map(|path| fs::metadata(&path).unwrap().modified().unwrap());
        times.collect()
    };
    let before = (tree(&bundled), written());
    let out = folder.path().join("run");
    done(&[&["pretrain", "--out", text(&out), "pretrain.steps=1"], &TINY[..]].concat());
    done(&["generate", "--model", text(&out.join("model")), "--prompt", "x", "max_tokens=2"]);
    let other = folder.path().join("other");
    let typed = ["pretrain", "--out", text(&out), "--model", text(&other)];
    refused(folder.path(), &typed, &["pretrain does not use --model"]);
    assert!(before == (tree(&bundled), written()), "weights/ was written to");
}
