//! Makes the short table for docs/gpu.md from rows: each figure beside its floor and its bar. Work that was not measured
//! says so.

use super::record::{Ceilings, Row, read};
use super::work::{self, Sizes, Task, Work};
use crate::error::Result;
use std::path::Path;

/// Marks before and after the table in a Markdown file.
pub const MARKERS: (&str, &str) = ("<!-- bench table -->", "<!-- end of bench table -->");

/// Reads the rows in a results folder: ours (bench.jsonl, and the times of again.jsonl), the peers' (peers.jsonl) and
/// compute-sanitizer's (sanitizer.jsonl).
pub fn rows(folder: &Path) -> Vec<Row> {
    let mut rows = read(&folder.join("bench.jsonl"));
    rows.extend(read(&folder.join("again.jsonl")).into_iter().filter(|r| r.suite == "kernel" && r.median.is_some()));
    for name in ["peers.jsonl", "sanitizer.jsonl"] {
        rows.extend(read(&folder.join(name)));
    }
    rows
}

/// Formats the table as Markdown, from rows and the name of the GPU (machine.json's `device`).
pub fn markdown(rows: &[Row], device: Option<&str>) -> Result<String> {
    let sizes = Sizes::of("qwen2.5-7b")?;
    let mut text = match device {
        Some(device) => format!("Measured on one {device}. "),
        None => String::from("Not measured yet. "),
    };
    text += "Floors are of the ceilings measured in the same run; where nothing was measured, of one H200 as measured elsewhere (790 TFLOP/s, 4.3 TB/s). Bars are for one H200.\n\n";
    text += "| checked | |\n|---|---|\n";
    for (suite, name) in [("correctness", "every op against the oracle"), ("parity", "whole models against the CPU")] {
        let all = rows.iter().filter(|r| r.suite == suite && !r.status.starts_with("not run")).count();
        let right = rows.iter().filter(|r| r.suite == suite && r.status == "checked").count();
        let found = if all == 0 { "not measured".to_string() } else { format!("{right} of {all} right") };
        text += &format!("| {name} | {found} |\n");
    }
    for tool in ["memcheck", "racecheck"] {
        let row = rows.iter().find(|r| r.suite == "sanitizer" && r.kernel == tool);
        text += &format!("| compute-sanitizer {tool} | {} |\n", row.map_or("not measured", |r| r.status.as_str()));
    }
    for kernel in ["gemm", "copy"] {
        let row = rows
            .iter()
            .find(|r| (r.suite.as_str(), r.provider.as_str(), r.kernel.as_str()) == ("ceiling", "ours", kernel))
            .filter(|r| r.median.is_some());
        let found = match (kernel, row) {
            (_, None) => "not measured".to_string(),
            ("gemm", Some(r)) => format!("{:.0} TFLOP/s", r.tflops.unwrap_or(0.0)),
            (_, Some(r)) => format!("{:.2} TB/s", r.gbps.unwrap_or(0.0) / 1e3),
        };
        text += &format!("| ceiling: {kernel} | {found} |\n");
    }
    text += "\n| work | figure | of its floor | floor | bar | best peer |\n|---|---|---|---|---|---|\n";
    // The table shows work that has a bar; the rest is in the rows.
    let is_short = |work: &&Work| match work.task {
        Task::Paged { context, .. } => context == sizes.contexts[1],
        Task::Sample { filtered, .. } => !filtered,
        Task::SquaredNorm { .. } | Task::Logits { .. } => false,
        _ => work.cost.bar.is_some(),
    };
    for work in work::models(&sizes).iter().chain(&work::kernels(&sizes)).filter(is_short) {
        text += &line(rows, work);
    }
    Ok(text)
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

/// Formats a figure: tokens per second if the work has tokens, TFLOP/s if arithmetic bounds it, else the time.
fn figure(work: &Work, seconds: f64) -> String {
    if work.cost.tokens > 0.0 {
        format!("{:.0} tok/s", work.cost.tokens / seconds)
    } else if work.cost.flops / Ceilings::H200.flops > work.cost.bytes / Ceilings::H200.bytes {
        format!("{:.0} TFLOP/s", work.cost.flops / seconds / 1e12)
    } else {
        time(seconds)
    }
}

fn line(rows: &[Row], work: &Work) -> String {
    let same = |r: &&Row| r.kernel == work.kernel && r.mode == work.mode && r.shape == work.shape;
    let (ours, peers): (Vec<&Row>, Vec<&Row>) = rows.iter().filter(same).partition(|r| r.provider == "ours");
    let times: Vec<f64> = ours.iter().filter_map(|r| r.median).collect();
    let seconds = (!times.is_empty()).then(|| times.iter().sum::<f64>() / times.len() as f64);
    let status = ours.first().map_or("not measured", |r| r.status.as_str());
    let found = seconds.map_or(status.to_string(), |s| figure(work, s));
    let has_floor = work.cost.flops + work.cost.bytes > 0.0;
    let floor = ours.iter().find_map(|r| r.floor).unwrap_or_else(|| work.cost.floor(&Ceilings::H200));
    let share = match (seconds, has_floor) {
        (Some(seconds), true) => format!("{:.0} %", 100.0 * floor / seconds),
        _ => "-".into(),
    };
    let floor = if has_floor { figure(work, floor) } else { "-".into() };
    let bar = work.cost.bar.map_or("-".into(), |bar| match bar.parts() {
        (share, "of floor") => format!("{:.0} % of floor", 100.0 * share),
        (value, unit) => format!("{value:.0} {unit}"),
    });
    let best = peers.iter().filter_map(|r| Some((r.median?, &r.provider))).min_by(|a, b| a.0.total_cmp(&b.0));
    let peer = match (best, peers.first()) {
        (Some((s, provider)), _) => {
            let ratio = seconds.map_or(String::new(), |ours| format!(", {:.2}x our time", s / ours));
            format!("{provider} {}{ratio}", figure(work, s))
        }
        (None, Some(row)) => row.status.replace('|', "/"),
        (None, None) => "not measured".into(),
    };
    let name = format!("{} {}: {}", work.kernel, work.mode, work.shape);
    format!("| {name} | {} | {share} | {floor} | {bar} | {peer} |\n", found.replace('|', "/").replace('\n', " "))
}
