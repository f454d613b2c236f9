//! `onestep task audit`: says for each task whether the agent can see its labels. crate::task::audit does the search.

use super::args::TaskAuditArgs;
use super::given::Given;
use super::session;
use crate::console::{errln, outln};
use crate::error::{Error, Result};
use crate::sandbox::Python;
use crate::task::PreparedTask;
use crate::task::audit::{Audit, audit};

/// Audits tasks and prints the findings. Error (exit code 1): the agent can see labels.
pub fn run(args: &TaskAuditArgs) -> Result<()> {
    let (overrides, names): (Vec<String>, Vec<String>) =
        args.words.iter().cloned().partition(|word| word.contains('='));
    let mut config = Given { verb: "task", section: "tasks", file: None, overrides: &overrides }.settings(&[], &[])?;
    if !names.is_empty() {
        config.tasks.names = names;
    } else if overrides.iter().all(|o| !o.contains("names")) {
        config.tasks.names = vec!["all".to_string()];
    }
    let tasks = session::task_list(&config)?;
    let cache = session::cache()?;
    let python = Python::ensure(args.python.as_deref(), &cache, &mut |line| errln!("{line}"))?;
    if !args.json {
        outln!("{:<11}{:<8}details", "task", "labels");
    }
    let mut leaky = vec![];
    for task in &tasks {
        let prepared = PreparedTask::prepare(task, &python.interpreter, &cache.join("tasks"))?;
        let found = audit(&prepared).map_err(|e| e.context(format!("auditing task {}", task.name)))?;
        match args.json {
            true => outln!("{}", serde_json::to_string(&found).map_err(|e| Error::system(format!("JSON: {e}")))?),
            false => outln!("{}", line(&found)),
        }
        if !found.leaks.is_empty() {
            leaky.push(found.task);
        }
    }
    match leaky.is_empty() {
        true => Ok(()),
        false => {
            Err(Error::system(format!("the agent can see labels of: {}; take them out of the data", leaky.join(", "))))
        }
    }
}

fn line(found: &Audit) -> String {
    let verdict = if found.leaks.is_empty() { "hidden" } else { "SEEN" };
    let warnings = found.duplicates.iter().map(|what| format!("warning: {what}"));
    let unread = found.unread.iter().map(|what| format!("searched as text only: {what}"));
    let details: Vec<String> = found.leaks.iter().cloned().chain(warnings).chain(unread).collect();
    format!("{:<11}{verdict:<8}{}", found.task, details.join("; ")).trim_end().to_string()
}
