//! Tests which tasks give equal results for equal scripts, by running the baseline twice. Runs of a task that fails the
//! test are shared within one seed only. A difference that is rare, or appears only after an edit, is not found.

use super::record::{Executed, RunKey, RunResult};
use super::step::Pending;
use super::{Environment, RunCache, SnapshotStore, Store};
use crate::error::Result;
use crate::sandbox::Outcome;
use std::sync::Arc;

impl Environment {
    /// Puts `store` behind the environment's snapshots and runs, for the program's run of this seed. Tasks that the
    /// store does not know are tested: the baseline is run twice, in parallel if there are workers for it, and the
    /// result is remembered.
    ///
    /// # Errors
    /// Those of the store and of the machinery of the runs.
    pub fn with_store(mut self, store: Arc<Store>, seed: u64) -> Result<Self> {
        self.store = SnapshotStore::new(Some(store.clone()));
        self.cache = RunCache::new(Some(store.clone()));
        let names: Vec<String> = self.tasks.keys().cloned().collect();
        let mut pending = vec![];
        for name in &names {
            let snapshot = self.reset(name)?.snapshot;
            pending.push(self.pending(name, &snapshot, &self.task(name)?.task.entry)?);
        }
        self.store.flush()?;
        let known = pending.iter().map(|run| store.is_deterministic(&run.key)).collect::<Result<Vec<_>>>()?;
        let unknown = pending.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(run, _)| run.clone());
        let mut twice: Vec<Executed> = vec![];
        self.run_all(&unknown.flat_map(|run| [run.clone(), run]).collect::<Vec<Pending>>(), |executed| {
            twice.extend(executed);
            Ok(())
        })?;

        let tried: Vec<(RunKey, Option<bool>)> =
            twice.chunks(2).map(|pair| (pair[0].key.clone(), are_equal(&pair[0].run, &pair[1].run))).collect();
        let varies = |(run, known): (&Pending, &Option<bool>)| {
            let now = tried.iter().find(|(key, _)| *key == run.key).and_then(|(_, equal)| *equal);
            known.or(now) != Some(true)
        };
        let varying: Vec<bool> = pending.iter().zip(&known).map(varies).collect();
        for (name, varies) in names.iter().zip(varying) {
            if let Some(loaded) = self.tasks.get_mut(name).filter(|_| varies) {
                loaded.seed = Some(seed);
            }
        }
        // The keys of varying tasks now contain the seed.
        for run in &mut twice {
            run.key = self.pending(&run.task, &run.snapshot, &self.task(&run.task)?.task.entry)?.key;
        }
        self.cache.insert(&twice)?;
        let decided = tried.into_iter().filter_map(|(key, equal)| Some((key, equal?))).collect::<Vec<_>>();
        store.insert_tasks(&decided)?;
        Ok(self)
    }

    /// Returns the tasks, sorted, whose runs are shared within one seed only because two runs of the baseline differed
    /// or one hit its wall-clock limit.
    pub fn varying(&self) -> Vec<&str> {
        self.tasks.iter().filter(|(_, loaded)| loaded.seed.is_some()).map(|(name, _)| name.as_str()).collect()
    }
}

/// True when two runs of one script have the same result; None when that is unknown, because one hit its wall-clock
/// limit.
fn are_equal(a: &RunResult, b: &RunResult) -> Option<bool> {
    let said = |run: &RunResult| (run.outcome.clone(), run.stdout.clone(), run.grade.clone());
    let has_ended = |run: &RunResult| run.outcome != Outcome::WallLimit;
    (has_ended(a) && has_ended(b)).then(|| said(a) == said(b))
}
