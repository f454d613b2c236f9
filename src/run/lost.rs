//! Explains a step that ended in numbers that are not finite, and writes its batch to a file.

use super::Run;
use super::folder::FAILED_STEP;
use super::suspects::Suspects;
use crate::checkpoint;
use crate::error::{Error, Kind};
use crate::files::json;
use serde_json::{Value, json};

impl Run<'_> {
    /// Returns the error to report for `error`, which ended `step`. If a number was not finite, looks for the cause
    /// among `suspects` and writes `batch` to [`FAILED_STEP`] in the run's folder; any other error is returned unchanged.
    /// Nothing of the step is published in either case: the caller ends here.
    pub fn lost(&self, error: Error, step: usize, suspects: &Suspects, batch: impl FnOnce() -> Value) -> Error {
        if error.kind() != Kind::NotFinite {
            return error;
        }
        let newest = checkpoint::newest(&self.checkpoints, &|_| ()).ok().flatten();
        let verdict = suspects.verdict(newest.as_ref().map(|(_, path)| path.as_path()));
        let verdict = verdict.unwrap_or_else(|error| format!("its cause could not be looked for: {error}"));
        let path = self.folder.path.join(FAILED_STEP);
        let report = json!({
            "phase": self.phase,
            "step": step,
            "learning_rate": suspects.trained.first().map(|suspect| suspect.rate),
            "error": error.to_string(),
            "verdict": verdict,
            "batch": batch(),
        });
        let dumped = match json::write(&path, &report) {
            Ok(()) => format!("the step's batch is in {}", path.display()),
            Err(error) => format!("the step's batch could not be kept: {error}"),
        };
        Error::not_finite(format!(
            "{} step {step}: {error}; {verdict}. Nothing of this step was kept; {dumped}",
            self.phase
        ))
    }
}
