//! What can be typed.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

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
    Sft(RunArgs),
    /// Step-wise reinforcement learning from the states of expert trajectories (--data)
    Rl(RunArgs),
    /// Play whole episodes on tasks and score them
    Eval(RunArgs),
    /// Play the scripted expert on tasks and write its trajectories
    Collect(RunArgs),
    /// Train the quickstart's base model from random numbers on generated exercises
    Pretrain(RunArgs),
    /// Answer one prompt
    Generate(GenerateArgs),
    /// Log-probabilities and entropies of given token ids, JSONL to JSONL
    Score(ScoreArgs),
    /// List, show, run or validate tasks
    #[command(subcommand)]
    Task(TaskCommand),
    /// Look at training data
    #[command(subcommand)]
    Data(DataCommand),
    /// Write the HTML report of a run's folder
    Report(ReportArgs),
    /// Check and time every kernel, then whole steps of a model of random weights, on this machine's GPU
    Bench(BenchArgs),
}

/// What the training verbs share.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Settings to lay over the defaults (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Model folder in Hugging Face layout
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Adapter folder in PEFT layout
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Data: conversations or trajectories (JSON, JSONL)
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Folder the run writes to
    #[arg(long, value_name = "DIR", default_value = "runs/latest")]
    pub out: PathBuf,
    /// Random seed (run.seed)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Where to compute: cpu (run.device)
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Python interpreter with numpy and scikit-learn, instead of the private environment
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Go on from the newest checkpoint in --out
    #[arg(long)]
    pub resume: bool,
    /// Print what would run, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Settings, section.key=value; a bare key belongs to the command's own section
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// `quickstart`
#[derive(Debug, Clone, Args)]
pub struct QuickstartArgs {
    /// Folder the run writes to
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    pub out: PathBuf,
    /// Random seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Python interpreter with numpy and scikit-learn, instead of the private environment
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Settings to lay over the quickstart's (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Settings, section.key=value
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
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
    /// Number of answers
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub samples: usize,
    /// Random seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Settings, section.key=value (bare keys: [sampling])
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
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
    /// Which backend computes: cpu or oracle (naive, for checking)
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub backend: String,
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
    /// Check tasks: files, figures, and that the baseline reaches the stated metric
    Validate {
        /// Where tasks are, and which (tasks.names).
        #[command(flatten)]
        args: TaskArgs,
    },
}

/// `data ...`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Print tokens coloured by whether they have a loss
    Preview {
        /// Model folder (its tokenizer and chat template)
        #[arg(long, value_name = "DIR")]
        model: PathBuf,
        /// Conversations or trajectories (JSON, JSONL)
        #[arg(long, value_name = "FILE")]
        data: PathBuf,
        /// Number of examples
        #[arg(long, short = 'n', value_name = "N", default_value_t = 3)]
        examples: usize,
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
    #[arg(long, value_name = "N", default_value_t = 480.0)]
    pub seconds: f64,
    /// Tiny shapes and few repeats: shows that everything runs
    #[arg(long)]
    pub quick: bool,
    /// Where to compute: cuda, cuda:N, or cpu (with --quick)
    #[arg(long, value_name = "DEVICE", default_value = "cuda")]
    pub device: String,
    /// Folder for bench.jsonl, bench.csv and machine.json
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print the Markdown table of a results folder, and do nothing else
    #[arg(long, value_name = "DIR", conflicts_with_all = ["all", "only", "out"])]
    pub table: Option<PathBuf>,
}
