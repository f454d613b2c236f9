//! The identity of a run: hashes of everything it reads, its settings, and the program. Checkpoints carry it,
//! `--resume` compares it, and it tells evaluations apart. Also lists which settings each verb reads.

use crate::checkpoint::{TEXT_FILES, adapter_folder};
use crate::error::{Error, Result};
use crate::files;
use crate::files::json;
use crate::task::PreparedTask;
use crate::version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Name of the identity file in a run's folder and in every checkpoint.
pub const FILE: &str = "identity.json";

/// The parts of a run by name: `base weights`, `data`, `task digits`, `sft.epochs`, `build`, ...
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity {
    parts: BTreeMap<String, Part>,
}

/// One part: the value that is compared, and the path for a file or folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

impl Part {
    fn shown(&self) -> String {
        match &self.path {
            Some(path) => format!("{} ({})", path.display(), self.value.chars().take(12).collect::<String>()),
            None => self.value.clone(),
        }
    }
}

/// Parts that may differ between a checkpoint and the run that resumes it: they change no bit of the result.
const FREE: &[&str] = &[
    "command",
    "run.threads",
    "run.workers",
    "run.checkpoint_every",
    "run.keep",
    "run.divergence_patience",
    "run.store_bytes",
    "run.gpu_check",
    "run.gpu_memory",
    "run.gpu_separate_allocations",
    "run.device",       // `device` says what computes
    "run.sandbox_tier", // `sandbox` says what is in force
    "run.unsafe_no_sandbox",
    "tasks.dir", // `task NAME` says what the tasks hold
    "eval.source",
];

/// Parts that may differ with a note to the user: the result is as good, but its bits may differ.
const TOLD: &[&str] = &["build", "device", "python", "sandbox", "run.reuse_rewards"];

/// The differences of a run from an earlier identity, one line each.
#[derive(Debug, Default, PartialEq)]
pub struct Differences {
    /// Differences that make it another run.
    pub refused: Vec<String>,
    /// Differences that may change bits of the result.
    pub told: Vec<String>,
}

impl Identity {
    /// The identity of the settings that `verb` reads, the program, and the command line.
    pub fn new(verb: &str, settings: &str) -> Result<Self> {
        let table: toml::Table =
            settings.parse().map_err(|e| Error::system(format!("reading the settings back: {e}")))?;
        let mut identity = Self::default();
        for (section, keys) in &table {
            for (key, value) in keys.as_table().into_iter().flatten() {
                let name = format!("{section}.{key}");
                if is_read(verb, &name) {
                    identity.add(&name, value.to_string());
                }
            }
        }
        identity.add("verb", verb);
        identity.add("build", version::build());
        identity.add("command", version::command_line().join(" "));
        Ok(identity)
    }

    /// Adds a part that is not a file.
    pub fn add(&mut self, name: &str, value: impl Into<String>) {
        self.parts.insert(name.to_string(), Part { value: value.into(), path: None });
    }

    /// Adds the content of `files` as one part, shown as `path`. Error: one cannot be read.
    fn add_files(&mut self, name: &str, path: &Path, files: &[PathBuf]) -> Result<()> {
        let value = hash(path, files)?;
        // Absolute, so that it can be found from another folder.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        self.parts.insert(name.to_string(), Part { value, path: Some(path) });
        Ok(())
    }

    /// Adds a model folder: configuration, tokenizer with chat template, weights.
    pub fn add_model(&mut self, dir: &Path) -> Result<()> {
        let there = |names: &[&str]| -> Vec<PathBuf> {
            names.iter().map(|name| dir.join(name)).filter(|path| path.exists()).collect()
        };
        self.add_files("base configuration", dir, &[dir.join("config.json")])?;
        self.add_files("base tokenizer", dir, &there(&TEXT_FILES))?;
        self.add_files("base weights", dir, &weight_files(dir)?)
    }

    /// Adds the adapter that the run starts from; `none` without one.
    pub fn add_adapter(&mut self, dir: Option<&Path>) -> Result<()> {
        let Some(dir) = dir else {
            self.add("adapter", "none");
            return Ok(());
        };
        let (dir, _) = adapter_folder(dir)?;
        self.add_files(
            "adapter",
            &dir,
            &["adapter_config.json", "adapter_model.safetensors"].map(|name| dir.join(name)),
        )
    }

