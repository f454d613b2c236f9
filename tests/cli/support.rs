//! Runs the program; makes a tiny random model and small files to run it on.

use onestep::backend::cpu::Cpu;
use onestep::backend::oracle::Oracle;
use onestep::checkpoint::{copy_text_files, save_adapter, save_model};
use onestep::model::Model;
use onestep::model::config::ModelConfig;
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::rng::Philox;
use onestep::sandbox::Python;
use onestep::tensor::DType;
use onestep::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_onestep");

/// How a run of the program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Where data and environments are kept between tests and runs of tests, also of other test programs.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("test-cache")
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env("XDG_CACHE_HOME", cache()).stdin(Stdio::null());
    command
}

fn ended(mut command: Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ended = Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    ended
}

/// Runs the program to its end.
pub fn onestep(arguments: &[&str]) -> Ended {
    let mut command = command(PROGRAM);
    command.args(arguments);
    ended(command)
}

/// Runs the program to its end with `stdout` (a file that takes nothing, say).
pub fn onestep_to(stdout: fs::File, arguments: &[&str]) -> Ended {
    let mut command = command(PROGRAM);
    let child = command.args(arguments).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ended { code: output.status.code(), stdout: String::new(), stderr }
}

/// Runs the program to its end while nobody reads its `stdout` or `stderr`: that pipe's other end is closed.
pub fn unread(stream: &str, arguments: &[&str]) -> Ended {
    let mut command = command(PROGRAM);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    match stream {
        "stdout" => command.stdout(writer),
        _ => command.stderr(writer),
    };
    ended(command)
}

/// Runs the program to its end, in an environment with more variables.
pub fn onestep_with(variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = command(PROGRAM);
    command.envs(variables.iter().copied()).args(arguments);
    ended(command)
}

/// Runs the program, which must succeed; returns what it printed.
pub fn done(arguments: &[&str]) -> String {
    let ended = onestep(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

/// Runs the program, which must exit with 2, say every one of `parts`, and leave everything in `folder` as it was.
pub fn refused(folder: &Path, arguments: &[&str], parts: &[&str]) {
    let before = tree(folder);
    let ended = onestep(arguments);
    assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{arguments:?}: {:?} lacks {part:?}", ended.stderr);
    }
    let after = tree(folder);
    let changed: Vec<_> = before.keys().chain(after.keys()).filter(|k| before.get(*k) != after.get(*k)).collect();
    assert!(changed.is_empty(), "{arguments:?} changed {changed:?}");
}

/// Runs the program with files limited to `blocks` of 512 bytes each: a write beyond fails, as on a full disk.
pub fn onestep_on_full_disk(blocks: u32, arguments: &[&str]) -> Ended {
    let mut command = command("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    command.args(["-c", &script, "sh", PROGRAM]).args(arguments);
    ended(command)
}

/// Runs the program with at most `kilobytes` of address space.
pub fn onestep_within(kilobytes: u64, arguments: &[&str]) -> Ended {
    let mut command = command("sh");
    command.args(["-c", &format!("ulimit -v {kilobytes}; exec \"$@\""), "sh", PROGRAM]).args(arguments);
    ended(command)
}

/// Starts the program in a process group of its own, as a shell does, with nothing to read from it.
pub fn start(arguments: &[&str]) -> Running {
    let mut command = command(PROGRAM);
    command.args(arguments).process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

/// A run that is under way.
pub struct Running(Child);

impl Running {
    /// Waits until `reached` and sends `signal` to the whole group, as Ctrl-C does. The run's exit code; `None` when the
    /// signal ended it.
    pub fn signalled(mut self, signal: &str, reached: impl Fn() -> bool) -> Option<i32> {
        while !reached() {
            assert_eq!(self.0.try_wait().unwrap(), None, "the run ended before it could be stopped");
            std::thread::sleep(Duration::from_millis(2));
        }
        let group = format!("kill -{signal} -{}", self.0.id());
        assert!(Command::new("sh").args(["-c", &group]).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

/// An interpreter with numpy and scikit-learn; made on first use.
pub fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let python = Python::ensure(None, &cache(), &mut |line| eprintln!("{line}")).unwrap();
        python.interpreter.to_str().unwrap().to_string()
    })
}

/// Every file below `folder` with its bytes, every folder with none.
pub fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
                found.insert(path, vec![]);
            } else {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// The text of a path.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The JSON lines of a file.
pub fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many whole lines a file has; 0 when it is not there.
pub fn line_count(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|&&b| b == b'\n').count())
}

fn tokenizer_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/quickstart")
}

