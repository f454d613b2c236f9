//! Plays steps: replies become plans, plans become runs (each executed once, in parallel), runs become results. Nothing
//! here is random.

use super::action::{self, Action};
use super::patch::{self, PatchError};
use super::record::{Executed, Files, RunKey, RunResult, SnapshotId};
use super::state::{State, StepResult, Turn, cut_middle};
use super::workspace::{self, FileError, Workspace};
use super::{Environment, Loaded};
use crate::error::{Error, Result};
use crate::reward::Case;
use crate::sandbox::{Job, Outcome, Verdict, WORKSPACE};
use crate::task::grader;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Folder of Python's libraries, as tracebacks quote it.
static LIBRARY_FOLDER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#""/[^"\n]*/lib/python3\.\d+/(?:site-packages/)?"#).expect("a constant pattern"));
/// Most bytes of task data in the folders of simultaneous runs together.
const SCRATCH_BYTES: u64 = 4 << 30;
/// Characters of output in a compact observation.
const COMPACT_CHARS: usize = 60;

/// Plan of a step: what its reply asks for, before anything is run.
struct Plan {
    action: &'static str,
    /// The files after the action if it succeeds.
    snapshot: SnapshotId,
    then: Then,
}

enum Then {
    /// Nothing is run.
    Tell(Told),
    /// The script is run. With a diff, it is the entry script, run because a file changed.
    Run { script: String, diff: Option<String> },
}

/// Case and texts of a step.
struct Told {
    case: Case,
    observation: String,
    compact: String,
    detail: String,
}

impl Told {
    fn neutral(observation: impl Into<String>, compact: impl Into<String>) -> Self {
        let detail = String::new();
        Self { case: Case::Neutral, observation: observation.into(), compact: compact.into(), detail }
    }

    fn invalid(why: impl std::fmt::Display, short: &str) -> Self {
        Self {
            case: Case::Invalid,
            observation: format!("The action is invalid: {why}. Nothing was changed."),
            compact: format!("Undone. {short}"),
            detail: why.to_string(),
        }
    }
}

impl From<FileError> for Told {
    fn from(error: FileError) -> Self {
        Told::invalid(&error, error.short())
    }
}

/// A run to be executed.
#[derive(Clone)]
pub(super) struct Pending<'a> {
    pub(super) key: RunKey,
    loaded: &'a Loaded,
    snapshot: SnapshotId,
    script: String,
}

impl Pending<'_> {
    /// Makes the record of this run, with `run` as its result.
    pub(super) fn executed(&self, run: Arc<RunResult>) -> Executed {
        let task = self.loaded.prepared.task.name.clone();
        Executed { key: self.key.clone(), task, snapshot: self.snapshot.clone(), run }
    }
}

impl Environment {
    /// Plays one step of each state. Results come in order and do not depend on what else is in the batch. Runs with
    /// equal content are executed once; those not remembered are executed in parallel.
    ///
    /// # Errors
    /// A state has ended, its task or snapshot is unknown, or the machinery of the runs fails; never what a reply says.
    pub fn step_many(&self, replies: Vec<(State, String)>) -> Result<Vec<StepResult>> {
        let mut plans = Vec::with_capacity(replies.len());
        for (state, reply) in &replies {
            if state.done {
                return Err(Error::usage(format!(
                    "an episode of task {} has ended; a step needs a running one",
                    state.task
                )));
            }
            plans.push(self.plan(state, reply)?);
        }

        self.store.flush()?;

        let (mut keys, mut pending) = (Vec::new(), BTreeMap::new());
        for ((state, _), plan) in replies.iter().zip(&plans) {
            let Then::Run { script, .. } = &plan.then else {
                keys.push(None);
                continue;
            };
            let run = self.pending(&state.task, &plan.snapshot, script)?;
            keys.push(Some(run.key.clone()));
            pending.insert(run.key.clone(), run);
        }
        let mut runs = self.cache.find(&pending.keys().cloned().collect())?;
        pending.retain(|key, _| !runs.contains_key(key));
        let pending: Vec<Pending> = pending.into_values().collect();
        self.execute(&pending, &mut runs)?;
        // The first of several equal steps counts as executed, the others as hits.
        let mut executed: BTreeSet<&RunKey> = pending.iter().map(|run| &run.key).collect();
        for key in keys.iter().flatten().filter(|key| !executed.remove(key)) {
            if let Some(run) = runs.get(key) {
                self.cache.count_hit(key, run);
            }
        }

        let finish = |(((state, reply), plan), key): (((State, String), Plan), Option<RunKey>)| {
            self.finish(state, reply, plan, key.and_then(|key| runs.get(&key)).map(Arc::as_ref))
        };
        replies.into_iter().zip(plans).zip(keys).map(finish).collect()
    }

