//! What a run will take, before anything is loaded: memory by part, and the time its steps cannot beat on a device (`floors`). Pure
//! arithmetic over a model's shape and the settings: opens no file, allocates no tensor, asks no device. tests/plan.rs holds the bytes
//! against what the code allocates.

pub mod floors;

use crate::backend::Heads;
use crate::config::{Algorithm, Config};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::lora::Module;
use crate::model::{parameter_shapes, shapes};
use floors::{Floor, Peaks};
use serde::Serialize;
use std::fmt::Write;

/// What is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Supervised fine-tuning: of an adapter, or of all weights (sft.full).
    Sft,
    /// Step-wise reinforcement learning: engine and learner side by side.
    Rl,
    /// Sampling with one adapter: eval, generate.
    Eval,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// NVIDIA H100.
    H100,
    /// NVIDIA H200.
    H200,
    /// Another GPU.
    Gpu,
    /// The host, with so many cores.
    Cpu {
        /// Threads that compute.
        cores: usize,
    },
}

impl Kind {
    /// The GPU that calls itself `name`, for example "NVIDIA H200".
    pub fn of_gpu(name: &str) -> Self {
        if name.contains("H200") {
            Kind::H200
        } else if name.contains("H100") {
            Kind::H100
        } else {
            Kind::Gpu
        }
    }

    fn is_gpu(self) -> bool {
        !matches!(self, Kind::Cpu { .. })
    }

    /// Bytes of an element of the activation type and of the accumulator type: bf16 and f32 on a GPU, f32 both on the CPU.
    fn sizes(self) -> (usize, usize) {
        if self.is_gpu() { (2, 4) } else { (4, 4) }
    }
}

/// What is planned, and on what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// What the run does.
    pub work: Work,
    /// What computes.
    pub kind: Kind,
    /// Bytes of the weight files; two a parameter when not known.
    pub stored: Option<usize>,
    /// Tokens of every prompt; the most that the settings allow when not known.
    pub prompt: Option<usize>,
    /// Tokens of every reply; the most that the settings allow when not known.
    pub reply: Option<usize>,
}

impl Target {
    /// `work` on `kind`, with what is not known left open.
    pub fn new(work: Work, kind: Kind) -> Self {
        Self { work, kind, stored: None, prompt: None, reply: None }
    }
}

/// One part of the memory.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: usize,
    /// What it is made of.
    pub what: String,
}

/// Memory and time of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// What the run does.
    pub work: Work,
    /// What computes, and whose peaks are taken.
    pub device: String,
    /// The model's parameters.
    pub parameters: usize,
    /// Memory that is taken at once, without what is empty.
    pub parts: Vec<Part>,
    /// The sum of the parts.
    pub total: usize,
    /// Bytes of activations that a token takes in a pass that is run backward.
    pub kept_per_token: usize,
    /// The same if the outputs of norms and SwiGLU were computed again in place of kept (they are kept).
    pub recomputed_per_token: usize,
    /// Tokens of the longest example (sft) or prompt with its replies (rl) that the settings let in: it gets a pass of its own,
    /// also beyond micro_tokens.
    pub longest: usize,
    /// The total with such a pass.
    pub longest_total: usize,
    /// Times that cannot be beaten.
    pub floors: Vec<Floor>,
    /// What the user may want to know.
    pub notes: Vec<String>,
    #[serde(skip)]
    asked: Asked,
}

/// What a plan was made of.
#[derive(Debug, Clone)]
struct Asked {
    model: ModelConfig,
    config: Config,
    target: Target,
}

/// How a plan stands to the memory there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Bytes there are.
    pub available: usize,
    /// The total is within them.
    pub fits: bool,
    /// The largest micro_tokens that fits, all else as it is; `None` when none does or nothing is trained.
    pub micro_tokens: Option<usize>,
    /// The largest engine.cache_tokens that fits; `None` when none does or nothing is sampled.
    pub cache_tokens: Option<usize>,
}

