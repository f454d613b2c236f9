//! The command-line arguments of the verbs about sandboxes, kernels and benchmarks.

use crate::cli::numbers;
use crate::sandbox::{MOST_PROCESSES, MOST_SECONDS};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `sandbox ...`
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Run one Python script in a sandbox and print its verdict
    Run(SandboxRunArgs),
    /// Say which protection is in force here, and what would raise it
    Probe(SandboxArgs),
}

/// How scripts are shut in.
#[derive(Debug, Clone, Args)]
pub struct SandboxArgs {
    /// The best protection that is tried: 3 namespaces and cgroups, 2 namespaces, 1 Landlock and seccomp
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = numbers::whole::<0, 3>, allow_hyphen_values = true)]
    pub tier: u64,
    /// Run scripts without protection where none is possible
    #[arg(long)]
    pub unsafe_no_sandbox: bool,
    /// Python interpreter with numpy and scikit-learn, instead of the private environment
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
}

/// `sandbox run`
#[derive(Debug, Clone, Args)]
pub struct SandboxRunArgs {
    /// The script
    #[arg(value_name = "SCRIPT")]
    pub script: PathBuf,
    /// Folder whose files the script sees beside it; regular files that it makes or changes are written back there
    #[arg(long, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// Seconds of wall and of CPU time
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = numbers::seconds::<MOST_SECONDS>, allow_hyphen_values = true)]
    pub time: f64,
    /// Memory of all its processes, at least 8MiB
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = numbers::script_memory, allow_hyphen_values = true)]
    pub memory: u64,
    /// Bytes of stdout and stderr together
    #[arg(long, value_name = "BYTES", default_value = "1MiB", value_parser = numbers::bytes, allow_hyphen_values = true)]
    pub output: u64,
    /// Bytes of all files it writes
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = numbers::bytes, allow_hyphen_values = true)]
    pub disk: u64,
    /// Processes and threads at one time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = numbers::whole::<1, MOST_PROCESSES>, allow_hyphen_values = true)]
    pub processes: u64,
    /// Print one line of JSON
    #[arg(long)]
    pub json: bool,
    /// How it is shut in.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// `kernels ...`
#[derive(Debug, Subcommand)]
pub enum KernelsCommand {
    /// The kernels, one a line, with their source
    List,
    /// Compile every kernel into the cache, for machines without NVRTC, and print what they take
    Compile {
        /// For which GPUs, and where to.
        #[command(flatten)]
        args: KernelsArgs,
    },
    /// Write what every kernel takes (registers, shared memory, stack, spills) as CSV
    Table {
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// For which GPUs, and where to.
        #[command(flatten)]
        args: KernelsArgs,
    },
}

/// What is compiled for.
#[derive(Debug, Clone, Args)]
pub struct KernelsArgs {
    /// Architectures, for example sm_90a [default: sm_80 sm_86 sm_89 sm_90a sm_100a sm_120a]
    #[arg(long, value_name = "ARCH", num_args = 1..)]
    pub arch: Vec<String>,
    /// Folder of the compiled kernels [default: kernels/ in the cache folder]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// `bench`
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Everything, most valuable first
    #[arg(long)]
    pub all: bool,
    /// Only rows whose suite/kernel/mode/shape contains PATTERN
    #[arg(long, value_name = "PATTERN")]
    pub only: Option<String>,
    /// Rows that would begin later are not run
    #[arg(long, value_name = "S", default_value_t = 480.0, value_parser = numbers::seconds::<MOST_SECONDS>, allow_hyphen_values = true)]
    pub seconds: f64,
    /// Tiny shapes and few repeats: shows that everything runs
    #[arg(long)]
    pub quick: bool,
    /// Where to compute: cuda, cuda:1, or cpu (with --quick)
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    pub device: String,
    /// A device allocation for each tensor, for compute-sanitizer; times mean nothing
    #[arg(long, conflicts_with = "table")]
    pub separate_allocations: bool,
    /// Folder for bench.jsonl, bench.csv and machine.json
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the Markdown table of a results folder, and do nothing else
    #[arg(long, value_name = "DIR", conflicts_with_all = ["all", "only", "out"])]
    pub table: Option<PathBuf>,
}