    /// Adds a data file.
    pub fn add_data(&mut self, path: &Path) -> Result<()> {
        self.add_files("data", path, &[path.to_path_buf()])
    }

    /// Adds tasks: their folders and the data that were prepared for them.
    pub fn add_tasks<'a>(&mut self, tasks: impl IntoIterator<Item = &'a PreparedTask>) -> Result<()> {
        for PreparedTask { task, data_id, .. } in tasks {
            let name = format!("task {}", task.name);
            self.add_files(&name, &task.folder, &files_below(&task.folder)?)?;
            if let Some(part) = self.parts.get_mut(&name) {
                part.value = blake3::hash(format!("{} {data_id}", part.value).as_bytes()).to_hex().to_string();
            }
        }
        Ok(())
    }

    /// The differences of `now` from this identity, that of an earlier run.
    pub fn differences(&self, now: &Identity) -> Differences {
        let mut differences = Differences::default();
        let names: BTreeSet<&String> = self.parts.keys().chain(now.parts.keys()).collect();
        for name in names.into_iter().filter(|name| !FREE.contains(&name.as_str())) {
            let (before, after) = (self.parts.get(name), now.parts.get(name));
            if before.map(|part| &part.value) == after.map(|part| &part.value) {
                continue;
            }
            let shown = |part: Option<&Part>| part.map_or_else(|| "not there".to_string(), Part::shown);
            let line = format!("{name}: {}, now {}", shown(before), shown(after));
            let list = if TOLD.contains(&name.as_str()) { &mut differences.told } else { &mut differences.refused };
            list.push(line);
        }
        differences
    }

    /// The parts that `other` has too, for a comparison before everything is opened.
    pub fn restricted_to(&self, other: &Identity) -> Identity {
        let parts = self.parts.iter().filter(|(name, _)| other.parts.contains_key(*name));
        Self { parts: parts.map(|(name, part)| (name.clone(), part.clone())).collect() }
    }

    /// True when `other` gives the same result: only parts in `FREE` differ.
    pub fn is_same(&self, other: &Identity) -> bool {
        self.differences(other) == Differences::default()
    }

    /// True when `other` gives the same result, but for a difference in the program.
    pub fn is_same_but_for_the_build(&self, other: &Identity) -> bool {
        let differences = self.differences(other);
        differences.refused.is_empty() && differences.told.iter().all(|line| line.starts_with("build:"))
    }

    /// Reads `dir`/identity.json; `None` when it is not there.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        if path.exists() { json::read(&path).map(Some) } else { Ok(None) }
    }
}

/// The weight files of a model folder: one, or the index and the shards that it names.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = dir.join("model.safetensors.index.json");
    let single = dir.join("model.safetensors");
    if single.exists() || !index.exists() {
        return Ok(vec![single]);
    }
    let shards: BTreeSet<String> = json::read::<Index>(&index)?.weight_map.into_values().collect();
    Ok(std::iter::once(index).chain(shards.into_iter().map(|shard| dir.join(shard))).collect())
}

/// The regular files of a task's folder and of those below it, sorted. Names that begin with a dot or two underscores
/// (caches) are left out.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    files::below(folder, |name| !name.starts_with('.') && !name.starts_with("__"))
}

