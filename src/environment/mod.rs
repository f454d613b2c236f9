//! The environment: a state and a reply in, what came of it out. One step is a pure function of the two: a run starts in a fresh
//! folder that holds the state's files and the task's data, and leaves nothing behind but its output and its grade, so
//! equal steps are executed once and remembered, in memory and across runs in a database. Does not know models, tokens or rewards.

pub mod action;
pub mod cache;
pub mod patch;
mod probe;
pub mod prompt;
mod settings;
pub mod snapshot;
mod step;
pub mod store;
pub mod workspace;

pub use action::{Action, ParseError, ReplyFormat};
pub use cache::{Counts, RunCache};
pub use prompt::Style;
pub use settings::Settings;
pub use snapshot::{Files, SnapshotId, SnapshotStore};
pub use store::Store;

use crate::error::{Error, Result};
use crate::message::Message;
use crate::reward::Case;
use crate::sandbox::{Job, Pool, Verdict};
use crate::task::{Flag, Labels, PreparedTask};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What executes scripts: the sandbox's pool.
pub trait Runner: Send + Sync {
    /// Runs all jobs, in parallel where it can; verdicts in the order of the jobs.
    ///
    /// # Errors
    /// When the machinery failed, never for what a script did.
    fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>>;
}

impl Runner for Pool {
    fn run_many(&self, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
        Pool::run_many(self, jobs)
    }
}

/// A reply and what the agent was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The agent's reply, as it was.
    pub reply: String,
    /// The observation.
    pub observation: String,
    /// The observation in a few words, for the compact prompt.
    pub compact: String,
}

/// A state of an episode: everything said and observed since its start. Plain data; restoring one is using it again, as long as
/// the snapshot store holds its snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The task's name.
    pub task: String,
    /// The agent's files.
    pub snapshot: SnapshotId,
    /// What was said so far.
    pub history: Vec<Turn>,
    /// The metric of the last graded run on the reward split, m_init at the start: m_t.
    pub metric: f64,
    /// The metric of the same run on the report split: what evaluation says the state scores.
    pub report: f64,
    /// The best metric so far on the reward split.
    pub best: f64,
    /// The metric of the run that was best so far on the report split.
    pub best_report: f64,
    /// True when the files have a valid graded run of their own; false after a failed edit that was not undone.
    pub graded_final: bool,
    /// Steps taken.
    pub steps: usize,
    /// Wall seconds of its scripts, as first measured (a remembered run counts what it took).
    pub seconds: f64,
    /// True when the episode has ended.
    pub done: bool,
}

/// What came of one reply.
#[derive(Debug, Clone, PartialEq)]
pub struct StepResult {
    /// What the reward calls it.
    pub case: Case,
    /// The action's name, or `Invalid` when the reply is none.
    pub action: String,
    /// What the agent is told.
    pub observation: String,
    /// The same in a few words.
    pub compact: String,
    /// m_t.
    pub metric_before: f64,
    /// m_{t+1}; m_t when nothing was graded.
    pub metric_after: f64,
    /// The metric before it on the report split.
    pub report_before: f64,
    /// The metric after it on the report split.
    pub report_after: f64,
    /// What is suspicious about its graded submission.
    pub flags: Vec<Flag>,
    /// The share of the gap from m_init to m_best that the step closed; below the task's noise floor 0.
    pub share: f64,
    /// Where it led.
    pub next: State,
    /// One line for people, with the score the agent does not see.
    pub detail: String,
}

struct Loaded {
    prepared: Arc<PreparedTask>,
    labels: Labels,
    /// Its runs are shared within this seed only, because equal ones are not known to give equal results.
    seed: Option<u64>,
}

/// Tasks, snapshots, remembered runs and what executes the rest.
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
    /// An environment of these tasks; makes the scratch folder and reads the labels. `python_id` says what runs the scripts
    /// (`Python::id` and the protection): runs remembered from another do not count.
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

    /// How episodes are played.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The folder that runs get their private folders in.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The tasks, by name.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<PreparedTask>> {
        self.tasks.values().map(|loaded| &loaded.prepared)
    }

    /// One task.
    ///
    /// # Errors
    /// Content, listing the known names.
    pub fn task(&self, name: &str) -> Result<&Arc<PreparedTask>> {
        self.loaded(name).map(|loaded| &loaded.prepared)
    }

    fn loaded(&self, name: &str) -> Result<&Loaded> {
        self.tasks.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.tasks.keys().map(String::as_str).collect();
            Error::content(format!("no task {name:?} in this environment; it has {}", known.join(", ")))
        })
    }

    /// The start of an episode: the task's starter files, its stated m_init.
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

    /// The agent's files in a state.
    pub fn files(&self, state: &State) -> Result<Files> {
        self.store.get(&state.snapshot)
    }

    /// What the agent sees in a state.
    pub fn messages(&self, state: &State) -> Result<Vec<Message>> {
        Ok(prompt::messages(state, &self.files(state)?, self.task(&state.task)?, &self.settings))
    }

    /// The same, shortened until `count` says at most `limit` (see `prompt::messages_within`).
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

/// `text`, at most `limit` characters of it plus a line that says how many are left out of its middle.
pub(crate) fn cut_middle(text: &str, limit: usize) -> String {
    let total = text.chars().count();
    if total <= limit {
        return text.to_string();
    }
    let (head, tail) = (limit.div_ceil(2), limit / 2);
    let byte = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    format!("{}\n... {} characters left out ...\n{}", &text[..byte(head)], total - limit, &text[byte(total - tail)..])
}
