//! Computes times that no implementation beats on a device: floating-point operations over its rate of matrix products,
//! bytes over its memory bandwidth. Does not count norms, sampling, launches and RL's sandboxes, which only add to
//! them.

use super::asked::{Asked, Kind, Work, count, grouped};
use serde::Serialize;

/// Best rates of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Name of the device that the figures are for.
    pub name: &'static str,
    /// FLOP/s of large matrix products: bf16 on a GPU, f32 on the CPU.
    pub flops: f64,
    /// Memory bandwidth in bytes per second, read and written.
    pub bandwidth: f64,
    /// How the figures were found, with the datasheet's beside them.
    pub origin: &'static str,
    /// Bytes of memory of such a device as its driver reports them, rounded down.
    pub memory: Option<usize>,
}

impl Peaks {
    /// Peaks of a kind of device. H100 and H200: measured with cuBLAS and a copy. Other GPUs: an H100's, assumed. CPU:
    /// 96 GFLOP/s per core (two 8-wide fused multiply-adds per cycle at 3 GHz) and 20 GB/s in all, assumed.
    pub fn of(kind: Kind) -> Self {
        let h100 = "measured by cuBLAS and a copy; datasheet 989 TFLOP/s, 3.35 TB/s";
        match kind {
            Kind::H200 => Self {
                name: "H200",
                flops: 790e12,
                bandwidth: 4.3e12,
                origin: "measured by cuBLAS and a copy; datasheet 989 TFLOP/s, 4.8 TB/s",
                memory: Some(139 << 30),
            },
            Kind::H100 => Self { name: "H100", flops: 798e12, bandwidth: 3.0e12, origin: h100, memory: Some(79 << 30) },
            Kind::Gpu => Self {
                name: "a GPU of unknown peaks",
                flops: 798e12,
                bandwidth: 3.0e12,
                origin: "assumed: an H100's",
                memory: None,
            },
            Kind::Cpu { cores } => Self {
                name: "the CPU",
                flops: 96e9 * cores as f64,
                bandwidth: 20e9,
                origin: "assumed: 96 GFLOP/s a core in f32, 20 GB/s",
                memory: None,
            },
        }
    }
}

impl std::fmt::Display for Peaks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} TFLOP/s, {} TB/s, {}", self.flops / 1e12, self.bandwidth / 1e12, self.origin)
    }
}

/// A lower bound on the time of some work.
#[derive(Debug, Clone, Serialize)]
pub struct Floor {
    /// Name of the work.
    pub what: String,
    /// Tokens per second, where that is the measure.
    pub tokens_per_second: Option<f64>,
    /// Seconds of one step or phase, where there is one.
    pub seconds: Option<f64>,
    /// Derivation from the peaks.
    pub from: String,
}

/// Context that decoding is quoted at, or the model's positions if they are fewer.
const DECODE_CONTEXT: usize = 4096;
const DECODE_BATCHES: [usize; 3] = [1, 64, 256];
/// The backward of attention costs 2.5 times its forward: five products of T x T instead of two.
const ATTENTION_BACKWARD: f64 = 2.5;
/// Bytes that AdamW moves per parameter: reads parameter, gradient and both moments, writes three of them, in f32.
const ADAMW_BYTES: usize = 28;

/// FLOPs of one token or one pass, by kind.
#[derive(Debug, Clone, Copy, Default)]
struct Flops {
    linear: f64,
    attention: f64,
    adapter: f64,
}

impl Flops {
    fn total(self) -> f64 {
        self.linear + self.attention + self.adapter
    }
}

pub(super) fn floors(asked: &Asked, peaks: &Peaks) -> Vec<Floor> {
    let mut out = vec![];
    if asked.target.work == Work::Sft {
        out.extend(sft(asked, peaks));
    } else {
        out.extend(sampling(asked, peaks));
    }
    if asked.target.work == Work::Rl {
        out.extend(rl(asked, peaks));
    }
    out
}