/// The blake3 hash of the names (below `root`) and contents of `files`, in their order.
fn hash(root: &Path, files: &[PathBuf]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes();
        let (content, _) = files::hash(path)?;
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name).update(content.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The settings that each verb does not read: sections and single keys. All others are read.
const UNREAD: &[(&str, &[&str])] = &[
    (
        "sft",
        &[
            "tasks",
            "environment",
            "reward",
            "sampling",
            "engine",
            "rl",
            "eval",
            "collect",
            "pretrain",
            "run.workers",
            "run.sandbox_tier",
            "run.unsafe_no_sandbox",
            "run.reuse_rewards",
            "run.store_bytes",
        ],
    ),
    ("rl", &["tasks.ideas", "tasks.expert", "sft", "eval", "collect", "pretrain"]),
    (
        "eval",
        &[
            "tasks.ideas",
            "tasks.expert",
            "lora",
            "sft",
            "rl",
            "collect",
            "pretrain",
            "run.checkpoint_every",
            "run.keep",
            "run.divergence_patience",
        ],
    ),
    (
        "collect",
        &[
            "tasks.expert",
            "chat",
            "sampling",
            "engine",
            "lora",
            "sft",
            "rl",
            "eval",
            "pretrain",
            "run.device",
            "run.gpu_memory",
            "run.gpu_check",
            "run.gpu_fixed_gemms",
            "run.gpu_separate_allocations",
            "run.threads",
            "run.checkpoint_every",
            "run.keep",
            "run.divergence_patience",
        ],
    ),
    (
        "pretrain",
        &[
            "tasks",
            "environment",
            "reward",
            "sampling",
            "engine",
            "lora",
            "sft",
            "rl",
            "eval",
            "collect",
            "run.workers",
            "run.sandbox_tier",
            "run.unsafe_no_sandbox",
            "run.reuse_rewards",
            "run.store_bytes",
        ],
    ),
    ("quickstart", &["tasks.names", "eval.source", "pretrain"]),
    (
        "generate",
        &[
            "tasks",
            "environment",
            "reward",
            "lora",
            "sft",
            "rl",
            "eval",
            "collect",
            "pretrain",
            "run.seed",
            "run.workers",
            "run.sandbox_tier",
            "run.unsafe_no_sandbox",
            "run.reuse_rewards",
            "run.store_bytes",
            "run.checkpoint_every",
            "run.keep",
            "run.divergence_patience",
        ],
    ),
    ("task", &["reward", "sampling", "engine", "lora", "sft", "rl", "eval", "collect", "pretrain"]),
    (
        "data",
        &["run", "tasks", "environment", "reward", "sampling", "engine", "lora", "rl", "eval", "collect", "pretrain"],
    ),
    ("plan", &["tasks", "reward", "eval", "collect", "pretrain"]),
];

/// True when `verb` reads the setting `key` (`section.key`).
pub fn is_read(verb: &str, key: &str) -> bool {
    let section = key.split('.').next().unwrap_or(key);
    let unread = UNREAD.iter().find(|(name, _)| *name == verb).map_or(&[][..], |(_, keys)| keys);
    !unread.iter().any(|name| *name == section || *name == key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_named_here_exists() {
        let defaults: toml::Table = crate::config::DEFAULTS.parse().unwrap();
        let exists = |name: &str| match name.split_once('.') {
            Some((section, key)) => defaults[section].as_table().unwrap().contains_key(key),
            None => defaults.contains_key(name),
        };
        let free = FREE.iter().chain(TOLD).filter(|name| name.contains('.'));
        let names: Vec<&&str> = UNREAD.iter().flat_map(|(_, names)| names.iter()).chain(free).collect();
        assert!(names.iter().all(|name| exists(name)), "{names:?}");
        assert!(names.len() > 50);
    }

    #[test]
    fn a_change_of_any_part_is_named_with_both_values() {
        let config = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
            crate::config::Config::load(&[], &overrides, "sft").unwrap().to_toml().unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&two, "2").unwrap();
        let identity = |overrides: &[&str], data: &Path| {
            let mut identity = Identity::new("sft", &config(overrides)).unwrap();
            identity.add_data(data).unwrap();
            identity
        };
        let first = identity(&["epochs=3"], &one);
        let text = serde_json::to_string(&first).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), first);
        assert!(first.is_same(&identity(&["epochs=3", "rl.steps=1", "run.threads=1", "run.keep=9"], &one)));

        let found = first.differences(&identity(&["epochs=2", "lora.rank=3"], &two));
        assert_eq!(found.refused.len(), 3, "{found:?}");
        assert!(found.refused[0].starts_with("data: ") && found.refused[0].contains("/one ("), "{found:?}");
        assert!(found.refused[0].contains(", now ") && found.refused[0].contains("/two ("), "{found:?}");
        assert_eq!(found.refused[1..], ["lora.rank: 16, now 3", "sft.epochs: 3, now 2"]);

        let mut other = identity(&["epochs=3"], &one);
        other.add("device", "a GPU");
        assert_eq!(first.differences(&other).told, ["device: not there, now a GPU"]);
        assert!(!first.is_same(&other) && first.differences(&other).refused.is_empty());
        // The same bytes elsewhere are the same data.
        std::fs::write(&two, "1").unwrap();
        assert_eq!(first.differences(&identity(&["epochs=3"], &two)).refused, [""; 0]);
    }
}
