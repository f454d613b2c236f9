//! What is wrong with what was typed or given: exit 2, a message that names it and says what is valid, nothing half-written.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

/// A folder with a model, a line to score and an earlier result.
struct Scoring {
    folder: TempDir,
    model: PathBuf,
    input: PathBuf,
    output: PathBuf,
}

impl Scoring {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let (input, output) = (folder.path().join("in.jsonl"), folder.path().join("out.jsonl"));
        fs::write(&input, "{\"ids\": [1, 2, 3]}\n").unwrap();
        fs::write(&output, "earlier\n").unwrap();
        Self { model: model(folder.path()), folder, input, output }
    }

    fn refused(&self, more: &[&str], parts: &[&str]) {
        let (model, input, output) = (text(&self.model), text(&self.input), text(&self.output));
        let arguments = [&["score", "--model", model, "--input", input, "--output", output], more].concat();
        refused(self.folder.path(), &arguments, parts);
    }

    fn weights(&self) -> PathBuf {
        self.model.join("model.safetensors")
    }
}

/// The header of a safetensors file and the bytes behind it.
fn parted(path: &Path) -> (Value, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..end]).unwrap(), bytes[end..].to_vec())
}

fn joined(path: &Path, header: &Value, data: &[u8]) {
    let header = header.to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
}

const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn weights_that_are_missing_truncated_or_lie() {
    let scoring = Scoring::new();
    let path = scoring.weights();
    let whole = fs::read(&path).unwrap();
    let (header, data) = parted(&path);
    let file = text(&path);

    fs::remove_file(&path).unwrap();
    scoring.refused(&[], &[text(&scoring.model), "no weights; expected model.safetensors"]);
    for length in [0, 5, 100, whole.len() - 4] {
        fs::write(&path, &whole[..length]).unwrap();
        scoring.refused(&[], &[file, "not a whole safetensors file", "download or write it again"]);
    }
    fs::write(&path, [&u64::MAX.to_le_bytes(), &whole[8..]].concat()).unwrap();
    scoring.refused(&[], &[file, "not a whole safetensors file"]);

    let mut lie = header.clone();
    lie[EMBEDDING]["data_offsets"] = json!([0, 1u64 << 40]);
    joined(&path, &lie, &data);
    scoring.refused(&[], &[file, EMBEDDING]);
    let mut lie = header.clone();
    let end = |tensor: &Value| tensor["data_offsets"][1].as_u64().unwrap_or(0);
    let last = lie.as_object_mut().unwrap().values_mut().max_by_key(|tensor| end(tensor)).unwrap();
    let size = end(last) - last["data_offsets"][0].as_u64().unwrap();
    last["data_offsets"] = json!([0, size]);
    joined(&path, &lie, &data[..data.len() - size as usize]);
    scoring.refused(&[], &[file, "tensor model.", "lies at bytes 0 to", &format!("expected a start at {size}")]);
    let mut lie = header.clone();
    lie[EMBEDDING]["shape"] = json!([vocab() + 1, 32]);
    joined(&path, &lie, &data);
    scoring.refused(&[], &[file, EMBEDDING, &format!("[{}, 32]", vocab() + 1)]);
    let mut lie = header.clone();
    lie[EMBEDDING]["dtype"] = json!("F7");
    joined(&path, &lie, &data);
    scoring.refused(&[], &[file, EMBEDDING, "F7", "F32"]);

    joined(&path, &header, &data);
    let mut config = tiny_config();
    config["intermediate_size"] = json!(80);
    fs::write(scoring.model.join("config.json"), config.to_string()).unwrap();
    scoring.refused(&[], &[file, "layers.0.mlp.", "[64, 32]", "[80, 32]"]);
}

#[test]
fn configurations_of_models_that_are_not_supported() {
    let scoring = Scoring::new();
    let path = scoring.model.join("config.json");
    for (key, value, valid) in [
        ("model_type", json!("gemma"), "valid are qwen2, qwen3, llama"),
        ("hidden_act", json!("gelu"), "valid is silu"),
        ("rope_scaling", json!({"rope_type": "dynamic", "factor": 2.0}), "valid are default, linear, llama3, yarn"),
        ("hidden_size", json!("32"), "expected a whole number"),
        ("vocab_size", Value::Null, "expected a whole number"),
    ] {
        let mut config = tiny_config();
        config[key] = value;
        fs::write(&path, config.to_string()).unwrap();
        scoring.refused(&[], &[text(&path), key, valid]);
    }
    fs::write(&path, "{\"model_type\": ").unwrap();
    scoring.refused(&[], &[text(&path), "line 1", "expected a JSON object"]);
    fs::remove_file(&path).unwrap();
    scoring.refused(&[], &[text(&path)]);
}

