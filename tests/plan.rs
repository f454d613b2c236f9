//! The plan against the code: bytes equal what is really allocated, on the CPU (f32) and, through a device that only counts, on the GPU
//! (bf16 and f32); the figures of Qwen2.5-7B equal those worked out by hand; what is said to fit fits, and one more does not.
#![allow(clippy::unwrap_used)]

use onestep::backend::cpu::Cpu;
use onestep::backend::cuda::Cuda;
use onestep::backend::cuda::device::{Device, Gemm, Launch};
use onestep::backend::ops::Heads;
use onestep::backend::{Backend, Recording};
use onestep::config::Config;
use onestep::error::{Error, Result};
use onestep::model::config::{ModelConfig, RopeConfig, RopeScaling};
use onestep::model::kv_cache::KvCache;
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{
    Activations, Batch, Gradients, Model, Policy, Recompute, Segment, backward, forward, parameter_shapes, shapes,
};
use onestep::optimizer::{AdamWConfig, Optimizer};
use onestep::plan::{Kind, Plan, Target, Work, plan};
use onestep::ppo::Learner;
use onestep::rng::Philox;
use onestep::rollout::recording_bytes;
use onestep::tensor::{DType, DeviceMemory, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const CPU: Kind = Kind::Cpu { cores: 1 };
const ADAMW: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0 };

/// T
const TOKENS: usize = 7;

fn qwen2() -> ModelConfig {
    ModelConfig {
        vocab: 11,
        hidden: 8,
        layers: 3,
        heads: Heads { nh: 4, nkv: 2, hs: 2 },
        mlp: 6,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 100.0, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 32,
    }
}

/// Tied and not, with biases and without, with norms of q and k, of head sizes whose sum is and is not C.
fn models() -> [ModelConfig; 3] {
    let heads = Heads { nh: 2, nkv: 1, hs: 6 };
    let qwen3 = ModelConfig { heads, tied: false, qkv_bias: false, qk_norm: true, ..qwen2() };
    let llama = ModelConfig { heads: Heads { nh: 4, nkv: 4, hs: 2 }, layers: 2, qkv_bias: false, ..qwen2() };
    [qwen2(), qwen3, llama]
}

fn settings(more: &[&str]) -> Config {
    let tokens = format!("micro_tokens={TOKENS}");
    let few = ["engine.block_size=4", "engine.cache_tokens=30", "engine.prefill_tokens=5", "engine.max_running=3"];
    let all: Vec<String> = few.iter().chain(more).map(|s| (*s).to_string()).chain([tokens]).collect();
    Config::load(&[], &all, "sft").unwrap()
}

fn bytes(tensors: &[Tensor]) -> usize {
    tensors.iter().map(|t| t.len() * t.dtype().size()).sum()
}

fn adapter(be: &dyn Backend, model: &ModelConfig, config: &Config) -> Adapter {
    let modules = config.lora.modules.iter().map(|name| Module::named(name).unwrap()).collect();
    let lora = LoraConfig { rank: config.lora.rank, alpha: config.lora.alpha, rslora: false, modules };
    Adapter::new(be, model, lora, &mut Philox::new(1, 0)).unwrap()
}

fn batch(be: &dyn Backend, model: &ModelConfig, tokens: usize) -> Batch {
    let ids: Vec<u32> = (0..tokens as u32).collect();
    Batch::new(be, model, &[Segment { ids: &ids, start_position: 0, parent: None }]).unwrap()
}

/// Buffers after a kept forward and its backward.
fn trained(be: &dyn Backend, policy: Policy, grads: &mut Gradients, recompute: Recompute) -> usize {
    let batch = batch(be, &policy.model.config, TOKENS);
    let mut acts = Activations::new(recompute);
    assert_eq!(acts.bytes(), 0);
    forward(be, policy, &batch, true, &mut acts).unwrap();
    let dhidden = be.alloc(&[TOKENS, policy.model.config.hidden], be.activation()).unwrap();
    backward(be, policy, &batch, &mut acts, &dhidden, grads).unwrap();
    acts.bytes()
}