    /// Runs a task's entry script on the files of `snapshot`, outside any episode, and grades it.
    pub fn run(&self, task: &str, snapshot: &SnapshotId) -> Result<Arc<RunResult>> {
        self.store.flush()?;
        let run = self.pending(task, snapshot, &self.task(task)?.task.entry)?;
        let mut runs = self.cache.find(&[run.key.clone()].into())?;
        if runs.is_empty() {
            self.execute(std::slice::from_ref(&run), &mut runs)?;
        }
        runs.remove(&run.key).ok_or_else(|| Error::system(format!("the run of task {task} was not remembered")))
    }

    /// Makes the run of `script` on the files of `snapshot`, with its key.
    pub(super) fn pending(&self, task: &str, snapshot: &SnapshotId, script: &str) -> Result<Pending<'_>> {
        let loaded = self.loaded(task)?;
        let limit = self.settings.observation_limit;
        let key = RunKey::new(&self.python_id, &loaded.prepared, limit, loaded.seed, snapshot, script);
        Ok(Pending { key, loaded, snapshot: snapshot.clone(), script: script.to_string() })
    }

    /// Plans what the reply asks for.
    fn plan(&self, state: &State, reply: &str) -> Result<Plan> {
        let files = self.files(state)?;
        let prepared = self.task(&state.task)?;
        let workspace = Workspace { files: &files, prepared };
        let unchanged = |action, then| Ok(Plan { action, snapshot: state.snapshot.clone(), then });
        let action = match action::parse(reply, self.settings.format) {
            Ok(action) => action,
            Err(why) => return unchanged("Invalid", Then::Tell(Told::invalid(why, "no valid action"))),
        };
        let name = action::name(&action);
        let told = match action {
            Action::ListFiles { dir_path } => match workspace.list_files(&dir_path) {
                Ok(entries) if entries.is_empty() => Told::neutral("The folder is empty.", "Shown."),
                Ok(entries) => Told::neutral(entries.join("\n"), entries.join(" ")),
                Err(error) => error.into(),
            },
            Action::InspectScriptLines { script_name, start_line_number, end_line_number } => {
                match workspace.inspect_lines(&script_name, start_line_number, end_line_number) {
                    Ok((lines, last)) => Told::neutral(
                        format!("Here are the lines (the file ends at line {last}):\n{}", self.cut(&lines)),
                        "Shown.",
                    ),
                    Err(error) => error.into(),
                }
            }
            Action::FinalAnswer { .. } => Told::neutral("The episode has ended.", "Ended."),
            Action::ExecuteScript { script_name } => match workspace.script(&script_name) {
                Ok((script, _)) => return unchanged(name, Then::Run { script, diff: None }),
                Err(error) => error.into(),
            },
            Action::CopyFile { source, destination } => match workspace.copy_file(&source, &destination) {
                // A copy over an existing file is graded like an edit, so that the metric always belongs to the files.
                Ok((after, to)) if files.contains_key(&to) && after != files => {
                    return self.changed(name, &workspace, after, &to);
                }
                Ok((after, _)) if after == files => unchanged_text(),
                Ok((after, to)) => {
                    let told = Told::neutral(format!("File {source} is copied to {to}."), "Copied.");
                    return Ok(Plan { action: name, snapshot: self.store.insert(&after), then: Then::Tell(told) });
                }
                Err(error) => error.into(),
            },
            Action::EditScript { script_name, search, replace } => match workspace.script(&script_name) {
                Ok((script, text)) => match patch::apply(&text, &search, &replace) {
                    Ok(new) => {
                        let mut after = files.clone();
                        after.insert(script.clone(), Arc::from(new));
                        return self.changed(name, &workspace, after, &script);
                    }
                    Err(PatchError::NoChange) => unchanged_text(),
                    Err(error) => Told::invalid(error, error.short()),
                },
                Err(error) => error.into(),
            },
        };
        unchanged(name, Then::Tell(told))
    }

    /// Plans the graded run of the task's entry, because the file `name` has changed.
    fn changed(&self, action: &'static str, workspace: &Workspace, after: Files, name: &str) -> Result<Plan> {
        let text = |files: &Files| files.get(name).cloned().unwrap_or_default();
        let (old, new) = (text(workspace.files), text(&after));
        let diff = similar::TextDiff::from_lines(&*old, &*new).unified_diff().header(name, name).to_string();
        let script = workspace.prepared.task.entry.clone();
        Ok(Plan { action, snapshot: self.store.insert(&after), then: Then::Run { script, diff: Some(diff) } })
    }

    /// Runs all of `pending` and remembers the results.
    fn execute(&self, pending: &[Pending], runs: &mut BTreeMap<RunKey, Arc<RunResult>>) -> Result<()> {
        self.run_all(pending, |executed| {
            runs.extend(executed.iter().map(|e| (e.key.clone(), e.run.clone())));
            self.cache.insert(&executed)
        })
    }

    /// Runs all of `pending`, in batches that fit into the scratch folder together; hands each batch to `done`, in
    /// order.
    pub(super) fn run_all(&self, pending: &[Pending], mut done: impl FnMut(Vec<Executed>) -> Result<()>) -> Result<()> {
        let mut rest = pending;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|p| {
                bytes += data_bytes(p);
                bytes <= SCRATCH_BYTES
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let folder = || tempfile::Builder::new().prefix("run-").tempdir_in(&self.scratch);
            let (mut folders, mut jobs) = (Vec::with_capacity(now.len()), Vec::with_capacity(now.len()));
            for run in now {
                let made = folder().map_err(|e| Error::io("cannot create a folder for a run in", &self.scratch, &e))?;
                let prepared = &run.loaded.prepared;
                workspace::materialise(&self.store.get(&run.snapshot)?, prepared, made.path())?;
                jobs.push(Job {
                    data: prepared.data.clone(),
                    id: run.key.to_string(),
                    group: prepared.task.name.clone(),
                    ..Job::new(made.path(), &run.script, prepared.task.limits.clone())
                });
                folders.push(made);
            }
            let verdicts = self.runner.run_many(jobs)?;
            if verdicts.len() != now.len() {
                return Err(Error::system(format!("{} runs gave {} verdicts", now.len(), verdicts.len())));
            }
            let read = |((run, verdict), folder): ((&Pending, Verdict), &tempfile::TempDir)| {
                run.executed(Arc::new(self.read(run, verdict, folder.path())))
            };
            done(now.iter().zip(verdicts).zip(&folders).map(read).collect())?;
        }
        Ok(())
    }

    /// Turns a finished run into the result to remember: its grade, and its texts without the names of folders that
    /// differ between runs or machines.
    fn read(&self, run: &Pending, verdict: Verdict, folder: &Path) -> RunResult {
        let task = &run.loaded.prepared.task;
        let clean = |text: &str| {
            let places = [&*folder.to_string_lossy(), WORKSPACE].map(str::to_string);
            let text = places
                .iter()
                .fold(text.to_string(), |text, place| text.replace(&format!("{place}/"), "").replace(place, "."));
            self.cut(&LIBRARY_FOLDER.replace_all(&text, "\""))
        };
        let grade = || match workspace::left_behind(folder, &task.submission) {
            Some(submission) => grader::grade(task, &submission, &run.loaded.labels),
            None => Err(format!("the script wrote no file {}", task.submission)),
        };
        let is_graded = run.script == task.entry && verdict.outcome == Outcome::Exited(0);
        RunResult {
            outcome: verdict.outcome,
            stdout: clean(&verdict.stdout),
            stderr: clean(&verdict.stderr),
            wall_seconds: verdict.wall_seconds,
            grade: is_graded.then(grade),
        }
    }

    /// Finishes a step, with `run` as the result of its run if it has one.
    fn finish(&self, state: State, reply: String, plan: Plan, run: Option<&RunResult>) -> Result<StepResult> {
        let task = &self.task(&state.task)?.task;
        let (before, report_before) = (state.metric, state.report);
        let mut flags = vec![];
        let mut next = state;
        let told = match (plan.then, run) {
            (Then::Tell(told), _) => {
                next.snapshot = plan.snapshot;
                told
            }
            (Then::Run { diff, .. }, Some(run)) => {
                next.seconds += run.wall_seconds;
                let mut told = run_told(run, diff.is_some());
                if let Some(diff) = diff {
                    let is_undone = told.case != Case::Edit && self.settings.undo_failed_edits;
                    if let (Case::Edit, Some(Ok(grade))) = (told.case, &run.grade) {
                        (next.metric, next.report) = (grade.reward, grade.report);
                        if task.normalised(next.metric) > task.normalised(next.best) {
                            (next.best, next.best_report) = (next.metric, next.report);
                        }
                        flags.clone_from(&grade.flags);
                    }
                    if !is_undone {
                        next.snapshot = plan.snapshot;
                        next.graded_final = told.case == Case::Edit;
                    }
                    let undone =
                        if is_undone { "\nThe edit was undone: the files are as they were before it." } else { "" };
                    if is_undone {
                        told.compact = told.compact.replacen("Failed.", "Undone.", 1);
                    }
                    told.observation =
                        format!("The file was changed:\n{}\n{}{undone}", self.cut(diff.trim_end()), told.observation);
                }
                told
            }
            (Then::Run { script, .. }, None) => {
                return Err(Error::system(format!("the run of {script} gave no result")));
            }
        };
        let share = if told.case == Case::Edit { task.share(before, next.metric) } else { 0.0 };
        let detail = match told.case {
            Case::Edit => {
                let flags: String = flags.iter().map(|flag| format!(", {}", flag.name())).collect();
                format!("{} {before} -> {} (share {share:.3}{flags})", task.metric.name(), next.metric)
            }
            _ => told.detail,
        };
        next.steps += 1;
        next.done = plan.action == "Final Answer"
            || next.steps >= self.settings.max_steps
            || next.seconds >= self.settings.episode_seconds;
        next.history.push(Turn { reply, observation: told.observation.clone(), compact: told.compact.clone() });
        Ok(StepResult {
            case: told.case,
            action: plan.action.to_string(),
            observation: told.observation,
            compact: told.compact,
            metric_before: before,
            metric_after: next.metric,
            report_before,
            report_after: next.report,
            flags,
            share,
            next,
            detail,
        })
    }

    fn cut(&self, text: &str) -> String {
        cut_middle(text, self.settings.observation_limit)
    }
}