/// How many tokens the quickstart's tokenizer has.
pub fn tokens() -> usize {
    Tokenizer::open(&tokenizer_folder()).unwrap().vocab_size()
}

/// How many rows the tiny model's embedding has: the tokens, rounded up to a multiple of 16.
pub fn vocab() -> usize {
    tokens().next_multiple_of(16)
}

/// The config.json of the tiny model.
pub fn tiny_config() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": vocab(), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "max_position_embeddings": 2048, "hidden_act": "silu", "torch_dtype": "float32",
    })
}

fn tiny(vocab: usize) -> Model {
    let mut config = tiny_config();
    config["vocab_size"] = vocab.into();
    let config = ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap();
    let mut model = Model::random(&Oracle::f32(), config, 1, DType::F32).unwrap();
    // Larger than at birth, so that probabilities differ from one another.
    for weight in model.weights.iter_mut().filter(|w| w.shape().len() == 2) {
        weight.slice_mut::<f32>().iter_mut().for_each(|w| *w *= 4.0);
    }
    model
}

/// A folder `model` in `folder` with the tiny model and the quickstart's tokenizer.
pub fn model(folder: &Path) -> PathBuf {
    model_of_vocab(folder, vocab())
}

/// The same with an embedding of `vocab` rows.
pub fn model_of_vocab(folder: &Path, vocab: usize) -> PathBuf {
    let model = folder.join("model");
    save_model(&model, &tiny(vocab), DType::F32).unwrap();
    copy_text_files(&tokenizer_folder(), &model).unwrap();
    model
}

/// A folder `adapter` in `folder` that changes what the tiny model says, and a folder `merged` with both in one.
pub fn adapter(folder: &Path) -> (PathBuf, PathBuf) {
    let base = tiny(vocab());
    let config = LoraConfig { rank: 4, alpha: 8.0, rslora: false, modules: Module::ALL.to_vec() };
    let mut adapter = Adapter::new(&Cpu, &base.config, config, &mut Philox::named(5, "A")).unwrap();
    let mut rng = Philox::named(5, "B");
    for b in adapter.tensors.iter_mut().skip(1).step_by(2) {
        b.slice_mut::<f32>().fill_with(|| (0.2 * rng.normal()) as f32);
    }
    let (to, merged) = (folder.join("adapter"), folder.join("merged"));
    save_adapter(&to, &adapter, "model").unwrap();
    save_model(&merged, &base.merged(&Cpu, &adapter).unwrap(), DType::F32).unwrap();
    (to, merged)
}

/// Conversations to learn from: questions, each with an answer of its own.
pub fn conversations() -> Vec<(String, String)> {
    let words = ["model", "data", "train", "score", "fit", "mean", "scale", "text"];
    words.iter().enumerate().map(|(i, w)| (format!("What is {w}?"), format!("{w} is number {i}."))).collect()
}

/// `conversations` as a file of OpenAI `messages`, one a line.
pub fn messages(folder: &Path) -> PathBuf {
    let line = |(question, answer): (String, String)| {
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        format!("{}\n", json!({ "messages": messages }))
    };
    let path = folder.join("messages.jsonl");
    fs::write(&path, conversations().into_iter().map(line).collect::<String>()).unwrap();
    path
}