/// The plan of a run on a model of this shape.
pub fn plan(model: &ModelConfig, config: &Config, target: Target) -> Plan {
    let asked = Asked { model: model.clone(), config: config.clone(), target };
    let peaks = Peaks::of(target.kind);
    let parts = asked.parts(asked.rows());
    let longest = asked.longest();
    let longest_rows = Rows { train: asked.rows().train.max(longest), ..asked.rows() };
    let (per_token, recomputed) = asked.activations(1);
    Plan {
        work: target.work,
        device: peaks.name.to_string(),
        parameters: asked.parameters(),
        total: total(&parts),
        parts: parts.into_iter().filter(|part| part.bytes > 0).collect(),
        kept_per_token: if asked.trains() { per_token.kept } else { 0 },
        recomputed_per_token: if asked.trains() { recomputed } else { 0 },
        longest,
        longest_total: total(&asked.parts(longest_rows)),
        floors: floors::floors(&asked, &peaks),
        notes: asked.notes(),
        asked,
    }
}

fn total(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.bytes).sum()
}

/// Rows of the passes that buffers are fitted to.
#[derive(Debug, Clone, Copy)]
struct Rows {
    train: usize,
    sample: usize,
}

/// Bytes of activations.
#[derive(Debug, Clone, Copy)]
struct Buffers {
    kept: usize,
    backward: usize,
    shared: usize,
}

/// Bytes of the logits that the head of the CPU and of the GPU has in memory at once, at most.
const CPU_LOGITS: (usize, usize) = (2048, 1024);
const GPU_LOGITS: usize = 256 << 20;
/// Room for the temporaries of ops on the GPU (split sums, cuBLASLt, copies of adapters).
const GPU_WORKSPACE: usize = 256 << 20;
/// A pass of fewer tokens is no way out of a lack of memory.
const FEWEST_TOKENS: usize = 512;

impl Asked {
    fn trains(&self) -> bool {
        self.target.work != Work::Eval
    }

    fn samples(&self) -> bool {
        self.target.work != Work::Sft
    }

    fn full(&self) -> bool {
        self.target.work == Work::Sft && self.config.sft.full
    }

    fn has_critic(&self) -> bool {
        self.target.work == Work::Rl && self.config.rl.algorithm == Algorithm::Ppo
    }

    /// Adapters that a pass can run under.
    fn rank(&self) -> usize {
        if self.full() { 0 } else { self.config.lora.rank }
    }

    /// The adapted linear layers of a block, each once; names that are none are left out (making the adapter refuses them).
    fn modules(&self) -> Vec<Module> {
        let names = &self.config.lora.modules;
        Module::ALL.into_iter().filter(|m| names.iter().any(|name| Module::named(name) == Some(*m))).collect()
    }

