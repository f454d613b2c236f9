//! Settings: refused by name where they would learn something else than they say, in whatever order they are typed.

use crate::support::*;
use std::fs;
use tempfile::tempdir;

/// What a dry run of `rl` checks beside its settings.
const INPUTS: [&str; 4] = ["--model", "weights/quickstart", "--data", "data/expert/trajectories.jsonl"];

#[test]
fn settings_that_would_bias_learning_are_refused_where_something_is_learnt() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    let config = folder.path().join("mine.toml");
    fs::write(&config, "[rl]\nsamples = 8\nclip_low = -0.5\n").unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["sampling.top_p=0.9"], &["override `sampling.top_p=0.9`", "biased", "sampling.top_p=1.0"]),
        (&["sampling.top_k=40"], &["override `sampling.top_k=40`", "biased", "sampling.top_k=0"]),
        (&["sampling.temperature=0"], &["sampling.temperature = 0", "above 0"]),
        (&["rl.kl_in=loss", "rl.kl_estimator=k1"], &["rl.kl_estimator=k1", "k2"]),
        (&["rl.gamma=7"], &["override `rl.gamma=7`", "from 0 to 1"]),
        (&["rl.entropy_coefficient=-3"], &["rl.entropy_coefficient = -3", "from 0 to"]),
        (&["rl.learning_rate=nan"], &["rl.learning_rate", "finite"]),
        (&["rl.minibatches=5"], &["rl.minibatches = 5", "divide"]),
        (&["--config", text(&config)], &["mine.toml, line 3", "rl.clip_low = -0.5", "[0, 1)"]),
    ];
    for (arguments, parts) in cases {
        for verb in ["rl", "quickstart"] {
            refused(folder.path(), &[&[verb, "--out", text(&out)], *arguments].concat(), parts);
        }
    }
    // Evaluation may be greedy or cut the tail off.
    for override_ in ["sampling.top_p=0.9", "sampling.top_k=40", "sampling.temperature=0"] {
        done(&["eval", "--dry-run", "--model", "weights/quickstart", "--out", text(&out), override_]);
    }
}

#[test]
fn settings_are_checked_when_all_are_known() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    for order in [["algorithm=grpo", "samples=8"], ["samples=8", "algorithm=grpo"]] {
        let shown = done(&[&["rl", "--dry-run", "--out", text(&out), order[0], order[1]][..], &INPUTS].concat());
        assert!(shown.contains("algorithm = \"grpo\"") && shown.contains("samples = 8"), "{shown}");
    }
}

#[test]
fn settings_that_do_nothing_are_named_on_stderr() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    let run = [&["rl", "--dry-run", "--out", text(&out), "samples=8"][..], &INPUTS].concat();
    let cases: [(&[&str], &str); 3] = [
        (&["gamma=0.9", "algorithm=grpo"], "note: rl.gamma does nothing with rl.algorithm = \"grpo\""),
        (&["group_deviation=none"], "note: rl.group_deviation does nothing with rl.algorithm = \"ppo\""),
        (&["gamma=0.9"], ""),
    ];
    for (more, part) in cases {
        let ended = onestep(&[&run[..], more].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stderr.contains(part) && ended.stderr.is_empty() == part.is_empty(), "{more:?}: {ended:?}");
    }
    // What the program itself prints can be read again without a word.
    let config = folder.path().join("printed.toml");
    fs::write(&config, done(&[&run[..], &["algorithm=grpo"]].concat())).unwrap();
    let ended = onestep(&[&["rl", "--dry-run", "--out", text(&out), "--config", text(&config)][..], &INPUTS].concat());
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}
