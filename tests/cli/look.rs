//! The verbs that answer or show, and dry runs.

use crate::support::*;
use std::fs;
use tempfile::tempdir;

#[test]
fn generate_answers_the_same_for_one_seed() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let (adapter, _) = adapter(folder.path());
    let ask = |more: &[&str]| {
        done(&[&["generate", "--model", text(&model), "--prompt", "What is data?", "max_tokens=12"], more].concat())
    };
    let answer = ask(&[]);
    assert!(!answer.trim().is_empty());
    assert_eq!(answer, ask(&["--seed", "0"]));
    assert_ne!(answer, ask(&["--seed", "1"]));
    assert_ne!(answer, ask(&["--raw"]));
    assert_ne!(answer, ask(&["--adapter", text(&adapter)]));
    // The first of several samples is the one sample.
    let three = ask(&["--samples", "3"]);
    assert!(three.starts_with(&answer) && three.len() > answer.len(), "{answer:?} {three:?}");
    assert_eq!(ask(&["temperature=0"]), ask(&["temperature=0", "--seed", "1"]));
}

#[test]
fn preview_marks_what_has_a_loss() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), messages(folder.path()));
    let shown = done(&["data", "preview", "--model", text(&model), "--data", text(&data), "-n", "2"]);
    assert!(shown.contains("⟦data is number 1.<|im_end|>⟧"), "{shown}");
    assert!(shown.contains("What is data?") && !shown.contains("⟦What"), "{shown}");
    assert!(shown.contains(&format!("{}:2: ", data.display())) && !shown.contains(":3: "), "{shown}");
    assert!(shown.ends_with("8 examples\n"), "{shown}");
}

#[test]
fn validate_says_what_a_file_holds_and_refuses_what_sft_would() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), messages(folder.path()));
    let arguments = ["data", "validate", "--model", text(&model), "--data", text(&data)];
    let shown = done(&arguments);
    for part in ["items: messages 8\n", "examples: 8, ", "0 errors, 0 warnings"] {
        assert!(shown.contains(part), "{shown}");
    }
    let short = onestep(&[&arguments[..], &["max_tokens=5"]].concat());
    assert_eq!(short.code, Some(2));
    assert_eq!(short.stdout.matches("error: ").count(), 8, "{short:?}");
    assert!(short.stdout.contains(&format!("error: {}:3: ", data.display())), "{short:?}");
    assert!(short.stderr.contains("8 errors; sft refuses this file"), "{short:?}");
}

#[test]
fn tasks_are_listed_and_shown() {
    let listed = done(&["task", "list"]);
    let held = |split: &str| listed.lines().filter(|line| line.contains(split)).count();
    assert!(held("held-in") >= 6 && held("held-out") >= 6, "{listed}");
    let chosen = done(&["task", "list", "names=digits,load"]);
    assert_eq!(chosen.lines().count(), 3, "{chosen}");
    let shown = done(&["task", "show", "digits"]);
    let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tasks/digits/train.py")).unwrap();
    assert!(shown.contains("metric accuracy (higher is better)") && shown.contains(&script), "{shown}");
}

#[test]
fn a_task_is_run_and_graded() {
    let ran = done(&["task", "run", "digits", "--python", python()]);
    assert!(ran.contains("accuracy 0.22 (normalised 0.0000); report split 0.21 (normalised 0.0000)"), "{ran}");
    let folder = tempdir().unwrap();
    let script = folder.path().join("broken.py");
    fs::write(&script, "print('before')\nraise ValueError('no')\n").unwrap();
    let ran = done(&["task", "run", "digits", "--script", text(&script), "--python", python()]);
    assert!(ran.contains("before") && ran.contains("ValueError: no") && ran.contains("not graded"), "{ran}");
    refused(folder.path(), &["task", "run", "digits", "--script", "/nowhere.py"], &["/nowhere.py"]);
}

#[test]
fn tasks_are_audited() {
    let shown = done(&["task", "audit", "digits", "wine", "--python", python()]);
    assert_eq!(shown.lines().skip(1).collect::<Vec<_>>(), ["digits     hidden", "wine       hidden"], "{shown}");
    let json = done(&["task", "audit", "wine", "--json", "--python", python()]);
    assert_eq!(json.trim_end(), r#"{"task":"wine","leaks":[],"duplicates":[],"unread":[]}"#);

    // The same task, its labels among the data under another name.
    let folder = tempdir().unwrap();
    let wine = folder.path().join("wine");
    fs::create_dir(&wine).unwrap();
    for file in ["train.py", "task.toml", "prepare.py"] {
        let text = fs::read_to_string(format!("{}/data/tasks/wine/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        fs::write(wine.join(file), text.replace("Z=X[test])", "Z=X[test], w=9 - y[test])")).unwrap();
    }
    let dir = format!("dir={}", text(folder.path()));
    let out = onestep(&["task", "audit", &dir, "--python", python()]);
    assert_eq!(out.code, Some(1), "{out:?}");
    assert!(out.stdout.contains("SEEN") && out.stdout.contains("data.npz w: correlates"), "{out:?}");
    assert!(out.stderr.contains("the agent can see labels of: wine"), "{out:?}");
    refused(folder.path(), &["task", "audit", "mnist"], &["mnist", "digits"]);
}

#[test]
fn a_dry_run_prints_the_settings_and_writes_nothing() {
    let folder = tempdir().unwrap();
    let (model, data, out) = (model(folder.path()), messages(folder.path()), folder.path().join("run"));
    let expert = concat!(env!("CARGO_MANIFEST_DIR"), "/data/expert/trajectories.jsonl");
    let (model, data) = (text(&model), text(&data));
    for (verb, paths) in [
        ("sft", &["--model", model, "--data", data][..]),
        ("rl", &["--model", model, "--data", expert]),
        ("eval", &["--model", model]),
        ("collect", &[]),
        ("pretrain", &[]),
    ] {
        let named = [&[verb, "--dry-run", "--out", text(&out)], paths].concat();
        let shown = done(&[&named[..], &["--seed", "5", "lora.rank=3"]].concat());
        assert!(shown.contains(&format!("# out: {}", out.display())), "{shown}");
        assert_eq!(shown.contains(&format!("# model: {model}")), !["collect", "pretrain"].contains(&verb), "{shown}");
        // What is printed is a configuration.
        let config = folder.path().join("dry.toml");
        fs::write(&config, &shown).unwrap();
        let again = done(&[&named[..], &["--config", text(&config)]].concat());
        assert_eq!(again, shown);
        assert!(again.contains("seed = 5") && again.contains("rank = 3"), "{again}");
        assert!(!out.exists());
    }
}