    /// Elements of all parameters; a tied head counts once.
    fn parameters(&self) -> usize {
        parameter_shapes(&self.model).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// L sum of N K over the linear layers of a block.
    fn body(&self) -> usize {
        let one = |module: Module| module.shape(&self.model).0 * module.shape(&self.model).1;
        self.model.layers * Module::ALL.into_iter().map(one).sum::<usize>()
    }

    /// V C, tied or not.
    fn head(&self) -> usize {
        self.model.vocab * self.model.hidden
    }

    /// Elements of one adapter: L R sum of (N + K) over the adapted layers.
    fn adapter(&self) -> usize {
        let one = |module: Module| module.shape(&self.model).0 + module.shape(&self.model).1;
        self.model.layers * self.config.lora.rank * self.modules().into_iter().map(one).sum::<usize>()
    }

    /// Bytes of the keys and values of one token: 2 L NKV HS in the activation type.
    fn kv_token(&self) -> usize {
        2 * self.model.layers * self.model.heads.nkv * self.model.heads.hs * self.target.kind.sizes().0
    }

    /// The most tokens that a prompt and a reply may have; a prompt leaves room for its reply within environment.context_limit and
    /// the model's positions.
    fn lengths(&self) -> (usize, usize) {
        let limit = self.config.environment.context_limit.min(self.model.max_positions);
        let reply = self.target.reply.unwrap_or(self.config.sampling.max_tokens).clamp(1, limit.max(2) - 1);
        (self.target.prompt.unwrap_or(limit.saturating_sub(reply)).max(1), reply)
    }

    /// Tokens of a prompt with its replies in one pass: prompt + samples (reply - 1), as in `Group::tokens`.
    fn group(&self) -> usize {
        let (prompt, reply) = self.lengths();
        prompt + self.config.rl.samples * (reply - 1)
    }

    /// Tokens that may have to stand alone in a pass.
    fn longest(&self) -> usize {
        match self.target.work {
            Work::Sft => self.config.sft.max_tokens.min(self.model.max_positions),
            Work::Rl => self.group(),
            Work::Eval => self.lengths().0,
        }
    }

    fn micro_tokens(&self) -> (&'static str, usize) {
        match self.target.work {
            Work::Sft => ("sft.micro_tokens", self.config.sft.micro_tokens),
            Work::Rl => ("rl.micro_tokens", self.config.rl.micro_tokens),
            Work::Eval => ("engine.prefill_tokens", self.config.engine.prefill_tokens),
        }
    }

    /// T of a training pass; of a sampling pass the largest of a prefill (a long prompt stands alone) and a decode step.
    fn rows(&self) -> Rows {
        let engine = &self.config.engine;
        Rows {
            train: self.micro_tokens().1,
            sample: engine.prefill_tokens.max(self.lengths().0).max(engine.max_running),
        }
    }

    /// Bytes of the buffers of a pass of `rows` tokens (e, a: bytes of the activation and accumulator types; per token):
    ///
    /// - a norm (sum, y, rstd): 2 C e + a
    /// - a block: (D + NH HS + 3 F + R for each adapted layer) e + NH a (lse) + a norm; with q and k norms (NH + NKV) HS e more
    /// - kept for the backward: L blocks, L + 1 norms, and C e of workspace
    /// - the backward's own: (2 C + 3 F + NH HS + D) e, once
    /// - shared by all layers when nothing is kept: one block, two norms, C e
    ///
    /// The second figure is `kept` without the outputs of norms and SwiGLU, (2 C + F) e a layer: what recomputing them would leave.
    /// For Qwen2.5-7B in bf16 at R = 16 that is 2.99 MB a token: 2.98 MB of bf16 (sums, qkv, o, gate and up), and 10 kB of
    /// statistics and low-rank products; the code keeps all of it, 4.48 MB.
    fn activations(&self, rows: usize) -> (Buffers, usize) {
        let (e, a) = self.target.kind.sizes();
        let ModelConfig { hidden: c, mlp: f, layers, heads, .. } = self.model;
        let Heads { nh, nkv, hs } = heads;
        let d = heads.qkv_width();
        let norm = 2 * c * e + a;
        let raw = if self.model.qk_norm { (nh + nkv) * hs } else { 0 };
        let low_rank = self.rank() * self.modules().len();
        let block = (d + raw + nh * hs + 3 * f + low_rank) * e + nh * a + norm;
        let kept = rows * (layers * block + (layers + 1) * norm + c * e);
        let backward = rows * (2 * c + 3 * f + nh * hs + d) * e;
        let recomputed = kept - rows * layers * (2 * c + f) * e;
        (Buffers { kept, backward, shared: rows * (block + 2 * norm + c * e) }, recomputed)
    }

    /// Memory by part. Formulas beside the lines; e and a are bytes of the activation and accumulator types.
    fn parts(&self, rows: Rows) -> Vec<Part> {
        let (e, a) = self.target.kind.sizes();
        let (model, engine, is_gpu) = (&self.model, &self.config.engine, self.target.kind.is_gpu());
        let (trains, samples, full, critic) = (self.trains(), self.samples(), self.full(), self.has_critic());
        let when = |is: bool, bytes: usize| if is { bytes } else { 0 };
        let (parameters, adapter, t) = (self.parameters(), self.adapter(), rows.train);
        let head = when(critic, model.hidden + 1);
        // Trained adapters: the actor's (or sft's), the critic's. RL has the reference's beside them.
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
        let (train, _) = self.activations(t);
        let vectors = if samples { 9 } else { 4 };
        let (cpu_rows, cpu_columns) = CPU_LOGITS;
        let chunk = match is_gpu {
            true => GPU_LOGITS.min(t * model.vocab * a),
            false => t.min(cpu_rows) * model.vocab.min(cpu_columns) * a,
        };
        let largest = parameter_shapes(model).iter().map(|(_, s)| s.iter().product::<usize>()).max().unwrap_or(0);
        let blocks = engine.cache_tokens.div_ceil(engine.block_size);
        let copied = when(self.config.rl.samples > 1, engine.max_running * (engine.block_size - 1));
        let one = |name, bytes, what: String| Part { name, bytes, what };
        vec![
            // parameters e; on the CPU they are mapped files
            one("weights", when(is_gpu, parameters * e), format!("{} parameters", count(parameters))),
            // P HS e
            one("rotary table", model.max_positions * model.heads.hs * e, format!("{} positions", model.max_positions)),
            // parameters a
            one("trained weights", when(full, parameters * a), "a copy in f32, beside the weights".into()),
            // L R sum of (N + K), times a; RL: actor and reference, with a critic its adapter and C + 1 for its head
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
                format!("{t} tokens of {}, {} layers, nothing recomputed", size(train.kept / t.max(1)), model.layers),
            ),
            one(
                "backward buffers",
                when(trains, train.backward),
                format!("{t} tokens of {}", size(train.backward / t.max(1))),
            ),
            // hidden states of the rows, their gradient, and that of all rows: 3 T C e; vectors of the loss; ids, positions, rows, targets
            one(
                "loss rows",
                when(trains, t * (3 * model.hidden * e + vectors * a + 16)),
                "hidden states and their gradients, all rows with a loss".into(),
            ),
            // all layers share one's buffers
            one(
                "engine buffers",
                when(samples, self.activations(rows.sample).0.shared + copied * model.heads.qkv_width() * e),
                format!("one layer's, {} tokens", rows.sample),
            ),
            // at once: a chunk of training, or (max_running, V) a of sampling
            one(
                "logits",
                when(trains, chunk).max(when(samples, engine.max_running * model.vocab * a)),
                match samples {
                    true => format!("f32, the larger of a chunk and {} samples", engine.max_running),
                    false => "f32, a chunk".into(),
                },
            ),
            // 2 L blocks block_size NKV HS e
            one(
                "KV cache",
                when(samples, blocks * engine.block_size * self.kv_token()),
                format!("{blocks} blocks of {} tokens of {}", engine.block_size, size(self.kv_token())),
            ),
            // trained weights are rounded to bf16 one at a time for the tensor cores
            one("workspace", when(is_gpu, GPU_WORKSPACE + when(full, largest * e)), "temporaries of ops".into()),
        ]
    }

