//! Settings: every one stands in data/config/default.toml; a file and `section.key=value` overrides are laid over it.
//! No setting has a default in code, and none is read from the environment.

use crate::backend::KlEstimator;
use crate::environment::{ReplyFormat, Style};
use crate::error::{Error, Result};
use crate::model::Recompute;
use crate::optimizer;
use crate::reward::{self, Case, Form};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

mod check;

/// The defaults, as text: the reference of all settings.
pub const DEFAULTS: &str = include_str!("../data/config/default.toml");

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)] // each key is described in data/config/default.toml
        pub struct $name { $(pub $field: $type),* }
    };
}

section! {
    /// A whole run's settings.
    Config {
        run: Run, tasks: Tasks, chat: Chat, environment: Environment, reward: Reward, sampling: Sampling, engine: Engine, lora: Lora,
        sft: Sft, rl: Rl, eval: Eval, collect: Collect, pretrain: Pretrain,
    }
}
section! {
    /// `[run]`
    Run {
        seed: u64, device: Device, gpu_memory: f64, gpu_check: bool, gpu_fixed_gemms: bool, gpu_separate_allocations: bool,
        threads: usize, workers: usize, sandbox_tier: u8, unsafe_no_sandbox: bool, reuse_rewards: bool, store_bytes: u64,
        checkpoint_every: usize, keep: usize,
    }
}
section! {
    /// `[tasks]`
    Tasks { dir: PathBuf, ideas: PathBuf, expert: PathBuf, names: Vec<String> }
}
section! {
    /// `[chat]`
    Chat { template_arguments: Table }
}
section! {
    /// `[environment]`
    Environment {
        prompt: Style, format: ReplyFormat, max_steps: usize, episode_seconds: f64, observation_limit: usize,
        context_limit: usize, undo_failed_edits: bool,
    }
}
section! {
    /// `[reward]`
    Reward { form: Form, clip: f64, flagged: Flagged }
}
section! {
    /// `[sampling]`
    Sampling { temperature: f32, top_p: f32, top_k: i32, max_tokens: usize }
}
section! {
    /// `[engine]`
    Engine { block_size: usize, cache_tokens: usize, prefill_tokens: usize, max_running: usize, burst: usize }
}
section! {
    /// `[lora]`
    Lora { rank: usize, alpha: f32, rslora: bool, modules: Vec<String> }
}
section! {
    /// `[sft]`
    Sft {
        epochs: usize, learning_rate: f32, schedule: Schedule, warmup: usize, batch_tokens: usize, micro_tokens: usize,
        max_tokens: usize, beta1: f32, beta2: f32, weight_decay: f32, max_norm: f32, full: bool, recompute: Recompute, validation_share: f64,
        save_dtype: SaveDtype,
    }
}
section! {
    /// `[rl]`
    Rl {
        algorithm: Algorithm, steps: usize, states: usize, samples: usize, initial_share: f64, refresh_share: f64,
        learning_rate: f32, critic_learning_rate: f32, schedule: Schedule, warmup: usize, beta1: f32, beta2: f32,
        weight_decay: f32, max_norm: f32,
        epochs: usize, minibatches: usize, target_kl: f32, micro_tokens: usize, recompute: Recompute,
        objective: Objective, clip_low: f32, clip_high: f32, dual_clip: f32, value_clip: f32, gamma: f32, lambda: f32,
        kl_in: KlIn, kl_estimator: KlEstimator, kl_coefficient: f32, entropy_coefficient: f32, whiten: bool,
        group_baseline: GroupBaseline, group_deviation: GroupDeviation, group_epsilon: f32, drop_dead_groups: bool,
        overlong: Overlong, overlong_penalty: f32, overlong_buffer: usize, loss_average: LossAverage,
        reply_scale: f32, critic_warmup: usize,
    }
}
section! {
    /// `[eval]`
    Eval { trajectories: usize, source: String }
}
section! {
    /// `[collect]`
    Collect { trajectories: usize, rounds: usize, redraws: usize, select: usize, other_share: f64 }
}
section! {
    /// `[pretrain]`
    Pretrain {
        steps: usize, exercises: usize, replies: usize, learning_rate: f32, warmup: usize, decay_from: f32,
        weight_decay: f32, max_norm: f32, prompt_weight: f32, hidden: usize, layers: usize, heads: usize,
        kv_heads: usize, mlp: usize,
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($variant:ident),* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[allow(missing_docs)] // described in data/config/default.toml
        pub enum $name { $($variant),* }
    };
}
/// Where the arithmetic runs: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The first GPU when there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number, from 0.
    Cuda(usize),
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Device::Cuda);
        match text.as_str() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            other => {
                number(other).ok_or_else(|| format!("`{other}` is not a device; expected auto, cpu, cuda or cuda:0"))
            }
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => "auto".to_string(),
            Device::Cpu => "cpu".to_string(),
            Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
        }
    }
}

