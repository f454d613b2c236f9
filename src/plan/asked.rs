//! What is planned, and how its numbers are printed.

use crate::config::Config;
use crate::model::config::ModelConfig;
use serde::Serialize;

/// Kind of run that is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Supervised fine-tuning of an adapter, or of all weights (sft.full).
    Sft,
    /// Step-wise reinforcement learning: engine and learner side by side.
    Rl,
    /// Sampling with one adapter: eval, generate.
    Eval,
}

/// Kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// NVIDIA H100.
    H100,
    /// NVIDIA H200.
    H200,
    /// Another GPU.
    Gpu,
    /// The host's CPU.
    Cpu {
        /// Threads that compute.
        cores: usize,
    },
}

impl Kind {
    /// Kind of the GPU called `name`, for example "NVIDIA H200".
    pub fn of_gpu(name: &str) -> Self {
        if name.contains("H200") {
            Kind::H200
        } else if name.contains("H100") {
            Kind::H100
        } else {
            Kind::Gpu
        }
    }

    pub(super) fn is_gpu(self) -> bool {
        !matches!(self, Kind::Cpu { .. })
    }

    /// Bytes of an element of the activation type and of the accumulator type: bf16 and f32 on a GPU, f32 and f32 on
    /// the CPU.
    pub(super) fn sizes(self) -> (usize, usize) {
        if self.is_gpu() { (2, 4) } else { (4, 4) }
    }
}

/// The run that is planned, and its device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Kind of run.
    pub work: Work,
    /// Kind of device.
    pub kind: Kind,
    /// Bytes of the weight files; two per parameter when not known.
    pub stored: Option<usize>,
    /// Tokens of every prompt; the most that the settings allow when not known.
    pub prompt: Option<usize>,
    /// Tokens of every reply; the most that the settings allow when not known.
    pub reply: Option<usize>,
}

impl Target {
    /// Plans `work` on `kind`, with the rest left unknown.
    pub fn new(work: Work, kind: Kind) -> Self {
        Self { work, kind, stored: None, prompt: None, reply: None }
    }
}

/// One part of the memory.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Name of the part.
    pub name: &'static str,
    /// Size in bytes.
    pub bytes: usize,
    /// Description of its contents.
    pub what: String,
}

/// Inputs of a plan.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub model: ModelConfig,
    pub config: Config,
    pub target: Target,
}

impl Work {
    /// Name as typed on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Work::Sft => "sft",
            Work::Rl => "rl",
            Work::Eval => "eval",
        }
    }
}

/// Formats bytes in decimal units, as memory is sold.
pub(super) fn size(bytes: usize) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

/// Formats a number of parameters.
pub(super) fn count(n: usize) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2}B", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n => format!("{n}"),
    }
}

/// Formats 1234567 as 1,234,567.
pub(super) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}