    /// Requests that are decoded side by side, each a prompt with its samples, and the cache blocks that one needs: the scheduler's
    /// rule, which reserves full lengths.
    fn side_by_side(&self) -> (usize, usize) {
        let (engine, samples) = (&self.config.engine, self.samples_of_a_prompt());
        let (prompt, reply) = self.lengths();
        let blocks = |tokens: usize| tokens.div_ceil(engine.block_size);
        let needed = blocks(prompt) + samples * (blocks(prompt + reply) - blocks(prompt) + 1);
        let fit = blocks(engine.cache_tokens) / needed;
        (fit.min(engine.max_running / samples), needed)
    }

    fn samples_of_a_prompt(&self) -> usize {
        if self.target.work == Work::Rl { self.config.rl.samples } else { 1 }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![];
        if !self.target.kind.is_gpu() {
            let stored = self.target.stored.unwrap_or(2 * self.parameters());
            notes.push(format!("weights are mapped: {} of page cache, which is not in the total", size(stored)));
        }
        if self.samples() {
            let (engine, samples) = (&self.config.engine, self.samples_of_a_prompt());
            let ((prompt, reply), (requests, needed)) = (self.lengths(), self.side_by_side());
            let of =
                format!("prompts of {} tokens with {samples} x {} tokens of reply", grouped(prompt), grouped(reply));
            let all = engine.max_running / samples * needed * engine.block_size;
            notes.push(match requests {
                0 => format!(
                    "the cache cannot hold one of the {of}: engine.cache_tokens={} holds one, engine.max_running is {}",
                    needed * engine.block_size,
                    engine.max_running
                ),
                n if n * samples < engine.max_running => format!(
                    "the cache holds {n} {of} at once: engine.cache_tokens={all} would hold engine.max_running={}",
                    engine.max_running
                ),
                _ => format!("the cache holds engine.max_running={} samples: {of}", engine.max_running),
            });
        }
        notes
    }

