//! Training and decoding against PyTorch, transformers and PEFT on this machine: same model folder, same threads, same tokens, the
//! two sides taking turns; both are checked against each other before anything is timed. One command:
//! `cargo bench --bench peers -- --torch FOLDER` (benches/peers/install.sh makes the folder). Nothing passes or fails by time.

#![allow(clippy::unwrap_used)]

mod ours;
mod peer;
mod record;

use clap::Parser;
use onestep::backend::cpu::Cpu;
use onestep::checkpoint;
use onestep::model::Model;
use onestep::model::config::ModelConfig;
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::rng::Philox;
use onestep::tensor::DType;
use ours::{Decoded, Decoder, Step, Trainer};
use peer::Peer;
use record::{Bar, Record, Row, Score, Summary};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Arguments {
    /// Folder that benches/peers/install.sh made; without it only our side runs
    #[arg(long, value_name = "FOLDER")]
    torch: Option<PathBuf>,
    /// Smaller batches and two repeats, to see that everything works
    #[arg(long)]
    quick: bool,
    /// Compute threads of both sides; 0 takes one for each core
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Where the 0.5B model is made, once (1 GB)
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir().join("onestep-peers"))]
    scratch: PathBuf,
    /// Results, without extension [default: benches/results/cpu-peers, or target/cpu-peers with --quick]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Cargo says this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A way to run PyTorch.
#[derive(Clone, Copy)]
struct Entrant {
    name: &'static str,
    /// Of weights and of arithmetic.
    dtype: &'static str,
    /// By torch.compile, with a static cache: for decoding with the small model, where calls cost more than arithmetic.
    compiled: bool,
}

const ENTRANTS: [Entrant; 3] = [
    Entrant { name: "torch f32", dtype: "float32", compiled: false },
    Entrant { name: "torch bf16", dtype: "bfloat16", compiled: false },
    Entrant { name: "torch f32 compiled", dtype: "float32", compiled: true },
];
const LEARNING_RATE: f32 = 1e-4;
const CLIP: f32 = 1.0;
const RANK: usize = 16;
/// Training steps of both sides that are compared before the timed ones.
const CHECKED_STEPS: usize = 2;

enum Kind {
    /// `lora`: an adapter on all linear layers; else all weights. Steps of `sequences` of `length` tokens.
    Train { lora: bool, sequences: usize, length: usize },
    /// `prompts` prompts of `length` tokens, each decoded in `samples` copies to `new` tokens.
    Decode { prompts: usize, samples: usize, length: usize, new: usize },
}

struct Work {
    kind: Kind,
    repeats: usize,
    /// How many times faster than the peer it is meant to be.
    bar: Option<f64>,
}

fn train(lora: bool, sequences: usize, length: usize, repeats: usize, bar: f64) -> Work {
    Work { kind: Kind::Train { lora, sequences, length }, repeats, bar: Some(bar) }
}

fn decode(prompts: usize, samples: usize, length: usize, new: usize, repeats: usize, bar: Option<f64>) -> Work {
    Work { kind: Kind::Decode { prompts, samples, length, new }, repeats, bar }
}

fn quickstart_works(quick: bool) -> Vec<Work> {
    let (sequences, new, repeats) = if quick { (4, 16, 2) } else { (16, 64, 7) };
    vec![
        decode(1, 1, 128, 64, repeats, Some(5.0)),
        decode(16, 1, 128, new, repeats, Some(5.0)),
        // As RL samples: states with several replies each; both sides compute a prompt once.
        decode(24, 8, 128, new / 2, repeats.min(5), Some(5.0)),
        train(true, sequences, 256, repeats, 2.0),
        train(false, sequences, 256, repeats, 2.0),
    ]
}

fn large_works(quick: bool) -> Vec<Work> {
    if quick {
        return vec![decode(1, 1, 32, 8, 2, Some(1.8)), train(true, 1, 64, 2, 1.3)];
    }
    vec![decode(1, 1, 128, 16, 4, Some(1.8)), decode(1, 16, 64, 8, 3, None), train(true, 2, 128, 4, 1.3)]
}

