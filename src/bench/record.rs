//! Records results: writes rows one by one as they are made, and describes the machine they come from.

use super::measure::{Target, Times};
use crate::console::errln;
use crate::error::{Error, Result};
use crate::files::write_whole;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One measurement or check. Speeds and shares follow from the times and the work; only measured rows have them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// `correctness`, `parity`, `ceiling`, `kernel` or `model`.
    pub suite: String,
    /// Op or step, for example `attention`.
    pub kernel: String,
    /// Implementation: `ours`, `torch`, `liger` or `flash-attn`.
    pub provider: String,
    /// `forward`, `backward` or `full`.
    pub mode: String,
    /// For example `T 4096, NH 28, NKV 4, HS 128`.
    pub shape: String,
    /// Type of the activations.
    pub dtype: String,
    /// `measured`, `checked`, `wrong: ...` or `not run: ...`.
    pub status: String,
    /// True when the row was checked or timed, and no check found it (or its kernel) wrong.
    pub checked: bool,
    /// Largest error found; against the oracle for a kernel.
    pub error: Option<f64>,
    /// Largest error allowed.
    pub allowance: Option<f64>,
    /// Median of the times, in seconds.
    pub median: Option<f64>,
    /// 20th percentile of the times, in seconds.
    pub p20: Option<f64>,
    /// 80th percentile of the times, in seconds.
    pub p80: Option<f64>,
    /// Timed runs.
    pub repeats: Option<usize>,
    /// Useful operations per second at the median, in 1e12.
    pub tflops: Option<f64>,
    /// Bytes that must move, per second at the median, in 1e9.
    pub gbps: Option<f64>,
    /// Seconds the work takes at the ceilings measured in this run.
    pub floor: Option<f64>,
    /// `floor` divided by the median.
    pub share_of_measured: Option<f64>,
    /// The same share at the datasheet's ceilings.
    pub share_of_datasheet: Option<f64>,
    /// Target in `bar_unit`: `TFLOP/s`, `of floor` or `tok/s`.
    pub bar: Option<f64>,
    /// Unit of `bar`.
    pub bar_unit: String,
    /// Whether the bar was reached.
    pub reached: Option<bool>,
    /// Tokens per second, for whole steps of a model.
    pub tokens_per_second: Option<f64>,
    /// Device memory in use, 1e9 bytes.
    pub memory_gb: Option<f64>,
    /// Anything else worth knowing.
    pub note: String,
}

/// The columns of the CSV, in order: the fields of `Row`.
const COLUMNS: [&str; 25] = [
    "suite",
    "kernel",
    "provider",
    "mode",
    "shape",
    "dtype",
    "status",
    "checked",
    "error",
    "allowance",
    "median",
    "p20",
    "p80",
    "repeats",
    "tflops",
    "gbps",
    "floor",
    "share_of_measured",
    "share_of_datasheet",
    "bar",
    "bar_unit",
    "reached",
    "tokens_per_second",
    "memory_gb",
    "note",
];

impl Row {
    /// True when the row's status says that something is wrong.
    pub fn is_wrong(&self) -> bool {
        self.status.starts_with("wrong")
    }

    /// One line of the CSV, without its newline.
    pub fn csv(&self) -> String {
        let value = json!(self);
        let cell = |name: &&str| match &value[*name] {
            Value::Null => String::new(),
            Value::String(text) if text.contains([',', '"', '\n']) => {
                format!("\"{}\"", text.replace('"', "\"\"").replace('\n', " "))
            }
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        COLUMNS.iter().map(cell).collect::<Vec<_>>().join(",")
    }
}

/// Peak rates of a device, in operations and bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Dense bf16 matrix products with f32 accumulation.
    pub flops: f64,
    /// Device memory.
    pub bytes: f64,
}

impl Ceilings {
    /// One H200 as measured before; floors use it where nothing was measured.
    pub const H200: Self = Self { flops: 790e12, bytes: 4.3e12 };

