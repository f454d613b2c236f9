//! Computes bytes by part: what the code allocates for a model's shape under the settings, formula by formula.
//! tests/plan.rs checks them against the allocations.

use super::asked::{Asked, Part, Work, count, size};
use crate::backend::ops::Heads;
use crate::model::config::ModelConfig;
use crate::model::lora::Module;
use crate::model::{Recompute, parameter_shapes};
use crate::ppo::Algorithm;
use crate::rollout::recording_bytes;

/// Rows of the passes that buffers are fitted to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    pub train: usize,
    pub sample: usize,
}

/// Bytes of activations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    pub kept: usize,
    pub backward: usize,
    pub shared: usize,
}

/// Most logits in memory at once: rows and columns on the CPU, bytes in f32 on the GPU (linear_logprob.rs).
const CPU_LOGITS: (usize, usize) = (2048, 1024);
const GPU_LOGITS: usize = 256 << 20;
/// Room for the temporaries of ops on the GPU (split sums, cuBLASLt, copies of adapters).
const GPU_WORKSPACE: usize = 256 << 20;

impl Asked {
    pub(super) fn trains(&self) -> bool {
        self.target.work != Work::Eval
    }

    pub(super) fn samples(&self) -> bool {
        self.target.work != Work::Sft
    }

    pub(super) fn full(&self) -> bool {
        self.target.work == Work::Sft && self.config.sft.full
    }

    pub(super) fn recomputes_blocks(&self) -> bool {
        let recompute = match self.target.work {
            Work::Rl => self.config.rl.recompute,
            Work::Sft | Work::Eval => self.config.sft.recompute,
        };
        recompute == Recompute::Blocks
    }

    pub(super) fn has_critic(&self) -> bool {
        self.target.work == Work::Rl && self.config.rl.algorithm == Algorithm::Ppo
    }

    /// R of the adapter that passes use; 0 when all weights are trained.
    pub(super) fn rank(&self) -> usize {
        if self.full() { 0 } else { self.config.lora.rank }
    }

    /// The adapted linear layers of a block, each once. Unknown names are left out; making the adapter refuses them.
    pub(super) fn modules(&self) -> Vec<Module> {
        let names = &self.config.lora.modules;
        Module::ALL.into_iter().filter(|m| names.iter().any(|name| Module::named(name) == Some(*m))).collect()
    }