fn activations(plan: &Plan) -> usize {
    plan.bytes("activations kept") + plan.bytes("backward buffers")
}

#[test]
fn sft_of_an_adapter_allocates_what_is_planned() {
    for shape in models() {
        for more in [
            &["lora.rank=3"][..],
            &["lora.rank=2", "lora.modules=q,v,down_proj"],
            &["lora.modules=o", "recompute=blocks"],
        ] {
            let config = settings(more);
            let planned = plan(&shape, &config, Target::new(Work::Sft, CPU));
            let model = Model::random(&Cpu, shape.clone(), 1, DType::F32).unwrap();
            let adapter = adapter(&Cpu, &shape, &config);
            let policy = Policy { model: &model, adapter: Some(&adapter) };
            let mut grads = Gradients::new(&Cpu, policy, false).unwrap();
            let optimizer = Optimizer::new(&Cpu, &adapter.tensors, ADAMW).unwrap();
            assert_eq!(planned.parameters, model.parameters());
            assert_eq!(planned.bytes("weights"), 0, "mapped");
            assert_eq!(planned.bytes("adapters"), bytes(&adapter.tensors), "{more:?}");
            assert_eq!(planned.bytes("gradients"), bytes(grads.adapter.as_deref().unwrap()));
            assert_eq!(planned.bytes("optimizer moments"), bytes(&optimizer.m) + bytes(&optimizer.v));
            assert_eq!(
                activations(&planned),
                trained(&Cpu, policy, &mut grads, config.sft.recompute),
                "{shape:?} {more:?}"
            );
            assert_eq!(planned.bytes("KV cache") + planned.bytes("trained weights"), 0);
            assert_eq!(planned.total, planned.parts.iter().map(|part| part.bytes).sum::<usize>());
        }
    }
}

#[test]
fn sft_of_all_weights_allocates_what_is_planned() {
    for shape in models() {
        let config = settings(&["sft.full=true"]);
        let planned = plan(&shape, &config, Target::new(Work::Sft, CPU));
        let model = Model::random(&Cpu, shape.clone(), 1, DType::BF16).unwrap().widen(&Cpu).unwrap();
        let policy = Policy { model: &model, adapter: None };
        let mut grads = Gradients::new(&Cpu, policy, true).unwrap();
        let optimizer = Optimizer::new(&Cpu, &model.weights, ADAMW).unwrap();
        assert_eq!(planned.bytes("trained weights"), bytes(&model.weights));
        assert_eq!(planned.bytes("gradients"), bytes(grads.weights.as_deref().unwrap()));
        assert_eq!(planned.bytes("optimizer moments"), bytes(&optimizer.m) + bytes(&optimizer.v));
        assert_eq!(activations(&planned), trained(&Cpu, policy, &mut grads, config.sft.recompute));
        assert_eq!(planned.bytes("adapters"), 0);
    }
}

