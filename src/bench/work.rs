//! Lists what is timed: kernels and whole steps at one model's shapes, with their least cost and their targets. Runs
//! nothing.

use super::measure::shape;
use super::record::{Bar, Cost};
use crate::backend::ops::Heads;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::lora::Module;

/// Tokens per cache block.
pub const BLOCK_SIZE: usize = 16;

/// Tokens decoded between two exchanges with the host, as in the engine.
pub const BURST: usize = 8;

/// Number of packs in a ragged training step; even, so that lengths can be drawn in pairs about their mean.
const RAGGED_PACKS: usize = 4;

/// Work to be timed. The fields are the glossary's letters in lower case.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Linear layers with adapters over one x (T, K), their outputs side by side in one tensor.
    Linear { t: usize, k: usize, parts: Vec<usize>, rank: usize },
    /// Attention over one causal sequence of T tokens.
    Attention { t: usize, heads: Heads },
    /// Log-probabilities of M rows over the vocabulary.
    LogProb { m: usize, c: usize, v: usize },
    /// Logits of B rows over the vocabulary, kept.
    Logits { b: usize, c: usize, v: usize },
    /// RMSNorm with the residual added.
    RmsNorm { t: usize, c: usize },
    /// Rotary embedding without a norm.
    Rope { t: usize, heads: Heads },
    /// SwiGLU with F columns.
    SwiGlu { t: usize, f: usize },
    /// AdamW over all tensors of an adapter.
    AdamW { shapes: Vec<[usize; 2]> },
    /// Squared norm of the same tensors.
    SquaredNorm { shapes: Vec<[usize; 2]> },
    /// Sampling of B rows; `filtered`: with top-k 50 and top-p 0.9.
    Sample { b: usize, v: usize, filtered: bool },
    /// Paged attention: one query for each of B sequences of `context` tokens.
    Paged { b: usize, context: usize, heads: Heads },
    /// A LoRA training step over one packed sequence.
    Sft { t: usize },
    /// A LoRA training step over `packs` packs of two sequences each, with other lengths in every step: `t` tokens per
    /// pack on average, up to `spread` more or fewer.
    RaggedSft { t: usize, packs: usize, spread: usize },
    /// Decoding of one token for each of B sequences of `context` tokens.
    Decode { b: usize, context: usize },
    /// Sampling by the engine: prompts, replies per prompt, tokens of a prompt and of a reply.
    Rollout { prompts: usize, samples: usize, prompt: usize, reply: usize },
    /// The update after such a rollout.
    Update { prompts: usize, samples: usize, prompt: usize, reply: usize, critic: bool },
}

/// A task with its name and cost.
#[derive(Debug, Clone)]
pub struct Work {
    /// `kernel` or `model`.
    pub suite: &'static str,
    /// Name of the op or step.
    pub kernel: &'static str,
    /// `forward`, `backward` or `full`.
    pub mode: &'static str,
    /// Shape in words.
    pub shape: String,
    /// Least cost.
    pub cost: Cost,
    /// Task to run.
    pub task: Task,
    /// Number of equal runs that are timed together; times and costs are of one.
    pub runs: usize,
}

/// Sizes of the work.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// The model's name and shape.
    pub model: (&'static str, ModelConfig),
    /// Packed tokens of a step; tokens of a longer sequence for attention.
    pub tokens: [usize; 2],
    /// Adapter rank.
    pub rank: usize,
    /// Numbers of sequences decoded together.
    pub batches: [usize; 3],
    /// Tokens of those sequences.
    pub contexts: [usize; 2],
    /// Rollout: prompts, samples, tokens of a prompt and of a reply.
    pub rollout: [usize; 4],
    /// Bytes written to flush the cache.
    pub flush: usize,
    /// M = N = K of the product that gives the ceiling; bytes of the copy.
    pub ceiling: (usize, usize),
}

