//! Settings: every one stands in data/config/default.toml; a file and `section.key=value` overrides are laid over it.
//! No setting has a default in code, and none is read from the environment.

use crate::backend::KlEstimator;
use crate::environment::{ReplyFormat, Style};
use crate::error::{Error, Result};
use crate::model::Recompute;
use crate::optimizer;
use crate::reward::{self, Case, Form};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

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
        run: Run, tasks: Tasks, environment: Environment, reward: Reward, sampling: Sampling, engine: Engine, lora: Lora,
        sft: Sft, rl: Rl, eval: Eval, collect: Collect, pretrain: Pretrain,
    }
}
section! {
    /// `[run]`
    Run {
        seed: u64, device: Device, gpu_memory: f64, gpu_check: bool, gpu_fixed_gemms: bool, threads: usize, workers: usize,
        sandbox_tier: u8, unsafe_no_sandbox: bool, reuse_rewards: bool, store_bytes: u64,
        checkpoint_every: usize, keep: usize,
    }
}
section! {
    /// `[tasks]`
    Tasks { dir: PathBuf, ideas: PathBuf, expert: PathBuf, names: Vec<String> }
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

impl Config {
    /// Defaults, then `layers` (name, TOML text) in order, then overrides `section.key=value` (a bare key belongs to
    /// `section`). Errors name the file and line or the override, what was expected and a valid value.
    pub fn load(layers: &[(String, String)], overrides: &[String], section: &str) -> Result<Self> {
        let defaults: Table = DEFAULTS.parse().map_err(|e| Error::system(format!("data/config/default.toml: {e}")))?;
        let mut merged = defaults.clone();
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
                    set(&mut merged, &defaults, section, key, value.clone()).map_err(|e| e.context(place(key)))?;
                }
            }
            Self::from_table(&merged).map_err(|e| e.context(name))?;
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
            let applied = set(&mut merged, &defaults, section, key, value);
            applied
                .and_then(|()| Self::from_table(&merged).map(drop))
                .map_err(|e| Error::usage(format!("override `{text}`: {e}")))?;
        }
        Self::from_table(&merged)
    }

    /// The settings as TOML, as they are written beside the results.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::system(format!("writing the configuration: {e}")))
    }

    fn from_table(table: &Table) -> Result<Self> {
        let config: Self = serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|e| {
            let path = e.path().to_string();
            Error::content(format!("{path}: {}", e.into_inner().message()))
        })?;
        config.check()?;
        Ok(config)
    }

    /// Ranges that types cannot say.
    fn check(&self) -> Result<()> {
        let (sft, rl, sampling, engine) = (&self.sft, &self.rl, &self.sampling, &self.engine);
        let positive = [
            ("rl.steps", rl.steps),
            ("rl.states", rl.states),
            ("rl.samples", rl.samples),
            ("rl.epochs", rl.epochs),
            ("rl.minibatches", rl.minibatches),
            ("rl.micro_tokens", rl.micro_tokens),
            ("sft.batch_tokens", sft.batch_tokens),
            ("sft.micro_tokens", sft.micro_tokens),
            ("lora.rank", self.lora.rank),
            ("sampling.max_tokens", sampling.max_tokens),
            ("engine.block_size", engine.block_size),
            ("engine.cache_tokens", engine.cache_tokens),
            ("engine.prefill_tokens", engine.prefill_tokens),
            ("engine.max_running", engine.max_running),
            ("eval.trajectories", self.eval.trajectories),
            ("environment.max_steps", self.environment.max_steps),
            ("run.checkpoint_every", self.run.checkpoint_every),
            ("run.keep", self.run.keep),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(Error::content(format!("{key} = 0: expected a whole number above 0, for example 8")));
        }
        let shares = [
            ("rl.initial_share", rl.initial_share),
            ("rl.refresh_share", rl.refresh_share),
            ("sft.validation_share", sft.validation_share),
            ("collect.other_share", self.collect.other_share),
        ];
        if let Some((key, value)) = shares.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(Error::content(format!("{key} = {value}: expected a share from 0 to 1, for example 0.3")));
        }
        let rates = [
            ("sft.learning_rate", sft.learning_rate),
            ("rl.learning_rate", rl.learning_rate),
            ("rl.critic_learning_rate", rl.critic_learning_rate),
            ("sampling.temperature", sampling.temperature),
            ("rl.kl_coefficient", rl.kl_coefficient),
            ("sft.max_norm", sft.max_norm),
            ("rl.max_norm", rl.max_norm),
        ];
        if let Some((key, value)) = rates.iter().find(|(_, value)| !value.is_finite() || *value < 0.0) {
            return Err(Error::content(format!("{key} = {value}: expected a finite number of at least 0")));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            let p = sampling.top_p;
            return Err(Error::content(format!("sampling.top_p = {p}: expected a number in (0, 1], for example 1.0")));
        }
        if rl.algorithm == Algorithm::Grpo && rl.samples < 2 {
            return Err(Error::content(
                "rl.samples = 1 with rl.algorithm = \"grpo\": a group needs 2 or more samples, for example 8",
            ));
        }
        Ok(())
    }
}

fn keys(table: &Table) -> String {
    table.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn example(defaults: &Table, section: &str) -> String {
    let entry = defaults.get(section).and_then(Value::as_table).and_then(|t| t.iter().next());
    entry.map_or_else(|| "seed=1".to_string(), |(k, v)| format!("{k}={v}"))
}

/// Puts one value in, when the key exists and its type is the default's (whole numbers serve as floats).
fn set(merged: &mut Table, defaults: &Table, section: &str, key: &str, value: Value) -> Result<()> {
    let Some(known) = defaults.get(section).and_then(Value::as_table) else {
        return Err(Error::content(format!("unknown section `{section}`; sections are {}", keys(defaults))));
    };
    let Some(default) = known.get(key) else {
        return Err(Error::content(format!("unknown key `{key}` in [{section}]; keys are {}", keys(known))));
    };
    let value = match (default, value) {
        (Value::Float(_), Value::Integer(n)) => Value::Float(n as f64),
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
    Ok(())
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
            ("[rl]\nalgorithm = \"dpo\"\n", &[], &["rl.algorithm", "ppo", "grpo"]),
            ("", &["stepz=1"], &["stepz=1", "keys are", "steps"]),
            ("", &["steps"], &["section.key=value"]),
            ("", &["steps=0"], &["rl.steps = 0", "above 0"]),
            ("", &["steps=-1"], &["rl.steps"]),
            ("", &["initial_share=1.5"], &["share"]),
            ("", &["algorithm=grpo"], &["rl.samples"]),
        ];
        for (file, overrides, parts) in cases {
            let error = load(file, overrides).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            for part in *parts {
                assert!(error.to_string().contains(part), "{error} lacks {part}");
            }
        }
    }
}