choice! {
    /// Learning-rate schedule after the warm-up.
    Schedule { Constant, Cosine, Linear }
}
choice! {
    /// The type that fully trained weights are written in.
    SaveDtype { Base, Bf16, F16, F32 }
}
choice! {
    /// How advantages are made.
    Algorithm { Ppo, Grpo }
}
choice! {
    /// What clips the policy loss: PPO's token ratios, CISPO's weights, or GSPO's sequence ratios.
    Objective { Clip, Cispo, Gspo }
}
choice! {
    /// What a reply's score is compared with.
    GroupBaseline { Mean, LeaveOneOut }
}
choice! {
    /// What group advantages are divided by.
    GroupDeviation { Group, Batch, None }
}
choice! {
    /// What becomes of replies that reach the limit of their tokens.
    Overlong { Keep, Mask, Penalise, Soft }
}
choice! {
    /// What a submission that looks suspicious earns.
    Flagged { Full, Neutral }
}
choice! {
    /// Where the KL to the reference enters.
    KlIn { Reward, Loss }
}
choice! {
    /// How the loss of tokens is averaged.
    LossAverage { Token, Sample, Reply }
}

impl Schedule {
    /// The schedule of a run of `steps` steps, `warmup` of them warming up.
    pub fn over(self, warmup: usize, steps: usize) -> optimizer::Schedule {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (warmup, total) = (count(warmup), count(steps));
        match self {
            Schedule::Constant => optimizer::Schedule::Constant { warmup },
            Schedule::Cosine => optimizer::Schedule::Cosine { warmup, total, floor: 0.0 },
            Schedule::Linear => optimizer::Schedule::Linear { warmup, total },
        }
    }
}

impl Reward {
    /// The reward of a step by these settings; `is_flagged`: its submission looks suspicious.
    pub fn of(&self, case: Case, share: f64, is_flagged: bool) -> f64 {
        let case =
            if is_flagged && case == Case::Edit && self.flagged == Flagged::Neutral { Case::Neutral } else { case };
        reward::reward(self.form, case, share, (self.clip > 0.0).then_some(self.clip))
    }
}

/// The settings file the program brings for its quickstart. Its keys stand for several algorithms: none is noted as doing nothing.
const BUNDLED: &str = "data/config/quickstart.toml";

/// Where each key that was given got its value.
#[derive(Default)]
struct Origins(BTreeMap<String, Origin>);

struct Origin {
    /// `run.toml, line 3` or `override \`gamma=7\``.
    place: String,
    is_override: bool,
}

impl Origins {
    /// `text` with the places where `keys` were given in front, as an error of whoever gave them.
    fn error(&self, keys: &[&str], text: &str) -> Error {
        let given: Vec<&Origin> = keys.iter().filter_map(|key| self.0.get(*key)).collect();
        let places: Vec<&str> = given.iter().map(|origin| origin.place.as_str()).collect();
        let text = if places.is_empty() { text.to_string() } else { format!("{}: {text}", places.join(", ")) };
        if given.iter().any(|origin| origin.is_override) { Error::usage(text) } else { Error::content(text) }
    }
}

impl Config {
    /// Defaults, then `layers` (name, TOML text) in order, then overrides `section.key=value` (a bare key belongs to
    /// `section`, that of the command). Settings are checked together when all are known. Errors name the file and line or the override,
    /// what was expected and a valid value.
    pub fn load(layers: &[(String, String)], overrides: &[String], section: &str) -> Result<Self> {
        Ok(Self::load_noting(layers, overrides, section)?.0)
    }

