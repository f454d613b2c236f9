//! What is remembered, as plain data: workspaces by content, and the results of runs by key.

use crate::sandbox::Outcome;
use crate::task::{Grade, PreparedTask};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The agent's files: name (relative, `/` between folders) to text.
pub type Files = BTreeMap<String, Arc<str>>;

/// blake3 of a text, in hex.
pub type BlobId = String;

/// blake3 of a snapshot's names and blob ids, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub String);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The files of a workspace by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Name to blob.
    pub files: BTreeMap<String, BlobId>,
}

impl Snapshot {
    /// Computes the snapshot's id. Lengths are hashed too, so that no two snapshots hash the same bytes.
    pub fn id(&self) -> SnapshotId {
        let mut hash = blake3::Hasher::new();
        for part in self.files.iter().flat_map(|(name, blob)| [name, blob]) {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        SnapshotId(hash.finalize().to_hex().to_string())
    }
}

/// Hash of everything that a run's result depends on: Python and its packages, task data and labels, metric, limits,
/// files, script, and the length to which the remembered texts are cut.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey(pub String);

/// Version that is part of every key: raised when equal runs are described or graded in a new way, so that older
/// results are not taken for new ones.
const MEANING: &str = "2";

impl RunKey {
    /// Makes the key of a run of `script` (graded when it is the task's entry) on the files of `snapshot` by the Python
    /// of this id, with texts cut to `observation_limit` characters. `seed` is that of the program's run, for a task
    /// whose runs are shared within one seed only.
    pub fn new(
        python_id: &str,
        prepared: &PreparedTask,
        observation_limit: usize,
        seed: Option<u64>,
        snapshot: &SnapshotId,
        script: &str,
    ) -> Self {
        let task = &prepared.task;
        let (limits, rest) = (format!("{:?}", task.limits), format!("{observation_limit} {seed:?}"));
        let graded = if script == task.entry { task.metric.name() } else { "" };
        let mut hash = blake3::Hasher::new();
        for part in
            [MEANING, python_id, &prepared.data_id, graded, &task.submission, &limits, &rest, &snapshot.0, script]
        {
            hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self(hash.finalize().to_hex().to_string())
    }
}

impl std::fmt::Display for RunKey {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// How the script ended.
    pub outcome: Outcome,
    /// Its stdout, cut to the observation limit.
    pub stdout: String,
    /// Its stderr, cut to the observation limit.
    pub stderr: String,
    /// Wall seconds when it was executed.
    pub wall_seconds: f64,
    /// Grade of its submission, or why it has none; None when the run was not graded.
    pub grade: Option<std::result::Result<Grade, String>>,
}

/// An executed run as it is remembered.
#[derive(Debug, Clone)]
pub struct Executed {
    /// Its key.
    pub key: RunKey,
    /// The task's name.
    pub task: String,
    /// The files it ran on.
    pub snapshot: SnapshotId,
    /// Its result.
    pub run: Arc<RunResult>,
}
