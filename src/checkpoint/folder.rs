//! Checks whether a path given for a model or an adapter is one; errors say what it is instead and what to give. Reads
//! no weights.

use crate::error::{Error, Result};
use crate::files::json;
use std::path::{Path, PathBuf};

const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Refuses a path that is no model folder this program reads; the error says what to give instead.
pub fn check_model(dir: &Path) -> Result<()> {
    check_folder(dir)?;
    let refuse = |what: String| Err(Error::content(format!("{}: {what}", dir.display())));
    let has = |name: &str| dir.join(name).exists();
    if has("model.safetensors") || has("model.safetensors.index.json") {
        return match has("config.json") {
            true => Ok(()),
            false => Err(Error::content(format!(
                "{}: missing beside the weights; copy it from where the model comes from",
                dir.join("config.json").display()
            ))),
        };
    }
    if has(ADAPTER_CONFIG) {
        let base = base_of(dir).map_or("its base model".to_string(), |base| format!("its base model ({base})"));
        return refuse(format!(
            "this is an adapter's folder, not a model's; give the folder of {base} as --model, and this one as --adapter"
        ));
    }
    if let Some(adapter) = adapters_below(dir, 1).first() {
        return refuse(format!(
            "no model here, but an adapter; give its base model's folder as --model, and --adapter {}",
            adapter.display()
        ));
    }
    if let Some(model) =
        folders(dir).into_iter().chain(folders(&dir.join("snapshots"))).find(|f| f.join("config.json").exists())
    {
        return refuse(format!("no model here, but in a folder below; give --model {}", model.display()));
    }
    let files = files(dir);
    let ending = |endings: &[&str]| files.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending)));
    if let Some(file) = ending(&[".safetensors"]) {
        return refuse(format!(
            "its weights ({file}) have other names; expected model.safetensors, or model.safetensors.index.json and the shards it names"
        ));
    }
    if let Some(file) = ending(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return refuse(format!(
            "its weights are pickles ({file}), which are not read because they can run code; write safetensors from them once: \
             python -c 'from transformers import AutoModelForCausalLM as M; M.from_pretrained(\"IN\").save_pretrained(\"OUT\")'"
        ));
    }
    if let Some(file) = ending(&[".gguf"]) {
        return refuse(format!(
            "its weights are GGUF ({file}), which this program writes but does not read; give the Hugging Face folder that it was made from"
        ));
    }
    if let Some(file) = ending(&[".h5", ".msgpack", ".onnx", ".npz"]) {
        return refuse(format!("its weights ({file}) are not read; expected model.safetensors"));
    }
    match has("config.json") {
        true => refuse("no weights; expected model.safetensors or model.safetensors.index.json with its shards".into()),
        false => refuse("no model here; expected a folder with config.json and model.safetensors".into()),
    }
}

/// The adapter folder that `dir` means: `dir` itself, or the folder in which a run or a checkpoint keeps its one
/// adapter (with a note for the user). Errors say what `dir` is and what to give.
pub fn adapter_folder(dir: &Path) -> Result<(PathBuf, Option<String>)> {
    check_folder(dir)?;
    if dir.join(ADAPTER_CONFIG).exists() {
        return Ok((dir.to_path_buf(), None));
    }
    let refuse = |what: String| Err(Error::content(format!("{}: {what}", dir.display())));
    // A run's folder and an sft checkpoint hold `adapter`; an rl checkpoint holds `actor` (also critic and reference,
    // which do not play).
    if let Some(inner) =
        ["adapter", "actor"].map(|name| dir.join(name)).into_iter().find(|dir| dir.join(ADAPTER_CONFIG).exists())
    {
        let note = format!("{}: its adapter is {}, which is used", dir.display(), inner.display());
        return Ok((inner, Some(note)));
    }
    let below = adapters_below(dir, 3);
    if !below.is_empty() {
        let names: Vec<String> = below.iter().map(|path| path.display().to_string()).collect();
        return refuse(format!("no adapter here, but in folders below; give one of them: {}", listed(&names)));
    }
    if dir.join("adapter_model.safetensors").exists() {
        return refuse(format!("{ADAPTER_CONFIG} is missing beside adapter_model.safetensors"));
    }
    let model = [dir.to_path_buf(), dir.join("model")].into_iter().find(|dir| dir.join("config.json").exists());
    if let Some(model) = model {
        return refuse(format!(
            "this is a whole model, not an adapter; give --model {} without --adapter",
            model.display()
        ));
    }
    refuse(format!("no adapter here; expected a folder with {ADAPTER_CONFIG} and adapter_model.safetensors"))
}

/// Refuses a path that is not a folder.
fn check_folder(dir: &Path) -> Result<()> {
    let refuse = |what: String| Err(Error::content(format!("{}: {what}", dir.display())));
    if dir.is_dir() {
        return Ok(());
    }
    if dir.exists() {
        return refuse(format!("this is a file; give its folder, {}", crate::files::parent(dir).display()));
    }
    let text = dir.to_string_lossy();
    if text.starts_with('~') {
        return refuse(
            "no such folder; the shell replaces ~ only where it stands unquoted, as in --model ~/models/mine".into(),
        );
    }
    if let Some(name) = hub_name(&text) {
        return refuse(format!(
            "no such folder. Where this is the name of a model on the Hugging Face hub: this program downloads nothing; fetch it once \
             (hf download {name} --local-dir models/{short}) and give that folder, models/{short}",
            short = name.rsplit('/').next().unwrap_or(name)
        ));
    }
    refuse(
        "no such folder; expected one with config.json and model.safetensors, or an adapter's with adapter_config.json"
            .into(),
    )
}

/// The `owner/name` in `text` if it looks like a hub name: two words when no folder here has the first as its name, or
/// a hub address.
fn hub_name(text: &str) -> Option<&str> {
    let schemes =
        ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "hf://", "hf.co/", "huggingface.co/"];
    let address = schemes.iter().find_map(|scheme| text.strip_prefix(scheme));
    let name = address.unwrap_or(text).trim_end_matches('/');
    let is_word = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (owner, rest) = name.split_once('/')?;
    let is_name = is_word(owner) && is_word(rest) && (address.is_some() || !Path::new(owner).exists());
    is_name.then_some(name)
}

/// The base model that the configuration of the adapter in `dir` names.
fn base_of(dir: &Path) -> Option<String> {
    let config: serde_json::Value = json::read(&dir.join(ADAPTER_CONFIG)).ok()?;
    config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty()).map(str::to_string)
}

/// Adapter folders at most `depth` levels below `dir`.
fn adapters_below(dir: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = vec![];
    for folder in folders(dir) {
        if folder.join(ADAPTER_CONFIG).exists() {
            found.push(folder);
        } else if depth > 1 {
            found.extend(adapters_below(&folder, depth - 1));
        }
    }
    found
}

/// The folders in `dir`, sorted; none if it cannot be listed.
fn folders(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

/// The names of the entries of `dir`, sorted.
fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    found.sort();
    found
}

/// Names joined by commas: all when they are few, else the first ones and how many more there are.
pub fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
