//! What was measured, as JSON, CSV and a table.

use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Median and range of some repeats.
#[derive(Serialize, Clone)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub repeats: usize,
}

impl Summary {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: (low + high) / 2.0, min, max, repeats: sorted.len() })
    }
}

/// One provider at one work.
#[derive(Serialize)]
pub struct Row {
    pub model: &'static str,
    /// For example `decode 16x1`.
    pub work: String,
    pub shape: String,
    pub provider: &'static str,
    /// Types of the stored weights and of the arithmetic.
    pub types: String,
    /// `measured`, `wrong: ...` or `not run: ...`; only what was measured has times.
    pub status: String,
    /// Largest difference from ours when checked, relative to the numbers it comes from.
    pub error: Option<f64>,
    pub seconds: Option<Summary>,
    pub tokens_per_second: Option<f64>,
    /// This provider's seconds by ours, pair by pair.
    pub ratio: Option<Summary>,
}

/// A bar and what came of it, against the fastest peer that was right.
#[derive(Serialize)]
pub struct Bar {
    pub model: &'static str,
    pub work: String,
    pub bar: f64,
    pub best_peer: &'static str,
    pub ratio: Summary,
    pub reached: bool,
}

/// Loading and scoring with the large model by `onestep score`.
#[derive(Serialize)]
pub struct Score {
    pub load_seconds: f64,
    pub tokens: usize,
    /// The whole process.
    pub seconds: f64,
    pub peak_bytes: u64,
    pub file_bytes: u64,
    pub peak_by_file: f64,
}

/// Everything.
#[derive(Serialize)]
pub struct Record {
    pub quick: bool,
    pub threads: usize,
    pub machine: Value,
    pub commit: String,
    pub peer: Value,
    pub rows: Vec<Row>,
    pub bars: Vec<Bar>,
    pub score: Score,
}

/// The machine: processor, cores, memory, and how busy it was.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?.split_once(':')?.1.trim().to_string();
        Some(line)
    };
    let cpu = read("/proc/cpuinfo");
    let flags = after(&cpu, "flags").unwrap_or_default();
    let has = |flag: &str| flags.split(' ').any(|f| f == flag);
    json!({
        "cpu": after(&cpu, "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "avx512": has("avx512f"),
        "avx512_bf16": has("avx512_bf16"),
        "memory": after(&read("/proc/meminfo"), "MemTotal"),
        "load_average": read("/proc/loadavg").split(' ').next(),
    })
}

/// The commit of the working tree, marked when files differ from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let changed = git(&["status", "--porcelain", "src", "Cargo.lock"]).is_some_and(|changes| !changes.is_empty());
    git(&["rev-parse", "HEAD"]).map_or("unknown".into(), |id| id + if changed { " with changes" } else { "" })
}

impl Record {
    /// Writes `path`.json and `path`.csv.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        std::fs::write(path.with_extension("json"), format!("{:#}\n", json!(self)))?;
        let mut csv = String::from(
            "model,work,shape,provider,types,status,error,median_s,min_s,max_s,tokens_per_s,ratio_median,ratio_min,ratio_max\n",
        );
        for row in &self.rows {
            let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.6}"));
            let range = |summary: &Option<Summary>| {
                let one = |pick: fn(&Summary) -> f64| number(summary.as_ref().map(pick));
                [one(|s| s.median), one(|s| s.min), one(|s| s.max)].join(",")
            };
            let texts =
                [&row.work, &row.shape, row.provider, &row.types, &row.status].map(|text| text.replace(',', ";"));
            let (error, speed) =
                (row.error.map_or(String::new(), |e| format!("{e:.2e}")), number(row.tokens_per_second));
            let (seconds, ratio) = (range(&row.seconds), range(&row.ratio));
            csv += &format!("{},{},{error},{seconds},{speed},{ratio}\n", row.model, texts.join(","));
        }
        std::fs::write(path.with_extension("csv"), csv)
    }

    /// The table for the terminal.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let mut last = String::new();
        for row in &self.rows {
            let title = format!("{}, {}: {}", row.model, row.work, row.shape);
            if title != last {
                let _ = writeln!(out, "\n{title}");
                last = title;
            }
            let _ = write!(out, "  {:<18} {:<34}", row.provider, row.types);
            let _ = match (&row.seconds, row.tokens_per_second) {
                (Some(s), Some(speed)) => {
                    write!(
                        out,
                        "{speed:>9.1} tok/s  {:.4} s ({:.4} to {:.4}, {} times)",
                        s.median, s.min, s.max, s.repeats
                    )
                }
                _ => write!(out, "{}", row.status),
            };
            if let Some(r) = &row.ratio {
                let _ = write!(out, "  {:.2}x of ours ({:.2} to {:.2})", r.median, r.min, r.max);
            }
            out.push('\n');
        }
        let s = &self.score;
        let _ = writeln!(
            out,
            "\n0.5B, onestep score: opens in {:.3} s; {} tokens in {:.2} s, whole process; peak {:.0} MB, {:.2} of the file",
            s.load_seconds,
            s.tokens,
            s.seconds,
            s.peak_bytes as f64 / 1e6,
            s.peak_by_file
        );
        if !self.bars.is_empty() {
            let _ = writeln!(out, "\nHow many times faster than the peer at its best");
        }
        for bar in &self.bars {
            let Bar { model, work, bar, best_peer, ratio, reached } = bar;
            let verdict = if *reached { "reached" } else { "not reached" };
            let range = format!("({:.2} to {:.2})", ratio.min, ratio.max);
            let name = format!("{model}, {work}");
            let _ = writeln!(
                out,
                "  {name:<34}{:>6.2} {range:<18} bar {bar:<4} {verdict}; against {best_peer}",
                ratio.median
            );
        }
        out
    }
}
