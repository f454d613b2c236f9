//! Models, adapters and optimizers in folders, and checkpoints that appear whole: Hugging Face and PEFT layouts.

mod folder;
mod hugging_face;
mod peft;

pub use folder::{adapter_folder, check_model};
pub use hugging_face::{load_model, read_config, read_config_with_notes, stored_dtype};
pub use peft::{load_adapter, open_adapter, save_adapter};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::{self, write_whole};
use crate::model::Model;
use crate::optimizer::Optimizer;
use crate::tensor::{DType, Tensor};
use crate::weights::{self, WeightMap};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Writes config.json and model.safetensors to the folder `dir` (made when missing), the weights in `dtype`: f32, f16 or bf16.
pub fn save_model(dir: &Path, model: &Model, dtype: DType) -> Result<()> {
    let torch_dtype = torch_dtype(dtype)?;
    make_folder(dir)?;
    weights::save(&dir.join("model.safetensors"), &named(&model.names, &model.weights), Some(dtype))?;
    write_whole(&dir.join("config.json"), model.config.to_json(torch_dtype).as_bytes())
}

/// The name in config.json of the type that weights are stored in. Error: none of f32, f16 and bf16.
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

/// Publishes the checkpoint `root`/step-XXXXXXXX: `write` puts what it likes (adapters, optimizers) into the folder it is given,
/// `state` becomes state.json, and the folder gets its name when all of it is on disk. Then only the `keep` that were written last stay,
/// this one in any case.
/// Errors leave older checkpoints as they were.
pub fn save_checkpoint(
    root: &Path,
    step: u64,
    keep: usize,
    state: &impl Serialize,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    make_folder(root)?;
    let target = root.join(format!("step-{step:08}"));
    let (temporary, old) = (target.with_extension("tmp"), target.with_extension("old"));
    remove_folder(&temporary)?;
    make_folder(&temporary)?;
    let filled = write(&temporary).and_then(|()| write_json(&temporary.join(STATE), state));
    if let Err(error) = filled {
        // The first error says more than a second one about cleaning up; a rest is removed by the next save.
        let _ = remove_folder(&temporary);
        return Err(error.context(format!("checkpoint {}", target.display())));
    }
    files::sync_folder(&temporary)?;
    let rename = |from: &Path, to: &Path| std::fs::rename(from, to).map_err(|e| Error::io("renaming to", to, &e));
    if target.exists() {
        remove_folder(&old)?;
        rename(&target, &old)?;
    }
    rename(&temporary, &target)?;
    files::sync_folder(root)?;
    remove_folder(&old)?;
    let mut others: Vec<(SystemTime, u64, PathBuf)> = checkpoints(root)?
        .into_iter()
        .filter(|(_, folder)| *folder != target)
        .map(|(step, folder)| (written(&folder), step, folder))
        .collect();
    others.sort();
    others.truncate(others.len().saturating_sub(keep.max(1) - 1));
    others.iter().try_for_each(|(_, _, folder)| remove_folder(folder))?;
    Ok(target)
}

/// When a checkpoint's state was written. One whose time cannot be told counts as the oldest.
fn written(checkpoint: &Path) -> SystemTime {
    let time = std::fs::metadata(checkpoint.join(STATE)).and_then(|state| state.modified());
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The newest checkpoint under `root` and its step; `None` when there is none.
pub fn latest(root: &Path) -> Result<Option<(u64, PathBuf)>> {
    if !root.exists() {
        return Ok(None);
    }
    Ok(checkpoints(root)?.pop())
}

/// The state that `save_checkpoint` stored in the folder `checkpoint`.
pub fn load_state<T: DeserializeOwned>(checkpoint: &Path) -> Result<T> {
    read_json(&checkpoint.join(STATE))
}

/// Whole checkpoints by step. One that was about to be replaced when the program died counts under its `.old` name.
fn checkpoints(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(|e| Error::io("reading", root, &e))? {
        let path = entry.map_err(|e| Error::io("reading", root, &e))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digits = name.strip_prefix("step-").map(|rest| rest.strip_suffix(".old").unwrap_or(rest));
        if let Some(step) = digits.and_then(|digits| digits.parse().ok())
            && !(name.ends_with(".old") && path.with_extension("").exists())
        {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The files that a model folder may hold beside weights and configuration: tokenizer, chat template, generation settings.
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

/// Copies [`TEXT_FILES`], those that are there.
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

/// Writes `value` as indented JSON, whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::system(format!("writing {}: {e}", path.display())))?;
    write_whole(path, format!("{text}\n").as_bytes())
}

/// Reads a JSON file. Errors name the file, line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).map_err(|e| Error::content(format!("{}: {e}", path.display())))
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io("reading", path, &e))
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
