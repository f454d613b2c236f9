//! The command-line arguments of every verb, as clap parses them.

mod tools;

pub use tools::{BenchArgs, KernelsArgs, KernelsCommand, SandboxArgs, SandboxCommand, SandboxRunArgs};

use super::numbers;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// The largest seed: the largest integer of a TOML file.
const MOST_SEED: u64 = i64::MAX as u64;
/// The largest number of positions that a model's config.json may state.
const MOST_TOKENS: u64 = 1 << 24;

/// Train a language-model agent for machine-learning engineering on one machine: supervised fine-tuning on explored
/// trajectories, then step-wise reinforcement learning on real experiments.
#[derive(Debug, Parser)]
#[command(name = "onestep", version, arg_required_else_help = true)]
pub struct Typed {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Do it all with the bundled model and tasks: evaluate, collect, SFT, step-wise RL, evaluate, report
    Quickstart(QuickstartArgs),
    /// Fine-tune on conversations or trajectories (--data)
    Sft(SftArgs),
    /// Step-wise reinforcement learning from the states of expert trajectories (--data)
    Rl(RlArgs),
    /// Play whole episodes on tasks and score them
    Eval(EvalArgs),
    /// Play the scripted expert on tasks and write its trajectories
    Collect(CollectArgs),
    /// Train the quickstart's base model from random numbers on generated exercises
    Pretrain(PretrainArgs),
    /// List the settings: defaults, ranges, and what each does
    Config(ConfigArgs),
    /// Memory by part and the times no run beats, before anything is loaded; refuses what cannot fit
    Plan(PlanArgs),
    /// Write a model for other programs (transformers, vLLM, llama.cpp), an adapter folded in with --merge
    Export(ExportArgs),
    /// Answer one prompt
    Generate(GenerateArgs),
    /// Log-probabilities and entropies of given token ids, JSONL to JSONL
    Score(ScoreArgs),
    /// List, show, run, validate or audit tasks
    #[command(subcommand)]
    Task(TaskCommand),
    /// Run a script in a sandbox, or say which protection this machine has
    #[command(subcommand)]
    Sandbox(SandboxCommand),
    /// Look at training data
    #[command(subcommand)]
    Data(DataCommand),
    /// Write the HTML report of a run's folder
    Report(ReportArgs),
    /// Say what this machine has: CPU, NVIDIA's libraries, GPUs, cache, Python; and what to install for what is missing
    Doctor,
    /// List the GPU kernels, or compile them ahead
    #[command(subcommand)]
    Kernels(KernelsCommand),
    /// Check and time every kernel, then whole steps of a model of random weights, on this machine's GPU
    Bench(BenchArgs),
}

/// `config`
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// Sections or settings; all when none is named
    #[arg(value_name = "SECTION|KEY")]
    pub names: Vec<String>,
    /// Print docs/settings.md
    #[arg(long)]
    pub markdown: bool,
}

/// What the verbs that make a run share. Each takes the options that it uses, and no other.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Settings to lay over the defaults (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder the run writes to
    #[arg(long, value_name = "DIR", default_value = "runs/latest")]
    pub out: PathBuf,
    /// Random seed (run.seed)
    #[arg(long, value_name = "N", value_parser = numbers::whole::<0, MOST_SEED>, allow_hyphen_values = true)]
    pub seed: Option<u64>,
    /// Check everything that can be checked before the work, print what would run, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Settings, section.key=value; a bare key belongs to the command's own section; `onestep config` lists them
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Where a verb computes.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda, cuda:1 (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

/// What runs the tasks' scripts.
#[derive(Debug, Clone, Args)]
pub struct PythonArgs {
    /// Python interpreter with numpy and scikit-learn, instead of the private environment
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
}

/// What is trained or played.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// Model folder in Hugging Face layout
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Adapter folder in PEFT layout
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

/// `sft`
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)] // the groups say what they are
pub struct SftArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Data: conversations or trajectories (JSON, JSONL, parquet)
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `rl`
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)] // the groups say what they are
pub struct RlArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Expert trajectories (JSONL), as collect writes them
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub python: PythonArgs,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `eval`
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)] // the groups say what they are
pub struct EvalArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub python: PythonArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `collect`
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)] // the groups say what they are
pub struct CollectArgs {
    #[command(flatten)]
    pub python: PythonArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `pretrain`
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)] // the groups say what they are
pub struct PretrainArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    pub resume: bool,
    #[command(flatten)]
    pub run: RunArgs,
}