/// The shape of Qwen2.5-0.5B with random weights in bf16, made once.
fn large_model(folder: &Path) -> PathBuf {
    let dir = folder.join("qwen2-0.5b-random");
    if dir.join("config.json").exists() {
        return dir;
    }
    let begin = Instant::now();
    let config = json!({
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true, "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    });
    let config = ModelConfig::from_json(&config.to_string(), Path::new("config.json")).unwrap();
    let model = Model::random(&Cpu, config, 1, DType::BF16).unwrap();
    checkpoint::save_model(&dir, &model, DType::BF16).unwrap();
    println!("made {} in {:.0} s", dir.display(), begin.elapsed().as_secs_f64());
    dir
}

/// One model in the works.
struct Subject {
    name: &'static str,
    dir: PathBuf,
    model: Model,
    types: &'static str,
}

impl Subject {
    fn open(name: &'static str, dir: PathBuf, types: &'static str) -> Self {
        let (model, _) = checkpoint::load_model(&Cpu, &dir).unwrap();
        Self { name, dir, model, types }
    }

    fn ids(&self, sequences: usize, length: usize) -> Vec<Vec<u32>> {
        let mut random = Philox::named(1, "tokens");
        let id = |random: &mut Philox| (random.uniform() * self.model.config.vocab as f64) as u32;
        (0..sequences).map(|_| (0..length).map(|_| id(&mut random)).collect()).collect()
    }

    /// An adapter that already changes something, so that every one of its tensors has a gradient.
    fn adapter(&self) -> Adapter {
        let config = LoraConfig { rank: RANK, alpha: 32.0, rslora: false, modules: Module::ALL.to_vec() };
        let mut random = Philox::named(1, "adapter");
        let mut adapter = Adapter::new(&Cpu, &self.model.config, config, &mut random).unwrap();
        for b in adapter.tensors.iter_mut().skip(1).step_by(2) {
            b.slice_mut::<f32>().fill_with(|| (0.01 * random.normal()) as f32);
        }
        adapter
    }

    /// How far a peer's numbers may be from ours, relative to the largest of those they come from. Roundings of 2^-24 (f32) or 2^-9 (bf16),
    /// some ten a layer, add up like a random walk; so do those inside f32 sums of up to K terms (bf16 products are summed in
    /// f32). Four deviations, as the largest of many differences is compared.
    fn tolerance(&self, dtype: &str) -> f64 {
        let (roundings, terms) = (10.0 * self.model.config.layers as f64, self.model.config.mlp as f64);
        match dtype {
            "float32" => 4.0 * (-24f64).exp2() * (roundings * terms).sqrt(),
            _ => 4.0 * (-9f64).exp2() * roundings.sqrt(),
        }
    }
}

/// A difference, relative where values are above 1.
fn difference(a: f64, b: f64) -> f64 {
    (a - b).abs() / a.abs().max(1.0)
}

/// The worker, or why there is none.
struct Peers {
    worker: Result<Peer, String>,
    threads: usize,
    entrants: Vec<Entrant>,
}

impl Peers {
    fn ask<T: DeserializeOwned>(&mut self, verb: &str, name: &str, more: &Value) -> Result<T, String> {
        let worker = self.worker.as_mut().map_err(|why| format!("not run: {why}"))?;
        worker.ask(verb, name, more.clone()).map_err(|why| format!("not run: {why}"))
    }

    /// Every peer loads the model, anew if it had it.
    fn open(&mut self, dir: &Path) {
        for Entrant { name, dtype, compiled } in self.entrants.clone() {
            let request = json!({"model": dir, "dtype": dtype, "compiled": compiled, "threads": self.threads});
            if let Err(why) = self.ask::<Value>("open", name, &request) {
                println!("{name} does not open {}: {why}", dir.display());
            }
        }
    }
}

/// One side's seconds: by repeat, then by phase.
type Times = Vec<Vec<f64>>;
/// A peer's largest difference from ours and its seconds, or why it has none.
type Entry = Result<(f64, Times), String>;

/// Lets all sides take turns, those peers out that were wrong or failed. `checks` are each peer's largest difference from ours.
fn take_turns(
    peers: &mut Peers,
    repeats: usize,
    checks: Vec<Result<f64, String>>,
    mut ours: impl FnMut() -> Vec<f64>,
    mut theirs: impl FnMut(&mut Peers, &str) -> Result<Vec<f64>, String>,
) -> (Times, Vec<Entry>) {
    let mut our_times = vec![];
    let mut their_times: Vec<_> = checks.into_iter().map(|check| check.map(|error| (error, vec![]))).collect();
    let entrants = peers.entrants.clone();
    for _ in 0..repeats {
        our_times.push(ours());
        for (Entrant { name, .. }, entry) in entrants.iter().zip(&mut their_times) {
            if let Ok((_, times)) = entry {
                match theirs(peers, name) {
                    Ok(seconds) => times.push(seconds),
                    Err(why) => *entry = Err(why),
                }
            }
        }
    }
    (our_times, their_times)
}

/// The rows of one phase of a work.
fn rows(
    subject: &Subject,
    entrants: &[Entrant],
    (work, shape, tokens): (&str, &str, usize),
    phase: usize,
    ours: &Times,
    theirs: &[Entry],
) -> Vec<Row> {
    let row = |provider, types: String, outcome: Result<(Option<f64>, &Times), &String>| {
        let of_phase = |times: &Times| Summary::of(times.iter().map(|seconds| seconds[phase]));
        let (status, error, times) = match outcome {
            Ok((error, times)) => ("measured".to_string(), error, Some(times)),
            Err(why) => (why.clone(), None, None),
        };
        let seconds = times.and_then(of_phase);
        let pairs = |times: &Times| Summary::of(times.iter().zip(ours).map(|(t, o)| t[phase] / o[phase]));
        Row {
            model: subject.name,
            work: work.to_string(),
            shape: shape.to_string(),
            provider,
            types,
            status,
            error,
            tokens_per_second: seconds.as_ref().map(|s| tokens as f64 / s.median),
            seconds,
            ratio: error.and(times).and_then(pairs),
        }
    };
    let first = row("onestep", subject.types.to_string(), Ok((None, ours)));
    let others = entrants.iter().zip(theirs).map(|(Entrant { name, dtype, .. }, entry)| {
        let outcome = entry.as_ref().map(|(error, times)| (Some(*error), times));
        row(name, format!("{dtype} stored and computed"), outcome)
    });
    std::iter::once(first).chain(others).collect()
}

/// Is a peer's difference one that rounding explains?
fn judge(error: f64, tolerance: f64) -> Result<f64, String> {
    if error <= tolerance {
        Ok(error)
    } else {
        Err(format!("wrong: off by {error:.1e}, at most {tolerance:.1e} is right"))
    }
}

fn train_rows(
    subject: &Subject,
    peers: &mut Peers,
    scratch: &Path,
    repeats: usize,
    lora: bool,
    ids: &[Vec<u32>],
) -> Vec<Row> {
    let adapter = lora.then(|| subject.adapter());
    let dir = scratch.join(format!("adapter-{}", subject.name));
    if let Some(adapter) = &adapter {
        checkpoint::save_adapter(&dir, adapter, "").unwrap();
    }
    let request = json!({"adapter": lora.then_some(dir), "ids": ids, "lr": LEARNING_RATE, "clip": CLIP});
    let mut trainer = Trainer::new(&Cpu, &subject.model, adapter, ids, LEARNING_RATE, CLIP).unwrap();
    let expected: Vec<Step> = (0..CHECKED_STEPS).map(|_| trainer.step().unwrap()).collect();
    let entrants = peers.entrants.clone();
    let check = |Entrant { name, dtype, .. }: &Entrant| {
        peers.ask::<Value>("train", name, &request)?;
        let mut error = 0f64;
        for (index, ours) in expected.iter().enumerate() {
            let theirs: Step = peers.ask("step", name, &Value::Null)?;
            if *dtype == "float32" {
                error = error.max(difference(ours.loss, theirs.loss)).max(difference(ours.norm, theirs.norm));
            } else if index == 0 {
                // What bf16 gradients and updates lose is its own: only the forward pass can be held against ours.
                error = difference(ours.loss, theirs.loss);
            }
        }
        judge(error, subject.tolerance(dtype))
    };
    let checks = entrants.iter().map(check).collect();
    let (ours, theirs) = take_turns(
        peers,
        repeats,
        checks,
        || vec![trainer.step().unwrap().seconds],
        |peers, name| Ok(vec![peers.ask::<Step>("step", name, &Value::Null)?.seconds]),
    );
    let work = if lora { format!("train LoRA r={RANK}") } else { "train all weights".to_string() };
    let shape = format!("{} x {} tokens", ids.len(), ids[0].len());
    rows(subject, &entrants, (&work, &shape, ids.len() * ids[0].len()), 0, &ours, &theirs)
}

fn decode_rows(
    subject: &Subject,
    peers: &mut Peers,
    repeats: usize,
    prompts: &[Vec<u32>],
    samples: usize,
    new: usize,
) -> Vec<Row> {
    let request = |scores| json!({"prompts": prompts, "samples": samples, "new": new, "scores": scores});
    let mut decoder = Decoder::new(&Cpu, &subject.model, prompts, samples, new).unwrap();
    let expected = decoder.run().unwrap();
    assert!(decoder.agrees_with_engine(&expected).unwrap(), "the engine decodes other tokens than the timed loop");
    let entrants = peers.entrants.clone();
    let check = |Entrant { name, dtype, .. }: &Entrant| {
        let theirs: Decoded = peers.ask("decode", name, &request(true))?;
        judge(decoding_difference(&expected, &theirs), subject.tolerance(dtype))
    };
    let checks = entrants.iter().map(check).collect();
    let seconds = |decoded: Decoded| vec![decoded.prefill, decoded.decode];
    let (ours, theirs) = take_turns(
        peers,
        repeats,
        checks,
        || seconds(decoder.run().unwrap()),
        |peers, name| Ok(seconds(peers.ask("decode", name, &request(false))?)),
    );
    let (batch, length) = (prompts.len() * samples, prompts[0].len());
    let shape = format!("{} x {length} tokens", prompts.len());
    let prefill = (&*format!("prefill for batch {batch}"), &*shape, prompts.len() * length);
    let shape = format!("{} more tokens a sample", new - 1);
    let decode = (&*format!("decode, batch {batch}"), &*shape, batch * (new - 1));
    let mut all = rows(subject, &entrants, prefill, 0, &ours, &theirs);
    // Only decoding is compiled.
    all.retain(|row| entrants.iter().all(|entrant| !entrant.compiled || entrant.name != row.provider));
    all.extend(rows(subject, &entrants, decode, 1, &ours, &theirs));
    all
}

/// The largest difference of log-probabilities by the largest logit, sample by sample up to the first token that the two sides choose differently:
/// there both choices are the most probable one, so their log-probabilities must still agree.
fn decoding_difference(ours: &Decoded, theirs: &Decoded) -> f64 {
    if ours.ids.len() != theirs.ids.len() {
        return f64::INFINITY;
    }
    let mut largest = 0f64;
    for sample in 0..ours.ids.len() {
        let (a, b) = (&ours.ids[sample], &theirs.ids[sample]);
        let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        for (a, b) in ours.logps[sample].iter().zip(&theirs.logps[sample]).take(same + 1) {
            largest = largest.max(f64::from((a - b).abs()));
        }
    }
    largest / theirs.largest.max(1.0)
}

fn run(subject: &Subject, works: &[Work], peers: &mut Peers, record: &mut Record, scratch: &Path) {
    peers.open(&subject.dir);
    let mut is_trained = false;
    for work in works {
        if matches!(work.kind, Kind::Train { .. }) {
            // It has had its turns: minutes of compiling the large model or a training step are not spent.
            peers.entrants.retain(|entrant| !entrant.compiled);
        }
        let rows = match work.kind {
            Kind::Train { lora, sequences, length } => {
                if std::mem::replace(&mut is_trained, true) {
                    peers.open(&subject.dir);
                }
                train_rows(subject, peers, scratch, work.repeats, lora, &subject.ids(sequences, length))
            }
            Kind::Decode { prompts, samples, length, new } => {
                decode_rows(subject, peers, work.repeats, &subject.ids(prompts, length), samples, new)
            }
        };
        // The bar is for the last phase: decoding, not its prefill.
        if let (Some(bar), Some(last)) = (work.bar, rows.last().map(|row| row.work.clone())) {
            let entrants = rows.iter().filter(|row| row.work == last);
            let best = entrants.filter_map(|row| Some((row.provider, row.ratio.clone()?)));
            let best = best.min_by(|(_, a), (_, b)| a.median.total_cmp(&b.median));
            if let Some((best_peer, ratio)) = best {
                let reached = ratio.median >= bar;
                record.bars.push(Bar { model: subject.name, work: last, bar, best_peer, ratio, reached });
            }
        }
        println!("done: {}, {}", subject.name, rows.last().map_or("", |row| &row.work));
        record.rows.extend(rows);
    }
}

/// `onestep score` on one line of `tokens` tokens in a process of its own, its memory watched until it ends.
fn score(subject: &Subject, scratch: &Path, tokens: usize) -> Score {
    let (input, output) = (scratch.join("score-in.jsonl"), scratch.join("score-out.jsonl"));
    std::fs::write(&input, json!({"ids": subject.ids(1, tokens)[0]}).to_string()).unwrap();
    let opening = || {
        let begin = Instant::now();
        checkpoint::load_model(&Cpu, &subject.dir).unwrap();
        begin.elapsed().as_secs_f64()
    };
    let load_seconds = (0..3).map(|_| opening()).fold(f64::INFINITY, f64::min);
    let begin = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_onestep"));
    command.arg("score").arg("--model").arg(&subject.dir).arg("--input").arg(&input).arg("--output").arg(&output);
    let mut child = command.spawn().unwrap();
    let mut peak_bytes = 0;
    let status = loop {
        // The kernel's own high-water mark of this process alone; it is gone once the process has ended.
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak_bytes = peak_bytes.max(peak.unwrap_or(0u64) * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let seconds = begin.elapsed().as_secs_f64();
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&output).unwrap()).unwrap();
    let logprobs = line["logprobs"].as_array().unwrap();
    assert!(status.success() && logprobs.len() == tokens - 1 && logprobs.iter().all(|p| p.as_f64().unwrap() < 0.0));
    let file_bytes = std::fs::metadata(subject.dir.join("model.safetensors")).unwrap().len();
    Score { load_seconds, tokens, seconds, peak_bytes, file_bytes, peak_by_file: peak_bytes as f64 / file_bytes as f64 }
}

fn main() {
    let arguments = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if arguments.threads > 0 { arguments.threads } else { cores };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let default = if arguments.quick { "target/cpu-peers" } else { "benches/results/cpu-peers" };
    let out = arguments.out.unwrap_or_else(|| root.join(default));
    let scratch = &arguments.scratch;
    std::fs::create_dir_all(scratch).unwrap();
    let machine = record::machine();

    let large = Subject::open("0.5B shape", large_model(scratch), "bfloat16 stored, float32 computed");
    let score = score(&large, scratch, 256);
    let mut peers = Peers { worker: Peer::start(arguments.torch.as_deref()), threads, entrants: ENTRANTS.to_vec() };
    let versions = match &peers.worker {
        Ok(worker) => worker.versions.clone(),
        Err(why) => format!("not run: {why}").into(),
    };
    let mut record = Record {
        quick: arguments.quick,
        threads,
        machine,
        commit: record::commit(),
        peer: versions,
        rows: vec![],
        bars: vec![],
        score,
    };
    let small = Subject::open("quickstart", root.join("weights/quickstart"), "float32 stored and computed");
    run(&small, &quickstart_works(arguments.quick), &mut peers, &mut record, scratch);
    run(&large, &large_works(arguments.quick), &mut peers, &mut record, scratch);
    record.write(&out).unwrap();
    println!("{}", record.table());
    println!("{} cores, {threads} threads; written to {}", cores, out.with_extension("json").display());
}