/// Actor, reference, critic and optimizers; the cache; the engine's buffers of a pass that keeps nothing.
#[test]
fn rl_allocates_what_is_planned() {
    let kinds = [["rl.algorithm=ppo", "rl.recompute=norms"], ["rl.algorithm=grpo", "rl.recompute=blocks"]];
    for (shape, [algorithm, recompute]) in models().into_iter().flat_map(|m| kinds.map(|kind| (m.clone(), kind))) {
        let config = settings(&["rl.samples=2", "lora.rank=3", "rl.micro_tokens=7", algorithm, recompute]);
        // A prompt of 9 tokens is longer than engine.prefill_tokens and gets a pass of its own.
        let target = Target { prompt: Some(9), reply: Some(4), ..Target::new(Work::Rl, CPU) };
        let planned = plan(&shape, &config, target);
        let model = Model::random(&Cpu, shape.clone(), 1, DType::F32).unwrap();
        let learner = Learner::new(&Cpu, &model, &config.rl, adapter(&Cpu, &shape, &config)).unwrap();
        assert_eq!(learner.critic.is_some(), algorithm.ends_with("ppo"));
        let (mut adapters, mut trained_bytes) = (bytes(&learner.reference.tensors), bytes(&learner.actor.tensors));
        let mut moments = bytes(&learner.actor_optimizer.m) + bytes(&learner.actor_optimizer.v);
        if let Some(critic) = &learner.critic {
            trained_bytes += bytes(&critic.adapter.tensors) + bytes(&critic.head);
            moments += bytes(&critic.optimizer.m) + bytes(&critic.optimizer.v);
        }
        adapters += trained_bytes;
        assert_eq!(planned.bytes("adapters"), adapters);
        assert_eq!(planned.bytes("gradients"), trained_bytes);
        assert_eq!(planned.bytes("optimizer moments"), moments);
        let policy = Policy { model: &model, adapter: Some(&learner.actor) };
        let mut grads = Gradients::new(&Cpu, policy, false).unwrap();
        assert_eq!(activations(&planned), trained(&Cpu, policy, &mut grads, config.rl.recompute));

        let cache = KvCache::new(&Cpu, &shape, 8, 4).unwrap(); // 30 tokens in blocks of 4
        assert_eq!(planned.bytes("KV cache"), bytes(&cache.k) + bytes(&cache.v));
        let mut acts = Activations::default();
        forward(&Cpu, policy, &batch(&Cpu, &shape, 9), false, &mut acts).unwrap();
        // Forks copy at most the partial block of each running sample: max_running (block_size - 1) rows of D.
        let copied = 3 * 3 * shape.heads.qkv_width() * 4;
        assert_eq!(planned.bytes("engine buffers"), acts.bytes() + copied);
        // A prompt of 9 tokens and two replies, each but its last token.
        assert_eq!(planned.longest, 9 + 2 * 3);
        assert!(planned.longest_total > planned.total);
    }
}

/// A device that counts the bytes that live on it, and computes nothing.
#[derive(Default)]
struct Counting {
    live: Arc<AtomicUsize>,
}

struct Counted(usize, Arc<AtomicUsize>);

impl DeviceMemory for Counted {
    fn address(&self) -> u64 {
        256
    }
    fn download(&self, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0, Ordering::SeqCst);
    }
}

impl Device for Counting {
    fn name(&self) -> &str {
        "counting"
    }
    fn multiprocessors(&self) -> usize {
        1
    }
    fn alloc(&self, bytes: usize) -> Result<Arc<dyn DeviceMemory>> {
        self.live.fetch_add(bytes, Ordering::SeqCst);
        Ok(Arc::new(Counted(bytes, self.live.clone())))
    }
    fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }
    fn launch(&self, _: &Launch) -> Result<()> {
        Ok(())
    }
    fn gemm(&self, _: &Gemm) -> Result<bool> {
        Ok(true)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn elapsed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        work().map(|()| 0.0)
    }
    fn memory(&self) -> Result<(usize, usize)> {
        Ok((0, 0))
    }
    fn record(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        Err(Error::system("nothing is computed here"))
    }
}

#[test]
fn the_gpu_allocates_what_is_planned() {
    for shape in models() {
        let config = settings(&["lora.rank=3"]);
        let sft = plan(&shape, &config, Target::new(Work::Sft, Kind::H200));
        let rl = plan(&shape, &config, Target::new(Work::Rl, Kind::H200));
        let device = Counting::default();
        let live = device.live.clone();
        let be = Cuda::new(Arc::new(device));
        let mut last = 0;
        let mut taken = || {
            let now = live.load(Ordering::SeqCst);
            now - std::mem::replace(&mut last, now)
        };
        let mut zeros = |_: &str, shape: &[usize]| be.place(Tensor::zeros(shape, DType::F32));
        let model = Model::new(&be, shape.clone(), &mut zeros).unwrap();
        assert_eq!(taken(), sft.bytes("weights") + sft.bytes("rotary table"));
        let adapter = adapter(&be, &shape, &config);
        assert_eq!(taken(), sft.bytes("adapters"));
        let policy = Policy { model: &model, adapter: Some(&adapter) };
        let grads = Gradients::new(&be, policy, false).unwrap();
        assert_eq!(taken(), sft.bytes("gradients"));
        let optimizer = Optimizer::new(&be, &adapter.tensors, ADAMW).unwrap();
        assert_eq!(taken(), sft.bytes("optimizer moments"));
        let cache = KvCache::new(&be, &shape, 8, 4).unwrap();
        assert_eq!(taken(), rl.bytes("KV cache"));
        let batch = batch(&be, &shape, TOKENS);
        taken();
        let mut acts = Activations::default();
        // Buffers are fitted before the first op; whether ops have kernels is not asked here.
        let _ = forward(&be, policy, &batch, true, &mut acts);
        assert_eq!(acts.bytes(), sft.bytes("activations kept"));
        assert_eq!(taken(), acts.bytes());
        drop((grads, optimizer, cache));
    }
}