#[test]
fn lines_that_cannot_be_scored() {
    let scoring = Scoring::new();
    // More tokens than one pass before the bad line: nothing of them may be left.
    let good = "{\"ids\": [1, 2, 3, 4, 5, 6, 7, 8]}\n".repeat(300);
    let expected = "{\"ids\": [1, 2, 3]}";
    for (line, parts) in [
        ("{\"ids\": [1]}", ["1 ids", "expected at least 2"]),
        ("{\"ids\": []}", ["0 ids", "expected at least 2"]),
        ("{\"ids\": [1, -1]}", ["-1", expected]),
        ("{\"ids\": [1, 2.5]}", ["2.5", expected]),
        ("{\"ids\": [1, 2]", ["EOF", expected]),
        ("{\"id\": [1, 2]}", ["`id`", expected]),
        ("[1, 2", ["line 1 column", expected]),
    ] {
        fs::write(&scoring.input, format!("{good}\n{line}\n")).unwrap();
        scoring.refused(&[], &[text(&scoring.input), "line 302", parts[0], parts[1]]);
    }
    let beyond = vocab();
    fs::write(&scoring.input, format!("{good}{{\"ids\": [1, {beyond}]}}\n")).unwrap();
    let said = [format!("token id {beyond}"), format!("ids 0 to {}", beyond - 1)];
    scoring.refused(&[], &[text(&scoring.input), "line 301", &said[0], &said[1]]);
    fs::write(&scoring.input, format!("{{\"ids\": {:?}}}\n", vec![1; 2049])).unwrap();
    scoring.refused(&[], &[text(&scoring.input), "line 1", "2049 ids", "2048 positions"]);
    fs::write(&scoring.input, b"{\"ids\": [1, 2]}\n\xff\n").unwrap();
    scoring.refused(&[], &[text(&scoring.input), "line 2", "UTF-8"]);
    fs::write(&scoring.input, "\n").unwrap();
    scoring.refused(&[], &[text(&scoring.input), "no line", expected]);
    fs::remove_file(&scoring.input).unwrap();
    scoring.refused(&[], &[text(&scoring.input)]);
}

#[test]
fn adapters_that_do_not_fit() {
    let scoring = Scoring::new();
    let (dir, _) = adapter(scoring.folder.path());
    let (config, weights) = (dir.join("adapter_config.json"), dir.join("adapter_model.safetensors"));
    let good: Value = serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    for (key, value, valid) in [
        ("r", json!(5), "expected [5, 32]"),
        ("r", json!("four"), "expected a whole number"),
        ("target_modules", json!(["q_proj"]), "belongs to no adapted layer"),
        ("target_modules", json!(["c_attn"]), "q_proj"),
        ("use_dora", json!(true), "not supported"),
    ] {
        let mut changed = good.clone();
        changed[key] = value;
        fs::write(&config, changed.to_string()).unwrap();
        scoring.refused(&["--adapter", text(&dir)], &[text(&dir), valid]);
    }
    fs::write(&config, good.to_string()).unwrap();
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 1]).unwrap();
    scoring.refused(&["--adapter", text(&dir)], &[text(&weights), "not a whole safetensors file"]);
    fs::remove_file(&weights).unwrap();
    scoring.refused(&["--adapter", text(&dir)], &[text(&weights)]);
    scoring.refused(&["--adapter", "/nowhere"], &["/nowhere"]);
    scoring.refused(&["--backend", "gpu"], &["--device gpu", "or oracle"]);
}