    /// `load`, and a note for each setting that was given and does nothing beside the others.
    pub fn load_noting(
        layers: &[(String, String)],
        overrides: &[String],
        section: &str,
    ) -> Result<(Self, Vec<String>)> {
        let defaults: Table = DEFAULTS.parse().map_err(|e| Error::system(format!("data/config/default.toml: {e}")))?;
        let (mut merged, mut origins, mut telling) = (defaults.clone(), Origins::default(), vec![]);
        for (name, text) in layers {
            let table: Table = text.parse().map_err(|e| Error::content(format!("{name}: {e}")))?;
            for (section, value) in &table {
                let place = |key: &str| format!("{name}, line {}", line_of(text, section, key));
                let Value::Table(entries) = value else {
                    return Err(Error::content(format!(
                        "{}: `{section}` stands outside a section; sections are [{}]",
                        place(section),
                        keys(&defaults).replace(", ", "], [")
                    )));
                };
                if !defaults.contains_key(section) {
                    return Err(Error::content(format!(
                        "{name}: unknown section [{section}]; sections are {}",
                        keys(&defaults)
                    )));
                }
                for (key, value) in entries {
                    let path =
                        set(&mut merged, &defaults, section, key, value.clone()).map_err(|e| e.context(place(key)))?;
                    // A run's own config.toml gives every key: only what differs from the defaults says something.
                    let differs =
                        merged.get(section).and_then(|t| t.get(key)) != defaults.get(section).and_then(|t| t.get(key));
                    if differs && !Path::new(name).ends_with(BUNDLED) {
                        telling.push(path.clone());
                    }
                    origins.0.insert(path, Origin { place: place(key), is_override: false });
                }
            }
        }
        for text in overrides {
            let Some((path, value)) = text.split_once('=') else {
                return Err(Error::usage(format!(
                    "override `{text}`: expected section.key=value, for example {section}.{}",
                    example(&defaults, section)
                )));
            };
            let (section, key) = path.trim().split_once('.').unwrap_or((section, path.trim()));
            let value = format!("v = {}", value.trim()).parse::<Table>().ok().and_then(|t| t.get("v").cloned());
            let value = value.unwrap_or_else(|| Value::String(text[path.len() + 1..].trim().to_string()));
            let path = set(&mut merged, &defaults, section, key, value)
                .map_err(|e| Error::usage(format!("override `{text}`: {e}")))?;
            telling.push(path.clone());
            origins.0.insert(path, Origin { place: format!("override `{text}`"), is_override: true });
        }
        let config = Self::checked(&merged, &origins, section)?;
        let notes = if section == "rl" { config.notes(&telling, &origins) } else { vec![] };
        Ok((config, notes))
    }

    /// The settings as TOML, as they are written beside the results.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::system(format!("writing the configuration: {e}")))
    }

    /// The settings in `table`, their types, ranges and combinations checked for a command of `section`.
    fn checked(table: &Table, origins: &Origins, section: &str) -> Result<Self> {
        if let Some((key, value)) = check::not_finite(table) {
            return Err(origins.error(&[&key], &format!("{key} = {value}: expected a finite number")));
        }
        let fault = |fault: check::Fault| Err(origins.error(&fault.keys, &fault.text));
        if let Some(found) = check::ranges(table) {
            return fault(found);
        }
        let config: Self = serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|e| {
            let path = e.path().to_string();
            let key = path.split(['.', '[']).take(2).collect::<Vec<_>>().join(".");
            origins.error(&[&key], &format!("{path}: {}", e.into_inner().message()))
        })?;
        check::combinations(&config, section).map_or(Ok(config), fault)
    }

    /// A note for each of the keys `telling` that does nothing.
    fn notes(&self, telling: &[String], origins: &Origins) -> Vec<String> {
        let idle = check::idle(self);
        let note = |(key, why): &(&str, String)| {
            let place = origins.0.get(*key).map(|origin| origin.place.as_str()).unwrap_or_default();
            format!("{key} does nothing with {why} ({place})")
        };
        idle.iter().filter(|(key, _)| telling.iter().any(|given| given == key)).map(note).collect()
    }
}

/// A setting's word as it is written in TOML.
fn word(value: &impl Serialize) -> String {
    Value::try_from(value).ok().and_then(|value| value.as_str().map(String::from)).unwrap_or_default()
}