    /// Elements of all parameters; a tied head counts once.
    pub(super) fn parameters(&self) -> usize {
        parameter_shapes(&self.model).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Elements of the linear layers: L times the sum of N K over those of a block.
    pub(super) fn body(&self) -> usize {
        let one = |module: Module| module.shape(&self.model).0 * module.shape(&self.model).1;
        self.model.layers * Module::ALL.into_iter().map(one).sum::<usize>()
    }

    /// Elements of the head: V C, tied or not.
    pub(super) fn head(&self) -> usize {
        self.model.vocab * self.model.hidden
    }

    /// Elements of one adapter: L R sum of (N + K) over the adapted layers.
    pub(super) fn adapter(&self) -> usize {
        let one = |module: Module| module.shape(&self.model).0 + module.shape(&self.model).1;
        self.model.layers * self.config.lora.rank * self.modules().into_iter().map(one).sum::<usize>()
    }

    /// Bytes of the keys and values of one token: 2 L NKV HS in the activation type.
    pub(super) fn kv_token(&self) -> usize {
        2 * self.model.layers * self.model.heads.nkv * self.model.heads.hs * self.target.kind.sizes().0
    }

    /// Most tokens that a prompt and a reply may have. A prompt leaves room for its reply within
    /// environment.context_limit and the model's positions.
    pub(super) fn lengths(&self) -> (usize, usize) {
        let limit = self.config.environment.context_limit.min(self.model.max_positions);
        let reply = self.target.reply.unwrap_or(self.config.sampling.max_tokens).clamp(1, limit.max(2) - 1);
        (self.target.prompt.unwrap_or(limit.saturating_sub(reply)).max(1), reply)
    }

    /// Tokens of a prompt with its replies in one pass: prompt + samples (reply - 1), as in `Group::tokens`.
    pub(super) fn group(&self) -> usize {
        let (prompt, reply) = self.lengths();
        prompt + self.config.rl.samples * (reply - 1)
    }

    /// Most tokens that may need a pass of their own.
    pub(super) fn longest(&self) -> usize {
        match self.target.work {
            Work::Sft => self.config.sft.max_tokens.min(self.model.max_positions),
            Work::Rl => self.group(),
            Work::Eval => self.lengths().0,
        }
    }

    pub(super) fn micro_tokens(&self) -> (&'static str, usize) {
        match self.target.work {
            Work::Sft => ("sft.micro_tokens", self.config.sft.micro_tokens),
            Work::Rl => ("rl.micro_tokens", self.config.rl.micro_tokens),
            Work::Eval => ("engine.prefill_tokens", self.config.engine.prefill_tokens),
        }
    }

    /// Rows of a training pass, and of a sampling pass: the largest of a prefill, a long prompt alone and a decode
    /// step.
    pub(super) fn rows(&self) -> Rows {
        let engine = &self.config.engine;
        Rows {
            train: self.micro_tokens().1,
            sample: engine.prefill_tokens.max(self.lengths().0).max(engine.max_running),
        }
    }

    /// Bytes of the buffers of a pass of `rows` tokens. Per token, with e and a the bytes of the activation and
    /// accumulator types:
    ///
    /// - a norm (sum, rstd): C e + a
    /// - a block: (D + NH HS + 2 F + R for each adapted layer) e + NH a (lse) + a norm; with q and k norms, (NH + NKV)
    ///   HS e more
    /// - passing, once: outputs of norms and SwiGLU and one more, (3 C + F) e; the backward computes them again
    /// - kept for the backward: L blocks (one when whole blocks are recomputed), L + 1 norms, and what is passing
    /// - buffers of the backward itself: (2 C + 3 F + NH HS + D) e + a, once
    /// - shared by all layers when nothing is kept: one block, two norms, and what is passing
    ///
    /// Qwen2.5-7B in bf16 at R = 16 keeps 3.06 MB per token: 2.98 MB of bf16 in the layers (sums, qkv, o, gate and up),
    /// 10 kB of their statistics and low-rank products, 67 kB of the final norm and what is passing.
    pub(super) fn activations(&self, rows: usize) -> Buffers {
        let (e, a) = self.target.kind.sizes();
        let ModelConfig { hidden: c, mlp: f, layers, heads, .. } = self.model;
        let Heads { nh, nkv, hs } = heads;
        let d = heads.qkv_width();
        let norm = c * e + a;
        let raw = if self.model.qk_norm { (nh + nkv) * hs } else { 0 };
        let low_rank = self.rank() * self.modules().len();
        let block = (d + raw + nh * hs + 2 * f + low_rank) * e + nh * a + norm;
        let passing = (3 * c + f) * e;
        Buffers {
            kept: rows * (if self.recomputes_blocks() { 1 } else { layers } * block + (layers + 1) * norm + passing),
            backward: rows * ((2 * c + 3 * f + nh * hs + d) * e + a),
            shared: rows * (block + 2 * norm + passing),
        }
    }

    /// Most bytes that the recording of a burst of all running samples holds: attention's results in f32 for each tile
    /// of keys of the longest samples, once for all layers and steps, and a little for other ops. A block
    /// table's number of columns is a power of two.
    pub(super) fn recording(&self) -> usize {
        let (engine, Heads { nh, hs, .. }) = (&self.config.engine, self.model.heads);
        let (prompt, reply) = self.lengths();
        let longest = (prompt + reply).min(engine.cache_tokens);
        let tiles = (longest.div_ceil(engine.block_size).next_power_of_two() * engine.block_size).div_ceil(128);
        engine.max_running.next_multiple_of(32) * nh * tiles * (hs + 2) * size_of::<f32>() + (32 << 20)
    }

    /// Memory by part. Formulas are beside the lines; e and a are the bytes of the activation and accumulator types.
    pub(super) fn parts(&self, rows: Rows) -> Vec<Part> {
        let (e, a) = self.target.kind.sizes();
        let (model, engine, is_gpu) = (&self.model, &self.config.engine, self.target.kind.is_gpu());
        let (trains, samples, full, critic) = (self.trains(), self.samples(), self.full(), self.has_critic());
        let when = |is: bool, bytes: usize| if is { bytes } else { 0 };
        let (parameters, adapter, t) = (self.parameters(), self.adapter(), rows.train);
        let head = when(critic, model.hidden + 1);
        // Trained adapters: the actor's (or sft's) and the critic's. RL also holds the reference's.
        let trained = if full { parameters } else { when(trains, adapter) + when(critic, adapter) + head };
        let adapters = match self.target.work {
            Work::Rl => trained + adapter,
            Work::Sft => when(!full, adapter),
            Work::Eval => adapter,
        };
        let held = match (self.target.work, critic) {
            (Work::Rl, true) => "actor, reference, critic and its head",
            (Work::Rl, false) => "actor and reference",
            _ => "one",
        };
        let train = self.activations(t);
        // Bytes per row. sft: log-probabilities, entropies, their statistic and gradient, and 16 for ids, positions,
        // rows and targets. rl: also the loss's other gradient, weights and three inputs; its indices are held for a
        // whole round (below).
        let is_rl = self.target.work == Work::Rl;
        let vectors = if is_rl { 9 * a } else { 4 * a + 16 };
        let (rl, (_, reply)) = (&self.config.rl, self.lengths());
        let (cpu_rows, cpu_columns) = CPU_LOGITS;
        let chunk = match is_gpu {
            // logits in f32 and their gradient in bf16; the head's own gradient takes chunks four times as large
            true => (if full { 4 * GPU_LOGITS } else { GPU_LOGITS }).min(t * model.vocab * a) / a * (a + e),
            false => t.min(cpu_rows) * model.vocab.min(cpu_columns) * a,
        };
        let largest = parameter_shapes(model).iter().map(|(_, s)| s.iter().product::<usize>()).max().unwrap_or(0);
        let blocks = engine.cache_tokens.div_ceil(engine.block_size);
        let copied = when(self.config.rl.samples > 1, engine.max_running * (engine.block_size - 1));
        let one = |name, bytes, what: String| Part { name, bytes, what };
        vec![
            // parameters e; on the CPU they are mapped files
            one("weights", when(is_gpu, parameters * e), format!("{} parameters, bf16", count(parameters))),
            // P HS a
            one("rotary table", model.max_positions * model.heads.hs * a, format!("{} positions", model.max_positions)),
            // parameters a
            one("trained weights", when(full, parameters * a), "a copy in f32, beside the weights".into()),
            // L R sum of (N + K), times a. RL: actor and reference; a critic adds its adapter, and C + 1 for its head
            one(
                "adapters",
                adapters * a,
                format!(
                    "{held}: rank {}, {} modules, {} parameters each",
                    self.rank(),
                    self.modules().len(),
                    count(adapter)
                ),
            ),
            // trained a
            one("gradients", when(trains, trained * a), format!("{} trained parameters, f32", count(trained))),
            // 2 trained a
            one("optimizer moments", when(trains, 2 * trained * a), "AdamW's two".into()),
            // see `activations`
            one(
                "activations kept",
                when(trains, train.kept),
                format!(
                    "{t} tokens of {}, {} recomputed",
                    size(train.kept / t.max(1)),
                    if self.recomputes_blocks() { "whole blocks" } else { "norms and SwiGLU" }
                ),
            ),
            one(
                "backward buffers",
                when(trains, train.backward),
                format!("{t} tokens of {}", size(train.backward / t.max(1))),
            ),
            // hidden states of the rows, their gradient, and the gradient of all rows: 3 T C e; and the vectors above
            one(
                "loss rows",
                when(trains, t * (3 * model.hidden * e + vectors)),
                "hidden states and their gradients, all rows with a loss".into(),
            ),
            // states (8 group + 8 samples reply): ids and positions of all rows, rows and targets of those with a loss
            one(
                "indices of a round",
                when(is_rl, 8 * rl.states * (self.group() + rl.samples * reply)),
                format!("{} states", rl.states),
            ),
            // all layers share the buffers of one
            one(
                "engine buffers",
                when(samples, self.activations(rows.sample).shared + copied * model.heads.qkv_width() * e),
                format!("one layer's, {} tokens", rows.sample),
            ),
            // the larger of a chunk of training and (max_running, V) a of sampling
            one(
                "logits",
                when(trains, chunk).max(when(samples, engine.max_running * model.vocab * a)),
                match samples {
                    true => format!("the larger of a chunk and those of {} samples", engine.max_running),
                    false => "a chunk and its gradient".into(),
                },
            ),
            // 2 L blocks block_size NKV HS e
            one(
                "KV cache",
                when(samples, blocks * engine.block_size * self.kv_token()),
                format!("{blocks} blocks of {} tokens of {}", engine.block_size, size(self.kv_token())),
            ),
            // recording_bytes, which only the newest may exceed; max_running NH tiles (HS + 2) 4 per burst
            one(
                "recordings",
                when(
                    is_gpu && samples,
                    recording_bytes(blocks * engine.block_size * self.kv_token()) + self.recording(),
                ),
                format!("CUDA graphs of decoding, {} one of {} samples", size(self.recording()), engine.max_running),
            ),
            // trained weights are rounded to bf16 one at a time for the tensor cores
            one("workspace", when(is_gpu, GPU_WORKSPACE + when(full, largest * e)), "temporaries of ops".into()),
        ]
    }
}
