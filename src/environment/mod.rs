//! The environment: plays one step, from a state and a reply to its outcome. A step is a pure function of the two: each
//! run starts in a fresh folder that holds the state's files and the task's data, and leaves nothing behind but its
//! output and its grade. Equal steps are therefore executed once and remembered, in memory and, across runs, in a
//! database. Knows no models, tokens or rewards.

pub mod action;
pub mod cache;
pub mod database;
pub mod patch;
mod probe;
pub mod prompt;
pub mod record;
mod settings;
pub mod snapshot;
mod state;
mod step;
pub mod workspace;

pub use action::{Action, ParseError, ReplyFormat};
pub use cache::{Counts, RunCache};
pub use database::Store;
pub use record::{Files, SnapshotId};
pub use settings::{Settings, Style};
pub use snapshot::SnapshotStore;
pub use state::{State, StepResult, Turn};

use crate::error::{Error, Result};
use crate::message::Message;
use crate::sandbox::{Job, Pool, Verdict};
use crate::task::{Labels, PreparedTask};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Executor of scripts: the sandbox's pool.
pub trait Runner: Send + Sync {
    /// Runs all jobs, in parallel where possible; returns the verdicts in the order of the jobs.
    ///
    /// # Errors
    /// A failure of the machinery, never what a script did.
    fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>>;
}

impl Runner for Pool {
    fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
        Pool::run_many(self, jobs)
    }
}

struct Loaded {
    prepared: Arc<PreparedTask>,
    labels: Labels,
    /// Set when equal runs are not known to give equal results: the task's runs are then shared within this seed only.
    seed: Option<u64>,
}

/// Tasks, snapshots, remembered runs, and the runner that executes all other runs.
pub struct Environment {
    runner: Arc<dyn Runner>,
    python_id: String,
    tasks: BTreeMap<String, Loaded>,
    settings: Settings,
    scratch: PathBuf,
    /// The files of all states.
    pub store: SnapshotStore,
    /// The runs so far.
    pub cache: RunCache,
}

impl Environment {
    /// Makes an environment of these tasks: creates the scratch folder and reads the labels. `python_id` identifies
    /// what runs the scripts (`Python::id` and the protection); runs remembered under another id do not count.
    pub fn new(
        runner: Arc<dyn Runner>,
        python_id: &str,
        tasks: Vec<PreparedTask>,
        settings: Settings,
        scratch: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(scratch).map_err(|e| Error::io("cannot create the scratch folder", scratch, &e))?;
        let scratch = scratch.canonicalize().map_err(|e| Error::io("cannot find the scratch folder", scratch, &e))?;
        let load = |prepared: PreparedTask| {
            let labels = prepared.load_labels()?;
            Ok((prepared.task.name.clone(), Loaded { prepared: Arc::new(prepared), labels, seed: None }))
        };
        let tasks = tasks.into_iter().map(load).collect::<Result<_>>()?;
        Ok(Self {
            runner,
            python_id: python_id.to_string(),
            tasks,
            settings,
            scratch,
            store: SnapshotStore::default(),
            cache: RunCache::default(),
        })
    }

    /// Returns the settings of episodes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The folder that runs get their private folders in.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// Returns the tasks, sorted by name.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<PreparedTask>> {
        self.tasks.values().map(|loaded| &loaded.prepared)
    }

    /// Returns the task of this name.
    ///
    /// # Errors
    /// Content: there is no such task; the message lists the known names.
    pub fn task(&self, name: &str) -> Result<&Arc<PreparedTask>> {
        self.loaded(name).map(|loaded| &loaded.prepared)
    }

    fn loaded(&self, name: &str) -> Result<&Loaded> {
        self.tasks.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
            Error::content(format!("no task {name:?} in this environment; it has {}", known.join(", ")))
        })
    }

    /// Starts an episode: the task's starter files and its stated m_init.
    pub fn reset(&self, task: &str) -> Result<State> {
        let task = &self.task(task)?.task;
        let files: Files = task.starter.iter().map(|(name, text)| (name.clone(), Arc::from(text.as_str()))).collect();
        Ok(State {
            task: task.name.clone(),
            snapshot: self.store.insert(&files),
            history: Vec::new(),
            metric: task.m_init,
            report: task.report.m_init,
            best: task.m_init,
            best_report: task.report.m_init,
            graded_final: true,
            steps: 0,
            seconds: 0.0,
            done: false,
        })
    }

    /// Returns the agent's files in a state.
    pub fn files(&self, state: &State) -> Result<Files> {
        self.store.get(&state.snapshot)
    }

    /// Builds the messages that the agent sees in a state.
    pub fn messages(&self, state: &State) -> Result<Vec<Message>> {
        Ok(prompt::messages(state, &self.files(state)?, self.task(&state.task)?, &self.settings))
    }

    /// Builds the same messages, shortened until `count` of them is at most `limit` (see `prompt::messages_within`).
    pub fn messages_within(
        &self,
        state: &State,
        count: &dyn Fn(&[Message]) -> Result<usize>,
        limit: usize,
    ) -> Result<std::result::Result<Vec<Message>, usize>> {
        let prepared = self.task(&state.task)?;
        prompt::messages_within(state, &self.files(state)?, prepared, &self.settings, count, limit)
    }
}