impl Asked {
    /// FLOPs of the causal forward of attention over queries at positions `from..to` of their sequence: two products of
    /// 2 HS per head and pair, so 4 NH HS L times the number of pairs, (to^2 - from^2) / 2.
    fn attention(&self, from: usize, to: usize) -> f64 {
        let pairs = ((to * to - from * from) as f64) / 2.0;
        4.0 * (self.model.heads.nh * self.model.heads.hs * self.model.layers) as f64 * pairs
    }

    /// FLOPs of training per token of sequences of `context` tokens. P is the number of GEMM parameters, body and head.
    /// With an adapter: 4 P (forward 2, gradient of the input 2; the weights are frozen) plus 6 times the adapter's
    /// elements. In full: 6 P. Attention: 3.5 times its forward. Every row has a loss. If whole blocks are recomputed,
    /// their forward counts twice.
    fn training(&self, context: usize) -> Flops {
        let (body, head, adapter) = (self.body() as f64, self.head() as f64, self.adapter() as f64);
        let forwards = if self.recomputes_blocks() { 2.0 } else { 1.0 };
        let attention = (forwards + ATTENTION_BACKWARD) * self.attention(0, context) / context as f64;
        match self.full() {
            true => Flops { linear: (2.0 * forwards + 4.0) * body + 6.0 * head, attention, adapter: 0.0 },
            false => {
                let linear = (2.0 * forwards + 2.0) * body + 4.0 * head;
                Flops { linear, attention, adapter: (2.0 * forwards + 4.0) * adapter }
            }
        }
    }

    /// Seconds of one decode step of `batch` sequences of `context` tokens. First the longer of: reading the weights
    /// (and an adapter in f32) once, and the products, 2 (P + adapter) per token. Then reading every sequence's keys
    /// and values.
    fn decode(&self, peaks: &Peaks, batch: f64, context: f64, adapted: bool) -> f64 {
        let adapter = if adapted { self.adapter() as f64 } else { 0.0 };
        let p = (self.body() + self.head()) as f64;
        let stored = self.target.stored.filter(|_| !self.target.kind.is_gpu());
        let weight = stored.map_or(2.0, |bytes| bytes as f64 / self.parameters() as f64);
        let read = (p * weight + adapter * self.target.kind.sizes().1 as f64) / peaks.bandwidth;
        let products = 2.0 * batch * (p + adapter) / peaks.flops;
        read.max(products) + batch * context * self.kv_token() as f64 / peaks.bandwidth
    }

    /// FLOPs of a prompt's prefill: 2 (body + adapter) per token, and attention; the head for its last row only.
    fn prefill(&self, prompt: usize) -> f64 {
        let linear = 2.0 * (self.body() + self.adapter()) as f64 * prompt as f64;
        linear + 2.0 * self.head() as f64 + self.attention(0, prompt)
    }

    /// FLOPs of one pass over a prompt with its replies: forward only, or with the backward (as in `training`). With
    /// `has_head`, the replies' rows also pass through the head.
    fn group_pass(&self, backward: bool, has_head: bool) -> f64 {
        let ((prompt, reply), samples) = (self.lengths(), self.config.rl.samples);
        let tokens = self.group() as f64;
        let rows = if has_head { (samples * reply) as f64 } else { 0.0 };
        let attention = self.attention(0, prompt) + samples as f64 * self.attention(prompt, prompt + reply - 1);
        let forwards = if backward && self.recomputes_blocks() { 2.0 } else { 1.0 };
        let (head, linear, adapter, both) = match backward {
            true => (4.0, 2.0 * forwards + 2.0, 2.0 * forwards + 4.0, forwards + ATTENTION_BACKWARD),
            false => (2.0, 2.0, 2.0, 1.0),
        };
        tokens * (linear * self.body() as f64 + adapter * self.adapter() as f64)
            + rows * head * self.head() as f64
            + both * attention
    }
}

