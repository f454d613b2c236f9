//! Plans a run before anything is loaded: memory by part, and the least time of its steps on a device (`floors`). Pure
//! arithmetic over a model's shape and the settings: opens no file, allocates no tensor, asks no device. tests/plan.rs
//! checks the bytes against what the code allocates.

pub mod floors;

mod asked;
mod limits;
mod memory;

pub use asked::{Kind, Part, Target, Work};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Recompute;
use crate::model::config::ModelConfig;
use crate::model::shapes;
use asked::{Asked, count, grouped, size};
use floors::{Floor, Peaks};
use memory::Rows;
use serde::Serialize;
use std::fmt::Write;

/// Memory and time of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Kind of run.
    pub work: Work,
    /// Name of the device.
    pub device: String,
    /// Peak rates assumed for the device, and their source.
    pub peaks: String,
    /// Number of parameters of the model.
    pub parameters: usize,
    /// Parts of memory that are in use at the same time; empty parts are left out.
    pub parts: Vec<Part>,
    /// The sum of the parts.
    pub total: usize,
    /// Bytes of activations per token in a pass that is run backward.
    pub kept_per_token: usize,
    /// Tokens of the longest example (sft) or prompt with its replies (rl) that the settings allow. It gets a pass of
    /// its own, even if it exceeds micro_tokens.
    pub longest: usize,
    /// Total with such a pass.
    pub longest_total: usize,
    /// Lower bounds on times.
    pub floors: Vec<Floor>,
    /// Notes for the user.
    pub notes: Vec<String>,
    #[serde(skip)]
    asked: Asked,
}

/// Comparison of a plan with the available memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Available bytes.
    pub available: usize,
    /// Whether the total fits.
    pub fits: bool,
    /// Largest micro_tokens that fits, all else unchanged; `None` when none fits or nothing is trained.
    pub micro_tokens: Option<usize>,
    /// Largest engine.cache_tokens that fits; `None` when none fits or nothing is sampled.
    pub cache_tokens: Option<usize>,
}

/// Plans a run on a model of this shape.
pub fn plan(model: &ModelConfig, config: &Config, target: Target) -> Plan {
    let asked = Asked { model: model.clone(), config: config.clone(), target };
    let peaks = Peaks::of(target.kind);
    let parts = asked.parts(asked.rows());
    let longest = asked.longest();
    let longest_rows = Rows { train: asked.rows().train.max(longest), ..asked.rows() };
    let per_token = asked.activations(1);
    Plan {
        work: target.work,
        device: peaks.name.to_string(),
        peaks: peaks.to_string(),
        parameters: asked.parameters(),
        total: total(&parts),
        parts: parts.into_iter().filter(|part| part.bytes > 0).collect(),
        kept_per_token: if asked.trains() { per_token.kept } else { 0 },
        longest,
        longest_total: total(&asked.parts(longest_rows)),
        floors: floors::floors(&asked, &peaks),
        notes: asked.notes(),
        asked,
    }
}

/// Minimum tokens of an exercise's prompt and of a reply; most have more.
const FEWEST_OF_EXERCISE: (usize, usize) = (64, 8);

/// Refuses a model or a batch that certainly does not fit into `available` bytes. Error: names the settings, the bytes
/// they need and those there are.
pub fn check_pretraining(shape: &ModelConfig, config: &Config, kind: Kind, available: usize) -> Result<()> {
    let s = &config.pretrain;
    let tokens = s.exercises * (FEWEST_OF_EXERCISE.0 + s.replies * FEWEST_OF_EXERCISE.1);
    // Full training, in passes of a whole step.
    let mut planned = config.clone();
    (planned.sft.full, planned.sft.micro_tokens, planned.sft.recompute) = (true, tokens, Recompute::Norms);
    let total = plan(shape, &planned, Target::new(Work::Sft, kind)).total;
    if total <= available {
        return Ok(());
    }
    Err(Error::content(format!(
        "a model of pretrain.hidden = {}, pretrain.layers = {} and pretrain.mlp = {} with pretrain.exercises = {} of pretrain.replies = {} \
         a step asks {:.1} GB or more, and there are {:.1} GB; expected smaller ones",
        s.hidden,
        s.layers,
        s.mlp,
        s.exercises,
        s.replies,
        total as f64 / 1e9,
        available as f64 / 1e9
    )))
}

fn total(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.bytes).sum()
}

/// Fewest tokens of a pass that is suggested as a way out of a lack of memory.
const FEWEST_TOKENS: usize = 512;

