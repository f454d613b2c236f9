//! Reads and checks task folders: a description, a runnable baseline script, a seeded script that makes the data, a
//! metric and its scale. Submodules make the data, grade submissions and audit for leaks.

pub mod audit;
pub mod grader;
pub mod labels;
pub mod metric;
mod npy;
mod numbers;
mod prepare;
pub mod split;

use crate::error::{Error, Result};
use crate::files::regular;
use crate::sandbox::Limits;
use crate::settings::section;
pub use grader::{Flag, Grade};
pub use labels::Labels;
pub use metric::{Metric, Table};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

section! {
    /// `[tasks]`
    Settings { dir: PathBuf, ideas: PathBuf, expert: PathBuf, names: Vec<String> }
}

/// A task as its task.toml states it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Unique name, that of the folder.
    pub name: String,
    /// One sentence for the agent (short: the small model reads it).
    pub description: String,
    /// tabular, image, text, series or graph.
    pub modality: String,
    /// Metric that the grader computes; it fixes the direction too.
    pub metric: Metric,
    /// The baseline script's metric on the reward split.
    pub m_init: f64,
    /// The best metric on the reward split that composing ideas reached (stated in task.toml).
    pub m_best: f64,
    /// Changes of the metric on the reward split below this count as none.
    pub noise_floor: f64,
    /// Metrics of the baseline script and of good scripts on the report split: the scale of evaluation.
    pub report: Scale,
    /// True when neither training nor the base model may see it.
    pub held_out: bool,
    /// The script that is run and graded.
    pub entry: String,
    /// The file the grader reads.
    pub submission: String,
    /// Resources that a run may use.
    pub limits: Limits,
    /// Python modules that its scripts need loaded, if stated: see `Wanted::preload` in the sandbox.
    pub preload: Option<Vec<String>>,
    /// Files that the agent starts with and may edit, name to text: the entry script only.
    pub starter: BTreeMap<String, String>,
    /// Folder of task.toml.
    pub folder: PathBuf,
}

/// Scale of a split's metric: where it starts and how far it got.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The baseline script's metric.
    pub m_init: f64,
    /// The best metric that composing ideas reached; data/tasks/measure.py says how the scripts were judged.
    pub m_best: f64,
}

impl Scale {
    /// (m - m_init) / (m_best - m_init): 0 at the baseline, 1 at the best stated metric, whatever the direction.
    pub fn normalised(&self, m: f64) -> f64 {
        (m - self.m_init) / (self.m_best - self.m_init)
    }
}

/// A task whose data have been made, as the environment needs it.
#[derive(Debug, Clone)]
pub struct PreparedTask {
    /// The task.
    pub task: Task,
    /// Read-only data files in every workspace: (name in the workspace, path on disk).
    pub data: Vec<(String, PathBuf)>,
    /// The labels, outside every workspace.
    pub labels: PathBuf,
    /// Hash of what a grade depends on besides its metric: data, labels, the task's name, which divides them, and the
    /// scales, which raise flags. Part of the cache key of a run.
    pub data_id: String,
}

const MANIFEST: &str = "task.toml";
/// Most bytes of a text of a task.
const MOST_TEXT: u64 = 16 << 20;
const MODALITIES: [&str; 5] = ["tabular", "image", "text", "series", "graph"];

/// A complete valid task.toml, whose lines error messages quote.
const EXAMPLE: &str = r#"name = "digits"
description = "classify images, 10 classes"
modality = "image"
metric = "accuracy"
m_init = 0.22
m_best = 0.99
noise_floor = 0.00309
held_out = false
entry = "train.py"
submission = "submission.csv"
[limits]
cpu_seconds = 2.0
wall_seconds = 20.0
memory_bytes = 1073741824
output_bytes = 65536
file_bytes = 16777216
disk_bytes = 67108864
processes = 32
[report]
m_init = 0.21
m_best = 0.966667
"#;

/// task.toml, key by key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    name: String,
    description: String,
    modality: String,
    metric: Metric,
    m_init: f64,
    m_best: f64,
    noise_floor: f64,
    held_out: bool,
    entry: String,
    submission: String,
    limits: Limits,
    report: Scale,
    preload: Option<Vec<String>>,
}

