//! Runs remembered by content. Sound because a run starts in a fresh folder and leaves nothing behind but what is recorded here.

use super::snapshot::{SnapshotId, read_lines, write_lines};
use crate::error::Result;
use crate::sandbox::Outcome;
use crate::task::{Grade, PreparedTask};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Everything a run's result depends on, hashed: Python and its packages, task data and labels, metric, limits, files,
/// and the script.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunKey(String);

impl RunKey {
    /// The key of running `script` (graded when it is the task's entry) on the files of `snapshot` by the Python of this id.
    pub fn new(python_id: &str, prepared: &PreparedTask, snapshot: &SnapshotId, script: &str) -> Self {
        let task = &prepared.task;
        let limits = format!("{:?}", task.limits);
        let graded = if script == task.entry { task.metric.name() } else { "" };
        let mut hash = blake3::Hasher::new();
        for part in [python_id, &prepared.data_id, graded, &task.submission, &limits, &snapshot.0, script] {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self(hash.finalize().to_hex().to_string())
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// How the script ended.
    pub outcome: Outcome,
    /// What it printed, cut to the observation limit.
    pub stdout: String,
    /// What it printed on stderr, cut to the observation limit.
    pub stderr: String,
    /// Wall seconds when it was executed.
    pub wall_seconds: f64,
    /// What its submission is worth, or why there is none; None when the run was not graded.
    pub grade: Option<std::result::Result<Grade, String>>,
}

/// Runs by content; shared by threads.
#[derive(Debug, Default)]
pub struct RunCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: BTreeMap<RunKey, Arc<RunResult>>,
    counts: Counts,
}

/// How runs were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Executed.
    pub executions: u64,
    /// Answered from the cache, or by an equal run of the same batch.
    pub hits: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<K, R> {
    key: K,
    run: R,
}

impl RunCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each insertion is complete in itself, so a panic elsewhere leaves nothing half-done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A remembered run.
    pub fn get(&self, key: &RunKey) -> Option<Arc<RunResult>> {
        self.lock().runs.get(key).cloned()
    }

    /// Remembers an executed run. One that ended at the wall clock is not remembered: that says how busy the machine was.
    pub fn insert(&self, key: RunKey, run: Arc<RunResult>) {
        let mut inner = self.lock();
        inner.counts.executions += 1;
        if run.outcome != Outcome::WallLimit {
            inner.runs.insert(key, run);
        }
    }

    /// Counts `hits` answers without an execution.
    pub(super) fn count_hits(&self, hits: u64) {
        self.lock().counts.hits += hits;
    }

    /// How runs were answered so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Writes all runs to `path` as JSON lines sorted by key; the file appears whole.
    pub fn save(&self, path: &Path) -> Result<()> {
        let inner = self.lock();
        write_lines(path, inner.runs.iter().map(|(key, run)| Line { key, run: run.as_ref() }))
    }

    /// Adds the runs of a saved file.
    ///
    /// # Errors
    /// Content, naming file and line.
    pub fn load(&self, path: &Path) -> Result<()> {
        let mut inner = self.lock();
        read_lines(path, |_, Line { key, run }: Line<RunKey, RunResult>| {
            inner.runs.insert(key, Arc::new(run));
            Ok(())
        })
    }
}
