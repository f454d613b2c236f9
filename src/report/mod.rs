//! Writes one self-contained HTML page about a run: charts, scores, settings and a viewer of trajectories. The page
//! loads nothing and needs no server. A section whose data the run's folder lacks says so. Computes no scores itself.

mod html;
mod sections;
mod svg;
mod viewer;

use crate::error::{Error, Result};
use crate::evaluate::Evaluations;
use crate::files::write_whole;
use crate::metrics;
use crate::trajectory::{self, Trajectory};
use html::escape;
use serde_json::Value;
use std::path::Path;

/// The contents of a run's folder.
pub(crate) struct Run {
    metrics: Vec<Value>,
    summary: Value,
    evaluations: Option<Evaluations>,
    config: Option<String>,
    trajectories: Vec<Trajectory>,
}

/// Writes the page about the run in `run_dir` to `out`, which appears when complete. Reads metrics.jsonl, summary.json,
/// evaluation.json, config.toml and trajectories/*.jsonl, each if present. Error: the folder has none of them, or one
/// does not parse; names it.
pub fn write(run_dir: &Path, out: &Path) -> Result<()> {
    let name = run_dir.file_name().map_or_else(|| run_dir.to_string_lossy(), |n| n.to_string_lossy());
    write_whole(out, page(&Run::read(run_dir)?, &name).as_bytes())
}

impl Run {
    fn read(dir: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(dir).map_err(|e| Error::io("reading the run in", dir, &e))?;
        let files = ["metrics.jsonl", "summary.json", "evaluation.json", "config.toml", "trajectories"];
        if !entries.flatten().any(|entry| files.iter().any(|f| entry.file_name() == *f)) {
            return Err(Error::content(format!(
                "{}: no run in it; expected a folder that quickstart, sft, rl or eval wrote, with one of {}",
                dir.display(),
                files.join(", ")
            )));
        }
        let lines = dir.join(metrics::FILE);
        let mut trajectories = Vec::new();
        if dir.join("trajectories").is_dir() {
            let folder = dir.join("trajectories");
            let io = |e: std::io::Error| Error::io("reading", &folder, &e);
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(&folder).map_err(io)? {
                paths.push(entry.map_err(io)?.path());
            }
            paths.sort();
            for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "jsonl")) {
                trajectories.extend(trajectory::read_jsonl(path)?);
            }
        }
        Ok(Self {
            metrics: if lines.exists() { metrics::read(&lines)? } else { Vec::new() },
            summary: json(&dir.join("summary.json"))?.unwrap_or(Value::Null),
            evaluations: json(&dir.join("evaluation.json"))?,
            config: optional(&dir.join("config.toml"))?,
            trajectories,
        })
    }
}

/// The text of a file; `None` when there is no such file.
fn optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("reading", path, &e)),
    }
}

/// Parses a JSON file; `None` when there is no such file.
fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = optional(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::content(format!("{}: {e}; expected the file as the run wrote it", path.display())))
}

fn page(run: &Run, name: &str) -> String {
    let sections = [
        ("scores", "Scores", sections::headline(run)),
        ("reward", "Reward", sections::reward(run)),
        ("tasks", "Reward by task", sections::by_task(run)),
        ("optimisation", "Optimisation", sections::optimisation(run)),
        ("sft", "Supervised fine-tuning", sections::fine_tuning(run)),
        ("evaluation", "Evaluation", sections::evaluation(run)),
        ("time", "Time", sections::time(run)),
        ("protection", "Protection in force", sections::protection(run)),
        ("configuration", "Configuration", sections::configuration(run)),
        ("trajectories", "Trajectories", viewer::trajectories(&run.trajectories)),
    ];
    let links: String = sections.iter().map(|(id, title, _)| format!(r##"<a href="#{id}">{title}</a>"##)).collect();
    let bodies: String = sections
        .iter()
        .map(|(id, title, body)| format!("<section id=\"{id}\"><h2>{title}</h2>{body}</section>\n"))
        .collect();
    let fact = |key: &str| match &run.summary[key] {
        Value::String(text) => Some(format!("{key} {}", escape(text))),
        Value::Number(n) => Some(format!("{key} {n}")),
        _ => None,
    };
    let facts: Vec<String> =
        ["seed", "device", "sandbox_tier", "version", "commit", "program"].into_iter().filter_map(fact).collect();
    let head = format!(
        r#"<header><h1>{}</h1><div class="muted">{}</div><nav>{links}</nav></header>"#,
        escape(&format!("OneStep: {name}")),
        facts.join(" \u{b7} ")
    );
    let body = head + &bodies;
    // The nonce is a hash of the whole body, so text in it cannot predict the nonce, and the same run gives the same
    // page.
    let nonce = blake3::hash(body.as_bytes()).to_hex();
    let title = escape(&format!("OneStep: {name}"));
    let (before, after) = include_str!("page.html").split_once("{{body}}").unwrap_or_default();
    let fill = |part: &str| part.replace("{{nonce}}", &nonce[..32]).replace("{{title}}", &title);
    format!("{}{body}{}", fill(before), fill(after))
}