/// `quickstart`
#[derive(Debug, Clone, Args)]
#[allow(missing_docs)] // the groups say what they are
pub struct QuickstartArgs {
    /// Folder the run writes to
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    pub out: PathBuf,
    /// Random seed (run.seed)
    #[arg(long, value_name = "N", value_parser = numbers::whole::<0, MOST_SEED>, allow_hyphen_values = true)]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub python: PythonArgs,
    /// Settings to lay over the quickstart's (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check everything that can be checked before the work, print what would run, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Settings, section.key=value; `onestep config` lists them
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `plan`
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Model folder: its config.json is read, its weights are not opened
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// The shape of a published model, for example qwen2.5-7b
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub random_weights: Option<String>,
    /// What is planned; sft and rl when not given
    #[arg(long = "for", value_name = "WORK")]
    pub work: Option<PlannedWork>,
    /// Whose peaks are taken; that of run.device when not given
    #[arg(long, value_name = "KIND")]
    pub device_kind: Option<DeviceKind>,
    /// Memory there is, for example 141GB or 80GiB; that of the device kind when not given
    #[arg(long, value_name = "BYTES", value_parser = numbers::bytes, allow_hyphen_values = true)]
    pub memory: Option<u64>,
    /// Tokens of every prompt; the most that the settings allow when not given
    #[arg(long, value_name = "N", value_parser = numbers::count::<1, MOST_TOKENS>, allow_hyphen_values = true)]
    pub prompt_tokens: Option<usize>,
    /// Tokens of every reply; the most that the settings allow when not given
    #[arg(long, value_name = "N", value_parser = numbers::count::<1, MOST_TOKENS>, allow_hyphen_values = true)]
    pub reply_tokens: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Settings to lay over the defaults (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings, section.key=value (bare keys: [sft], or the section of --for)
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// What `plan` plans.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PlannedWork {
    /// Supervised fine-tuning
    Sft,
    /// Step-wise reinforcement learning
    Rl,
    /// Sampling with one adapter
    Eval,
}

/// Devices whose peaks `plan` knows.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DeviceKind {
    /// NVIDIA H100
    H100,
    /// NVIDIA H200
    H200,
    /// Another GPU: an H100's peaks are assumed
    Gpu,
    /// The host
    Cpu,
}

/// `generate`
#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Model folder in Hugging Face layout
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter folder in PEFT layout
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// What the user says (put through the chat template)
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Take the prompt as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Where to compute: auto, cpu, cuda, cuda:1 (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Number of answers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = numbers::count::<1, 65_536>, allow_hyphen_values = true)]
    pub samples: usize,
    /// Random seed
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = numbers::whole::<0, MOST_SEED>, allow_hyphen_values = true)]
    pub seed: u64,
    /// Settings, section.key=value (bare keys: [sampling])
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `export`
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Model folder in Hugging Face layout; that of a full fine-tuning and its checkpoints too
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter folder in PEFT layout, with --merge
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Fold the adapter into the weights: W + scale B A in f32, rounded once
    #[arg(long)]
    pub merge: bool,
    /// The folder (hf) or file (gguf) to write
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// What is written
    #[arg(long, value_name = "FORMAT", default_value = "hf")]
    pub format: Format,
    /// The type of the weights
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    pub dtype: WeightType,
    /// The most bytes of a weight file, for example 2GB (hf) [default: 5GB]
    #[arg(long, value_name = "BYTES", value_parser = numbers::bytes, allow_hyphen_values = true)]
    pub shard_size: Option<u64>,
    /// Read the folder back and compare it with base and adapter (hf)
    #[arg(long)]
    pub verify: bool,
}