#[test]
fn data_that_cannot_be_learned_from() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), folder.path().join("data.jsonl"));
    let out = folder.path().join("run");
    // An earlier run in the same place stays as it is.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("metrics.jsonl"), "{\"phase\": \"sft\", \"step\": 1, \"loss\": 2.0}\n").unwrap();
    fs::write(out.join("config.toml"), "earlier").unwrap();
    let good = fs::read_to_string(messages(folder.path())).unwrap();
    for (line, parts) in [
        ("{\"messages\": [", ["EOF", "expected one JSON object a line"]),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", ["no reply of the agent", "assistant message"]),
        ("{\"chat\": []}", ["chat", "\"messages\""]),
        ("{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}", ["robot", "assistant"]),
        ("3", ["3 is no object", "expected"]),
        ("{\"task\": \"digits\", \"steps\": 1}", ["steps", "expected"]),
    ] {
        fs::write(&data, format!("{good}\n{line}\n")).unwrap();
        let place = format!("{}:10", data.display());
        for out in [out.clone(), folder.path().join("new")] {
            let arguments = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out)];
            refused(folder.path(), &arguments, &[&place, parts[0], parts[1]]);
        }
        refused(
            folder.path(),
            &["data", "preview", "--model", text(&model), "--data", text(&data)],
            &[&place, parts[0], parts[1]],
        );
    }
    let arguments = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out)];
    for empty in ["", "\n", "[]"] {
        fs::write(&data, empty).unwrap();
        refused(folder.path(), &arguments, &[text(&data), "no examples", "expected at least one line"]);
    }
    fs::write(&data, &good).unwrap();
    let modules = [&arguments[..], &["lora.modules=q,w"]].concat();
    refused(folder.path(), &modules, &["lora.modules has `w`", "q, k, v, o, gate, up, down"]);
    let short = [&arguments[..], &["sft.max_tokens=5"]].concat();
    refused(folder.path(), &short, &[&format!("{}:1", data.display()), "max_tokens = 5", "sft.max_tokens="]);
    fs::remove_file(&data).unwrap();
    refused(folder.path(), &arguments, &[text(&data)]);
}