fn seven(work: Work, more: &[&str]) -> Plan {
    let all: Vec<String> = more.iter().map(|s| (*s).to_string()).collect();
    let config = Config::load(&[], &all, work.name()).unwrap();
    plan(&shapes::named("qwen2.5-7b").unwrap(), &config, Target::new(work, Kind::H200))
}

#[test]
fn rl_of_7b_at_the_defaults_fits_an_h200_with_its_recordings() {
    let rl = seven(Work::Rl, &[]);
    // Attention's tiles of 256 samples of up to 15,000 tokens, in block tables of 1024 columns: (B, NH, tiles, HS + 2) in f32.
    let one = 256 * 28 * (1024 * 16 / 128) * 130 * 4;
    let recordings = rl.bytes("recordings");
    let kept = recording_bytes(rl.bytes("KV cache"));
    assert!((kept + one..kept + one + one / 4).contains(&recordings), "{recordings}");
    rl.check(141_000_000_000).unwrap();
    // Shorter samples have fewer tiles; what samples nothing, or cannot record, has none.
    let short = seven(Work::Eval, &["environment.context_limit=4096"]);
    assert!(short.bytes("recordings") < kept + one / 2);
    assert_eq!(seven(Work::Sft, &[]).bytes("recordings"), 0);
    let config = Config::load(&[], &[], "rl").unwrap();
    let shape = shapes::named("qwen2.5-7b").unwrap();
    assert_eq!(plan(&shape, &config, Target::new(Work::Rl, CPU)).bytes("recordings"), 0);
}

fn rate(plan: &Plan, what: &str) -> f64 {
    plan.floors.iter().find(|floor| floor.what == what).unwrap().tokens_per_second.unwrap()
}

fn near(found: f64, by_hand: f64, digit: f64) {
    assert!((found - by_hand).abs() <= digit / 2.0, "{found} against {by_hand}");
}

