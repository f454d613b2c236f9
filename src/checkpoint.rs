//! Models, adapters and optimizers in folders, and checkpoints that appear whole: Hugging Face and PEFT layouts.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::{self, write_whole};
use crate::model::Model;
use crate::model::config::ModelConfig;
use crate::model::lora::{Adapter, LoraConfig, Module};
use crate::optimizer::Optimizer;
use crate::tensor::{DType, Tensor};
use crate::weights::{self, WeightMap};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Loads the Hugging Face folder `dir`: config.json and safetensors. Weights stay in the map, in the type they are stored in.
/// Returns notes for the user too (tensors that had to be copied). Errors name file, key or tensor.
pub fn load_model(be: &dyn Backend, dir: &Path) -> Result<(Model, Vec<String>)> {
    let config = read_config(dir)?;
    let map = WeightMap::open(dir)?;
    let mut host = |name: &str, shape: &[usize]| be.place(map.get(name, shape)?);
    let model = Model::new(be, config, &mut host)?;
    Ok((model, map.notes()))
}

/// The configuration in `dir`/config.json.
pub fn read_config(dir: &Path) -> Result<ModelConfig> {
    let path = dir.join("config.json");
    ModelConfig::from_json(&read_text(&path)?, &path)
}

/// Writes config.json and model.safetensors to the folder `dir` (made when missing), the weights in `dtype`: f32, f16 or bf16.
pub fn save_model(dir: &Path, model: &Model, dtype: DType) -> Result<()> {
    let torch_dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F64 | DType::I32 => {
            return Err(Error::usage(format!("a model is stored in f32, f16 or bf16, not {dtype:?}")));
        }
    };
    make_folder(dir)?;
    weights::save(&dir.join("model.safetensors"), &named(&model.names, &model.weights), Some(dtype))?;
    write_whole(&dir.join("config.json"), model.config.to_json(torch_dtype).as_bytes())
}

const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the base model.
const PEFT_PREFIX: &str = "base_model.model.";

/// Writes `adapter` in PEFT layout to the folder `dir` (made when missing); `base` is what the base model is called or where it lies.
pub fn save_adapter(dir: &Path, adapter: &Adapter, base: &str) -> Result<()> {
    make_folder(dir)?;
    let names: Vec<String> = adapter.names.iter().map(|name| format!("{PEFT_PREFIX}{name}")).collect();
    weights::save(&dir.join(ADAPTER_WEIGHTS), &named(&names, &adapter.tensors), None)?;
    let LoraConfig { rank, alpha, rslora, modules } = &adapter.config;
    let config = json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": modules.iter().map(|module| module.name()).collect::<Vec<_>>(),
        "task_type": "CAUSAL_LM",
        "use_rslora": rslora,
    });
    write_json(&dir.join(ADAPTER_CONFIG), &config)
}

/// Loads a PEFT folder as an adapter of `model`. Errors name file and key: options that change what an adapter does and that
/// this program does not have (patterns, modules to save, biases, DoRA), other modules, tensors missing, left over or of another shape.
pub fn load_adapter(be: &dyn Backend, model: &ModelConfig, dir: &Path) -> Result<Adapter> {
    let mut adapter = Adapter::zeros(be, model, read_adapter_config(&dir.join(ADAPTER_CONFIG))?)?;
    let map = WeightMap::open_file(&dir.join(ADAPTER_WEIGHTS))?;
    for (name, tensor) in adapter.names.iter().zip(&mut adapter.tensors) {
        be.write(tensor, &map.get(&format!("{PEFT_PREFIX}{name}"), tensor.shape())?)?;
    }
    if let Some(other) =
        map.names().find(|n| !n.strip_prefix(PEFT_PREFIX).is_some_and(|n| adapter.names.iter().any(|a| a == n)))
    {
        return Err(Error::content(format!(
            "{}: tensor {other} belongs to no adapted layer of the model",
            dir.join(ADAPTER_WEIGHTS).display()
        )));
    }
    Ok(adapter)
}

fn read_adapter_config(path: &Path) -> Result<LoraConfig> {
    let fail = |key: &str, what: String| Error::content(format!("{}: {key}: {what}", path.display()));
    let map: Map<String, Value> = read_json(path)?;
    let get = |key: &str| map.get(key).filter(|value| !value.is_null());
    if get("peft_type").is_some_and(|v| v != "LORA") {
        return Err(fail("peft_type", format!("found {}, expected \"LORA\"", map["peft_type"])));
    }
    if get("bias").is_some_and(|v| v != "none") {
        return Err(fail("bias", format!("found {}, expected \"none\"", map["bias"])));
    }
    for key in [
        "alpha_pattern",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "lora_bias",
        "megatron_config",
        "modules_to_save",
        "monteclora_config",
        "rank_pattern",
        "target_parameters",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "alora_invocation_tokens",
        "arrow_config",
    ] {
        let unused = |v: &Value| match v {
            Value::Bool(on) => !on,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if let Some(value) = get(key).filter(|value| !unused(value)) {
            return Err(fail(
                key,
                format!("found {value}; this option is not supported, expected null, false or empty"),
            ));
        }
    }
    let rank = get("r").and_then(Value::as_u64).filter(|&r| (1..=65_536).contains(&r));
    let alpha = get("lora_alpha").and_then(Value::as_f64).filter(|a| *a > 0.0);
    let rslora = match get("use_rslora") {
        None => false,
        Some(Value::Bool(on)) => *on,
        Some(value) => return Err(fail("use_rslora", format!("found {value}, expected true or false"))),
    };
    let valid = Module::ALL.map(Module::name).join(", ");
    let modules = match get("target_modules") {
        Some(Value::String(all)) if all == "all-linear" => Module::ALL.to_vec(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|value| {
                Module::ALL
                    .into_iter()
                    .find(|module| value == module.name())
                    .ok_or_else(|| fail("target_modules", format!("found {value}; valid are {valid}")))
            })
            .collect::<Result<_>>()?,
        _ => return Err(fail("target_modules", format!("expected a list of some of {valid}, or \"all-linear\""))),
    };
    Ok(LoraConfig {
        rank: rank.ok_or_else(|| fail("r", "expected a whole number from 1 to 65536".into()))? as usize,
        alpha: alpha.ok_or_else(|| fail("lora_alpha", "expected a positive number".into()))? as f32,
        rslora,
        modules,
    })
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
/// `state` becomes state.json, and the folder gets its name when all of it is on disk. Then only the newest `keep` stay (at least one).
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
    let mut all = checkpoints(root)?;
    all.truncate(all.len().saturating_sub(keep.max(1)));
    all.iter().try_for_each(|(_, folder)| remove_folder(folder))?;
    Ok(target)
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

/// Copies what a model folder holds beside weights and configuration (tokenizer, chat template, generation settings).
pub fn copy_text_files(from: &Path, to: &Path) -> Result<()> {
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ] {
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