fn unchanged_text() -> Told {
    Told::neutral("Nothing changed: the file is as it was.", "Nothing changed.")
}

fn data_bytes(run: &Pending) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    run.loaded.prepared.data.iter().map(|(_, path)| size(path)).sum()
}

/// Case and texts of a run alone. They never tell the agent its score.
fn run_told(run: &RunResult, is_edit: bool) -> Told {
    let output = if run.stdout.trim().is_empty() { &run.stderr } else { &run.stdout };
    let text = if output.trim().is_empty() { "(no output)" } else { output.trim_end() };
    let failed = |case, observation: String, short: &str| {
        let short: String = short.chars().take(COMPACT_CHARS).collect();
        Told { case, observation, compact: format!("Failed. {short}"), detail: short }
    };
    let limit = |what: &str| {
        let observation = format!("The script was stopped at its {what}. Here is its output until then:\n{text}");
        failed(Case::Corner, observation, what)
    };
    match &run.outcome {
        Outcome::Exited(0) => match (&run.grade, is_edit) {
            (Some(Err(why)), true) => failed(
                Case::Error,
                format!(
                    "The script has been executed, but its result cannot be scored: {why}. Here is the output:\n{text}"
                ),
                why,
            ),
            _ => {
                let first = output.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
                let first: String = first.chars().take(COMPACT_CHARS).collect();
                let case = if is_edit { Case::Edit } else { Case::Neutral };
                let observation = format!("The script has been executed. Here is the output:\n{text}");
                Told { case, observation, compact: format!("Script ran. {first}").trim_end().into(), detail: first }
            }
        },
        Outcome::Exited(code) => {
            let error = if run.stderr.trim().is_empty() { text } else { run.stderr.trim_end() };
            let last = run.stderr.lines().map(str::trim).rfind(|line| !line.is_empty());
            let short = last.map_or_else(|| format!("exit code {code}"), str::to_string);
            let observation =
                format!("The script has been executed and failed (exit code {code}). Here is the error:\n{error}");
            failed(Case::Error, observation, &short)
        }
        Outcome::Signaled(signal) => {
            let short = format!("killed by signal {signal}");
            failed(Case::Error, format!("The script was {short}. Here is its output until then:\n{text}"), &short)
        }
        Outcome::CpuLimit | Outcome::WallLimit => limit("time limit"),
        Outcome::MemoryLimit => limit("memory limit"),
        Outcome::OutputLimit => limit("output limit"),
        Outcome::FileLimit => limit("file size limit"),
        Outcome::ProcessLimit => limit("process limit"),
        Outcome::Quarantined => {
            let short = "could not be run to its end";
            failed(Case::Corner, format!("The script {short}, three times."), short)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracebacks_name_no_folder_of_the_machine() {
        let text = "  File \"/opt/x/lib/python3.11/site-packages/sklearn/base.py\", line 1\n  File \"/usr/lib/python3.12/json.py\"\n  File \"train.py\"";
        let clean = LIBRARY_FOLDER.replace_all(text, "\"");
        assert_eq!(clean, "  File \"sklearn/base.py\", line 1\n  File \"json.py\"\n  File \"train.py\"");
    }
}
