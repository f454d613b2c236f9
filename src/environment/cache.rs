//! Remembers runs by their content. This is sound because a run starts in a fresh folder and leaves nothing behind but
//! what is recorded here.

use super::database::Store;
use super::record::{Executed, RunKey, RunResult};
use crate::error::Result;
use crate::sandbox::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs by content: in memory and, if there is one, in a database behind it. Threads share it.
#[derive(Debug, Default)]
pub struct RunCache {
    inner: Mutex<Inner>,
    store: Option<Arc<Store>>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: BTreeMap<RunKey, Remembered>,
    counts: Counts,
}

#[derive(Debug)]
struct Remembered {
    run: Arc<RunResult>,
    /// True when it came from the database.
    is_earlier: bool,
}

/// Numbers of runs, by how they were answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Runs executed.
    pub executions: u64,
    /// Runs answered from the cache, or by an equal run of the same batch.
    pub hits: u64,
    /// Hits on runs from the database, which another process executed.
    pub earlier: u64,
    /// Wall seconds that the runs of the hits took when they were executed.
    pub saved_seconds: f64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Counts { executions, hits, earlier, saved_seconds } = self;
        write!(
            f,
            "{executions} executed, {hits} remembered ({earlier} from before), {saved_seconds:.0} s of scripts saved"
        )
    }
}

impl RunCache {
    /// An empty cache in front of `store`.
    pub fn new(store: Option<Arc<Store>>) -> Self {
        Self { inner: Mutex::default(), store }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each insertion is complete in itself, so a panic elsewhere leaves nothing half-done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns those of these runs that are remembered.
    ///
    /// # Errors
    /// Those of the database.
    pub fn find(&self, keys: &BTreeSet<RunKey>) -> Result<BTreeMap<RunKey, Arc<RunResult>>> {
        let in_memory = |inner: &Inner, key: &RunKey| inner.runs.get(key).map(|r| (key.clone(), r.run.clone()));
        let mut found: BTreeMap<_, _> = {
            let inner = self.lock();
            keys.iter().filter_map(|key| in_memory(&inner, key)).collect()
        };
        if let Some(store) = &self.store {
            let missing: Vec<RunKey> = keys.iter().filter(|key| !found.contains_key(key)).cloned().collect();
            let earlier = if missing.is_empty() { BTreeMap::new() } else { store.runs(&missing)? };
            let mut inner = self.lock();
            for (key, run) in earlier {
                let entry = || Remembered { run: Arc::new(run), is_earlier: true };
                let remembered = inner.runs.entry(key.clone()).or_insert_with(entry);
                found.insert(key, remembered.run.clone());
            }
        }
        Ok(found)
    }

    /// Remembers executed runs, the first of each key. A run that hit its wall-clock limit, or that no worker could
    /// finish, is not remembered: its result depends on the state of the machine.
    ///
    /// # Errors
    /// Those of the database.
    pub fn insert(&self, executed: &[Executed]) -> Result<()> {
        let kept = || executed.iter().filter(|e| !matches!(e.run.outcome, Outcome::WallLimit | Outcome::Quarantined));
        {
            let mut inner = self.lock();
            inner.counts.executions += executed.len() as u64;
            for Executed { key, run, .. } in kept() {
                let entry = || Remembered { run: run.clone(), is_earlier: false };
                inner.runs.entry(key.clone()).or_insert_with(entry);
            }
        }
        match &self.store {
            Some(store) if kept().next().is_some() => store.insert_runs(kept()),
            _ => Ok(()),
        }
    }

    /// Counts an answer without an execution.
    pub(super) fn count_hit(&self, key: &RunKey, run: &RunResult) {
        let mut inner = self.lock();
        let is_earlier = inner.runs.get(key).is_some_and(|r| r.is_earlier);
        inner.counts.hits += 1;
        inner.counts.earlier += u64::from(is_earlier);
        inner.counts.saved_seconds += run.wall_seconds;
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }
}
