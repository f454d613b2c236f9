//! The settings of the program and of every run.

use crate::settings::section;
use serde::{Deserialize, Serialize};

section! {
    /// `[run]`
    Settings {
        seed: u64, device: Device, gpu_memory: f64, gpu_check: bool, gpu_fixed_gemms: bool,
        gpu_separate_allocations: bool, threads: usize, workers: usize, sandbox_tier: u8, unsafe_no_sandbox: bool,
        reuse_rewards: bool, store_bytes: u64, checkpoint_every: usize, keep: usize, divergence_patience: usize,
    }
}

/// Where the arithmetic runs: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The first GPU when there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number, from 0.
    Cuda(usize),
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Device::Cuda);
        match text.as_str() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            other => {
                number(other).ok_or_else(|| format!("`{other}` is not a device; expected auto, cpu, cuda or cuda:0"))
            }
        }
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => "auto".to_string(),
            Device::Cpu => "cpu".to_string(),
            Device::Cuda(ordinal) => format!("cuda:{ordinal}"),
        }
    }
}