impl Task {
    /// Reads `folder`/task.toml and the entry script, and checks them.
    ///
    /// # Errors
    /// Unknown, missing or mistyped keys, and whatever [`Task::check`] refuses. The message names file and key, what
    /// was expected, and a valid line.
    pub fn load(folder: &Path) -> Result<Task> {
        let path = folder.join(MANIFEST);
        let text = regular::read_text(&path, MOST_TEXT)?;
        let manifest: Manifest = toml::from_str(&text).map_err(|e| manifest_error(&path, &text, &e))?;
        let Manifest { name, description, modality, metric, m_init, m_best, noise_floor, held_out, .. } = manifest;
        let Manifest { entry, submission, limits, report, preload, .. } = manifest;
        let folder = folder.to_path_buf();
        let starter = BTreeMap::new();
        let mut task = Task {
            name,
            description,
            modality,
            metric,
            m_init,
            m_best,
            noise_floor,
            report,
            held_out,
            entry,
            submission,
            limits,
            preload,
            starter,
            folder,
        };
        task.check()?;
        let script = task.folder.join(&task.entry);
        let text = regular::read_text(&script, MOST_TEXT)
            .map_err(|error| error.context(format!("key entry of {}", path.display())))?;
        task.starter.insert(task.entry.clone(), text);
        Ok(task)
    }

