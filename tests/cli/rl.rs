//! `collect`, `rl`, `eval` and `report` on real tasks in the real sandbox.

use crate::support::*;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::tempdir;

const SETTINGS: [&str; 7] = [
    "tasks.names=digits,load",
    "environment.prompt=compact",
    "environment.format=no_thought",
    "environment.max_steps=3",
    "sampling.max_tokens=64",
    "engine.cache_tokens=8192",
    "lora.rank=4",
];

/// Expert trajectories, and a model that has learned from them to say actions: made once.
struct Stage {
    data: PathBuf,
    model: PathBuf,
}

fn stage() -> &'static Stage {
    static STAGE: OnceLock<Stage> = OnceLock::new();
    STAGE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-rl");
        let _ = fs::remove_dir_all(&folder);
        let (expert, data, base) = (folder.join("expert"), folder.join("expert/trajectories.jsonl"), model(&folder));
        done(&[&["collect", "--out", text(&expert), "--python", python(), "trajectories=2"], &SETTINGS[..]].concat());
        let trained = folder.join("sft");
        let settings = ["full=true", "epochs=60", "learning_rate=1e-2", "batch_tokens=1024", "validation_share=0"];
        let sft = ["sft", "--model", text(&base), "--data", text(&data), "--out", text(&trained)];
        done(&[&sft[..], &settings].concat());
        Stage { data, model: trained.join("model") }
    })
}

fn arguments<'a>(out: &'a Path, algorithm: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let Stage { data, model } = stage();
    let named = ["rl", "--model", text(model), "--data", text(data), "--out", text(out), "--python", python()];
    let settings = [
        "steps=4",
        "run.seed=1",
        "environment.max_steps=8",
        "states=4",
        "samples=4",
        "learning_rate=2e-3",
        "refresh_share=1.0",
        "epochs=2",
        "entropy_coefficient=0.01",
        "run.checkpoint_every=1000",
        algorithm,
    ];
    [&named, &SETTINGS[..], &settings, more].concat()
}

/// The log without what clocks say.
fn log(out: &Path) -> Vec<Value> {
    let mut records = lines(&out.join("metrics.jsonl"));
    for record in &mut records {
        assert!(record.as_object_mut().unwrap().remove("seconds").is_some());
    }
    records
}