    fn fits(&self, available: usize) -> bool {
        total(&self.parts(self.rows())) <= available
    }

    fn with(&self, change: impl FnOnce(&mut Config)) -> Self {
        let mut changed = self.clone();
        change(&mut changed.config);
        changed
    }

    fn with_micro_tokens(&self, n: usize) -> Self {
        self.with(|config| match self.target.work {
            Work::Sft => config.sft.micro_tokens = n,
            Work::Rl => config.rl.micro_tokens = n,
            Work::Eval => {}
        })
    }

    fn largest_micro_tokens(&self, available: usize) -> Option<usize> {
        self.trains().then(|| largest(|n| self.with_micro_tokens(n).fits(available))).flatten()
    }

    fn largest_cache_tokens(&self, available: usize) -> Option<usize> {
        let block = self.config.engine.block_size;
        let fits = |blocks: usize| self.with(|config| config.engine.cache_tokens = blocks * block).fits(available);
        self.samples().then(|| largest(fits)).flatten().map(|blocks| blocks * block)
    }

    /// Changes of which each alone makes the run fit.
    fn ways_out(&self, available: usize) -> Vec<String> {
        let mut ways = vec![];
        let (key, now) = self.micro_tokens();
        if let Some(n) = self.largest_micro_tokens(available).filter(|&n| n >= FEWEST_TOKENS) {
            ways.push(format!("{key}={n} (now {now})"));
        }
        let (_, needed) = self.side_by_side();
        let smallest = needed * self.config.engine.block_size;
        let cache = self.config.engine.cache_tokens;
        if let Some(n) = self.largest_cache_tokens(available).filter(|&n| n >= smallest) {
            ways.push(format!("engine.cache_tokens={n} (now {cache})"));
        }
        if ways.is_empty() && self.target.work == Work::Rl {
            let few = now.min(FEWEST_TOKENS.max(now / 4));
            if let Some(n) = self.with_micro_tokens(few).largest_cache_tokens(available).filter(|&n| n >= smallest) {
                ways.push(format!("{key}={few} (now {now}) with engine.cache_tokens={n} (now {cache})"));
            }
        }
        if self.full() {
            let adapter = self.with(|config| config.sft.full = false);
            if adapter.fits(available) {
                ways.push("sft.full=false, which trains an adapter".into());
            } else if let Some(n) = adapter.largest_micro_tokens(available).filter(|&n| n >= FEWEST_TOKENS) {
                ways.push(format!("sft.full=false, which trains an adapter, with {key}={n} (now {now})"));
            }
        }
        let smaller = shapes::NAMES.iter().filter_map(|name| {
            let other = Asked { model: shapes::named(name).ok()?, ..self.clone() };
            (other.parameters() < self.parameters() && other.fits(available)).then(|| (other.parameters(), name))
        });
        if let Some((_, name)) = smaller.max() {
            ways.push(format!("a smaller model, for example {name}"));
        }
        ways
    }
}

/// The largest n from 1 on for which `fits`, which does not become true again once it is false; at most 2^30.
fn largest(fits: impl Fn(usize) -> bool) -> Option<usize> {
    if !fits(1) {
        return None;
    }
    let (mut good, mut bad) = (1usize, 2usize);
    while fits(bad) {
        (good, bad) = (bad, 2 * bad);
        if bad > 1 << 30 {
            return Some(good);
        }
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        *(if fits(middle) { &mut good } else { &mut bad }) = middle;
    }
    Some(good)
}

impl Plan {
    /// Bytes of the part called `name`; 0 when the run has none.
    pub fn bytes(&self, name: &str) -> usize {
        self.parts.iter().find(|part| part.name == name).map_or(0, |part| part.bytes)
    }