impl Asked {
    /// Number of requests decoded side by side, each a prompt with its samples, and number of cache blocks per request.
    /// Follows the scheduler's rule, which reserves full lengths.
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
                format!("prompt of {} tokens with {samples} x {} tokens of reply", grouped(prompt), grouped(reply));
            let tokens = |requests: usize| requests * needed * engine.block_size;
            let (most, now) = (engine.max_running / samples, engine.cache_tokens);
            notes.push(match requests {
                0 => format!("the cache cannot take one {of}: engine.cache_tokens={} can (now {now})", tokens(1)),
                n if n < most => format!(
                    "decoding runs {} samples at once where every request is a {of}: engine.cache_tokens={} (now {now}) lets \
                     engine.max_running={} run",
                    n * samples,
                    tokens(most),
                    engine.max_running
                ),
                n => format!("decoding runs {} samples at once where every request is a {of}", n * samples),
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

    /// Settings above their defaults for which a smaller value alone makes the run fit.
    fn smaller_settings(&self, available: usize) -> Vec<String> {
        type Knob = (&'static str, fn(&mut Config) -> &mut usize);
        let engine: [Knob; 3] = [
            ("engine.max_running", |config| &mut config.engine.max_running),
            ("engine.prefill_tokens", |config| &mut config.engine.prefill_tokens),
            ("engine.block_size", |config| &mut config.engine.block_size),
        ];
        let rl: [Knob; 2] =
            [("rl.states", |config| &mut config.rl.states), ("rl.samples", |config| &mut config.rl.samples)];
        let lora: [Knob; 1] = [("lora.rank", |config| &mut config.lora.rank)];
        let engine = engine.into_iter().filter(|_| self.samples());
        let rl = rl.into_iter().filter(|_| self.target.work == Work::Rl);
        let lora = lora.into_iter().filter(|_| self.rank() > 0);
        let Ok(mut usual) = Config::load(&[], &[], self.target.work.name()) else { return vec![] };
        let smaller = |(key, value): Knob| {
            let now = *value(&mut self.config.clone());
            let fits = |n: usize| self.with(|config| *value(config) = n).fits(available);
            let most = (now > *value(&mut usual)).then(|| largest(fits)).flatten()?;
            Some(format!("{key}={most} (now {now})"))
        };
        engine.chain(rl).chain(lora).filter_map(smaller).collect()
    }

    /// Changes each of which alone makes the run fit.
    fn ways_out(&self, available: usize) -> Vec<String> {
        let mut ways = vec![];
        let (key, now) = self.micro_tokens();
        if let Some(n) = self.largest_micro_tokens(available).filter(|&n| n >= FEWEST_TOKENS) {
            ways.push(format!("{key}={n} (now {now})"));
        }
        let blocks = self.with(|config| match self.target.work {
            Work::Sft => config.sft.recompute = Recompute::Blocks,
            Work::Rl => config.rl.recompute = Recompute::Blocks,
            Work::Eval => {}
        });
        if blocks.fits(available) {
            ways.push(format!("{}.recompute=blocks, slower by a forward", self.target.work.name()));
        }
        let (_, needed) = self.side_by_side();
        let smallest = needed * self.config.engine.block_size;
        let cache = self.config.engine.cache_tokens;
        if let Some(n) = self.largest_cache_tokens(available).filter(|&n| n >= smallest) {
            ways.push(format!("engine.cache_tokens={n} (now {cache})"));
        }
        let cache_alone = ways.iter().any(|way| way.starts_with("engine."));
        if self.target.work == Work::Rl && !cache_alone {
            // reduce both by about the same share
            let pair = (1..10).find_map(|halvings| {
                let few = Some(now >> halvings).filter(|&few| few >= FEWEST_TOKENS)?;
                let n = self.with_micro_tokens(few).largest_cache_tokens(available)?.min(cache);
                (n >= smallest.max(cache >> halvings)).then_some((few, n))
            });
            if let Some((few, n)) = pair.filter(|&(_, n)| n < cache) {
                ways.push(format!("{key}={few} (now {now}) with engine.cache_tokens={n} (now {cache})"));
            }
        }
        ways.extend(self.smaller_settings(available));
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

/// Largest n from 1 to 2^30 for which `fits` is true. Once false, `fits` must stay false for larger n.
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

    /// Compares the plan with `available` bytes.
    pub fn fit(&self, available: usize) -> Fit {
        Fit {
            available,
            fits: self.total <= available,
            micro_tokens: self.asked.largest_micro_tokens(available),
            cache_tokens: self.asked.largest_cache_tokens(available),
        }
    }

    /// Checks the settings. Error: a setting under which no request to this model can run.
    pub fn check_settings(&self) -> Result<()> {
        self.asked.check_settings()
    }

    /// Checks the rank. Error: lora.rank is above both dimensions of every layer that a fresh adapter adapts.
    pub fn check_rank(&self) -> Result<()> {
        self.asked.check_rank()
    }

    /// Checks the memory. Error: the run needs more than `available` bytes; says how much it needs, how much there is
    /// and what would make it fit.
    pub fn check(&self, available: usize) -> Result<()> {
        if self.total <= available {
            return Ok(());
        }
        let mut parts: Vec<&Part> = self.parts.iter().collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let parts: Vec<String> =
            parts.iter().take(3).map(|part| format!("{} {}", part.name, size(part.bytes))).collect();
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

    /// Warning when the run fits in `available` bytes, but a pass over the longest example does not.
    pub fn warning(&self, available: usize) -> Option<String> {
        let (fit, longest) = (self.asked.largest_micro_tokens(available)?, self.longest);
        let (one, remedy) = match self.work {
            Work::Sft => ("an example", format!("sft.max_tokens={fit} refuses such examples at the start")),
            _ => (
                "a prompt with its replies",
                "environment.context_limit, sampling.max_tokens and rl.samples bound it".to_string(),
            ),
        };
        (self.total <= available && self.longest_total > available).then(|| {
            format!(
                "{one} of up to {} tokens gets a pass of its own and would take {}; passes of more than {} tokens do not fit: \
                 {remedy}",
                grouped(longest),
                size(self.longest_total),
                grouped(fit)
            )
        })
    }

    /// Formats the plan as lines for the user; compares it with `available` bytes if they are known.
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
        let _ = writeln!(out, "\nno faster than (peaks: {})", self.peaks);
        for floor in &self.floors {
            let rate =
                floor.tokens_per_second.map_or_else(String::new, |x| format!("{} tok/s", grouped(x.round() as usize)));
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
