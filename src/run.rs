//! A run as training loops use it: its folder, its log, its checkpoints, and the user's wish to stop.

mod divergence;
mod folder;
mod lost;
mod settings;
mod suspects;

pub use divergence::Divergence;
pub use folder::{Folder, Place};
pub use settings::{Device, Settings};
pub use suspects::{Suspect, Suspects, finite};

use crate::backend::Backend;
use crate::checkpoint::{self};
use crate::console::errln;
use crate::error::{Error, Kind, Result, check_interrupt};
use crate::files::json;
use crate::identity;
use crate::metrics::{self, MetricsLog};
use crate::progress::Progress;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One phase (`sft`, `rl`, `pretrain`) of a run.
pub struct Run<'a> {
    /// The backend that does the arithmetic.
    pub backend: &'a dyn Backend,
    /// The settings of every run.
    pub settings: &'a Settings,
    phase: &'static str,
    checkpoints: PathBuf,
    log: MetricsLog,
    interrupted: &'a AtomicBool,
    folder: &'a Folder,
}

impl<'a> Run<'a> {
    /// Opens `phase` of the run in `folder`: at the checkpoint that the run resumes from, else at its beginning (after
    /// what earlier phases logged). `interrupted` is set when the user wants to stop.
    pub fn open(
        backend: &'a dyn Backend,
        settings: &'a Settings,
        folder: &'a Folder,
        phase: &'static str,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let log = match &folder.resumed {
            Some((step, _)) => {
                let (log, missing) = MetricsLog::resume(&folder.path, phase, *step)?;
                if missing > 0 {
                    errln!(
                        "note: {}: {missing} of the {step} steps before the checkpoint have no line: charts have a gap, what is trained \
                         has none",
                        folder.path.join(metrics::FILE).display()
                    );
                }
                log
            }
            None => MetricsLog::restart(&folder.path, phase)?,
        };
        let checkpoints = folder::checkpoints(&folder.path, phase);
        Ok(Self { backend, settings, phase, checkpoints, log, interrupted, folder })
    }

    /// The checkpoint that this phase resumes from: its folder and the caller's state; `None` when it starts at the
    /// beginning.
    pub fn resumed<T: DeserializeOwned>(&self) -> Result<Option<(PathBuf, T)>> {
        let resumed = self.folder.resumed.as_ref();
        resumed.map(|(_, dir)| Ok((dir.clone(), checkpoint::load_state(dir)?))).transpose()
    }

    /// Appends a record to metrics.jsonl.
    pub fn log(&mut self, step: usize, values: &Value) -> Result<()> {
        self.log.write(self.phase, step as u64, values)
    }

    /// Ends `step` of `steps` (from 1): writes what the backend chose by timing, then a checkpoint when one is due, at
    /// the last step, or when the user wants to stop. `write` puts the tensors into the folder it is given. Error: the
    /// user wants to stop before the last step; names the checkpoint.
    pub fn step_done(
        &self,
        step: usize,
        steps: usize,
        state: &impl Serialize,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        self.backend.keep_choices()?;
        let stop = self.interrupted.load(Ordering::SeqCst);
        if !stop && step < steps && !step.is_multiple_of(self.settings.checkpoint_every) {
            return Ok(());
        }
        let dir = self.save(step, state, write)?;
        if stop && step < steps { Err(self.stopped(step, steps, &dir)) } else { Ok(()) }
    }

    /// Returns the error to report for `error`, which ended a step before it changed anything; `step` of `steps` is the
    /// step before it (0: none). When the user wants to stop, this ensures a checkpoint of `step` and names it.
    pub fn step_undone(
        &self,
        error: Error,
        step: usize,
        steps: usize,
        state: &impl Serialize,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Error {
        if error.kind() != Kind::Interrupted || step == 0 {
            return error;
        }
        let newest =
            checkpoint::newest(&self.checkpoints, &say).map(|found| found.filter(|(at, _)| *at == step as u64));
        let saved = newest.and_then(|found| found.map_or_else(|| self.save(step, state, write), |(_, dir)| Ok(dir)));
        saved.map_or_else(|error| error, |dir| self.stopped(step, steps, &dir))
    }

    /// Writes the checkpoint of `step`, with the run's identity in it, after the log up to it is on disk.
    fn save(&self, step: usize, state: &impl Serialize, write: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        self.log.sync()?;
        let with_identity = |dir: &Path| {
            json::write(&dir.join(identity::FILE), &self.folder.identity)?;
            write(dir)
        };
        checkpoint::save_checkpoint(&self.checkpoints, step as u64, self.settings.keep, state, &say, with_identity)
    }

    fn stopped(&self, step: usize, steps: usize, dir: &Path) -> Error {
        let (phase, dir) = (self.phase, dir.display());
        Error::stopped(format!("interrupted after {phase} step {step} of {steps}; checkpoint {dir}"))
    }

    /// Stops the run at a point where there is nothing to save. Error: the user wants to stop.
    pub fn check_interrupt(&self) -> Result<()> {
        check_interrupt(self.interrupted)
    }

    /// A watch for divergence in this phase, for a model of `vocab` tokens. It is given the logged steps first, so that
    /// a resumed run ends where an uninterrupted one would have.
    pub fn divergence(&self, vocab: usize) -> Result<Divergence> {
        let mut divergence = Divergence::new(self.settings.divergence_patience, vocab);
        let logged = metrics::read(&self.folder.path.join(metrics::FILE))?;
        for record in logged.iter().filter(|record| record["phase"] == self.phase) {
            let number = |key: &str| record[key].as_f64();
            // A warning or error here was already reported when the step was logged.
            if let Some(loss) = number("loss") {
                let _ = divergence.loss(loss);
            } else if let (Some(entropy), Some(kl)) = (number("entropy"), number("kl")) {
                let _ = divergence.policy(entropy, kl);
            }
        }
        Ok(divergence)
    }

    /// The progress display over `steps`, of which `done` are finished.
    pub fn progress(&self, steps: usize, done: usize) -> Progress {
        Progress::new(self.phase, steps, done)
    }
}

fn say(line: String) {
    errln!("{line}");
}
