//! What every training loop needs of its run: where it writes, its log, its checkpoints, and whether the user wants it to stop.

use crate::backend::Backend;
use crate::checkpoint;
use crate::config::Config;
use crate::error::{Error, Kind, Result, check_interrupt};
use crate::metrics::MetricsLog;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// One phase (`sft`, `rl`, `pretrain`) of a run.
pub struct Run<'a> {
    /// Where the arithmetic is done.
    pub backend: &'a dyn Backend,
    /// The run's settings.
    pub config: &'a Config,
    phase: &'static str,
    checkpoints: PathBuf,
    log: MetricsLog,
    interrupted: &'a AtomicBool,
    resumed: Option<(u64, PathBuf)>,
}

impl<'a> Run<'a> {
    /// The phase `phase` of the run in `out`: from its newest checkpoint with `resume`, else from its beginning (after what
    /// earlier phases logged). `interrupted` is set when the user wants to stop.
    pub fn open(
        backend: &'a dyn Backend,
        config: &'a Config,
        out: &Path,
        phase: &'static str,
        resume: bool,
        interrupted: &'a AtomicBool,
    ) -> Result<Self> {
        let checkpoints = out.join("checkpoints").join(phase);
        let resumed = if resume { checkpoint::latest(&checkpoints)? } else { None };
        let log = match &resumed {
            Some((step, _)) => MetricsLog::resume(out, phase, *step)?,
            None => MetricsLog::restart(out, phase)?,
        };
        Ok(Self { backend, config, phase, checkpoints, log, interrupted, resumed })
    }

    /// The checkpoint this phase goes on from: its folder and the caller's state.
    pub fn resumed<T: DeserializeOwned>(&self) -> Result<Option<(PathBuf, T)>> {
        self.resumed.as_ref().map(|(_, dir)| Ok((dir.clone(), checkpoint::load_state(dir)?))).transpose()
    }

    /// Appends a record to metrics.jsonl.
    pub fn log(&mut self, step: usize, values: &Value) -> Result<()> {
        self.log.write(self.phase, step as u64, values)
    }

    /// After `step` of `steps` (from 1): a checkpoint when one is due, at the end, or when the user wants to stop; then an error
    /// that says so. `write` puts the tensors into the folder it is given.
    pub fn step_done(
        &self,
        step: usize,
        steps: usize,
        state: &impl Serialize,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let stop = self.interrupted.load(Ordering::SeqCst);
        if !stop && step < steps && !step.is_multiple_of(self.config.run.checkpoint_every) {
            return Ok(());
        }
        let dir = checkpoint::save_checkpoint(&self.checkpoints, step as u64, self.config.run.keep, state, write)?;
        if stop && step < steps { Err(self.stopped(step, steps, &dir)) } else { Ok(()) }
    }

    /// What is to be returned for `error`, which has ended a step of `steps` before it changed anything: `step` is the one before it (0 is
    /// none). When the user wants to stop there is a checkpoint of that step then.
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
        let saved = match checkpoint::latest(&self.checkpoints) {
            Ok(Some((newest, dir))) if newest == step as u64 => Ok(dir),
            Ok(_) => checkpoint::save_checkpoint(&self.checkpoints, step as u64, self.config.run.keep, state, write),
            Err(error) => Err(error),
        };
        saved.map_or_else(|error| error, |dir| self.stopped(step, steps, &dir))
    }

    fn stopped(&self, step: usize, steps: usize, dir: &Path) -> Error {
        let (phase, dir) = (self.phase, dir.display());
        Error::stopped(format!("interrupted after {phase} step {step} of {steps}; checkpoint {dir}"))
    }

    /// An error when the user wants to stop and there is nothing to save.
    pub fn check_interrupt(&self) -> Result<()> {
        check_interrupt(self.interrupted)
    }

    /// A progress bar over `steps`; invisible when stderr is no terminal.
    pub fn bar(&self, steps: usize, done: usize) -> ProgressBar {
        let bar = bar(steps, self.phase);
        bar.set_position(done as u64);
        bar
    }
}

/// A progress bar; invisible when stderr is no terminal.
pub fn bar(steps: usize, label: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_prefix(label);
    let style = ProgressStyle::with_template("{prefix:>10} [{bar:30}] {pos}/{len} {elapsed}<{eta} {msg}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
