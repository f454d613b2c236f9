//! Writes one self-contained HTML page about a run: charts, scores, settings and a viewer of trajectories. The page
//! loads nothing and needs no server. A section whose data the run's folder lacks says so. Computes no scores itself.

mod html;
mod run;
mod sections;
mod svg;
mod viewer;

use crate::error::Result;
use crate::files::write_whole;
use html::escape;
use run::Run;
use serde_json::Value;
use std::path::Path;

/// Writes the page about the run in `run_dir` to `out`, which appears when complete. Reads metrics.jsonl, summary.json,
/// evaluation.json, config.toml and trajectories/*.jsonl, each if present. Error: the folder has none of them, or one
/// does not parse; names it.
pub fn write(run_dir: &Path, out: &Path) -> Result<()> {
    let name = run_dir.file_name().map_or_else(|| run_dir.to_string_lossy(), |n| n.to_string_lossy());
    write_whole(out, page(&Run::read(run_dir)?, &name).as_bytes())
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
