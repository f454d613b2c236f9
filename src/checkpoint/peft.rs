//! Adapters in PEFT layout: adapter_config.json and adapter_model.safetensors. Options that this program does not
//! support are refused by key; keys that it does not know are noted.

use super::{adapter_folder, make_folder, named};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files::json;
use crate::model::config::ModelConfig;
use crate::model::lora::{Adapter, LoraConfig, Module};
use crate::tensor::{DType, Tensor};
use crate::weights::{self, WeightMap};
use regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// Prefix that PEFT puts before the names of the base model.
const PREFIX: &str = "base_model.model.";
/// Prefixes that may stand before `layers.`, any number of times.
const WRAPPERS: [&str; 4] = ["base_model.", "model.", "module.", "_orig_mod."];
/// Maximum rank.
const MAX_RANK: u64 = 65_536;

/// Writes `adapter` in PEFT layout to the folder `dir` (made when missing); `base` is the name or folder of the base
/// model.
pub fn save_adapter(dir: &Path, adapter: &Adapter, base: &str) -> Result<()> {
    make_folder(dir)?;
    let names: Vec<String> = adapter.names.iter().map(|name| format!("{PREFIX}{name}")).collect();
    weights::save(&dir.join(WEIGHTS), &named(&names, &adapter.tensors), None)?;
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
    json::write(&dir.join(CONFIG), &config)
}

/// Loads the adapter that a user means by `dir` (its own folder, a run's or a checkpoint's), as `load_adapter` does.
/// `base` is the folder of the model it is put on. Also returns notes for the user: where the adapter lies, keys that
/// are not understood, a base other than the one it names, a tokenizer or chat template that differs from the base's.
pub fn open_adapter(be: &dyn Backend, model: &ModelConfig, base: &Path, dir: &Path) -> Result<(Adapter, Vec<String>)> {
    let (dir, note) = adapter_folder(dir)?;
    let (adapter, settings) = load(be, model, &dir)?;
    let mut notes: Vec<String> = note.into_iter().chain(settings.notes).collect();
    notes.extend(other_base(&dir, &settings.base, base));
    notes.extend(other_text(&dir, base));
    Ok((adapter, notes))
}

/// Loads a PEFT folder as an adapter of `model`, with its tensors widened to the accumulator type. Targets, ranks and
/// alphas per layer or module (`target_modules`, `rank_pattern`, `alpha_pattern`) become one adapter with the greatest
/// rank and one scale: smaller pairs are padded with zeros, and the ratio of their own scale to the shared one is
/// multiplied into B. The function is the same, and training keeps the padding at zero (a zero row of A and its zero
/// column of B have zero gradients); the adapter is saved in this form.
///
/// Errors name file and key: unsupported options that change what an adapter does (modules to save, biases, DoRA),
/// unknown modules, tensors missing, left over or of another shape.
pub fn load_adapter(be: &dyn Backend, model: &ModelConfig, dir: &Path) -> Result<Adapter> {
    Ok(load(be, model, dir)?.0)
}

/// A note when an adapter names a base other than `base`. Only the last part of the paths is compared: the same model
/// lies in different folders on different machines.
fn other_base(dir: &Path, named: &str, base: &Path) -> Option<String> {
    let last = |path: &Path| path.file_name().map(|name| name.to_string_lossy().to_lowercase());
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let (named, base) = (Path::new(named), base);
    if named.as_os_str().is_empty() || whole(named) == whole(base) || last(named) == last(&whole(base)) {
        return None;
    }
    Some(format!(
        "{}: base_model_name_or_path is {}, and --model {}: an adapter says what it was trained to say only over its own base",
        dir.join(CONFIG).display(),
        named.display(),
        base.display()
    ))
}

