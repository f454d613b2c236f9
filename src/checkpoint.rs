//! Reads and writes models (Hugging Face layout), adapters (PEFT layout) and optimizers, and writes checkpoints whole
//! or not at all.

mod folder;
mod hugging_face;
mod manifest;
mod peft;

pub use folder::{adapter_folder, check_model};
pub use hugging_face::{load_model, read_config, read_config_with_notes, stored_dtype};
pub use peft::{load_adapter, open_adapter, save_adapter};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::json;
use crate::files::{self, write_whole};
use crate::model::Model;
use crate::optimizer::Optimizer;
use crate::tensor::{DType, Tensor};
use crate::weights::{self, WeightMap};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Writes config.json and model.safetensors to the folder `dir` (made when missing), with weights in f32, f16 or bf16.
pub fn save_model(dir: &Path, model: &Model, dtype: DType) -> Result<()> {
    let torch_dtype = torch_dtype(dtype)?;
    make_folder(dir)?;
    weights::save(&dir.join("model.safetensors"), &named(&model.names, &model.weights), Some(dtype))?;
    write_whole(&dir.join("config.json"), model.config.to_json(torch_dtype).as_bytes())
}

/// The name in config.json of the type that weights are stored in. Error: the type is none of f32, f16 and bf16.
pub fn torch_dtype(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("float32"),
        DType::F16 => Ok("float16"),
        DType::BF16 => Ok("bfloat16"),
        DType::F64 | DType::I32 => Err(Error::usage(format!("a model is stored in f32, f16 or bf16, not {dtype:?}"))),
    }
}

/// Writes an optimizer's state so that `load_optimizer` continues bit for bit.
pub fn save_optimizer(path: &Path, optimizer: &Optimizer) -> Result<()> {
    let steps = Tensor::from_slice(&[1], &[optimizer.steps as i32]);
    let mut list = vec![("steps".to_string(), &steps)];
    for (index, (m, v)) in optimizer.m.iter().zip(&optimizer.v).enumerate() {
        list.push((format!("m.{index}"), m));
        list.push((format!("v.{index}"), v));
    }
    weights::save(path, &list, None)
}

/// Fills `optimizer`, made for the same parameters, from `path`. Errors: another number of tensors or other shapes.
pub fn load_optimizer(be: &dyn Backend, path: &Path, optimizer: &mut Optimizer) -> Result<()> {
    let map = WeightMap::open_file(path)?;
    let (found, expected) = (map.names().count(), 1 + 2 * optimizer.m.len());
    if found != expected {
        return Err(Error::content(format!(
            "{}: {found} tensors, expected {expected}: it is the state of other parameters",
            path.display()
        )));
    }
    let steps = map.get("steps", &[1])?;
    if steps.dtype() != DType::I32 {
        return Err(Error::content(format!("{}: tensor steps is {:?}, expected I32", path.display(), steps.dtype())));
    }
    for (prefix, list) in [("m", &mut optimizer.m), ("v", &mut optimizer.v)] {
        for (index, tensor) in list.iter_mut().enumerate() {
            be.write(tensor, &map.get(&format!("{prefix}.{index}"), tensor.shape())?)?;
        }
    }
    optimizer.steps = steps.slice::<i32>()[0] as u32;
    Ok(())
}

const STATE: &str = "state.json";

/// Publishes the checkpoint `root`/step-XXXXXXXX and returns its path. `write` fills the folder it is given (adapters,
/// optimizers), `state` becomes state.json, the manifest is written, and the folder gets its name when all of it is on
/// disk. Then only the `keep` checkpoints written last stay, this one in any case; `say` gets a warning for each that
/// cannot be removed, which only costs disk space. Errors leave older checkpoints as they were.
pub fn save_checkpoint(
    root: &Path,
    step: u64,
    keep: usize,
    state: &impl Serialize,
    say: &dyn Fn(String),
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    make_folder(root)?;
    let target = root.join(format!("step-{step:08}"));
    let temporary = target.with_extension("tmp");
    let publish = || {
        remove_folder(&temporary)?;
        make_folder(&temporary)?;
        write(&temporary)?;
        json::write(&temporary.join(STATE), state)?;
        manifest::write(&temporary, step)?;
        files::sync_folder(&temporary)?;
        if target.exists() {
            let old = target.with_extension("old");
            remove_folder(&old)?;
            rename(&target, &old)?;
        }
        rename(&temporary, &target)?;
        files::sync_folder(root)
    };
    if let Err(error) = publish() {
        // The first error says more than a second one about cleaning up; the next save removes leftovers.
        let _ = remove_folder(&temporary);
        return Err(error.context(format!("checkpoint {}", target.display())));
    }
    sweep(root, say);
    prune(root, &target, keep, say);
    Ok(target)
}

/// Removes what interrupted saves have left under `root`; `say` gets a warning for what cannot be removed.
pub fn sweep(root: &Path, say: &dyn Fn(String)) {
    for (name, path) in entries(root).unwrap_or_default() {
        let is_rest = match Name::of(&name) {
            Some(Name::Rest) => true,
            Some(Name::Replaced(_)) => path.with_extension("").exists(),
            _ => false,
        };
        if is_rest {
            discard(&path, say);
        }
    }
}

