//! The embedded CUDA sources: one file per op, named after it, which includes no header but device.cuh.

/// The header of every source: types, and wrappers around PTX that have a second body for the emulation.
pub const HEADER: &str = include_str!("../../../kernels/device.cuh");

/// A kernel, named by the stem of its source file and its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// Stem of the source file: `add_rmsnorm` for kernels/add_rmsnorm.cu.
    pub file: &'static str,
    /// The `extern "C"` name.
    pub name: &'static str,
}

macro_rules! sources {
    ($($stem:literal),* $(,)?) => {
        /// (stem, source) of every file, in alphabetical order.
        pub const SOURCES: &[(&str, &str)] =
            &[$(($stem, include_str!(concat!("../../../kernels/", $stem, ".cu")))),*];
    };
}

sources!(
    "adamw",
    "add_rmsnorm",
    "advance",
    "attention",
    "attention_backward",
    "attention_paged",
    "attention_tiles",
    "gemm",
    "linear",
    "linear_logprob",
    "ppo_loss",
    "qk_norm_rope",
    "rows",
    "sample",
    "swiglu",
    "tensor",
    "value_head",
    "value_loss"
);

/// Returns the source of `stem`.
pub fn source(stem: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(name, _)| *name == stem).map(|(_, source)| *source)
}

/// Returns the names of all kernels of a source: the arguments of its EXPORT(...) lines.
pub fn names(source: &str) -> impl Iterator<Item = &str> {
    source.lines().filter_map(|line| line.strip_prefix("EXPORT(")?.strip_suffix(')'))
}