impl Sizes {
    /// Sizes for a published model, from which the floors and bars were derived.
    pub fn of(name: &'static str) -> Result<Self> {
        Ok(Self {
            model: (name, shape(name)?),
            tokens: [4096, 16384],
            rank: 16,
            batches: [1, 64, 256],
            contexts: [1024, 4096],
            rollout: [8, 8, 256, 128],
            flush: 256 << 20,
            ceiling: (8192, 1 << 30),
        })
    }

    /// Sizes so small that every backend is done at once: they show that everything runs.
    pub fn tiny() -> Result<Self> {
        Ok(Self {
            model: ("tiny", shape("tiny")?),
            tokens: [24, 40],
            rank: 4,
            batches: [1, 2, 3],
            contexts: [20, 40],
            rollout: [2, 2, 12, 6],
            flush: 1 << 16,
            ceiling: (48, 1 << 16),
        })
    }
}

/// Parameters that every token is multiplied with: the linear layers and the lm-head.
pub fn gemm_parameters(config: &ModelConfig) -> f64 {
    let block: usize = Module::ALL.iter().map(|m| m.shape(config)).map(|(n, k)| n * k).sum();
    (config.layers * block + config.vocab * config.hidden) as f64
}

/// Shapes of the tensors of an adapter over all linear layers.
pub fn adapter_shapes(config: &ModelConfig, rank: usize) -> Vec<[usize; 2]> {
    let block = || Module::ALL.iter().map(|m| m.shape(config)).flat_map(|(n, k)| [[rank, k], [n, rank]]);
    (0..config.layers).flat_map(|_| block()).collect()
}

/// Bytes of the keys and values that one token keeps in one layer, in bf16.
fn kv_bytes(heads: Heads) -> f64 {
    (2 * heads.nkv * heads.hs * 2) as f64
}

fn heads_text(heads: Heads) -> String {
    format!("NH {}, NKV {}, HS {}", heads.nh, heads.nkv, heads.hs)
}

const OF_FLOOR: Option<Bar> = Some(Bar::OfFloor(0.9));