fn adapter_bytes(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

fn check_fields(out: &Path, ppo: bool) {
    let records = lines(&out.join("metrics.jsonl"));
    assert_eq!(records.iter().map(|r| r["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for record in &records {
        let number = |key: &str| record[key].as_f64().unwrap_or_else(|| panic!("{key} in {record}"));
        let sum = |key: &str| record[key].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum::<f64>();
        for key in ["reward", "kl", "entropy", "grad_norm", "edit_share", "invalid_share", "clip_fraction"] {
            assert!(number(key).is_finite());
        }
        assert!(number("entropy") > 0.0 && number("grad_norm") > 0.0 && number("reply_tokens") >= 1.0, "{record}");
        assert!((0.0..=1.0).contains(&number("clip_fraction")) && (0.0..=1.0).contains(&number("dead_groups")));
        // Two passes a step; the reply's limit is the only reason to be cut off.
        assert!(
            number("passes") == 2.0 && number("learning_rate_factor") == 1.0 && number("ratio_max") > 0.0,
            "{record}"
        );
        assert!((0.0..=1.0).contains(&number("truncated")) && number("dropped_groups") == 0.0, "{record}");
        assert!((sum("cases") - 1.0).abs() < 1e-9 && (sum("actions") - 1.0).abs() < 1e-9, "{record}");
        let flags: Vec<&str> = record["flags"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(flags, ["constant", "too_good"], "{record}");
        assert_eq!(record["cases"]["invalid"].as_f64(), record["invalid_share"].as_f64());
        let tasks: Vec<&String> = record["by_task"].as_object().unwrap().keys().collect();
        assert_eq!(tasks, ["digits", "load"]);
        // Rewards of the cases, weighted by their shares, make up the mean.
        let by_case = record["by_case"].as_object().unwrap();
        let mean: f64 = by_case.iter().map(|(k, v)| v.as_f64().unwrap() * record["cases"][k].as_f64().unwrap()).sum();
        assert!((mean - number("reward")).abs() < 1e-9, "{record}");
        for phase in ["generate", "sandbox", "update"] {
            assert!(record["seconds"][phase].as_f64().unwrap() > 0.0);
        }
        assert_eq!(record["value_loss"].is_number(), ppo, "{record}");
        assert!(number("gauge") <= number("gauge_max") && number("gauge_max") < 1e-4, "{record}");
    }
    // Not where the targets of a step do not vary.
    assert_eq!(records.iter().any(|record| record["explained_variance"].is_number()), ppo, "{records:?}");
    let shares = |case: &str| records.iter().map(|r| r["cases"][case].as_f64().unwrap()).sum::<f64>();
    assert!(shares("invalid") < 3.0, "no action was ever executed: {records:?}");
}

/// One whole run, and one that `signal` stops, wherever in a step that is, and that goes on.
fn stopped_equals_whole(algorithm: &str, signal: &str, code: i32) -> (tempfile::TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    done(&arguments(&whole, algorithm, &[]));
    let run = arguments(&stopped, algorithm, &["run.threads=1"]);
    let ended = start(&run).signalled(signal, || line_count(&stopped.join("metrics.jsonl")) >= 1);
    assert_eq!(ended, Some(code));
    assert!((1..4).contains(&line_count(&stopped.join("metrics.jsonl"))) && !stopped.join("adapter").exists());
    let checkpoints: Vec<_> = fs::read_dir(stopped.join("checkpoints/rl")).unwrap().collect();
    assert_eq!(checkpoints.len(), 1);
    let state = fs::read_to_string(checkpoints[0].as_ref().unwrap().path().join("state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    assert!(!state["reached"].as_array().unwrap().is_empty(), "no reached state, so nothing to lose: {state}");
    done(&[&run[..], &["--resume"]].concat());
    assert_eq!(log(&stopped), log(&whole));
    assert_eq!(adapter_bytes(&stopped), adapter_bytes(&whole));
    // What was sampled before the stop is not lost.
    let played = |out: &Path| fs::read_to_string(out.join("trajectories/rl.jsonl")).unwrap();
    assert_eq!(played(&stopped), played(&whole));
    (folder, whole)
}

#[test]
fn expert_states_whose_files_are_not_there_are_refused() {
    let folder = tempdir().unwrap();
    let (data, out) = (folder.path().join("trajectories.jsonl"), folder.path().join("run"));
    fs::copy(&stage().data, &data).unwrap();
    let named = ["rl", "--model", text(&stage().model), "--data", text(&data), "--out", text(&out)];
    let arguments = [&named[..], &["--python", python()], &SETTINGS].concat();
    refused(folder.path(), &arguments, &[text(&folder.path().join("snapshots")), "copy that folder too"]);
}

#[test]
fn grpo_logs_everything_and_goes_on_where_it_was_stopped() {
    let (folder, whole) = stopped_equals_whole("algorithm=grpo", "INT", 130);
    check_fields(&whole, false);

    // The same command again is the same run; another seed is not.
    let (again, other) = (folder.path().join("again"), folder.path().join("other"));
    done(&arguments(&again, "algorithm=grpo", &[]));
    assert_eq!((log(&again), adapter_bytes(&again)), (log(&whole), adapter_bytes(&whole)));
    let cut = onestep(&arguments(&other, "algorithm=grpo", &["run.seed=2", "steps=3", "sampling.max_tokens=1"]));
    assert_eq!(cut.code, Some(0), "{cut:?}");
    assert_ne!(log(&other)[0], log(&whole)[0]);
    assert_eq!(log(&other)[0]["truncated"].as_f64(), Some(1.0), "one token is never a whole reply");
    // No edit fits into one token.
    assert!(cut.stderr.contains("warning: rl step 1: 0 % of the actions are edits, below 20 %"), "{cut:?}");
    // Nor does it earn anything: after three steps in which no group differs it is said, once.
    let dead = "warning: rl step 3: in 3 steps in a row the replies of every group earned equal rewards";
    assert_eq!(cut.stderr.matches(dead).count(), 1, "{cut:?}");
    assert!(log(&other).iter().all(|record| record["dead_groups"].as_f64() == Some(1.0)));

    // Evaluated, reported.
    let (model, adapter) = (text(&stage().model), whole.join("adapter"));
    let eval = ["eval", "--model", model, "--adapter", text(&adapter), "--out", text(&whole), "--python", python()];
    let table = done(&[&eval[..], &SETTINGS[..], &["trajectories=2"]].concat());
    assert!(table.contains("digits") && table.contains("load"), "{table}");
    done(&["report", text(&whole)]);
    let page = fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") || page.starts_with("<!DOCTYPE html>"));
    assert!(page.contains("digits") && page.contains("train.py"));
}

#[test]
fn ppo_logs_its_critic_and_goes_on_where_it_was_stopped() {
    let (_folder, whole) = stopped_equals_whole("algorithm=ppo", "TERM", 0);
    check_fields(&whole, true);
}

/// A model of random numbers gives all tokens about the same probability.
#[test]
fn a_policy_that_guesses_is_told_and_ended() {
    let folder = tempdir().unwrap();
    let (base, out) = (model(folder.path()), folder.path().join("run"));
    let named =
        ["rl", "--model", text(&base), "--data", text(&stage().data), "--out", text(&out), "--python", python()];
    let settings = ["steps=3", "states=2", "samples=2", "algorithm=ppo", "run.divergence_patience=2"];
    let ended = onestep(&[&named[..], &SETTINGS, &settings].concat());
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("rl step 2: training diverges: the policy's entropy"), "{ended:?}");
    assert!(!out.join("adapter").exists());
}