    /// The maker's figures for the device called `name`; `None` when it is not known.
    pub fn datasheet(name: &str) -> Option<Self> {
        // The first line counts whose words are all in the name.
        const SHEET: &[(&str, f64, f64)] = &[
            ("GH200", 989.0, 4.0),
            ("H200", 989.0, 4.8),
            ("H100 PCIe", 756.0, 2.0),
            ("H100 NVL", 835.0, 3.9),
            ("H100", 989.0, 3.35),
            ("H800", 989.0, 3.35),
            ("H20", 148.0, 4.0),
            ("B300", 2250.0, 8.0),
            ("B200", 2250.0, 8.0),
            ("A100 40GB", 312.0, 1.555),
            ("A100", 312.0, 2.0),
            ("A800", 312.0, 2.0),
            ("L40S", 362.0, 0.864),
            ("L40", 181.0, 0.864),
            ("L4", 121.0, 0.3),
            ("A40", 150.0, 0.696),
            ("A10", 125.0, 0.6),
            ("5090", 210.0, 1.79),
            ("4090", 165.0, 1.01),
            ("3090", 71.0, 0.936),
        ];
        let words = |text: &str| {
            text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase).filter(|w| !w.is_empty()).collect()
        };
        let name: Vec<String> = words(name);
        let fits = |wanted: &str| words(wanted).iter().all(|word| name.contains(word));
        let line = SHEET.iter().find(|(wanted, ..)| fits(wanted))?;
        Some(Self { flops: line.1 * 1e12, bytes: line.2 * 1e12 })
    }

    /// Least seconds that the work takes: for arithmetic or memory, whichever is longer.
    pub fn floor(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bytes)
    }
}

/// Least cost of a row's work, and its target.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Useful operations.
    pub flops: f64,
    /// Bytes that have to move.
    pub bytes: f64,
    /// Bytes that move after the arithmetic (the KV cache of a decode step): added to the floor, not overlapped with
    /// it.
    pub further_bytes: f64,
    /// Number of tokens, for tokens per second.
    pub tokens: f64,
    /// Target, if there is one.
    pub bar: Option<Bar>,
}

impl Cost {
    /// Least seconds at `ceilings`.
    pub fn floor(&self, ceilings: &Ceilings) -> f64 {
        ceilings.floor(self.flops, self.bytes) + self.further_bytes / ceilings.bytes
    }
}

/// Target on one H200.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// 1e12 operations per second.
    Tflops(f64),
    /// Floor divided by the time.
    OfFloor(f64),
    /// Tokens per second.
    Tokens(f64),
}

impl Bar {
    /// The number and its unit.
    pub fn parts(&self) -> (f64, &'static str) {
        match *self {
            Bar::Tflops(x) => (x, "TFLOP/s"),
            Bar::OfFloor(x) => (x, "of floor"),
            Bar::Tokens(x) => (x, "tok/s"),
        }
    }
}

impl Row {
    /// Fills in everything that follows from the times.
    pub fn timed(mut self, times: &Times, cost: &Cost, measured: Option<Ceilings>, sheet: Option<Ceilings>) -> Self {
        let per_second = |amount: f64, unit: f64| (amount > 0.0).then_some(amount / times.median / unit);
        self.status = "measured".into();
        self.median = Some(times.median);
        (self.p20, self.p80, self.repeats) = (Some(times.p20), Some(times.p80), Some(times.repeats));
        self.tflops = per_second(cost.flops, 1e12);
        self.gbps = per_second(cost.bytes + cost.further_bytes, 1e9);
        self.tokens_per_second = per_second(cost.tokens, 1.0);
        self.floor = measured.map(|c| cost.floor(&c));
        self.share_of_measured = self.floor.map(|floor| floor / times.median);
        self.share_of_datasheet = sheet.map(|c| cost.floor(&c) / times.median);
        if let Some(bar) = cost.bar {
            let (value, unit) = bar.parts();
            (self.bar, self.bar_unit) = (Some(value), unit.into());
            let found = match bar {
                Bar::Tflops(_) => self.tflops,
                Bar::OfFloor(_) => self.share_of_measured,
                Bar::Tokens(_) => self.tokens_per_second,
            };
            self.reached = found.map(|found| found >= value);
        }
        self
    }
}

/// The files of one run.
pub struct Recorder {
    jsonl: File,
    csv: File,
    folder: PathBuf,
    /// All rows so far.
    pub rows: Vec<Row>,
}