/// Rows of the kernels, most valuable first.
pub fn kernels(sizes: &Sizes) -> Vec<Work> {
    let mut list = vec![];
    let mut add = |kernel, mode, shape: String, flops: f64, bytes: f64, bar, task: &Task| {
        let cost = Cost { flops, bytes, bar, ..Cost::default() };
        list.push(Work { suite: "kernel", kernel, mode, shape, cost, task: task.clone(), runs: 1 });
    };
    let config = &sizes.model.1;
    let ([t, long], heads, rank) = (sizes.tokens, config.heads, sizes.rank);
    let (c, f, v) = (config.hidden, config.mlp, config.vocab);

    let attention = |t: usize| {
        // Causal, so half of T x T: scores and values take 4 HS operations per entry and query head. The backward has
        // five products instead of two.
        let (forward, rows) = ((2 * t * t * heads.hs * heads.nh) as f64, (t * heads.qkv_width()) as f64);
        let o = (t * heads.nh * heads.hs) as f64;
        (format!("T {t}, {}", heads_text(heads)), forward, 2.0 * (rows + o), 2.0 * (2.0 * rows + 2.0 * o))
    };
    for t in [t, long] {
        let (shape, flops, forward, backward) = attention(t);
        let task = Task::Attention { t, heads };
        add("attention", "forward", shape.clone(), flops, forward, Some(Bar::Tflops(300.0)), &task);
        add("attention", "backward", shape, 2.5 * flops, backward, Some(Bar::Tflops(280.0)), &task);
    }
    let head = (2 * t * c * v) as f64;
    let (shape, task) = (format!("M {t}, C {c}, V {v}"), Task::LogProb { m: t, c, v });
    let bytes = (2 * (v * c + t * c)) as f64;
    add("linear_logprob", "forward", shape.clone(), head, bytes, Some(Bar::Tflops(500.0)), &task);
    // The backward computes the logits again, then their gradient times the weight.
    add("linear_logprob", "backward", shape, 2.0 * head, bytes + (2 * t * c) as f64, Some(Bar::Tflops(500.0)), &task);

    let width = |module: Module| module.shape(config).0;
    let layers = [
        ("qkv", c, vec![width(Module::Q), width(Module::K), width(Module::V)]),
        ("o", heads.nh * heads.hs, vec![c]),
        ("gate/up", c, vec![f, f]),
        ("down", f, vec![c]),
    ];
    for (name, k, parts) in layers {
        let n: usize = parts.iter().sum();
        let dense = (2 * t * k * n) as f64;
        let low = (2 * t * rank * (k * parts.len() + n)) as f64;
        let weights = (2 * n * k + 4 * rank * (k * parts.len() + n)) as f64;
        let shape = format!("{name}: T {t}, K {k}, N {n}, R {rank}");
        let task = Task::Linear { t, k, parts, rank };
        add("linear", "forward", shape.clone(), dense + low, weights + (2 * t * (k + n)) as f64, None, &task);
        let bytes = weights + (2 * t * (3 * k + n)) as f64;
        add("linear", "backward", shape, dense + 2.0 * low, bytes, None, &task);
    }

    let (shape, task) = (format!("T {t}, C {c}"), Task::RmsNorm { t, c });
    add("add_rmsnorm", "forward", shape.clone(), 0.0, (8 * t * c) as f64, OF_FLOOR, &task);
    add("add_rmsnorm", "backward", shape, 0.0, (8 * t * c) as f64, OF_FLOOR, &task);
    let (shape, task) = (format!("T {t}, F {f}"), Task::SwiGlu { t, f });
    add("swiglu", "forward", shape.clone(), 0.0, (6 * t * f) as f64, OF_FLOOR, &task);
    add("swiglu", "backward", shape, 0.0, (10 * t * f) as f64, OF_FLOOR, &task);
    let (shape, task) = (format!("T {t}, {}", heads_text(heads)), Task::Rope { t, heads });
    let bytes = (4 * t * (heads.nh + heads.nkv) * heads.hs) as f64;
    add("qk_norm_rope", "forward", shape.clone(), 0.0, bytes, OF_FLOOR, &task);
    add("qk_norm_rope", "backward", shape, 0.0, bytes, OF_FLOOR, &task);

    let shapes = adapter_shapes(config, rank);
    let n: usize = shapes.iter().map(|s| s[0] * s[1]).sum();
    let shape = format!("{} tensors, {:.1} MB of parameters", shapes.len(), 4e-6 * n as f64);
    add("adamw", "full", shape.clone(), 0.0, (28 * n) as f64, OF_FLOOR, &Task::AdamW { shapes: shapes.clone() });
    add("squared_norm", "full", shape, 0.0, (4 * n) as f64, OF_FLOOR, &Task::SquaredNorm { shapes });

    for context in sizes.contexts {
        for b in sizes.batches {
            let shape = format!("B {b}, context {context}, {}", heads_text(heads));
            let bytes =
                (b * context) as f64 * kv_bytes(heads) + (2 * b * (heads.qkv_width() + heads.nh * heads.hs)) as f64;
            let flops = (4 * b * context * heads.nh * heads.hs) as f64;
            add("attention_paged", "forward", shape, flops, bytes, OF_FLOOR, &Task::Paged { b, context, heads });
        }
    }
    let b = sizes.batches[2];
    for filtered in [false, true] {
        let shape = format!("B {b}, V {v}{}", if filtered { ", top-k 50, top-p 0.9" } else { "" });
        let bar = if filtered { None } else { OF_FLOOR };
        add("sample", "forward", shape, 0.0, (4 * b * v) as f64, bar, &Task::Sample { b, v, filtered });
    }
    let bytes = (2 * v * c + 2 * b * c + 4 * b * v) as f64;
    let task = Task::Logits { b, c, v };
    add("logits", "forward", format!("B {b}, C {c}, V {v}"), (2 * b * c * v) as f64, bytes, None, &task);
    list
}