fn keys(table: &Table) -> String {
    table.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn example(defaults: &Table, section: &str) -> String {
    let entry = defaults.get(section).and_then(Value::as_table).and_then(|t| t.iter().next());
    entry.map_or_else(|| "seed=1".to_string(), |(k, v)| format!("{k}={v}"))
}

/// Puts one value in, when the key exists and its type is the default's (whole numbers serve as floats). Returns section.key.
fn set(merged: &mut Table, defaults: &Table, section: &str, key: &str, value: Value) -> Result<String> {
    let Some(known) = defaults.get(section).and_then(Value::as_table) else {
        return Err(Error::content(format!("unknown section `{section}`; sections are {}", keys(defaults))));
    };
    let Some(default) = known.get(key) else {
        return Err(Error::content(format!("unknown key `{key}` in [{section}]; keys are {}", keys(known))));
    };
    let value = match (default, value) {
        (Value::Float(_), Value::Integer(n)) => Value::Float(n as f64),
        // JSON is what chat templates' arguments are written in elsewhere.
        (Value::Table(_), Value::String(s)) => serde_json::from_str(&s).map_or(Value::String(s), Value::Table),
        (Value::Array(_), Value::String(s)) => Value::Array(s.split(',').map(|x| x.trim().into()).collect()),
        (_, value) => value,
    };
    if default.type_str() != value.type_str() {
        return Err(Error::content(format!(
            "{section}.{key} = {value}: expected {} {}, for example {default}",
            if default.type_str().starts_with(['a', 'i']) { "an" } else { "a" },
            default.type_str()
        )));
    }
    if let Some(Value::Table(table)) = merged.get_mut(section) {
        table.insert(key.to_string(), value);
    }
    Ok(format!("{section}.{key}"))
}

/// The line (from 1) on which a section's key is set; the file's first line when it cannot be told.
fn line_of(text: &str, section: &str, key: &str) -> usize {
    let mut inside = section == key;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            inside = line.trim_matches(['[', ']', ' ']) == section;
        } else if inside && line.split('=').next().is_some_and(|k| k.trim().trim_matches('"') == key) {
            return i + 1;
        }
    }
    1
}