fn sft(asked: &Asked, peaks: &Peaks) -> Vec<Floor> {
    let settings = &asked.config.sft;
    let context = settings.micro_tokens.min(asked.longest());
    let flops = asked.training(context);
    let rate = peaks.flops / flops.total();
    let trained = if asked.full() { asked.parameters() } else { asked.adapter() };
    // batch_tokens of training, then AdamW over what is trained
    let step = settings.batch_tokens as f64 / rate + (trained * ADAMW_BYTES) as f64 / peaks.bandwidth;
    let giga = |x: f64| format!("{:.2}", x / 1e9);
    vec![
        Floor {
            what: "training".into(),
            tokens_per_second: Some(rate),
            seconds: None,
            from: format!(
                "{} GFLOP a token (linear {}, attention at {context} {}, LoRA {})",
                giga(flops.total()),
                giga(flops.linear),
                giga(flops.attention),
                giga(flops.adapter)
            ),
        },
        Floor {
            what: "a step".into(),
            tokens_per_second: None,
            seconds: Some(step),
            from: format!("{} tokens, and AdamW over {} parameters", grouped(settings.batch_tokens), count(trained)),
        },
    ]
}

fn sampling(asked: &Asked, peaks: &Peaks) -> Vec<Floor> {
    let context = DECODE_CONTEXT.min(asked.model.max_positions);
    let prefill = asked.prefill(context);
    let mut out = vec![Floor {
        what: "prefill".into(),
        tokens_per_second: Some(context as f64 * peaks.flops / prefill),
        seconds: None,
        from: format!("prompts of {context} tokens, {:.2} GFLOP a token", prefill / context as f64 / 1e9),
    }];
    for batch in DECODE_BATCHES {
        let seconds = asked.decode(peaks, batch as f64, context as f64, false);
        out.push(Floor {
            what: format!("decode, batch {batch}"),
            tokens_per_second: Some(batch as f64 / seconds),
            seconds: Some(seconds),
            from: format!("weights, and keys and values of {batch} x {context} tokens, read once; no adapter"),
        });
    }
    out
}

/// Floors of an RL step without its sandboxes: `states` prompts of equal length with `samples` replies of equal length
/// each.
fn rl(asked: &Asked, peaks: &Peaks) -> Vec<Floor> {
    let (settings, (prompt, reply)) = (&asked.config.rl, asked.lengths());
    let states = settings.states as f64;
    // The prompts, then the replies in waves of as many as the cache holds; on average half of a reply is in the
    // context.
    let requests = asked.side_by_side().0.clamp(1, settings.states);
    let (waves, batch) = (states / requests as f64, (requests * settings.samples) as f64);
    let context = prompt as f64 + reply as f64 / 2.0;
    let prefill = states * asked.prefill(prompt) / peaks.flops;
    let generate = prefill + waves * reply as f64 * asked.decode(peaks, batch, context, true);
    // The reference scores once; the actor trains `epochs` times; a critic does both, without the vocabulary.
    let once = |backward, has_head| asked.group_pass(backward, has_head);
    let critic = if asked.has_critic() { 1.0 } else { 0.0 };
    let epochs = settings.epochs as f64;
    let flops =
        once(false, true) + critic * once(false, false) + epochs * (once(true, true) + critic * once(true, false));
    let adamw = (1.0 + critic) * (asked.adapter() * ADAMW_BYTES) as f64 * epochs * settings.minibatches as f64;
    let update = states * flops / peaks.flops + adamw / peaks.bandwidth;
    let replies = states * settings.samples as f64;
    let one = |what: &str, seconds: f64, tokens: Option<f64>, from: String| Floor {
        what: what.into(),
        tokens_per_second: tokens.map(|tokens| tokens / seconds),
        seconds: Some(seconds),
        from,
    };
    vec![
        one(
            "generate",
            generate,
            Some(replies * reply as f64),
            format!(
                "{} prompts of {} tokens with {} x {} tokens of reply, {batch} decoded side by side; of it prefill {prefill:.3} s",
                settings.states,
                grouped(prompt),
                settings.samples,
                grouped(reply)
            ),
        ),
        one(
            "update",
            update,
            Some(states * asked.group() as f64),
            format!(
                "rl.epochs={} over {} tokens{}",
                settings.epochs,
                grouped(settings.states * asked.group()),
                scored(critic > 0.0)
            ),
        ),
        one("a step", generate + update, None, "generate and update; the sandboxes come on top".into()),
    ]
}

fn scored(critic: bool) -> &'static str {
    if critic { ", scored by reference and critic first" } else { ", scored by the reference first" }
}
