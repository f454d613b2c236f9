//! What is timed: kernels and whole steps at one model's shapes, with what they cost at least and what is aimed at. Runs nothing.

use super::measure::shape;
use super::record::{Bar, Cost};
use crate::backend::ops::Heads;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::lora::Module;

/// Tokens of a cache block.
pub const BLOCK_SIZE: usize = 16;

/// Tokens that are decoded between two words with the host, as the engine does.
pub const BURST: usize = 8;

/// Packs of a ragged training step; even, so that lengths can be drawn in pairs about their mean.
const RAGGED_PACKS: usize = 4;

/// What is done. Extents by the glossary's letters in lower case.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Linear layers with adapters side by side over one x (T, K), their outputs in one tensor.
    Linear { t: usize, k: usize, parts: Vec<usize>, rank: usize },
    /// One causal sequence of T tokens.
    Attention { t: usize, heads: Heads },
    /// M rows over the vocabulary.
    LogProb { m: usize, c: usize, v: usize },
    /// B rows over the vocabulary, logits kept.
    Logits { b: usize, c: usize, v: usize },
    /// With the residual added.
    RmsNorm { t: usize, c: usize },
    /// Without a norm.
    Rope { t: usize, heads: Heads },
    /// F columns.
    SwiGlu { t: usize, f: usize },
    /// All tensors of an adapter.
    AdamW { shapes: Vec<[usize; 2]> },
    /// Of the same tensors.
    SquaredNorm { shapes: Vec<[usize; 2]> },
    /// B rows; `filtered`: with top-k 50 and top-p 0.9.
    Sample { b: usize, v: usize, filtered: bool },
    /// One query for each of B sequences of `context` tokens.
    Paged { b: usize, context: usize, heads: Heads },
    /// A LoRA training step over one packed sequence.
    Sft { t: usize },
    /// A LoRA training step over `packs` packs of two sequences each, of other lengths in every step: `t` tokens a pack on the mean, up to
    /// `spread` more or fewer.
    RaggedSft { t: usize, packs: usize, spread: usize },
    /// One token of each of B sequences of `context` tokens.
    Decode { b: usize, context: usize },
    /// Sampling by the engine: prompts, replies of each, tokens of both.
    Rollout { prompts: usize, samples: usize, prompt: usize, reply: usize },
    /// The update after such a rollout.
    Update { prompts: usize, samples: usize, prompt: usize, reply: usize, critic: bool },
}

/// A task with its name and cost.
#[derive(Debug, Clone)]
pub struct Work {
    /// `kernel` or `model`.
    pub suite: &'static str,
    /// The stem of the op, or what is done.
    pub kernel: &'static str,
    /// `forward`, `backward` or `full`.
    pub mode: &'static str,
    /// In words.
    pub shape: String,
    /// At least.
    pub cost: Cost,
    /// To be done.
    pub task: Task,
    /// Equal runs in what is timed at once: times and costs are of one.
    pub runs: usize,
}

/// At which sizes.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// The model's name and shape.
    pub model: (&'static str, ModelConfig),
    /// Packed tokens of a step; a longer sequence for attention.
    pub tokens: [usize; 2],
    /// Adapter rank.
    pub rank: usize,
    /// Sequences decoded together.
    pub batches: [usize; 3],
    /// Their lengths.
    pub contexts: [usize; 2],
    /// Of a rollout: prompts, samples, tokens of both.
    pub rollout: [usize; 4],
    /// Bytes written to flush the cache.
    pub flush: usize,
    /// M, N and K of the product that gives the ceiling; bytes of the copy.
    pub ceiling: (usize, usize),
}

impl Sizes {
    /// A published model's, as the floors and bars were derived for.
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

    /// Shapes that any backend does in no time: they show that everything runs.
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

/// Parameters that every token is multiplied with: all but the embedding and the norms.
pub fn gemm_parameters(config: &ModelConfig) -> f64 {
    let block: usize = Module::ALL.iter().map(|m| m.shape(config)).map(|(n, k)| n * k).sum();
    (config.layers * block + config.vocab * config.hidden) as f64
}

/// Of an adapter over all linear layers.
pub fn adapter_shapes(config: &ModelConfig, rank: usize) -> Vec<[usize; 2]> {
    let block = || Module::ALL.iter().map(|m| m.shape(config)).flat_map(|(n, k)| [[rank, k], [n, rank]]);
    (0..config.layers).flat_map(|_| block()).collect()
}

/// Bytes of keys and values that one token of one layer keeps in bf16.
fn kv_bytes(heads: Heads) -> f64 {
    (2 * heads.nkv * heads.hs * 2) as f64
}

fn heads_text(heads: Heads) -> String {
    format!("NH {}, NKV {}, HS {}", heads.nh, heads.nkv, heads.hs)
}

const OF_FLOOR: Option<Bar> = Some(Bar::OfFloor(0.9));

/// The kernels' rows, most valuable first.
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
        // Half of T x T, scores and values: 4 HS operations an entry and query head; five products in place of two backward.
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
    // The logits once more, then their gradient times the weight.
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

/// The rows end to end, most valuable first.
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
    // Frozen weights have no gradient: 4 operations a parameter and token, 6 for the adapter's; attention 3.5 times its forward.
    let attention = 3.5 * 2.0 * (t * heads.hs * heads.nh) as f64 * layers;
    let flops = t as f64 * (4.0 * parameters + attention + 6.0 * adapter as f64);
    let bar = is_7b.then_some(Bar::Tokens(17e3));
    let cost = Cost { flops, tokens: t as f64, bar, ..Cost::default() };
    add("lora sft", "full", format!("packed {t}, R {}", sizes.rank), cost, Task::Sft { t });
    // Attention of two sequences of half the length each: half of one's.
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
    // The reference forward, then the actor forward and backward; the critic the same without a reference.
    let rows = (prompts * (prompt + samples * (reply - 1))) as f64;
    for critic in [false, true] {
        let flops = rows * parameters * if critic { 12.0 } else { 6.0 };
        let cost = Cost { flops, tokens: rows, ..Cost::default() };
        let kernel = if critic { "ppo update" } else { "grpo update" };
        add(kernel, "full", shape.clone(), cost, Task::Update { prompts, samples, prompt, reply, critic });
    }
    list
}