#[test]
fn figures_of_qwen_7b_are_those_worked_out_by_hand() {
    let sft = seven(Work::Sft, &[]);
    near(sft.bytes("weights") as f64 / 1e9, 15.2, 0.1);
    near(sft.bytes("gradients") as f64 / 1e6, 161.0, 1.0);
    let training = &sft.floors[0];
    assert!(training.from.starts_with("31.40 GFLOP a token (linear 28.28, attention at 4096 2.88, LoRA 0.24)"));
    near(rate(&sft, "training") / 1e3, 25.2, 0.1);
    // 7.07B GEMM parameters, four times each
    near(28.28 / 4.0, 7.07, 0.01);
    // 2.98 MB is the bf16 part of what the layers keep: sums, qkv, o, gate and up. A layer has statistics in f32 beside it (28 of lse,
    // 2 of rstd) and 7 low-rank products of rank 16; the final norm, and what is passing (3 C + F), come once.
    let (layer, once) = (28 * 4 + 2 * 4 + 7 * 16 * 2, 2 * 3584 + 4 + 2 * (3 * 3584 + 18944));
    near((sft.kept_per_token - 28 * layer - once) as f64 / 1e6, 2.98, 0.01);

    let eval = seven(Work::Eval, &[]);
    near(rate(&eval, "decode, batch 1"), 299.0, 1.0);
    near(rate(&eval, "decode, batch 64"), 9433.0, 2.0);
    near(rate(&eval, "decode, batch 256"), 13_789.0, 2.0);
    // 28 layers of keys and values of 4 heads of 128 in bf16
    assert_eq!(eval.bytes("KV cache"), 65_536 * 28 * 2 * 4 * 128 * 2);

    // Whole blocks again: 2 of the 4 once more for all but the head, 3.5 becomes 4.5 for attention; 29 norms, a layer and what is passing
    // are kept.
    let again = seven(Work::Sft, &["recompute=blocks"]);
    assert!(again.floors[0].from.starts_with("45.35 GFLOP a token (linear 41.33, attention at 4096 3.70, LoRA 0.32)"));
    let layer = 2 * (4608 + 3584 + 2 * 18944 + 7 * 16) + 4 * 28 + 2 * 3584 + 4;
    assert_eq!(again.kept_per_token, layer + 29 * (2 * 3584 + 4) + 2 * (3 * 3584 + 18944));

    // In full: 6 P, and 4 + 4 + 8 bytes a parameter beside the frozen ones.
    let full = seven(Work::Sft, &["full=true"]);
    assert!(full.floors[0].from.contains("linear 42.42"), "{}", full.floors[0].from);
    assert_eq!(
        full.bytes("trained weights") + full.bytes("gradients") + full.bytes("optimizer moments"),
        16 * full.parameters
    );
}

/// An RL step again, each pass written out.
#[test]
fn the_floor_of_an_rl_step_is_the_sum_of_its_passes() {
    let shape = shapes::named("qwen2.5-7b").unwrap();
    let more = ["states=32", "samples=4", "epochs=2", "minibatches=2", "engine.cache_tokens=40000"].map(String::from);
    let config = Config::load(&[], &more, "rl").unwrap();
    let target = Target { prompt: Some(2000), reply: Some(500), ..Target::new(Work::Rl, Kind::H200) };
    let planned = plan(&shape, &config, target);
    let seconds = |what: &str| planned.floors.iter().find(|f| f.what == what).unwrap().seconds.unwrap();
    let (body, head, adapter) = (6_525_288_448.0, 544_997_376.0, 40_370_176.0);
    let pair = 4.0 * 3584.0 * 28.0;
    let (prompt, reply) = (2000.0, 500.0);
    let prefill = 2.0 * (body + adapter) * prompt + 2.0 * head + pair * prompt * prompt / 2.0;
    // A request takes 125 blocks and 4 x (157 - 125 + 1); 2500 blocks hold 9 of them.
    let batch = 36.0;
    let read = ((body + head) * 2.0 + adapter * 4.0) / 4.3e12;
    let decode = read + batch * (prompt + reply / 2.0) * 57_344.0 / 4.3e12;
    let generate = 32.0 * prefill / 790e12 + 128.0 / batch * reply * decode;
    near(seconds("generate") / generate, 1.0, 1e-9);
    let tokens = prompt + 4.0 * (reply - 1.0);
    let attention = pair * (prompt * prompt / 2.0 + 4.0 * (reply - 1.0) * (prompt + (reply - 1.0) / 2.0));
    let forward = 2.0 * (body + adapter) * tokens + attention;
    let both = (4.0 * body + 6.0 * adapter) * tokens + 3.5 * attention;
    let rows = 4.0 * reply * head;
    let passes = (forward + 2.0 * rows) + forward + 2.0 * ((both + 4.0 * rows) + both);
    let update = 32.0 * passes / 790e12 + 2.0 * 4.0 * adapter * 28.0 / 4.3e12;
    near(seconds("update") / update, 1.0, 1e-9);
    near(seconds("a step") / (generate + update), 1.0, 1e-9);
    assert!(planned.notes[0].starts_with("decoding runs 36 samples at once"), "{:?}", planned.notes);
}

