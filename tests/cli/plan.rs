//! Plans: of named shapes and of a folder, as a table and as JSON, and what is refused.

use crate::support::*;
use serde_json::Value;
use std::fs;
use tempfile::tempdir;

#[test]
fn a_plan_is_printed_before_anything_is_loaded() {
    let shown = done(&["plan", "--random-weights", "qwen2.5-7b", "--device-kind", "h200"]);
    for part in ["sft on H200", "rl on H200", "31.40 GFLOP a token", "25,159 tok/s", "15.23 GB", "it fits"] {
        assert!(shown.contains(part), "{shown} lacks {part:?}");
    }
    // Without a device kind, that of run.device, whose peaks are assumed.
    let shown = done(&["plan", "--random-weights", "qwen2.5-0.5b", "--for", "sft"]);
    assert!(shown.contains("sft on the CPU") && shown.contains("assumed") && shown.contains("page cache"), "{shown}");
    assert!(!shown.contains("rl on"), "{shown}");
}

#[test]
fn a_folder_is_planned_by_its_configuration_alone() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    // The weights are not opened: what is in the file does not count, only its size.
    fs::write(model.join("model.safetensors"), [0; 1234]).unwrap();
    let shown = done(&["plan", "--model", text(&model), "--for", "eval", "--memory", "1GB", "--json"]);
    let json: Value = serde_json::from_str(&shown).unwrap();
    let plan = &json["plans"][0];
    assert_eq!((&plan["plan"]["work"], &plan["fit"]["fits"]), (&"eval".into(), &true.into()));
    assert!(plan["plan"]["notes"][0].as_str().unwrap().contains("1.2 kB of page cache"), "{plan}");
    let parts = plan["plan"]["parts"].as_array().unwrap();
    let sum: u64 = parts.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["plan"]["total"].as_u64().unwrap(), sum);
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let folder = tempdir().unwrap();
    let refused = |more: &[&str], parts: &[&str]| refused(folder.path(), &[&["plan"], more].concat(), parts);
    refused(&["--random-weights", "gpt-5"], &["gpt-5", "qwen2.5-0.5b", "qwen3-8b", "llama3.1-8b"]);
    refused(&[], &["--model or --random-weights"]);
    refused(&["--model", "/nowhere"], &["/nowhere: no such folder"]);
    let seven = ["--random-weights", "qwen2.5-7b"];
    refused(&[&seven[..], &["--memory", "much"]].concat(), &["'much' for '--memory <BYTES>'", "141GB"]);
    refused(&[&seven[..], &["lora.modules=foo"]].concat(), &["foo", "gate"]);
    let full = [&seven[..], &["--device-kind", "h100", "--for", "sft", "full=true"]].concat();
    refused(&full, &["asks", "there are 84.83 GB", "sft.full=false"]);
    let out = onestep(&[&["plan"], &full[..]].concat());
    assert!(out.stdout.contains("IT DOES NOT FIT"), "{out:?}");
}