    /// How it stands to `available` bytes.
    pub fn fit(&self, available: usize) -> Fit {
        Fit {
            available,
            fits: self.total <= available,
            micro_tokens: self.asked.largest_micro_tokens(available),
            cache_tokens: self.asked.largest_cache_tokens(available),
        }
    }

    /// Error: the run asks more than `available` bytes; says what is asked, what is there and what would make it fit.
    pub fn check(&self, available: usize) -> Result<()> {
        if self.total <= available {
            return Ok(());
        }
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let parts: Vec<String> =
            parts.iter().take(4).map(|part| format!("{} {}", part.name, size(part.bytes))).collect();
        let mut ways = self.asked.ways_out(available);
        if ways.is_empty() {
            ways.push("a device with more memory, or a smaller model".into());
        }
        Err(Error::content(format!(
            "{} of a model of {} parameters asks {} (most of it {}), and there are {}; what would fit: {}",
            self.work.name(),
            count(self.parameters),
            size(self.total),
            parts.join(", "),
            size(available),
            ways.join("; or ")
        )))
    }

    /// What the longest example would need, when that is more than `available` bytes.
    pub fn warning(&self, available: usize) -> Option<String> {
        let (fit, longest) = (self.asked.largest_micro_tokens(available)?, self.longest);
        let remedy = match self.work {
            Work::Sft => format!("sft.max_tokens={fit} refuses such examples at the start"),
            _ => "environment.context_limit, sampling.max_tokens and rl.samples bound it".to_string(),
        };
        (self.total <= available && self.longest_total > available).then(|| {
            format!(
                "a single one of up to {} tokens gets a pass of its own and would take {}; passes of more than {} tokens do not fit: \
                 {remedy}",
                grouped(longest),
                size(self.longest_total),
                grouped(fit)
            )
        })
    }

    /// The plan as lines for the user, against `available` bytes when that is known.
    pub fn table(&self, available: Option<usize>) -> String {
        let mut out =
            format!("{} on {}, {} parameters\n\nmemory\n", self.work.name(), self.device, count(self.parameters));
        // Writing to a String does not fail.
        let mut line = |name: &str, value: String, what: &str| {
            let _ = writeln!(out, "  {name:<22}{value:>12}  {what}");
        };
        for part in &self.parts {
            line(part.name, size(part.bytes), &part.what);
        }
        line("total", size(self.total), "");
        if let Some(available) = available {
            let fit = self.fit(available);
            line("available", size(available), if fit.fits { "it fits" } else { "IT DOES NOT FIT" });
            let most = |n: Option<usize>| n.map_or_else(|| "none fits".to_string(), grouped);
            if self.asked.trains() {
                line("largest micro_tokens", most(fit.micro_tokens), self.asked.micro_tokens().0);
            }
            if self.asked.samples() {
                line("largest cache_tokens", most(fit.cache_tokens), "engine.cache_tokens");
            }
        }
        out += "\nno faster than\n";
        for floor in &self.floors {
            let rate = floor.tokens_per_second.map_or_else(String::new, |x| format!("{} tok/s", grouped(x as usize)));
            let seconds = floor.seconds.map_or_else(String::new, |x| format!("{x:.3} s"));
            let _ = writeln!(out, "  {:<26}{:>14}{:>12}  {}", floor.what, rate, seconds, floor.from);
        }
        let warning = available.and_then(|available| self.warning(available));
        for note in self.notes.iter().chain(&warning) {
            let _ = writeln!(out, "note: {note}");
        }
        out
    }
}

impl Work {
    /// The name it is typed as.
    pub fn name(self) -> &'static str {
        match self {
            Work::Sft => "sft",
            Work::Rl => "rl",
            Work::Eval => "eval",
        }
    }
}

/// Bytes in decimal units, as memory is sold.
fn size(bytes: usize) -> String {
    match bytes as f64 {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

/// A number of parameters.
fn count(n: usize) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2}B", n / 1e9),
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n => format!("{n}"),
    }
}

/// 1234567 as 1,234,567.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}