#[test]
fn what_is_said_to_fit_fits_and_one_more_does_not() {
    let available = 80_000_000_000;
    let sft = |n: usize| seven(Work::Sft, &[&format!("micro_tokens={n}")]);
    let most = sft(16_384).fit(available).micro_tokens.unwrap();
    assert!(sft(most).check(available).is_ok() && sft(most + 1).check(available).is_err());
    let rl = |n: usize| seven(Work::Rl, &[&format!("engine.cache_tokens={n}")]);
    let most = rl(65_536).fit(available).cache_tokens.unwrap();
    assert!(most > 65_536 && most % 16 == 0);
    assert!(rl(most).check(available).is_ok() && rl(most + 1).check(available).is_err());

    let planned = sft(16_384);
    assert!(planned.check(planned.total).is_ok() && planned.check(planned.total - 1).is_err());
    // Nothing is trained, or nothing sampled: nothing to say.
    assert_eq!(seven(Work::Eval, &[]).fit(available).micro_tokens, None);
    assert_eq!(planned.fit(available).cache_tokens, None);
    // Not even one token.
    let fit = planned.fit(1 << 30);
    assert_eq!((fit.fits, fit.micro_tokens), (false, None));
}

#[test]
fn a_refusal_says_what_is_asked_what_is_there_and_what_would_fit() {
    let refused = |work, more: &[&str], available: usize, parts: &[&str]| {
        let error = seven(work, more).check(available).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        for part in parts {
            assert!(error.to_string().contains(part), "{error} lacks {part:?}");
        }
    };
    let most = seven(Work::Sft, &[]).fit(60_000_000_000).micro_tokens.unwrap();
    let way = format!("sft.micro_tokens={most} (now 16384)");
    let parts = ["7.62B", "asks 69.", "activations kept 50.10 GB", "there are 60.00 GB", &way, "qwen2.5-3b"];
    refused(Work::Sft, &["micro_tokens=16384"], 60_000_000_000, &parts);
    refused(Work::Sft, &["micro_tokens=16384"], 60_000_000_000, &["sft.recompute=blocks, slower by a forward"]);
    refused(
        Work::Rl,
        &["engine.cache_tokens=1000000"],
        80_000_000_000,
        &["engine.cache_tokens=", "(now 1000000)", "KV cache 57.34 GB"],
    );
    let both = ["engine.cache_tokens=1000000", "rl.micro_tokens=65536"];
    refused(Work::Rl, &both, 80_000_000_000, &["rl.micro_tokens=8192 (now 65536) with engine.cache_tokens="]);
    refused(Work::Sft, &["full=true"], 80_000_000_000, &["trained weights 30.46 GB", "sft.full=false"]);
    refused(Work::Sft, &[], 1 << 20, &["a device with more memory"]);

    // A long example is no reason to refuse, but to warn.
    let planned = seven(Work::Sft, &[]);
    assert!(planned.check(40_000_000_000).is_ok());
    assert!(planned.warning(40_000_000_000).unwrap().contains("up to 15,000 tokens"));
    assert_eq!(planned.warning(150_000_000_000), None);
}

#[test]
fn named_shapes_have_the_published_numbers_of_parameters() {
    let published = [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-14b", 14_770_033_664),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("llama3.1-8b", 8_030_261_248),
    ];
    assert_eq!(published.map(|(name, _)| name), shapes::NAMES);
    for (name, parameters) in published {
        let shape = shapes::named(name).unwrap();
        shape.validate().unwrap();
        let found: usize = parameter_shapes(&shape).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(found, parameters, "{name}");
        let path = std::path::Path::new("config.json");
        assert_eq!(ModelConfig::from_json(&shape.to_json("bfloat16"), path).unwrap(), shape, "{name}");
    }
}

#[test]
fn devices_are_known_by_their_names() {
    let kinds = ["NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"].map(Kind::of_gpu);
    assert_eq!(kinds, [Kind::H200, Kind::H100, Kind::Gpu]);
    let unknown = plan(&qwen2(), &settings(&[]), Target::new(Work::Sft, Kind::Gpu));
    assert!(unknown.table(None).contains("assumed: an H100's"), "{}", unknown.table(None));
}