impl Recorder {
    /// Creates DIR/bench.jsonl and DIR/bench.csv, replacing old ones.
    pub fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("making the folder", folder, &e))?;
        let open = |name: &str| {
            let path = folder.join(name);
            File::create(&path).map_err(|e| Error::io("creating", &path, &e))
        };
        let mut recorder =
            Self { jsonl: open("bench.jsonl")?, csv: open("bench.csv")?, folder: folder.to_path_buf(), rows: vec![] };
        recorder.lines(None, &COLUMNS.join(","))?;
        Ok(recorder)
    }

    /// Writes one row to both files and syncs it before anything else is done; also prints it on stderr.
    pub fn add(&mut self, row: Row) -> Result<()> {
        self.lines(Some(&json!(row).to_string()), &row.csv())?;
        errln!("{}", line(&row));
        self.rows.push(row);
        Ok(())
    }

    fn lines(&mut self, json: Option<&str>, csv: &str) -> Result<()> {
        let failed = |e: std::io::Error| Error::io("writing rows in", &self.folder, &e);
        if let Some(json) = json {
            self.jsonl.write_all(format!("{json}\n").as_bytes()).map_err(failed)?;
            self.jsonl.sync_data().map_err(failed)?;
        }
        self.csv.write_all(format!("{csv}\n").as_bytes()).map_err(failed)?;
        self.csv.sync_data().map_err(failed)
    }
}

/// Formats a row for the terminal.
pub fn line(row: &Row) -> String {
    let mut text = format!("{:<11} {:<16} {:<8} {:<44}", row.suite, row.kernel, row.mode, row.shape);
    match row.median {
        Some(median) => {
            text += &format!(" {:>10.3} ms", median * 1e3);
            let mut add = |value: Option<f64>, unit: &str, scale: f64| {
                if let Some(value) = value {
                    text += &format!("  {:.1} {unit}", value * scale);
                }
            };
            add(row.tokens_per_second, "tok/s", 1.0);
            add(row.tflops, "TFLOP/s", 1.0);
            add(row.gbps, "GB/s", 1.0);
            add(row.share_of_measured, "% of floor", 100.0);
            if let (Some(bar), Some(reached)) = (row.bar, row.reached) {
                text += &format!("  bar {bar} {} {}", row.bar_unit, if reached { "reached" } else { "not reached" });
            }
        }
        None => {
            text += &format!(" {}", row.status);
            if let (Some(error), Some(allowance)) = (row.error, row.allowance) {
                text += &format!("  error {error:.2e} of {allowance:.2e} allowed");
            }
        }
    }
    text
}

/// Reads the rows of a jsonl file; none when it does not exist. Skips lines that are not rows (a cut-off one).
pub fn read(path: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Writes the GPU, its driver and clocks, this program and the time to DIR/machine.json.
pub fn write_machine(folder: &Path, target: &Target, seconds: f64) -> Result<()> {
    let memory = target.memory()?;
    let machine = json!({
        "device": target.name(),
        "multiprocessors": target.device().map(|d| d.multiprocessors()),
        "memory_free": memory.0,
        "memory_total": memory.1,
        "datasheet": Ceilings::datasheet(&target.name()),
        "nvidia_smi": nvidia_smi(),
        "cpu": after(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "version": crate::version::VERSION,
        "commit": crate::version::commit(),
        "program_blake3": crate::version::program(),
        "date": date(std::time::SystemTime::now()),
        "budget_seconds": seconds,
        "command": crate::version::command_line().get(1..).unwrap_or_default().join(" "),
    });
    write_whole(&folder.join("machine.json"), format!("{machine:#}\n").as_bytes())
}

fn after(text: &str, key: &str) -> Option<String> {
    Some(text.lines().find(|line| line.starts_with(key))?.split_once(':')?.1.trim().to_string())
}

/// Output of nvidia-smi, field by field, or why it did not run.
fn nvidia_smi() -> Value {
    const FIELDS: &str = "name,driver_version,vbios_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,power.draw,temperature.gpu,ecc.mode.current,mig.mode.current";
    let output = Command::new("nvidia-smi").arg(format!("--query-gpu={FIELDS}")).arg("--format=csv,noheader").output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).to_string();
            let first = text.lines().next().unwrap_or("");
            let pairs = FIELDS.split(',').zip(first.split(',')).map(|(k, v)| (k.to_string(), json!(v.trim())));
            Value::Object(pairs.collect())
        }
        Ok(output) => json!(format!("not run: {}", String::from_utf8_lossy(&output.stdout).trim())),
        Err(e) => json!(format!("not run: {e}")),
    }
}

/// Formats a time like 2026-11-24T19:33:19Z (days to dates by Hinnant's civil_from_days).
pub fn date(time: std::time::SystemTime) -> String {
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = ((seconds / 86400) as i64 + 719_468, seconds % 86400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}