    /// Loads every task folder (one that holds a task.toml) directly under `root`, sorted by name.
    pub fn load_all(root: &Path) -> Result<Vec<Task>> {
        let failed = |e: std::io::Error| Error::io("listing tasks in", root, &e);
        let mut tasks = Vec::new();
        for entry in fs::read_dir(root).map_err(failed)? {
            let folder = entry.map_err(failed)?.path();
            if folder.join(MANIFEST).exists() {
                tasks.push(Task::load(&folder)?);
            }
        }
        if tasks.is_empty() {
            return Err(Error::content(format!(
                "no task in {}: expected folders that hold a {MANIFEST}",
                root.display()
            )));
        }
        tasks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tasks)
    }

    /// Checks that the stated values make sense together, which [`Task::load`] cannot see key by key.
    ///
    /// # Errors
    /// A value is not valid: the message names file and key, what was expected, and a valid line.
    pub fn check(&self) -> Result<()> {
        let folder_name = self.folder.file_name().map(|name| name.to_string_lossy().into_owned());
        if folder_name.as_deref() != Some(self.name.as_str()) {
            let expected = folder_name.unwrap_or_default();
            return Err(self.wrong(
                "name",
                format_args!("\"{}\" is not the folder's name, expected name = \"{expected}\"", self.name),
            ));
        }
        if self.description.trim().is_empty() || self.description.contains('\n') {
            return Err(self.wrong("description", "expected one line of text"));
        }
        if !MODALITIES.contains(&self.modality.as_str()) {
            let expected = format_args!("unknown \"{}\", expected one of: {}", self.modality, MODALITIES.join(", "));
            return Err(self.wrong("modality", expected));
        }
        for (key, name) in [("entry", &self.entry), ("submission", &self.submission)] {
            if !is_plain_name(name) {
                return Err(self.wrong(key, format_args!("\"{name}\" is not a plain file name")));
            }
        }
        if self.entry == self.submission {
            return Err(self.wrong("submission", "expected another file than entry"));
        }
        if ![".csv", ".npy"].iter().any(|end| self.submission.ends_with(end)) {
            return Err(self.wrong("submission", format_args!("\"{}\" is no .csv or .npy file", self.submission)));
        }
        self.check_scale(self.reward_scale(), ["m_init", "m_best"])?;
        self.check_scale(self.report, ["report.m_init", "report.m_best"])?;
        self.check_noise_floor()?;
        self.check_limits()
    }

    /// Checks a scale; `keys` are the names of its values in task.toml.
    fn check_scale(&self, Scale { m_init, m_best }: Scale, keys: [&str; 2]) -> Result<()> {
        for (key, value) in keys.into_iter().zip([m_init, m_best]) {
            if !value.is_finite() {
                return Err(self.wrong(key, format_args!("{value} is not finite")));
            }
        }
        if m_init == 0.0 {
            return Err(self.wrong(keys[0], "0 makes the relative gain undefined, expected the baseline's metric"));
        }
        if m_best == m_init {
            return Err(self.wrong(keys[1], "equals m_init, expected a better metric"));
        }
        if (m_best > m_init) != self.metric.higher_is_better() {
            let direction = if self.metric.higher_is_better() { "higher" } else { "lower" };
            let found = format_args!("{m_best} is worse than m_init {m_init}: {direction} {} is better", self.metric);
            return Err(self.wrong(keys[1], found));
        }
        Ok(())
    }

    fn check_noise_floor(&self) -> Result<()> {
        let gap = (self.m_best - self.m_init).abs();
        if !(0.0..gap).contains(&self.noise_floor) {
            let found = format_args!("{} is not between 0 and the gap from m_init to m_best, {gap}", self.noise_floor);
            return Err(self.wrong("noise_floor", found));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<()> {
        if let Some((key, why)) = self.limits.out_of_range() {
            return Err(self.wrong(key, why));
        }
        let Limits { cpu_seconds, wall_seconds, output_bytes, file_bytes, .. } = self.limits;
        if wall_seconds < cpu_seconds {
            return Err(self.wrong("wall_seconds", format_args!("{wall_seconds} is below cpu_seconds {cpu_seconds}")));
        }
        // The sandbox accepts 0 for both, but a script that solves a task has to print and write.
        if let Some((key, _)) =
            [("output_bytes", output_bytes), ("file_bytes", file_bytes)].iter().find(|(_, n)| *n == 0)
        {
            return Err(self.wrong(key, "expected an amount above 0"));
        }
        Ok(())
    }

    fn wrong(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        wrong(&self.folder.join(MANIFEST), key, problem)
    }

    /// Returns the scale of the reward split.
    pub fn reward_scale(&self) -> Scale {
        Scale { m_init: self.m_init, m_best: self.m_best }
    }

    /// Normalises a metric of the reward split: 0 at m_init, 1 at m_best.
    pub fn normalised(&self, m: f64) -> f64 {
        self.reward_scale().normalised(m)
    }

    /// Computes the share of the reward split's gap that a step from metric `from` to metric `to` closes; 0 when they
    /// differ by less than the noise floor.
    pub fn share(&self, from: f64, to: f64) -> f64 {
        if (to - from).abs() < self.noise_floor { 0.0 } else { (to - from) / (self.m_best - self.m_init) }
    }

    /// Finds the tasks of these names, in the order of `names`. Error: an unknown name; the message lists the known
    /// ones.
    pub fn find(tasks: &[Task], names: &[impl AsRef<str>]) -> Result<Vec<Task>> {
        let known = |name: &str| tasks.iter().find(|task| task.name == name).cloned();
        let find_one = |name: &str| {
            known(name).ok_or_else(|| {
                let valid: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
                Error::usage(format!("no task \"{name}\", expected one of: {}", valid.join(", ")))
            })
        };
        names.iter().map(|name| find_one(name.as_ref())).collect()
    }
}

/// True for a name that stays inside its folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

fn wrong(path: &Path, key: &str, problem: impl std::fmt::Display) -> Error {
    // report.m_init is the key m_init below the line [report].
    let (table, name) = key.split_once('.').map_or(("", key), |(table, name)| (table, name));
    let lines = EXAMPLE.split_once(&format!("[{table}]")).map_or(EXAMPLE, |(_, lines)| lines).lines();
    let example = match lines.into_iter().find(|line| line.split(" = ").next() == Some(name)) {
        Some(line) => format!("; a valid line: {line}"),
        None => String::new(),
    };
    Error::content(format!("{}, key {key}: {problem}{example}", path.display()))
}

/// Turns a parse error into ours, with the key it is about: the one the message names (unknown or missing), else the
/// one on the line of its span.
fn manifest_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let message = error.message();
    let named = message.strip_prefix("missing field `").or_else(|| message.strip_prefix("unknown field `"));
    let on_line = || {
        let start = error.span()?.start;
        let line_start = text.get(..start)?.rfind('\n').map_or(0, |i| i + 1);
        let (key, _) = text.get(line_start..)?.lines().next()?.split_once('=')?;
        Some(key.trim())
    };
    let key = named.and_then(|rest| rest.split('`').next()).or_else(on_line);
    match key {
        Some(key) => wrong(path, key, message),
        None => Error::content(format!("{}: {message}; a valid file:\n{EXAMPLE}", path.display())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_valid_file() {
        let example: Manifest = toml::from_str(EXAMPLE).unwrap();
        assert_eq!((example.m_init, example.report.m_init), (0.22, 0.21));
        let quoted = wrong(Path::new("task.toml"), "report.m_best", "x").to_string();
        assert!(quoted.ends_with("a valid line: m_best = 0.966667"), "{quoted}");
    }
}