/// A note on tokenizer files beside an adapter that differ from those in the folder `base`, which are the ones used.
fn other_text(dir: &Path, base: &Path) -> Option<String> {
    let differs = |name: &&str| {
        let Ok(ours) = std::fs::read(dir.join(name)) else { return false };
        let theirs = std::fs::read(base.join(name)).unwrap_or_default();
        let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
        ours != theirs && (parsed(&ours).is_none() || parsed(&ours) != parsed(&theirs))
    };
    let names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
    let different: Vec<&str> = names.into_iter().filter(|name| differs(name)).collect();
    let are = if different.len() == 1 { "differs" } else { "differ" };
    let note = || format!("{}: {} {are} from its base's, which is used", dir.display(), different.join(" and "));
    (!different.is_empty()).then(note)
}

fn load(be: &dyn Backend, model: &ModelConfig, dir: &Path) -> Result<(Adapter, Settings)> {
    let (path, config) = (dir.join(WEIGHTS), dir.join(CONFIG));
    let mut settings = Settings::read(&config)?;
    let pairs = settings.pairs(model)?;
    settings.notes.extend(settings.unmatched(&pairs));
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        return Err(Error::content(format!(
            "{}: adapter_model.bin is a pickle, which is not read; load it in PEFT and save it with safe_serialization=True",
            dir.display()
        )));
    }
    let map = WeightMap::open_file(&path)?;
    let mut stored = BTreeMap::new();
    for name in map.names() {
        if let Some(other) = stored.insert(canonical(name), name) {
            return Err(Error::content(format!("{}: tensors {other} and {name} are one", path.display())));
        }
    }
    // All tensors are checked before memory is taken for their rank.
    let mut found = Vec::new();
    for (&(layer, module), pair) in &pairs {
        let (n, k) = module.shape(model);
        let mut get = |part: &str, shape: [usize; 2]| {
            let name = format!("{}.{part}.weight", module.path(layer));
            let stored = stored.remove(&name);
            let tensor = map.get(stored.unwrap_or(&format!("{PREFIX}{name}")), &shape)?;
            match tensor.dtype() {
                DType::I32 => Err(Error::content(format!("{}: tensor {name} holds integers", path.display()))),
                _ if tensor.not_finite() > 0 => Err(Error::content(format!(
                    "{}: tensor {name} holds {} of {} numbers that are not finite: the training that made it diverged; take an adapter \
                     from before",
                    path.display(),
                    tensor.not_finite(),
                    tensor.len()
                ))),
                _ => Ok(tensor),
            }
        };
        found.push((layer, module, pair, get("lora_A", [pair.rank, k])?, get("lora_B", [n, pair.rank])?));
    }
    if let Some(other) = stored.into_values().next() {
        return Err(Error::content(format!(
            "{}: tensor {other} belongs to no adapted layer of the model",
            path.display()
        )));
    }
    let shared = settings.shared(&pairs);
    let (scale, rank) = (shared.scale(), shared.rank);
    let mut adapter = Adapter::zeros(be, model, shared)?;
    for (layer, module, pair, a, b) in found {
        let factor = f64::from(pair.scale(settings.rslora)) / f64::from(scale);
        let (place, shape) = (adapter.place(layer, module).unwrap_or_default(), module.shape(model));
        if pair.rank == rank && factor == 1.0 {
            be.write(&mut adapter.tensors[place], &a)?;
            be.write(&mut adapter.tensors[place + 1], &b)?;
            continue;
        }
        be.write(&mut adapter.tensors[place], &resized(&a, [rank, shape.1], 1.0))?;
        be.write(&mut adapter.tensors[place + 1], &resized(&b, [shape.0, rank], factor))?;
    }
    Ok((adapter, settings))
}

/// This program's name for an adapter tensor: without the prefixes that PEFT and wrappers put before the base's names
/// (a few programs omit them themselves), and without the adapter's own name, which early versions kept.
fn canonical(name: &str) -> String {
    let mut path = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| path.strip_prefix(wrapper)) {
        path = rest;
    }
    let path = if path.starts_with("layers.") { format!("model.{path}") } else { name.to_string() };
    for part in [".lora_A.", ".lora_B."] {
        if let Some((layer, rest)) = path.split_once(part)
            && let Some((_, "weight")) = rest.split_once('.')
        {
            return format!("{layer}{part}weight");
        }
    }
    path
}