#[test]
fn trajectories_that_cannot_be_reinforced() {
    let folder = tempdir().unwrap();
    let (model, data) = (model(folder.path()), folder.path().join("trajectories.jsonl"));
    let out = folder.path().join("run");
    fs::write(&data, "{\"task\": \n").unwrap();
    let arguments = [
        "rl",
        "--model",
        text(&model),
        "--data",
        text(&data),
        "--out",
        text(&out),
        "--python",
        python(),
        "tasks.names=digits",
    ];
    refused(folder.path(), &arguments, &[&format!("{}:1", data.display()), "expected one trajectory a line"]);
    fs::remove_file(&data).unwrap();
    refused(folder.path(), &arguments, &[text(&data)]);
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_has_rows() {
    let folder = tempdir().unwrap();
    let (model, data) = (model_of_vocab(folder.path(), 512), messages(folder.path()));
    let (tokenizer, out) = (model.join("tokenizer.json"), folder.path().join("run"));
    let parts =
        [text(&tokenizer), &format!("{} tokens", tokens()), "512 rows", "tokenizer.json that came with this model"];
    refused(folder.path(), &["sft", "--model", text(&model), "--data", text(&data), "--out", text(&out)], &parts);
    refused(folder.path(), &["generate", "--model", text(&model), "--prompt", "x"], &parts);
}

#[test]
fn settings_that_are_unknown_or_of_another_type() {
    let folder = tempdir().unwrap();
    let (file, out) = (folder.path().join("run.toml"), folder.path().join("run"));
    let arguments = ["sft", "--model", "m", "--data", "d", "--out", text(&out), "--config", text(&file)];
    for (toml, parts) in [
        ("[sft]\nepochs = 1\nepoch = 2\n", ["line 3", "unknown key `epoch`", "epochs"]),
        ("[sftt]\nepochs = 1\n", ["unknown section [sftt]", "sections are", "sft"]),
        (
            "[sft]\nepochs = \"many\"\n",
            ["line 2", "sft.epochs", "expected a whole number from 1 to 100000, for example 2"],
        ),
        ("[sft]\nepochs = -1\n", ["sft.epochs", "-1", "expected"]),
        ("[sft]\nschedule = \"step\"\n", ["sft.schedule", "step", "cosine"]),
        ("epochs = 1\n", ["line 1", "outside a section", "[sft]"]),
        ("[sft\n", ["line 1", "", ""]),
    ] {
        fs::write(&file, toml).unwrap();
        refused(folder.path(), &arguments, &[&[text(&file)], &parts[..]].concat());
    }
    for (setting, parts) in [
        ("epoch=2", ["unknown key `epoch`", "epochs"]),
        ("sftt.epochs=2", ["unknown section `sftt`", "sections are"]),
        ("epochs=many", ["sft.epochs", "expected a whole number from 1 to 100000, for example 2"]),
        ("learning_rate=fast", ["sft.learning_rate", "expected a number from 0"]),
        ("lora.modules=[1]", ["lora.modules = [1]", "expected a list of q, k, v, o, gate, up, down"]),
        ("epochs", ["section.key=value", "for example"]),
        ("batch_tokens=0", ["sft.batch_tokens = 0", "a whole number from 1 to"]),
        ("validation_share=2", ["sft.validation_share = 2", "from 0 to 1"]),
        ("run.device=gpu", ["run.device", "cpu"]),
    ] {
        let arguments = [&arguments[..7], &[setting]].concat();
        refused(folder.path(), &arguments, &[setting, parts[0], parts[1]]);
    }
    fs::remove_file(&file).unwrap();
    refused(folder.path(), &arguments, &[text(&file)]);
}

#[test]
fn tasks_that_are_not_what_they_should_be() {
    let folder = tempdir().unwrap();
    let tasks = folder.path().join("tasks");
    let digits = tasks.join("digits");
    fs::create_dir_all(&digits).unwrap();
    for file in ["prepare.py", "train.py", "task.toml"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tasks/digits").join(file);
        fs::copy(from, digits.join(file)).unwrap();
    }
    let manifest = digits.join("task.toml");
    let good = fs::read_to_string(&manifest).unwrap();
    let dir = format!("tasks.dir={}", tasks.display());
    let out = folder.path().join("run");
    for (line, other, parts) in [
        ("metric = \"accuracy\"\n", "", ["metric", "metric = \"accuracy\""]),
        ("metric = \"accuracy\"\n", "metric = \"beauty\"\n", ["beauty", "accuracy"]),
        ("m_init = 0.22\n", "m_init = \"low\"\n", ["m_init", "m_init = 0.22"]),
    ] {
        fs::write(&manifest, good.replace(line, other)).unwrap();
        let parts = [text(&manifest), parts[0], parts[1]];
        refused(folder.path(), &["task", "list", &dir], &parts);
        refused(folder.path(), &["task", "show", "digits", &dir], &parts);
        refused(folder.path(), &["collect", "--out", text(&out), "tasks.names=digits", &dir], &parts);
    }
    fs::write(&manifest, good).unwrap();
    refused(folder.path(), &["task", "show", "numbers", &dir], &["numbers", "digits"]);
    refused(folder.path(), &["collect", "--out", text(&out), "tasks.names=numbers", &dir], &["numbers", "digits"]);
    refused(folder.path(), &["task", "list", "dir=/nowhere"], &["/nowhere"]);
    fs::remove_dir_all(&digits).unwrap();
    refused(folder.path(), &["task", "list", &dir], &[text(&tasks), "task.toml"]);
}

#[test]
fn what_cannot_be_typed() {
    let folder = tempdir().unwrap();
    let out = folder.path().join("run");
    for (arguments, parts) in [
        (&["fly"][..], ["fly", "--help"]),
        (&[], ["Usage", "quickstart"]),
        (&["sft", "--modell", "x"], ["--modell", "--model"]),
        (&["sft", "--seed", "x"], ["--seed", "expected a whole number from 0 to"]),
        (&["score", "--model", "x"], ["--input", "--output"]),
        (&["sft", "--data", "d", "--out", text(&out)], ["--model is needed", "for example --model"]),
        (&["sft", "--model", "m", "--out", text(&out)], ["--data is needed", "for example --data"]),
        (&["rl", "--out", text(&out)], ["--model is needed", "for example --model"]),
        (&["eval", "--out", text(&out)], ["--model is needed", "for example --model"]),
        (&["report", "/nowhere"], ["/nowhere", "reading"]),
        (&["report", text(folder.path())], [text(folder.path()), "expected a folder that quickstart"]),
    ] {
        refused(folder.path(), arguments, &parts);
    }
    let file = folder.path().join("file");
    fs::write(&file, "here first").unwrap();
    let (model, data) = (model(folder.path()), messages(folder.path()));
    refused(folder.path(), &["quickstart", "--out", text(&file), "--python", python()], &[text(&file), "a folder"]);
    let sft = ["sft", "--model", text(&model), "--data", text(&data), "--out", text(&file)];
    refused(folder.path(), &sft, &[text(&file), "a folder"]);
}
