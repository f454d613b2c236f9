//! What a run knows of itself: a folder that holds an earlier run, what `--resume` goes on from and what it refuses, options and settings that
//! would be ignored, what is printed without a terminal and when nobody reads.

use crate::support::*;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

const SETTINGS: [&str; 6] = [
    "learning_rate=1e-2",
    "batch_tokens=64",
    "micro_tokens=32",
    "validation_share=0.25",
    "lora.rank=4",
    "run.checkpoint_every=1",
];

/// A model, two data files, and a place for runs.
struct Stage {
    folder: TempDir,
    model: PathBuf,
    data: PathBuf,
    other: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let (model, data, other) = (model(folder.path()), messages(folder.path()), folder.path().join("other.jsonl"));
        let half: Vec<String> = fs::read_to_string(&data).unwrap().lines().skip(2).map(|l| format!("{l}\n")).collect();
        fs::write(&other, half.concat()).unwrap();
        Self { folder, model, data, other }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sft<'a>(&'a self, data: &'a Path, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let named = ["sft", "--model", text(&self.model), "--data", text(data), "--out", text(out)];
        [&named, &SETTINGS[..], more].concat()
    }
}

fn adapter_bytes(out: &Path) -> Vec<u8> {
    fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

fn checkpoint_names(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join("checkpoints/sft")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Another run in the same folder, stopped in the middle: neither touches the other's checkpoints, and it goes on with its own.
#[test]
fn a_new_run_leaves_an_older_one_whole_under_another_name() {
    let stage = Stage::new();
    let (out, whole) = (stage.path("run"), stage.path("whole"));
    // The older run has the higher steps.
    done(&stage.sft(&stage.data, &out, &["epochs=150"]));
    let before = tree(&out);
    let newer = stage.sft(&stage.other, &out, &["epochs=100"]);
    let logged = out.join("metrics.jsonl");
    let earlier = stage.path("run.1");
    let reached = || earlier.exists() && line_count(&logged) >= 4;
    assert_eq!(start(&newer).signalled("INT", reached), Some(130));

    let moved: Vec<_> = before.iter().map(|(path, bytes)| (path.strip_prefix(&out).unwrap(), bytes)).collect();
    let found = tree(&earlier);
    let found: Vec<_> = found.iter().map(|(path, bytes)| (path.strip_prefix(&earlier).unwrap(), bytes)).collect();
    assert_eq!(found, moved, "the older run is as it was");
    let steps = checkpoint_names(&out);
    assert!((1..=2).contains(&steps.len()) && steps.iter().all(|name| name.as_str() < "step-00000150"), "{steps:?}");

    done(&[&newer[..], &["--resume"]].concat());
    done(&stage.sft(&stage.other, &whole, &["epochs=100"]));
    assert_eq!(adapter_bytes(&out), adapter_bytes(&whole));

    // The next one takes the next number, and says so.
    let third = onestep(&stage.sft(&stage.data, &out, &["epochs=1"]));
    assert_eq!(third.code, Some(0), "{third:?}");
    let note = format!("note: {} held an earlier run, which is now {}.2", out.display(), out.display());
    assert!(third.stderr.contains(&note), "{third:?}");
    assert_eq!(adapter_bytes(&stage.path("run.2")), adapter_bytes(&whole));
}

#[test]
fn a_checkpoint_is_resumed_by_the_run_that_wrote_it_only() {
    let stage = Stage::new();
    let out = stage.path("run");
    done(&stage.sft(&stage.data, &out, &["epochs=3", "--seed", "5"]));
    let first = adapter_bytes(&out);
    let resumed = |data: &Path, more: &[&str]| {
        let own = ["--resume"];
        onestep(&stage.sft(data, &out, &[&own, more].concat()))
    };
    let refused = |data: &Path, more: &[&str], parts: &[&str]| {
        let arguments = stage.sft(data, &out, &[&["--resume"], more].concat());
        refused(stage.folder.path(), &arguments, &[&["belongs to another run", "without --resume"], parts].concat());
    };
    let same = ["epochs=3", "--seed", "5"];
    // Settings, one by one and together, each named with both values.
    refused(&stage.data, &["epochs=2", "--seed", "5"], &["sft.epochs: 3, now 2"]);
    refused(&stage.data, &["epochs=4", "--seed", "5"], &["sft.epochs: 3, now 4"]);
    refused(&stage.data, &["epochs=3"], &["run.seed: 5, now 0"]);
    refused(&stage.data, &["epochs=3", "--seed", "5", "lora.alpha=3"], &["lora.alpha: 32.0, now 3.0"]);
    let two = ["epochs=3", "--seed", "6", "sft.schedule=constant"];
    refused(&stage.data, &two, &["run.seed: 5, now 6", "sft.schedule: \"cosine\", now \"constant\""]);
    // Data, base and adapter.
    refused(&stage.other, &same, &["data: ", "messages.jsonl (", "now ", "other.jsonl ("]);
    let (adapter, _) = adapter(stage.folder.path());
    let with_adapter = [&same[..], &["--adapter", text(&adapter), "lora.alpha=8"]].concat();
    refused(&stage.data, &with_adapter, &["adapter: none, now ", "lora.alpha: 32.0, now 8.0"]);
    let weights = stage.model.join("model.safetensors");
    let good = fs::read(&weights).unwrap();
    let mut changed = good.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(&weights, changed).unwrap();
    refused(&stage.data, &same, &["base weights: "]);
    fs::write(&weights, good).unwrap();
    let tokenizer = stage.model.join("tokenizer_config.json");
    let good = fs::read_to_string(&tokenizer).unwrap();
    fs::write(&tokenizer, format!("{good}\n")).unwrap();
    refused(&stage.data, &same, &["base tokenizer: "]);
    fs::write(&tokenizer, good).unwrap();
    assert_eq!(adapter_bytes(&out), first);

    // What changes no bit may differ; so may the path of the same data.
    let copy = stage.path("copy.jsonl");
    fs::copy(&stage.data, &copy).unwrap();
    let free = [&same[..], &["run.threads=1", "run.keep=5", "run.checkpoint_every=7", "rl.steps=2"]].concat();
    let ended = resumed(&copy, &free);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(adapter_bytes(&out), first);

    // Checkpoints without an identity are not whole.
    for name in checkpoint_names(&out) {
        fs::remove_file(out.join("checkpoints/sft").join(name).join("identity.json")).unwrap();
    }
    let ended = resumed(&stage.data, &same);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("identity.json is missing"), "{ended:?}");

    // Nothing to resume is said, and is a beginning.
    let new = stage.path("new");
    let ended = onestep(&stage.sft(&stage.data, &new, &[&same[..], &["--resume"]].concat()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains(&format!("no sft checkpoint in {}: it starts at the beginning", new.display())),
        "{ended:?}"
    );
    assert_eq!(adapter_bytes(&new), first);
}

#[test]
fn a_folder_is_renamed_only_when_all_in_it_is_of_runs() {
    let stage = Stage::new();
    let out = stage.path("run");
    let arguments = stage.sft(&stage.data, &out, &["epochs=1"]);
    // Things of the user alone are no run: they stay where they are.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    done(&arguments);
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
    // Beside a run they keep the folder from being renamed.
    let folder = stage.folder.path();
    refused(folder, &arguments, &[text(&out), "notes.txt", "no run wrote", "--out"]);
    fs::remove_file(out.join("notes.txt")).unwrap();
    // What the run reads does not go away with the folder.
    let inside = out.join("adapter");
    let from_itself = [&arguments[..], &["--adapter", text(&inside)]].concat();
    refused(folder, &from_itself, &["--adapter", text(&inside), "would be renamed"]);
    // A slash at the end is the same folder.
    let slash = format!("{}/", text(&out));
    done(&stage.sft(&stage.data, Path::new(&slash), &["epochs=1"]));
    assert!(stage.path("run.1/adapter").exists() && out.join("adapter").exists() && !out.join(".1").exists());

    // A run that is under way keeps its folder.
    let (busy, log) = (stage.path("busy"), stage.path("busy/metrics.jsonl"));
    let long = stage.sft(&stage.data, &busy, &["epochs=100000"]);
    let running = start(&long);
    while line_count(&log) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = onestep(&stage.sft(&stage.other, &busy, &["epochs=1"]));
    assert_eq!(running.signalled("INT", || true), Some(130));
    assert_eq!(second.code, Some(2), "{second:?}");
    assert!(second.stderr.contains("another run is writing there"), "{second:?}");
}

#[test]
fn options_and_settings_that_would_be_ignored() {
    let stage = Stage::new();
    let folder = stage.folder.path();
    let (adapter, _) = adapter(folder);
    let (model, data, adapter, out) = (text(&stage.model), text(&stage.data), text(&adapter), stage.path("run"));
    let out = text(&out);
    for (arguments, parts) in [
        (&["eval", "--resume", "--model", model][..], &["eval does not use --resume", "--adapter"][..]),
        (&["eval", "--model", model, "--data", data], &["eval does not use --data"]),
        (&["collect", "--model", model], &["collect does not use --model", "--python"]),
        (&["collect", "--adapter=x"], &["collect does not use --adapter"]),
        (&["collect", "--device", "cpu"], &["collect does not use --device"]),
        (&["sft", "--python", "p"], &["sft does not use --python"]),
        (&["pretrain", "--data", data], &["pretrain does not use --data"]),
        (&["sft", "--samples", "2"], &["sft does not use --samples"]),
        // Settings typed as options.
        (&["sft", "--lr", "1e-4"], &["--lr", "learning_rate=1e-4"]),
        (&["sft", "--lr=1e-4"], &["learning_rate=1e-4"]),
        (&["rl", "--lr", "1e-5"], &["learning_rate=1e-5"]),
        (&["sft", "--learning-rate", "1e-4"], &["learning_rate=1e-4"]),
        (&["sft", "--epochs", "3"], &["epochs=3"]),
        (&["sft", "--num_train_epochs", "3"], &["epochs=3"]),
        (&["sft", "--lora-rank", "8"], &["lora.rank=8"]),
        (&["sft", "--rank", "8"], &["lora.rank=8"]),
        (&["rl", "--kl_coef", "0.1"], &["kl_coefficient=0.1"]),
        (&["rl", "--entropy-coefficient", "-0.1"], &["entropy_coefficient=-0.1"]),
        (&["rl", "--temperature", "0.5"], &["sampling.temperature=0.5"]),
        (&["sft", "--temperature", "0.5"], &["unexpected argument '--temperature'"]),
        (&["rl", "--warmup_steps", "5"], &["here warmup=5"]),
        (&["eval", "--max_steps", "8"], &["here environment.max_steps=8"]),
        (&["sft", "--full"], &["full=true"]),
        (&["sft", "--batch-size", "8"], &["batch_tokens=16384"]),
        (&["sft", "--learning_rat", "1e-4"], &["learning_rate=1e-4"]),
        (&["sft", "--output_dir", "x"], &["--out"]),
        (&["eval", "--trajectories", "3"], &["trajectories=3"]),
        (&["generate", "--max-tokens", "3"], &["max_tokens=3"]),
        // One setting, two values.
        (&["sft", "--seed", "1", "run.seed=2"], &["--seed 1", "run.seed=2"]),
        (&["quickstart", "--seed", "1", "run.seed=2"], &["--seed 1", "run.seed=2"]),
        (&["rl", "--device", "cpu", "run.device=cuda"], &["--device cpu", "run.device=cuda"]),
        (
            &["generate", "--model", model, "--prompt", "x", "--device", "cpu", "run.device=cuda"],
            &["--device cpu", "run.device=cuda"],
        ),
        (&["quickstart", "sft.full=true"], &["sft.full=false"]),
        (&["eval", "--model", model, "source=../up"], &["eval.source", "../up"]),
    ] {
        refused(folder, &[arguments, &["--out", out][..usize::from(arguments[0] != "generate") * 2]].concat(), parts);
    }
    let sft = ["sft", "--model", model, "--data", data, "--out", out];
    for (more, parts) in [
        (&["--adapter", adapter, "lora.rank=8"][..], ["lora.rank=8", "has lora.rank=4"]),
        (&["--adapter", adapter, "lora.rank=4", "lora.alpha=16"], ["lora.alpha=16", "has lora.alpha=8"]),
        (&["--adapter", adapter, "lora.modules=q,v"], ["lora.modules=q,v", "has lora.modules="]),
        (&["full=true", "lora.rank=4"], ["lora.rank=4", "sft.full=true"]),
    ] {
        refused(folder, &[&sft[..], more].concat(), &parts);
    }
    // What fits is no contradiction; what another verb reads is told.
    let fits = ["--adapter", adapter, "lora.rank=4", "lora.modules=q,k,v,o,gate,up,down", "rl.steps=3", "epochs=1"];
    let ended = onestep(&[&sft[..], &fits].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("note: rl.steps=3 changes nothing: sft does not read it"), "{ended:?}");
    assert!(!ended.stderr.contains("lora.rank"), "{ended:?}");
    // A file may serve several verbs, but not contradict.
    let file = stage.path("settings.toml");
    fs::write(&file, "[rl]\nsteps = 3\n[lora]\nrank = 16\n[sft]\nepochs = 1\n").unwrap();
    let second = stage.path("second");
    let ended = onestep(&[&sft[..6], &[text(&second), "--adapter", adapter, "--config", text(&file)]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("note: lora.rank of the configuration changes nothing"), "{ended:?}");
    assert!(!ended.stderr.contains("rl.steps"), "{ended:?}");
}

#[test]
fn a_dry_run_finds_what_the_run_would() {
    let stage = Stage::new();
    let folder = stage.folder.path();
    let (model, data, out) = (text(&stage.model), text(&stage.data), stage.path("run"));
    let out = ["--dry-run", "--out", text(&out)];
    let bad = stage.path("bad.jsonl");
    fs::write(&bad, "{\"messages\": [").unwrap();
    let expert = concat!(env!("CARGO_MANIFEST_DIR"), "/data/expert/trajectories.jsonl");
    let (adapter, _) = adapter(folder);
    let adapter = text(&adapter);
    for (arguments, parts) in [
        (&["sft", "--model", "/nowhere", "--data", data][..], &["/nowhere"][..]),
        (&["sft", "--model", model, "--data", "/nowhere.jsonl"], &["/nowhere.jsonl"]),
        (&["sft", "--model", model], &["--data is needed"]),
        (&["sft", "--model", model, "--data", text(&bad)], &["bad.jsonl:1"]),
        (&["sft", "--model", data, "--data", data], &[data]),
        (&["sft", "--model", model, "--data", data, "--adapter", "/nowhere"], &["/nowhere"]),
        (&["sft", "--model", model, "--data", data, "max_tokens=5"], &["max_tokens"]),
        (&["sft", "--model", model, "--data", data, "lora.modules=w"], &["lora.modules has `w`"]),
        (&["sft", "--model", model, "--data", data, "--device", "cuda:77"], &["cuda"]),
        (&["rl", "--model", "/nowhere", "--data", expert], &["/nowhere"]),
        (&["rl", "--model", model, "--data", data], &["messages.jsonl:1"]),
        (&["rl", "--model", model, "--data", expert, "tasks.names=numbers"], &["numbers", "digits"]),
        (&["rl", "--model", model, "--data", expert, "--adapter", "/nowhere"], &["/nowhere"]),
        (
            &["rl", "--model", model, "--data", expert, "--adapter", adapter, "lora.rank=3"],
            &["lora.rank=3", "has lora.rank=4"],
        ),
        (&["eval", "--model", "/nowhere"], &["/nowhere"]),
        (&["eval", "--model", model, "--adapter", "/nowhere"], &["/nowhere"]),
        (&["eval", "--model", model, "tasks.names=numbers"], &["numbers"]),
        (&["collect", "tasks.ideas=/nowhere"], &["/nowhere"]),
        (&["collect", "tasks.dir=/nowhere"], &["/nowhere"]),
        (&["pretrain", "heads=5"], &["pretrain.heads = 5"]),
    ] {
        let before = tree(folder);
        let ended = onestep(&[arguments, &out].concat());
        // A device that is not there is the system's fault.
        let expected = if parts == ["cuda"] { 1..=2 } else { 2..=2 };
        assert!(ended.code.is_some_and(|code| expected.contains(&code)), "{arguments:?}: {ended:?}");
        parts.iter().for_each(|part| assert!(ended.stderr.contains(part), "{arguments:?}: {ended:?}"));
        assert_eq!(tree(folder), before);
    }
    // What becomes of the folder is said.
    let out = stage.path("taken");
    let sft = stage.sft(&stage.data, &out, &["epochs=1"]);
    let dry = |more: &[&str]| onestep(&[&sft[..], &["--dry-run"], more].concat());
    assert!(dry(&[]).stdout.contains("# starts at the beginning"));
    done(&sft);
    assert!(dry(&[]).stdout.contains("holds an earlier run, which would be renamed"));
    assert!(dry(&["--resume"]).stdout.contains("# goes on after step "));
    let other = dry(&["--resume", "lora.alpha=3"]);
    assert!(other.code == Some(2) && other.stderr.contains("lora.alpha: 32.0, now 3.0"), "{other:?}");
}

/// Without a terminal: the first and the last step, each with step, loss, tokens a second, and the time left or taken.
#[test]
fn long_work_says_how_far_it_is() {
    let stage = Stage::new();
    let out = stage.path("run");
    let ended = onestep(&stage.sft(&stage.data, &out, &["epochs=20"]));
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("sft step ")).collect();
    let steps = fs::read_to_string(out.join("metrics.jsonl")).unwrap().matches("\"loss\"").count();
    assert!(lines.len() >= 2 && lines.len() < steps / 2, "{ended:?}");
    assert!(lines[0].starts_with(&format!("sft step 1 of {steps}: loss ")), "{lines:?}");
    assert!(lines[0].contains(" tokens/s, ") && lines[0].ends_with(" left"), "{lines:?}");
    let last = lines[lines.len() - 1];
    assert!(last.starts_with(&format!("sft step {steps} of {steps}: loss ")) && last.contains(", took "), "{lines:?}");

    let tiny = ["steps=2", "exercises=1", "replies=1", "hidden=16", "layers=1", "heads=2", "kv_heads=1", "mlp=16"];
    let out = stage.path("pretrain");
    let named = ["pretrain", "--out", text(&out)];
    let ended = onestep(&[&named[..], &tiny].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("pretrain step 1 of 2: loss ") && ended.stderr.contains("pretrain step 2 of 2: loss "),
        "{ended:?}"
    );
}

/// What the program does when nobody reads what it says.
#[test]
fn a_closed_stdout_or_stderr_ends_nothing() {
    let stage = Stage::new();
    let (model, data) = (text(&stage.model), text(&stage.data));
    let (input, output) = (stage.path("in.jsonl"), stage.path("out.jsonl"));
    fs::write(&input, "{\"ids\": [1, 2, 3]}\n").unwrap();
    let gguf = stage.path("model.gguf");
    for stream in ["stdout", "stderr"] {
        let out = stage.path(stream);
        let sft = stage.sft(&stage.data, &out, &["epochs=2"]);
        let dry = [&sft[..], &["--dry-run"]].concat();
        let taskless: [&[&str]; 13] = [
            &sft,
            &dry,
            &["task", "list"],
            &["task", "show", "digits"],
            &["doctor"],
            &["kernels", "list"],
            &["plan", "--random-weights", "qwen2.5-7b", "--device-kind", "h200"],
            &["data", "preview", "--model", model, "--data", data, "-n", "8"],
            &["data", "validate", "--model", model, "--data", data],
            &["generate", "--model", model, "--prompt", "x", "--samples", "4", "max_tokens=4"],
            &["score", "--model", model, "--input", text(&input), "--output", text(&output)],
            &["export", "--model", model, "--format", "gguf", "--out", text(&gguf)],
            &["report", text(&out)],
        ];
        for arguments in taskless {
            let ended = unread(stream, arguments);
            assert_eq!(ended.code, Some(0), "{stream}, {arguments:?}: {ended:?}");
        }
        assert!(out.join("adapter/adapter_model.safetensors").exists());
        assert!(out.join("report.html").exists());
    }
    // A stdout that cannot be written is an error, but not before the work is done.
    if Path::new("/dev/full").exists() {
        let out = stage.path("full");
        let ended = onestep_to(
            fs::File::options().write(true).open("/dev/full").unwrap(),
            &stage.sft(&stage.data, &out, &["epochs=1"]),
        );
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("writing to stdout: No space left"), "{ended:?}");
        assert!(out.join("adapter/adapter_model.safetensors").exists());
    }
}

const PLAY: [&str; 6] = [
    "tasks.names=digits",
    "environment.prompt=compact",
    "environment.format=no_thought",
    "environment.max_steps=2",
    "sampling.max_tokens=4",
    "engine.cache_tokens=4096",
];

#[test]
fn policies_are_named_after_what_was_played_and_none_is_replaced_in_silence() {
    let stage = Stage::new();
    let out = stage.path("eval");
    let (adapter, _) = adapter(stage.folder.path());
    let named = stage.path("runs/sft/adapter");
    fs::create_dir_all(named.parent().unwrap()).unwrap();
    fs::rename(&adapter, &named).unwrap();
    let eval = |more: &[&str]| {
        let named = ["eval", "--model", text(&stage.model), "--out", text(&out), "--python", python()];
        let ended = onestep(&[&named[..], &PLAY, &["trajectories=1"], more].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stderr
    };
    let evaluation =
        || serde_json::from_str::<Value>(&fs::read_to_string(out.join("evaluation.json")).unwrap()).unwrap();
    let names = || evaluation()["policies"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let said = eval(&[]);
    assert!(said.contains("eval base step 1 of 2: reward ") && said.contains(" tokens/s"), "{said}");
    assert_eq!(names(), ["base"]);
    let first = evaluation();
    eval(&["--adapter", text(&named)]);
    assert_eq!(names(), ["base", "sft"]);
    assert_eq!(evaluation()["policies"]["base"], first["policies"]["base"]);
    // The same again is replaced with a word; anything else has a name of its own.
    assert!(eval(&[]).contains("base is the same policy, played the same way; it is replaced"));
    assert_eq!(names(), ["base", "sft"]);
    for (more, expected) in [
        (&["--seed", "1"][..], &["base", "base-2", "sft"][..]),
        (&["sampling.temperature=0.5"], &["base", "base-2", "base-3", "sft"]),
        (&["--seed", "1"], &["base", "base-2", "base-3", "sft"]),
        (&["source=mine"], &["base", "base-2", "base-3", "mine", "sft"]),
    ] {
        eval(more);
        assert_eq!(names(), expected);
    }
    // Trajectories likewise, and the snapshots of all of them stay.
    for name in ["base", "base-2", "base-3", "mine", "sft"] {
        assert!(out.join(format!("trajectories/eval-{name}.jsonl")).exists(), "{name}");
    }
    // Another adapter in the place of the first is another policy.
    let config = named.join("adapter_config.json");
    let changed = fs::read_to_string(&config).unwrap().replace("\"lora_alpha\": 8.0", "\"lora_alpha\": 4.0");
    fs::write(&config, changed).unwrap();
    assert!(eval(&["--adapter", text(&named)]).contains("this one is called sft-2"));
    // The settings of the run that the folder is of are not those of a later evaluation.
    assert!(fs::read_to_string(out.join("config.toml")).unwrap().contains("seed = 0"));
}

/// Each chose its name before the other had written.
#[test]
fn evaluations_at_one_time_in_one_folder_are_both_kept() {
    let stage = Stage::new();
    let out = stage.path("eval");
    let eval = |seed: &str| {
        let named = ["eval", "--model", text(&stage.model), "--out", text(&out), "--python", python(), "--seed", seed];
        let ended = onestep(&[&named[..], &PLAY, &["trajectories=1"]].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
    };
    std::thread::scope(|scope| ["1", "2"].map(|seed| scope.spawn(move || eval(seed))).map(|run| run.join().unwrap()));
    let text = fs::read_to_string(out.join("evaluation.json")).unwrap();
    let evaluation: Value = serde_json::from_str(&text).unwrap();
    let policies = evaluation["policies"].as_object().unwrap();
    assert_eq!(policies.keys().collect::<Vec<_>>(), ["base", "base-2"]);
    for name in policies.keys() {
        let played = lines(&out.join(format!("trajectories/eval-{name}.jsonl")));
        assert!(!played.is_empty() && played.iter().all(|episode| episode["source"] == name.as_str()), "{name}");
    }
}

/// collect, rl and eval, each with nobody to read: results are written all the same.
#[test]
fn runs_on_tasks_write_their_results_when_nobody_reads() {
    let stage = Stage::new();
    let (expert, out) = (stage.path("expert"), stage.path("rl"));
    let collect = ["collect", "--out", text(&expert), "--python", python(), "trajectories=1", "rounds=1"];
    let ended = unread("stdout", &[&collect[..], &PLAY].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("collect step 1 of 2: "), "{ended:?}");
    let data = expert.join("trajectories.jsonl");
    let named = ["rl", "--model", text(&stage.model), "--data", text(&data), "--out", text(&out), "--python", python()];
    let rl = [&named[..], &PLAY, &["steps=2", "states=2", "samples=2", "algorithm=grpo", "lora.rank=4"]].concat();
    let ended = unread("stdout", &rl);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stderr.contains("rl step 1 of 2: reward ") && ended.stderr.contains("rl step 2 of 2: reward "),
        "{ended:?}"
    );
    let adapter = out.join("adapter");
    assert!(adapter.join("adapter_model.safetensors").exists());
    // Evaluated into the run's own folder: it is added to, not renamed, and the run's settings stay.
    let config = fs::read_to_string(out.join("config.toml")).unwrap();
    let eval =
        ["eval", "--model", text(&stage.model), "--adapter", text(&adapter), "--out", text(&out), "--python", python()];
    let ended = unread("stdout", &[&eval[..], &PLAY, &["trajectories=1"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(fs::read_to_string(out.join("evaluation.json")).unwrap().contains("\"rl\": {"));
    assert_eq!(fs::read_to_string(out.join("config.toml")).unwrap(), config);
    // Snapshots of both: those that rl.jsonl names are still there.
    let known = fs::read_to_string(out.join("trajectories/snapshots/snapshots.jsonl")).unwrap();
    for trajectory in lines(&out.join("trajectories/rl.jsonl")) {
        let id = trajectory["steps"][0]["snapshot_before"].as_str().unwrap();
        assert!(known.contains(id), "{id}");
    }
    // A run on other tasks, or of another task's text, is another run.
    refused(
        stage.folder.path(),
        &[&rl[..], &["--resume", "tasks.names=digits,wine"]].concat(),
        &["task wine: not there, now ", "tasks.names: "],
    );
    refused(stage.folder.path(), &[&rl[..], &["--resume", "states=3"]].concat(), &["rl.states: 2, now 3"]);
    refused(
        stage.folder.path(),
        &[&rl[..], &["--resume", "samples=3", "temperature=0.5"]].concat(),
        &["unknown key `temperature`"],
    );
    let ended = onestep(&[&rl[..], &["--resume", "run.threads=1", "run.workers=1"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    // A second collection in the same folder keeps the first.
    let before = fs::read(&data).unwrap();
    let ended = onestep(&[&collect[..], &PLAY, &["--seed", "3"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(stage.path("expert.1/trajectories.jsonl")).unwrap(), before);
}

#[test]
fn quickstart_takes_a_device_and_says_what_computed() {
    let folder = tempdir().unwrap();
    let (expert, out) = (folder.path().join("expert"), folder.path().join("run"));
    let collect = ["collect", "--out", text(&expert), "--python", python(), "trajectories=1", "rounds=1"];
    done(&[&collect[..], &PLAY].concat());
    let data = format!("tasks.expert={}", expert.join("trajectories.jsonl").display());
    let small = ["environment.max_steps=1", "sampling.max_tokens=4", "sft.epochs=1", "eval.trajectories=1", "steps=1"];
    let rest = ["states=2", "samples=2", "collect.trajectories=1", "collect.rounds=1", "run.seed=4", &data];
    let named = ["quickstart", "--device", "cpu", "--out", text(&out), "--python", python()];
    done(&[&named[..], &small, &rest].concat());
    let summary: Value = serde_json::from_str(&fs::read_to_string(out.join("summary.json")).unwrap()).unwrap();
    assert!(summary["device"].as_str().unwrap().starts_with("cpu ("), "{summary}");
    assert_eq!((&summary["version"], &summary["seed"]), (&env!("CARGO_PKG_VERSION").into(), &4.into()));
    assert!(summary["commit"].is_string() && summary["program"].as_str().unwrap().len() == 16, "{summary}");
    assert!(summary["sandbox_tier"].as_u64().unwrap() <= 3 && summary["threads"].as_u64().unwrap() > 0, "{summary}");
    let command = summary["command"].as_array().unwrap();
    assert_eq!(command[1..4], ["quickstart", "--device", "cpu"].map(Value::from));
    assert!(summary.get("tier").is_none(), "{summary}");
    let evaluation = fs::read_to_string(out.join("evaluation.json")).unwrap();
    ["base", "sft", "rl"].iter().for_each(|name| assert!(evaluation.contains(&format!("\"{name}\": {{")), "{name}"));
}