/// `matrix` times `factor` in the upper left corner of a zero matrix of `shape`, in f64.
fn resized(matrix: &Tensor, shape: [usize; 2], factor: f64) -> Tensor {
    let matrix = weights::converted(matrix, DType::F64);
    let mut out = Tensor::zeros(&shape, DType::F64);
    let rows = out.slice_mut::<f64>().chunks_exact_mut(shape[1]);
    for (to, from) in rows.zip(matrix.slice::<f64>().chunks_exact(matrix.columns())) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = factor * from);
    }
    out
}

/// Rank and alpha of one adapted layer.
#[derive(Debug, Clone, Copy)]
struct Pair {
    rank: usize,
    alpha: f32,
}

impl Pair {
    fn scale(self, rslora: bool) -> f32 {
        LoraConfig { rank: self.rank, alpha: self.alpha, rslora, modules: vec![] }.scale()
    }
}

/// The contents of adapter_config.json.
struct Settings {
    path: PathBuf,
    /// Name or folder of the base model; empty when it is not given.
    base: String,
    /// Notes on keys that are not understood or have no effect.
    notes: Vec<String>,
    targets: Targets,
    rank: usize,
    alpha: f32,
    rslora: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f32)>,
}

/// The layers that `target_modules` selects, by PEFT's rules.
enum Targets {
    AllLinear,
    /// Layers' paths, or what they end with after a dot.
    Names(Vec<String>),
    /// An expression for the whole path.
    Regex(Regex),
}

impl Targets {
    fn contain(&self, path: &str) -> bool {
        match self {
            Targets::AllLinear => true,
            Targets::Names(names) => names.iter().any(|name| is_named(path, name)),
            Targets::Regex(regex) => regex.is_match(path),
        }
    }
}

fn is_named(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// A key of rank_pattern or alpha_pattern: a path, the end of one, or a regular expression for it. Text and compiled
/// form.
struct Pattern(String, Regex);

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        self.1.is_match(path)
    }
}

/// Compiles an expression for a whole path. Its automaton is kept small: a line of text must not ask for megabytes.
fn whole(text: &str) -> std::result::Result<Regex, regex::Error> {
    regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(1 << 18).build()
}

/// Keys that `Settings` reads.
const USED: [&str; 10] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
];

/// Keys without effect on a trained adapter. Some configure an initialisation; `init_lora_weights` says whether it is
/// allowed.
const WITHOUT_EFFECT: [&str; 14] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "unsloth_version",
    "velora_config",
];

/// Initialisations of A and B that leave the base as it is. Others (pissa, olora, corda, loftq, lora_ga) change the
/// base's weights too.
const INITIAL: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];

/// Options that change what an adapter does and that this program does not support.
const UNSUPPORTED: [&str; 17] = [
    "alora_invocation_tokens",
    "arrow_config",
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
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
];

