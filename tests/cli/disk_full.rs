//! A disk that is full: exit 1, the file is named, what was there before is whole and can be used.

use crate::support::*;
use std::fs;
use std::path::Path;
use tempfile::tempdir;

#[test]
fn the_old_checkpoint_and_adapter_stay() {
    let folder = tempdir().unwrap();
    let (model, data, out) = (model(folder.path()), messages(folder.path()), folder.path().join("run"));
    let run = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    done(&[&run[..], &["epochs=2"]].concat());
    let earlier = folder.path().join("run.1");
    let (adapter, checkpoints) = (out.join("adapter"), out.join("checkpoints"));
    let before = (tree(&adapter), tree(&checkpoints));
    assert!(before.1.values().any(|bytes| bytes.len() > 30_000));

    // Settings, log and identity fit into 20,480 bytes, weights do not.
    let refused = |arguments: &[&str]| {
        let full = onestep_on_full_disk(40, arguments);
        assert_eq!(full.code, Some(1), "{full:?}");
        assert!(full.stderr.contains("adapter_model.safetensors"), "{full:?}");
        assert!(full.stderr.contains("File too large"), "{full:?}");
    };
    refused(&[&run[..], &["epochs=2", "--resume"]].concat());
    assert_eq!((tree(&adapter), tree(&checkpoints)), before);

    let (input, scores) = (folder.path().join("in.jsonl"), folder.path().join("scores.jsonl"));
    fs::write(&input, "{\"ids\": [1, 2, 3]}\n").unwrap();
    done(&[
        "score",
        "--model",
        text(&model),
        "--adapter",
        text(&adapter),
        "--input",
        text(&input),
        "--output",
        text(&scores),
    ]);
    // A new run that fails has left the earlier one whole, under another name.
    let bytes = |folder: &Path| tree(folder).into_values().collect::<Vec<_>>();
    let longer = [&run[..], &["epochs=4"]].concat();
    refused(&longer);
    assert_eq!(bytes(&earlier.join("adapter")), before.0.into_values().collect::<Vec<_>>());
    assert_eq!(bytes(&earlier.join("checkpoints")), before.1.into_values().collect::<Vec<_>>());
    done(&longer);
    assert_ne!(bytes(&adapter), bytes(&earlier.join("adapter")));
}

#[test]
fn a_score_that_does_not_fit_leaves_the_old_one() {
    let folder = tempdir().unwrap();
    let (model, input, output) =
        (model(folder.path()), folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
    fs::write(&input, "{\"ids\": [1, 2, 3, 4, 5, 6, 7, 8]}\n".repeat(400)).unwrap();
    fs::write(&output, "earlier\n").unwrap();
    let before = tree(folder.path());
    let arguments = ["score", "--model", text(&model), "--input", text(&input), "--output", text(&output)];
    let full = onestep_on_full_disk(8, &arguments);
    assert_eq!(full.code, Some(1), "{full:?}");
    assert!(full.stderr.contains(text(&output)), "{full:?}");
    assert_eq!(tree(folder.path()), before);
}