/// Removes all but the `keep` checkpoints written last; `newest` always stays.
fn prune(root: &Path, newest: &Path, keep: usize, say: &dyn Fn(String)) {
    let others = checkpoints(root).unwrap_or_default().into_iter().filter(|(_, path)| path != newest);
    let mut others: Vec<_> = others.map(|(step, path)| (written(&path), step, path)).collect();
    others.sort();
    others.truncate(others.len().saturating_sub(keep.max(1) - 1));
    others.iter().for_each(|(_, _, path)| discard(path, say));
}

/// Removes a checkpoint, or warns that it stays. It is renamed first, so that one half removed is never taken for a
/// checkpoint.
fn discard(folder: &Path, say: &dyn Fn(String)) {
    let gone = folder.with_extension("gone");
    let remove = || {
        if folder != gone {
            remove_folder(&gone)?;
            rename(folder, &gone)?;
        }
        remove_folder(&gone)
    };
    if let Err(error) = remove() {
        say(format!("warning: the old checkpoint {} stays, remove it by hand: {error}", folder.display()));
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|e| Error::io("renaming to", to, &e))
}

/// Time at which a checkpoint's state was written; if unknown, the checkpoint counts as the oldest.
fn written(checkpoint: &Path) -> SystemTime {
    let time = std::fs::metadata(checkpoint.join(STATE)).and_then(|state| state.modified());
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The newest undamaged checkpoint under `root` with its step; `None` when there is no checkpoint at all. `say` gets a
/// warning for each newer one that is damaged. Error: all of them are damaged.
pub fn newest(root: &Path, say: &dyn Fn(String)) -> Result<Option<(u64, PathBuf)>> {
    let mut damaged = vec![];
    for (step, path) in checkpoints(root)?.into_iter().rev() {
        match manifest::check(&path, step) {
            Ok(()) => {
                for line in damaged {
                    say(format!("warning: {line}; going on from {}, the newest whole one", path.display()));
                }
                return Ok(Some((step, path)));
            }
            Err(error) => damaged.push(format!("{} is damaged: {error}", path.display())),
        }
    }
    if damaged.is_empty() {
        return Ok(None);
    }
    Err(Error::content(format!(
        "no checkpoint in {} is whole:\n  {}\nwithout --resume a new run begins",
        root.display(),
        damaged.join("\n  ")
    )))
}

/// Renames the checkpoints under `root` of steps after `step`, which are damaged, so that they do not count among those
/// that are kept. `say` gets a note for each.
pub fn set_aside_after(root: &Path, step: u64, say: &dyn Fn(String)) -> Result<()> {
    for (_, path) in checkpoints(root)?.into_iter().filter(|(at, _)| *at > step) {
        let aside = files::set_aside(&path)?;
        say(format!("note: {} is {} now", path.display(), aside.display()));
    }
    Ok(())
}

/// True when there is a checkpoint under `root`, whole or damaged.
pub fn exists(root: &Path) -> Result<bool> {
    Ok(!checkpoints(root)?.is_empty())
}

/// The state that `save_checkpoint` stored in the folder `checkpoint`.
pub fn load_state<T: DeserializeOwned>(checkpoint: &Path) -> Result<T> {
    json::read(&checkpoint.join(STATE))
}

/// What the name of an entry in a phase's checkpoint folder means.
enum Name {
    /// `step-N`: the checkpoint of that step.
    Whole(u64),
    /// `step-N.old`: a checkpoint that was being replaced when the program died. Counts as step N if there is no
    /// `step-N`.
    Replaced(u64),
    /// `step-N.tmp`, `step-N.gone`: half written, half removed.
    Rest,
}

impl Name {
    fn of(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("step-")?;
        let (number, end) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let step = number.parse().ok()?;
        match end {
            "" => Some(Self::Whole(step)),
            ".old" => Some(Self::Replaced(step)),
            ".tmp" | ".gone" => Some(Self::Rest),
            _ => None,
        }
    }
}

/// Checkpoints by step; their contents are not read.
fn checkpoints(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for (name, path) in entries(root)? {
        match Name::of(&name) {
            Some(Name::Whole(step)) => found.push((step, path)),
            Some(Name::Replaced(step)) if !path.with_extension("").exists() => found.push((step, path)),
            _ => (),
        }
    }
    found.sort();
    Ok(found)
}

/// Names and paths of the entries of a folder; none if there is no folder.
fn entries(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |e: std::io::Error| Error::io("reading", root, &e);
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.map_err(failed)?,
    };
    let named = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
    };
    entries.map(named).collect::<std::io::Result<_>>().map_err(failed)
}

/// Files that a model folder may hold beside weights and configuration: tokenizer, chat template, generation settings.
pub const TEXT_FILES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Copies those of [`TEXT_FILES`] that exist.
pub fn copy_text_files(from: &Path, to: &Path) -> Result<()> {
    for name in TEXT_FILES {
        let path = from.join(name);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(|e| Error::io("reading", &path, &e))?;
            write_whole(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::io("creating", path, &e))
}

fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("removing", path, &e)),
        _ => Ok(()),
    }
}

fn named<'a>(names: &[String], tensors: &'a [Tensor]) -> Vec<(String, &'a Tensor)> {
    names.iter().cloned().zip(tensors).collect()
}