/// Formats of `export`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// A Hugging Face folder
    Hf,
    /// One file for llama.cpp
    Gguf,
}

/// Types of exported weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WeightType {
    /// Brain float
    Bf16,
    /// IEEE half
    F16,
    /// 32-bit float
    F32,
    /// Blocks of 8-bit integers (gguf)
    #[value(name = "q8_0")]
    Q8_0,
}

/// `score`
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    /// Model folder in Hugging Face layout (no tokenizer needed)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Adapter folder in PEFT layout
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// JSONL, a line {"ids": [...]}
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// JSONL, a line {"ids", "logprobs", "entropies"}
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Where to compute: auto, cpu, cuda, cuda:1, or oracle (the CPU naively, for checking)
    #[arg(long, alias = "backend", value_name = "DEVICE", default_value = "auto")]
    pub device: String,
}

/// Where tasks are found and run.
#[derive(Debug, Clone, Args)]
pub struct TaskArgs {
    /// Python interpreter with numpy and scikit-learn, instead of the private environment
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Settings, section.key=value (bare keys: [tasks])
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `task ...`
#[derive(Debug, Subcommand)]
pub enum TaskCommand {
    /// The tasks, one a line
    List {
        /// Where tasks are.
        #[command(flatten)]
        args: TaskArgs,
    },
    /// One task: description, figures, baseline script
    Show {
        /// The task
        name: String,
        /// Where tasks are.
        #[command(flatten)]
        args: TaskArgs,
    },
    /// Run a task's script in the sandbox and grade it
    Run {
        /// The task
        name: String,
        /// A script to run instead of the baseline
        #[arg(long, value_name = "FILE")]
        script: Option<PathBuf>,
        /// Where tasks are.
        #[command(flatten)]
        args: TaskArgs,
    },
    /// Check tasks: files, figures, and that the baseline reaches the stated metrics
    Validate {
        /// Where tasks are, and which (tasks.names).
        #[command(flatten)]
        args: TaskArgs,
    },
    /// Look for the labels in what the agent can see; exit code 1 when they are found
    Audit(TaskAuditArgs),
}

/// `task audit`
#[derive(Debug, Clone, Args)]
pub struct TaskAuditArgs {
    /// Print JSON, a line a task
    #[arg(long)]
    pub json: bool,
    /// Python interpreter with numpy and scikit-learn, instead of the private environment
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Tasks (all when none is named), and settings, section.key=value (bare keys: [tasks])
    #[arg(value_name = "TASK|KEY=VALUE")]
    pub words: Vec<String>,
}

/// `data ...`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Print tokens coloured by whether they have a loss
    Preview {
        /// Model folder (its tokenizer and chat template)
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Conversations or trajectories (JSON, JSONL, parquet)
        #[arg(long, value_name = "FILE")]
        data: PathBuf,
        /// Number of examples
        #[arg(long, short = 'n', value_name = "N", default_value_t = 3, value_parser = numbers::count::<0, 1_000_000_000>,
              allow_hyphen_values = true)]
        examples: usize,
        /// Settings, section.key=value (bare keys: [sft])
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
    /// Check a data file: formats, lengths, masks, and every problem with its place; exit code 2 when sft would refuse it
    Validate {
        /// Model folder (its tokenizer and chat template)
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Conversations or trajectories (JSON, JSONL, parquet)
        #[arg(long, value_name = "FILE")]
        data: PathBuf,
        /// Settings, section.key=value (bare keys: [sft])
        #[arg(value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
}

/// `report`
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// A run's folder
    #[arg(value_name = "DIR")]
    pub run: PathBuf,
    /// The page to write; report.html in the run's folder when not given
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
