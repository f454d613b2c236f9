//! `score`: log-probabilities and entropies of given ids.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::tempdir;

/// Runs `score` on `ids`; the lines of its output.
fn score(folder: &Path, model: &Path, ids: &[Vec<u32>], more: &[&str]) -> Vec<String> {
    let (input, output) = (folder.join("in.jsonl"), folder.join("out.jsonl"));
    let text_of: String = ids.iter().map(|ids| format!("{}\n", json!({ "ids": ids }))).collect();
    fs::write(&input, text_of).unwrap();
    let arguments = ["score", "--model", text(model), "--input", text(&input), "--output", text(&output)];
    done(&[&arguments[..], more].concat());
    let lines: Vec<String> = fs::read_to_string(&output).unwrap().lines().map(str::to_string).collect();
    assert_eq!(lines.len(), ids.len());
    lines
}

fn numbers(line: &str, key: &str) -> Vec<f64> {
    let line: Value = serde_json::from_str(line).unwrap();
    line[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Lines of many lengths.
fn texts() -> Vec<Vec<u32>> {
    (0..9u32).map(|line| (0..2 + 37 * line).map(|i| (i * i * 7 + line * 131) % vocab() as u32).collect()).collect()
}

/// The largest difference of two outputs.
fn difference(a: &[String], b: &[String]) -> f64 {
    let mut largest = 0.0f64;
    for (a, b) in a.iter().zip(b) {
        for key in ["logprobs", "entropies"] {
            let (a, b) = (numbers(a, key), numbers(b, key));
            assert_eq!(a.len(), b.len());
            largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(largest, f64::max);
        }
    }
    largest
}

#[test]
fn lines_have_the_ids_and_a_number_for_each_but_the_first() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    for (ids, line) in texts().iter().zip(score(folder.path(), &model, &texts(), &[])) {
        let value: Value = serde_json::from_str(&line).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["ids", "logprobs", "entropies"]);
        assert_eq!(value["ids"], json!(ids));
        for key in ["logprobs", "entropies"] {
            assert_eq!(numbers(&line, key).len(), ids.len() - 1);
        }
        assert!(numbers(&line, "logprobs").iter().all(|&p| p < 0.0));
        assert!(numbers(&line, "entropies").iter().all(|&h| h > 0.0 && h <= (vocab() as f64).ln() + 1e-4));
    }
}

#[test]
fn probabilities_of_all_continuations_sum_to_one_and_give_the_entropy() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    for prefix in [vec![5], vec![900, 17, 3, 44, 44]] {
        let with = |id| prefix.iter().copied().chain([id]).collect::<Vec<u32>>();
        let lines = score(folder.path(), &model, &(0..vocab() as u32).map(with).collect::<Vec<_>>(), &[]);
        let logprobs: Vec<f64> = lines.iter().map(|line| *numbers(line, "logprobs").last().unwrap()).collect();
        let sum: f64 = logprobs.iter().map(|p| p.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        assert!(logprobs.iter().any(|p| (p + (vocab() as f64).ln()).abs() > 0.1), "every token is as likely");
        let entropy = -logprobs.iter().map(|p| p.exp() * p).sum::<f64>();
        let stated = *numbers(&lines[7], "entropies").last().unwrap();
        assert!((entropy - stated).abs() < 1e-4, "{entropy} {stated}");
    }
}

#[test]
fn a_line_does_not_depend_on_the_others() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let together = score(folder.path(), &model, &texts(), &[]);
    for (i, ids) in texts().into_iter().enumerate().step_by(3) {
        assert_eq!(score(folder.path(), &model, &[ids], &[]), together[i..=i], "line {i}");
    }
    let reversed: Vec<Vec<u32>> = texts().into_iter().rev().collect();
    let mut lines = score(folder.path(), &model, &reversed, &[]);
    lines.reverse();
    assert_eq!(lines, together);
}

/// f32 sums of at most a few hundred terms of order one: 1e-4 is far above their rounding and far below any real error.
const TOLERANCE: f64 = 1e-4;

#[test]
fn both_backends_and_a_merged_adapter_agree() {
    let folder = tempdir().unwrap();
    let model = model(folder.path());
    let (adapter, merged) = adapter(folder.path());
    let ids = &texts()[..4];
    let base = score(folder.path(), &model, ids, &[]);
    let oracle = score(folder.path(), &model, ids, &["--backend", "oracle"]);
    assert!(difference(&base, &oracle) < TOLERANCE);
    let adapted = score(folder.path(), &model, ids, &["--adapter", text(&adapter)]);
    let oracle = score(folder.path(), &model, ids, &["--adapter", text(&adapter), "--backend", "oracle"]);
    assert!(difference(&adapted, &oracle) < TOLERANCE);
    assert!(difference(&adapted, &base) > 0.1, "the adapter changes nothing");
    // It needs no tokenizer: this folder has none.
    assert!(difference(&adapted, &score(folder.path(), &merged, ids, &[])) < TOLERANCE);
}