/// Rows of whole steps, most valuable first.
pub fn models(sizes: &Sizes) -> Vec<Work> {
    let (name, config) = (sizes.model.0, &sizes.model.1);
    let (parameters, heads, layers) = (gemm_parameters(config), config.heads, config.layers as f64);
    let is_7b = name == "qwen2.5-7b";
    let mut list = vec![];
    let mut add = |kernel, mode, shape: String, cost: Cost, task| {
        let shape = format!("{name}, {shape}");
        let runs = if matches!(task, Task::Decode { .. }) { BURST } else { 1 };
        list.push(Work { suite: "model", kernel, mode, shape, cost, task, runs });
    };
    let t = sizes.tokens[0];
    let adapter: usize = adapter_shapes(config, sizes.rank).iter().map(|s| s[0] * s[1]).sum();
    // Frozen weights have no gradient: 4 operations per parameter and token, 6 for the adapter; attention takes 3.5
    // times its forward.
    let attention = 3.5 * 2.0 * (t * heads.hs * heads.nh) as f64 * layers;
    let flops = t as f64 * (4.0 * parameters + attention + 6.0 * adapter as f64);
    let bar = is_7b.then_some(Bar::Tokens(17e3));
    let cost = Cost { flops, tokens: t as f64, bar, ..Cost::default() };
    add("lora sft", "full", format!("packed {t}, R {}", sizes.rank), cost, Task::Sft { t });
    // Two sequences of half the length each take half the attention of one.
    let (packs, spread) = (RAGGED_PACKS, t / 8);
    let flops = (packs * t) as f64 * (4.0 * parameters + attention / 2.0 + 6.0 * adapter as f64);
    let cost = Cost { flops, tokens: (packs * t) as f64, bar, ..Cost::default() };
    let shape = format!("{packs} ragged packs of {t} +- {spread}, R {}", sizes.rank);
    add("lora sft", "full", shape, cost, Task::RaggedSft { t, packs, spread });
    for context in sizes.contexts.into_iter().rev() {
        for b in sizes.batches {
            let bar = match (is_7b, context, b) {
                (true, 4096, 1) => Some(Bar::Tokens(240.0)),
                (true, 4096, 64) => Some(Bar::Tokens(7.5e3)),
                (true, 4096, 256) => Some(Bar::Tokens(12.4e3)),
                _ => None,
            };
            let cost = Cost {
                flops: 2.0 * b as f64 * parameters,
                bytes: 2.0 * parameters,
                further_bytes: (b * context) as f64 * kv_bytes(heads) * layers,
                tokens: b as f64,
                bar,
            };
            add("decode", "full", format!("batch {b}, context {context}"), cost, Task::Decode { b, context });
        }
    }
    let [prompts, samples, prompt, reply] = sizes.rollout;
    let shape = format!("{prompts} prompts of {prompt} x {samples} replies of {reply}");
    let drawn = (prompts * samples * reply) as f64;
    let cost = Cost { tokens: drawn, ..Cost::default() };
    add("rollout", "full", shape.clone(), cost, Task::Rollout { prompts, samples, prompt, reply });
    // Operations per parameter and row: 2 for the reference's forward, 4 for the actor's forward and backward. A critic
    // scores and trains too: 6 more.
    let rows = (prompts * (prompt + samples * (reply - 1))) as f64;
    for critic in [false, true] {
        let flops = rows * parameters * if critic { 12.0 } else { 6.0 };
        let cost = Cost { flops, tokens: rows, ..Cost::default() };
        let kernel = if critic { "ppo update" } else { "grpo update" };
        add(kernel, "full", shape.clone(), cost, Task::Update { prompts, samples, prompt, reply, critic });
    }
    list
}