impl Settings {
    /// Reads the file. Missing keys take PEFT's defaults (rank and alpha 8, q_proj and v_proj): earlier versions wrote
    /// fewer keys.
    fn read(path: &Path) -> Result<Self> {
        let fail = |key: &str, what: String| Error::content(format!("{}: {key}: {what}", path.display()));
        let map: Map<String, Value> = json::read(path)?;
        let get = |key: &str| map.get(key).filter(|value| !value.is_null());
        for (key, only) in [("peft_type", "LORA"), ("bias", "none")] {
            if let Some(value) = get(key).filter(|&value| value != only) {
                return Err(fail(key, format!("found {value}, expected {only:?}")));
            }
        }
        let unused = |v: &Value| match v {
            Value::Bool(on) => !on,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        for key in UNSUPPORTED {
            if let Some(value) = get(key).filter(|value| !unused(value)) {
                return Err(fail(
                    key,
                    format!("found {value}; this option is not supported, expected null, false or empty"),
                ));
            }
        }
        if let Some(value) = get("init_lora_weights")
            && !value.is_boolean()
            && !value.as_str().is_some_and(|text| INITIAL.contains(&text.to_lowercase().as_str()))
        {
            return Err(fail(
                "init_lora_weights",
                format!(
                    "found {value}: such an adapter is trained over changed weights of its base; expected true, false or one of {}, or \
                     save it in PEFT with path_initial_model_for_weight_conversion",
                    INITIAL.join(", ")
                ),
            ));
        }
        let base = match get("base_model_name_or_path") {
            None => String::new(),
            Some(Value::String(base)) => base.clone(),
            Some(value) => return Err(fail("base_model_name_or_path", format!("found {value}, expected a string"))),
        };
        let rank = |key: &str, value: &Value| match value.as_u64() {
            Some(rank) if (1..=MAX_RANK).contains(&rank) => Ok(rank as usize),
            _ => Err(fail(key, format!("found {value}, expected a whole number from 1 to {MAX_RANK}"))),
        };
        let alpha = |key: &str, value: &Value| match value.as_f64() {
            Some(alpha) if alpha as f32 > 0.0 && (alpha as f32).is_finite() => Ok(alpha as f32),
            _ => Err(fail(key, format!("found {value}, expected a positive number"))),
        };
        let pattern = |key: &str| -> Result<Vec<(Pattern, &Value)>> {
            let Some(value) = get(key) else { return Ok(vec![]) };
            let object = value.as_object().ok_or_else(|| fail(key, format!("found {value}, expected an object")))?;
            let compiled = |(text, value): (&String, _)| match whole(&format!(r"(?:.*\.)?(?:{text})")) {
                Ok(regex) => Ok((Pattern(text.clone(), regex), value)),
                Err(error) => Err(fail(key, format!("{text:?} is no pattern that can be matched: {error}"))),
            };
            object.iter().map(compiled).collect()
        };
        let rslora = match get("use_rslora") {
            None => false,
            Some(Value::Bool(on)) => *on,
            Some(value) => return Err(fail("use_rslora", format!("found {value}, expected true or false"))),
        };
        let valid = || {
            let names = Module::ALL.map(Module::name).join(", ");
            format!("expected \"all-linear\", a regular expression, or a list of some of {names} or paths that end so")
        };
        let key = "target_modules";
        let targets = match get(key) {
            None => Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
            Some(Value::String(all)) if all.eq_ignore_ascii_case("all-linear") => Targets::AllLinear,
            Some(Value::String(text)) => match whole(text) {
                Ok(regex) => Targets::Regex(regex),
                Err(error) => {
                    return Err(fail(key, format!("{text:?} is no regular expression that can be matched: {error}")));
                }
            },
            Some(Value::Array(list)) if !list.is_empty() => {
                let name = |value: &Value| value.as_str().map(str::to_string);
                Targets::Names(list.iter().map(name).collect::<Option<_>>().ok_or_else(|| fail(key, valid()))?)
            }
            Some(value) => return Err(fail(key, format!("found {value}, {}", valid()))),
        };
        Ok(Self {
            path: path.to_path_buf(),
            base,
            notes: notes(path, &map),
            targets,
            rank: get("r").map_or(Ok(8), |value| rank("r", value))?,
            alpha: get("lora_alpha").map_or(Ok(8.0), |value| alpha("lora_alpha", value))?,
            rslora,
            ranks: pattern("rank_pattern")?
                .into_iter()
                .map(|(pattern, value)| Ok((pattern, rank("rank_pattern", value)?)))
                .collect::<Result<_>>()?,
            alphas: pattern("alpha_pattern")?
                .into_iter()
                .map(|(pattern, value)| Ok((pattern, alpha("alpha_pattern", value)?)))
                .collect::<Result<_>>()?,
        })
    }

    /// The adapted layers of `model`. Errors: a target that is none of its linear layers, or no target at all.
    fn pairs(&self, model: &ModelConfig) -> Result<BTreeMap<(usize, Module), Pair>> {
        let fail = |what: String| {
            let valid = Module::ALL.map(Module::name).join(", ");
            Err(Error::content(format!("{}: target_modules: {what}; valid are {valid}", self.path.display())))
        };
        let mut pairs = BTreeMap::new();
        for layer in 0..model.layers {
            for module in Module::ALL {
                let path = module.path(layer);
                if self.targets.contain(&path) {
                    let first = |list: &[(Pattern, usize)]| list.iter().find(|(p, _)| p.matches(&path)).map(|p| p.1);
                    let alpha = self.alphas.iter().find(|(p, _)| p.matches(&path)).map(|p| p.1);
                    let rank = first(&self.ranks).unwrap_or(self.rank);
                    pairs.insert((layer, module), Pair { rank, alpha: alpha.unwrap_or(self.alpha) });
                }
            }
        }
        if let Targets::Names(names) = &self.targets {
            let paths: Vec<String> = pairs.keys().map(|&(layer, module)| module.path(layer)).collect();
            if let Some(other) = names.iter().find(|name| !paths.iter().any(|path| is_named(path, name))) {
                return fail(format!("found {other:?}"));
            }
        }
        if pairs.is_empty() {
            return fail("it matches no linear layer of the model".into());
        }
        Ok(pairs)
    }

    /// A note for each key of rank_pattern and alpha_pattern that matches none of the adapted layers.
    fn unmatched(&self, pairs: &BTreeMap<(usize, Module), Pair>) -> Vec<String> {
        let paths: Vec<String> = pairs.keys().map(|&(layer, module)| module.path(layer)).collect();
        let ranks = self.ranks.iter().map(|(pattern, _)| ("rank_pattern", pattern));
        let alphas = self.alphas.iter().map(|(pattern, _)| ("alpha_pattern", pattern));
        let unmatched = ranks.chain(alphas).filter(|(_, pattern)| !paths.iter().any(|path| pattern.matches(path)));
        let note = |(key, pattern): (&str, &Pattern)| {
            format!("{}: {key}: {:?} matches no adapted layer and has no effect", self.path.display(), pattern.0)
        };
        unmatched.map(note).collect()
    }

    /// One configuration for all pairs: the greatest rank, and the scale of a pair without patterns.
    fn shared(&self, pairs: &BTreeMap<(usize, Module), Pair>) -> LoraConfig {
        let rank = pairs.values().map(|pair| pair.rank).max().unwrap_or(self.rank);
        let ratio = rank as f32 / self.rank as f32;
        let alpha = self.alpha * if self.rslora { ratio.sqrt() } else { ratio };
        LoraConfig { rank, alpha, rslora: self.rslora, modules: pairs.keys().map(|&(_, module)| module).collect() }
    }
}

/// A note for each key of adapter_config.json that is not understood or has no effect here.
fn notes(path: &Path, map: &Map<String, Value>) -> Vec<String> {
    let note = |(key, value): (&String, &Value)| {
        let name = key.as_str();
        let what = match name {
            _ if value.is_null()
                || USED.contains(&name)
                || WITHOUT_EFFECT.contains(&name)
                || UNSUPPORTED.contains(&name) =>
            {
                return None;
            }
            "task_type" if value == "CAUSAL_LM" => return None,
            "task_type" => format!("found {value}: it was trained for another task than \"CAUSAL_LM\""),
            "lora_dropout" if value.as_f64() == Some(0.0) => return None,
            "lora_dropout" => format!("{value} has no effect: this program trains without dropout"),
            _ => "this key is not understood and has no effect".to_string(),
        };
        Some(format!("{}: {key}: {what}", path.display()))
    };
    map.iter().filter_map(note).collect()
}