/// The folder a relative path of the settings belongs to: the working folder when it has `path`, else the nearest folder
/// above it or above the program that has it. Errors name what was looked for.
pub fn locate(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() || path.exists() {
        return Ok(path.to_path_buf());
    }
    let program = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    let folders = [here, program].into_iter().flatten();
    let mut candidates = folders.flat_map(|p| p.ancestors().map(|a| a.join(path)).collect::<Vec<_>>());
    candidates.find(|p| p.exists()).ok_or_else(|| {
        Error::content(format!(
            "{} was found neither here nor above the program; start in the project's folder or give its path",
            path.display()
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(file: &str, overrides: &[&str]) -> Result<Config> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Config::load(&[("run.toml".to_string(), file.to_string())], &overrides, "rl")
    }

    #[test]
    fn layers_and_overrides() {
        let config =
            load("[rl]\nsteps = 7\n[lora]\nalpha = 8\n", &["states=3", "sft.epochs=1", "tasks.names=digits,wine"]);
        let config = config.unwrap();
        assert_eq!((config.rl.steps, config.rl.states, config.sft.epochs, config.lora.alpha), (7, 3, 1, 8.0));
        assert_eq!(config.tasks.names, ["digits", "wine"]);
        let again = Config::load(&[("again".into(), config.to_toml().unwrap())], &[], "rl").unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn errors_name_place_and_valid_value() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("[rl]\nsteps = 7\nstepz = 8\n", &[], &["run.toml, line 3", "stepz", "steps"]),
            ("[rll]\n", &[], &["rll", "sections are"]),
            ("x = 1\n", &[], &["line 1", "outside a section"]),
            ("[rl]\nsteps = \"many\"\n", &[], &["line 2", "rl.steps", "integer", "39"]),
            ("[rl\n", &[], &["run.toml"]),
            ("[rl]\nalgorithm = \"dpo\"\n", &[], &["run.toml, line 2", "rl.algorithm", "ppo", "grpo"]),
            ("", &["stepz=1"], &["stepz=1", "keys are", "steps"]),
            ("", &["steps"], &["section.key=value"]),
            ("", &["steps=0"], &["`steps=0`", "rl.steps = 0", "above 0"]),
            ("", &["steps=-1"], &["rl.steps"]),
            ("", &["initial_share=1.5"], &["share"]),
            ("", &["algorithm=grpo"], &["`algorithm=grpo`", "rl.samples"]),
            ("[rl]\nalgorithm = \"grpo\"\n", &["samples=1"], &["run.toml, line 2", "`samples=1`"]),
            // Each that learns something else than it says, in both places it can stand.
            ("", &["sampling.top_p=0.9"], &["`sampling.top_p=0.9`", "biased", "top_p=1.0"]),
            ("[sampling]\ntop_p = 0.9\n", &[], &["run.toml, line 2", "sampling.top_p"]),
            ("", &["sampling.top_k=20"], &["sampling.top_k = 20", "biased", "top_k=0"]),
            ("", &["sampling.top_k=-1"], &["sampling.top_k = -1", "0, which keeps all"]),
            ("", &["sampling.temperature=0"], &["sampling.temperature = 0", "above 0"]),
            ("", &["kl_in=loss"], &["`kl_in=loss`", "k1", "k2"]),
            ("", &["kl_estimator=k1", "kl_in=loss"], &["`kl_estimator=k1`", "`kl_in=loss`"]),
            ("", &["clip_low=-0.5"], &["rl.clip_low = -0.5", "[0, 1)", "0.2"]),
            ("", &["clip_low=1"], &["rl.clip_low"]),
            ("", &["clip_high=-0.1"], &["rl.clip_high"]),
            ("", &["gamma=7"], &["`gamma=7`", "rl.gamma = 7", "from 0 to 1"]),
            ("", &["lambda=-0.1"], &["rl.lambda"]),
            ("", &["entropy_coefficient=-3"], &["rl.entropy_coefficient = -3", "at least 0"]),
            ("", &["gamma=nan"], &["`gamma=nan`", "finite"]),
            ("", &["learning_rate=inf"], &["rl.learning_rate", "finite"]),
            ("", &["learning_rate=1e300"], &["rl.learning_rate", "finite"]),
            ("[run]\ngpu_memory = nan\n", &[], &["run.toml, line 2", "run.gpu_memory", "finite"]),
            ("", &["reply_scale=0"], &["rl.reply_scale = 0", "above 0"]),
            ("", &["group_epsilon=-1"], &["rl.group_epsilon"]),
            ("", &["dual_clip=1"], &["rl.dual_clip = 1", "above 1", "3.0"]),
            ("", &["dual_clip=-2"], &["rl.dual_clip"]),
            ("", &["weight_decay=-0.1"], &["rl.weight_decay"]),
            ("", &["sft.weight_decay=-0.1"], &["sft.weight_decay"]),
            ("", &["beta1=1"], &["rl.beta1 = 1", "[0, 1)"]),
            ("", &["beta2=-0.1"], &["rl.beta2"]),
            ("", &["sft.beta1=1.0"], &["sft.beta1"]),
            ("", &["sft.beta2=2"], &["sft.beta2"]),
            ("", &["value_clip=-1"], &["rl.value_clip"]),
            ("", &["max_norm=-1"], &["rl.max_norm"]),
            ("", &["target_kl=-1"], &["rl.target_kl"]),
            ("", &["overlong_penalty=-1"], &["rl.overlong_penalty"]),
            ("", &["overlong=soft"], &["`overlong=soft`", "rl.overlong_buffer = 0", "1024"]),
            ("", &["overlong_buffer=64", "overlong=soft", "sampling.max_tokens=64"], &["`sampling.max_tokens=64`"]),
            ("", &["states=24", "minibatches=7"], &["`minibatches=7`", "`states=24`", "rl.minibatches=6"]),
            ("", &["warmup=39"], &["rl.warmup = 39", "rl.steps = 39"]),
            ("", &["critic_warmup=40", "steps=20"], &["rl.critic_warmup = 40", "never be trained"]),
            ("", &["reward.clip=-1"], &["reward.clip"]),
            ("", &["reward.flagged=none"], &["reward.flagged", "full", "neutral"]),
        ];
        for (file, overrides, parts) in cases {
            let error = load(file, overrides).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            for part in *parts {
                assert!(error.to_string().contains(part), "{error} lacks {part}");
            }
        }
    }

    #[test]
    fn settings_are_checked_together_in_any_order() {
        let cases: &[(&str, &[&str])] = &[
            ("", &["algorithm=grpo", "samples=8"]),
            ("", &["samples=8", "algorithm=grpo"]),
            ("[rl]\nalgorithm = \"grpo\"\n", &["samples=8"]),
            ("", &["kl_in=loss", "kl_estimator=k2"]),
            ("", &["kl_in=loss", "kl_coefficient=0"]),
            ("", &["minibatches=3", "states=24"]),
            ("", &["warmup=50", "steps=60"]),
            ("", &["overlong=soft", "overlong_buffer=256"]),
            ("", &["dual_clip=0", "max_norm=0", "value_clip=0"]),
        ];
        for (file, overrides) in cases {
            load(file, overrides).unwrap_or_else(|e| panic!("{overrides:?}: {e}"));
        }
        // What biases learning is nobody's concern elsewhere.
        for text in ["sampling.top_p=0.9", "sampling.top_k=20", "sampling.temperature=0"] {
            Config::load(&[], &[text.to_string()], "eval").unwrap();
        }
    }

    #[test]
    fn settings_that_do_nothing_are_named() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            (
                "",
                &["algorithm=grpo", "samples=8", "gamma=0.9"],
                &["rl.gamma does nothing with rl.algorithm = \"grpo\""],
            ),
            ("", &["whiten=true", "samples=8", "algorithm=grpo"], &["rl.whiten does nothing"]),
            ("[rl]\nlambda = 0.9\nsamples = 2\n", &["algorithm=grpo"], &["rl.lambda", "run.toml, line 2"]),
            ("", &["group_epsilon=0.1"], &["rl.group_epsilon does nothing with rl.algorithm = \"ppo\""]),
            ("", &["drop_dead_groups=true"], &["rl.drop_dead_groups"]),
            ("", &["objective=cispo", "dual_clip=4"], &["rl.dual_clip does nothing with rl.objective = \"cispo\""]),
            ("", &["overlong_penalty=2"], &["rl.overlong_penalty does nothing with rl.overlong = \"keep\""]),
            ("", &["overlong=penalise", "overlong_buffer=9"], &["rl.overlong_buffer"]),
            ("", &["reply_scale=4"], &["rl.reply_scale does nothing with rl.loss_average = \"token\""]),
            (
                "",
                &["kl_coefficient=0", "kl_estimator=k3"],
                &["rl.kl_estimator does nothing with rl.kl_coefficient = 0"],
            ),
            ("", &["target_kl=0.1"], &["rl.target_kl does nothing with rl.epochs = 1"]),
            ("[reward]\nform = \"sigmoid\"\nclip = 2.0\n", &[], &["reward.clip does nothing with reward.form"]),
            ("", &["gamma=0.9", "states=64"], &[]),
            // What stands as it would without being written says nothing.
            ("[rl]\ngroup_epsilon = 0.02\n", &[], &[]),
        ];
        for (file, overrides, parts) in cases {
            let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
            let layers = [("run.toml".to_string(), file.to_string())];
            let (_, notes) = Config::load_noting(&layers, &overrides, "rl").unwrap();
            assert_eq!(notes.len(), usize::from(!parts.is_empty()), "{overrides:?}: {notes:?}");
            assert!(parts.iter().all(|part| notes[0].contains(part)), "{notes:?} lack {parts:?}");
        }
        let bundled = include_str!("../data/config/quickstart.toml").to_string();
        let (_, notes) = Config::load_noting(&[(format!("/x/{BUNDLED}"), bundled)], &[], "rl").unwrap();
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn flagged_submissions_earn_what_is_said() {
        for (flagged, case, expected) in [
            ("full", Case::Edit, 0.3),
            ("neutral", Case::Edit, 0.0),
            ("neutral", Case::Error, -1.0),
            ("neutral", Case::Invalid, -1.0),
        ] {
            let reward = load("", &[&format!("reward.flagged={flagged}")]).unwrap().reward;
            assert_eq!(reward.of(case, 0.3, true), expected, "{flagged} {case:?}");
            assert_eq!(reward.of(Case::Edit, 0.3, false), 0.3);
        }
    }
}
