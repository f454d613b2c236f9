//! What a run has published: compared bit for bit with what an uninterrupted run publishes, but for what clocks say.

use crate::processes::is_temporary;
use crate::stage::{Room, Stage, Verb};
use crate::support::tree;
use onestep::weights::WeightMap;
use onestep::{metrics, trajectory};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files by their paths below a run's folder.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What an uninterrupted run comes to.
pub struct Right {
    pub verb: Verb,
    /// The results at its end.
    published: Files,
    /// Every checkpoint, by its path.
    checkpoints: BTreeMap<PathBuf, Files>,
    log: Vec<Value>,
    /// How long a run takes, and how much of that is spent before its first step.
    pub length: Duration,
    pub start: Duration,
}

/// What of a verb is published under its final name at the end; checkpoints and log are looked at apart.
const NOT_COMPARED: [&str; 5] =
    // Wall times; what was typed, with run.keep.
    [metrics::FILE, metrics::EVENTS, "config.toml", "identity.json", "collect.toml"];

impl Right {
    /// Runs `verb` without a fault, keeping every checkpoint, and once more to see how long it takes.
    pub fn of(stage: &Stage, verb: Verb) -> Self {
        let room = Room::new(stage);
        let keep: &[&str] = if verb == Verb::Export { &[] } else { &["run.keep=1000"] };
        room.succeeds(stage, verb, keep);
        let (published, checkpoints, log) = (published(&room.out), checkpoints(&room.out), log(&room.out));
        assert!(published.values().any(|bytes| bytes.len() > 100), "{verb:?} published {:?}", published.keys());
        let resumed = verb.resumes().then(|| room.succeeds(stage, verb, &[keep, &["--resume"]].concat()));
        let length = Room::new(stage).succeeds(stage, verb, &[]);
        Self { verb, published, checkpoints, log, length, start: resumed.unwrap_or(length) }
    }

    /// How many lines the log has at its end.
    pub fn lines(&self) -> usize {
        self.log.len()
    }

    /// The run in `out` has come to its end: everything is there and equal.
    pub fn check_end(&self, out: &Path, what: &str) {
        same(&published(out), &self.published, what);
        assert_eq!(log(out), self.log, "{what}: the log differs");
        let found = checkpoints(out);
        assert_eq!(found.keys().next_back(), self.checkpoints.keys().next_back(), "{what}: the newest checkpoint");
        self.check_checkpoints(&found, what);
    }

    /// The run in `out` has been interrupted: what is published is right or absent, every checkpoint whole, the log a beginning.
    pub fn check_middle(&self, out: &Path, what: &str) {
        if !out.exists() {
            return;
        }
        parse(out, what);
        for (path, bytes) in published(out) {
            let right = self.published.get(&path);
            let is_made_on_the_way = path.starts_with("trajectories");
            assert!(
                right.is_some_and(|right| *right == bytes || is_made_on_the_way),
                "{what}: {} is published and wrong",
                path.display()
            );
        }
        self.check_checkpoints(&checkpoints(out), what);
        let log = log(out);
        assert!(self.log.starts_with(&log), "{what}: the log is no beginning of the right one");
    }

    /// Each is whole and right.
    fn check_checkpoints(&self, found: &BTreeMap<PathBuf, Files>, what: &str) {
        for (path, files) in found {
            let right = self.checkpoints.get(path).unwrap_or_else(|| panic!("{what}: {} is new", path.display()));
            same(files, right, &format!("{what}: {}", path.display()));
        }
    }
}

fn same(found: &Files, right: &Files, what: &str) {
    let paths: Vec<&PathBuf> = found.keys().chain(right.keys()).filter(|p| found.get(*p) != right.get(*p)).collect();
    assert!(paths.is_empty(), "{what}: differ, or are in one only: {paths:?}");
}

/// Results, without log, settings and checkpoints.
fn published(out: &Path) -> Files {
    files(out)
        .into_iter()
        .filter(|(path, _)| !path.starts_with("checkpoints") && !NOT_COMPARED.iter().any(|n| path.ends_with(n)))
        .map(|(path, bytes)| if path.ends_with("evaluation.json") { (path, scores(bytes)) } else { (path, bytes) })
        .collect()
}

/// An evaluation without what was typed, which names the run's folder. One that cannot be read stays as it is.
fn scores(bytes: Vec<u8>) -> Vec<u8> {
    let Ok(mut evaluation) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
    for policy in evaluation["policies"].as_object_mut().into_iter().flat_map(|policies| policies.values_mut()) {
        policy["played"]["command"].take();
    }
    evaluation.to_string().into_bytes()
}

/// The checkpoints that have their names.
pub fn checkpoints(out: &Path) -> BTreeMap<PathBuf, Files> {
    let mut found: BTreeMap<PathBuf, Files> = BTreeMap::new();
    for (path, bytes) in files(out).into_iter().filter(|(path, _)| path.starts_with("checkpoints")) {
        let folder: PathBuf = path.components().take(3).collect();
        // What was typed, with run.keep, and its hash.
        if !path.ends_with("identity.json") && !path.ends_with("manifest.json") {
            found.entry(folder).or_default().insert(path, bytes);
        }
    }
    found
}

/// Files below `out` whose names, and whose folders' names, are final.
fn files(out: &Path) -> Files {
    if !out.exists() {
        return Files::new();
    }
    let relative = |path: &Path| path.strip_prefix(out).unwrap().to_path_buf();
    let found = tree(out).into_iter().filter(|(path, _)| path.is_file());
    let found = found.map(|(path, bytes)| (relative(&path), bytes));
    found.filter(|(path, _)| !path.ancestors().any(is_temporary)).collect()
}

/// The log without what clocks say.
fn log(out: &Path) -> Vec<Value> {
    let path = out.join(metrics::FILE);
    let mut records = if path.exists() { metrics::read(&path).unwrap() } else { vec![] };
    records.iter_mut().for_each(|record| drop(record.as_object_mut().unwrap().shift_remove("seconds")));
    records
}

/// Every file that has its final name can be read as what it is.
fn parse(out: &Path, what: &str) {
    for (path, bytes) in files(out) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let whole = out.join(&path);
        let problem = match name.rsplit_once('.') {
            _ if name == metrics::FILE => metrics::read(&whole).err().map(|e| e.to_string()),
            Some((_, "safetensors")) => WeightMap::open_file(&whole).err().map(|e| e.to_string()),
            Some((_, "json")) => serde_json::from_slice::<Value>(&bytes).err().map(|e| e.to_string()),
            Some((_, "toml")) => toml::from_slice::<toml::Table>(&bytes).err().map(|e| e.to_string()),
            Some((_, "jsonl")) if name == "snapshots.jsonl" => {
                let mut lines = bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty());
                lines.find_map(|line| serde_json::from_slice::<Value>(line).err()).map(|e| e.to_string())
            }
            Some((_, "jsonl")) => trajectory::read_jsonl(&whole).err().map(|e| e.to_string()),
            _ => None,
        };
        assert_eq!(problem, None, "{what}: {}", path.display());
    }
}
