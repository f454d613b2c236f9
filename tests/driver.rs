//! The driver layer as a `Device`, on the stand-ins of NVIDIA's libraries (tests/simt/libraries): who has which memory, what a recording
//! holds, which algorithms are chosen. `unsafe` here: the environment before anything reads it, and functions of the stand-ins.
#![allow(clippy::unwrap_used)]

#[path = "common/libraries.rs"]
mod libraries;

use libloading::Library;
use libraries::{ROOT, cache, libraries};
use onestep::backend::Backend;
use onestep::backend::cuda::Cuda;
use onestep::backend::cuda::device::{Device, Gemm, Matrix};
use onestep::backend::cuda::driver::{Gpu, Options};
use onestep::backend::ops::{self, Sampling};
use onestep::model::config::ModelConfig;
use onestep::model::kv_cache::{BlockManager, KvCache, PagedPlan};
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{
    Activations, Batch, Gradients, Model, Policy, Segment, backward, forward, forward_paged, index_tensor, shapes,
};
use onestep::rng::Philox;
use onestep::rollout::Settings;
use onestep::rollout::{Engine, Request, recording_bytes};
use onestep::tensor::{DType, Tensor};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// The stand-ins count for all threads of a process and record one stream: one test at a time. The first one opens the libraries.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    LazyLock::force(&STAND_INS);
    guard
}

struct StandIns {
    driver: Library,
    gemms: Library,
}

static STAND_INS: LazyLock<StandIns> = LazyLock::new(|| {
    let folder = libraries();
    // SAFETY: the other tests of this process wait for `alone`, and nothing else reads the environment now.
    unsafe {
        std::env::set_var("LD_LIBRARY_PATH", folder);
        std::env::set_var("SIMT_INCLUDE", Path::new(ROOT).join("tests/simt"));
    }
    // SAFETY: the libraries were compiled from this repository's sources; their initialisers ask nothing.
    let open = |name: &str| unsafe { Library::new(folder.join(name)) }.unwrap();
    StandIns { driver: open("libcuda.so.1"), gemms: open("libcublasLt.so.13") }
});

/// A count of the stand-ins, or what else a function of no arguments does.
fn ask(library: &Library, name: &str) -> i64 {
    // SAFETY: every simt_ function that is asked here takes nothing; what gives nothing leaves a number nobody looks at.
    unsafe { library.get::<unsafe extern "C" fn() -> i64>(name.as_bytes()).unwrap()() }
}

fn graphs() -> i64 {
    ask(&STAND_INS.driver, "simt_graphs")
}

fn options() -> Options {
    Options {
        ordinal: 0,
        memory: 0.9,
        kernels: cache().join("onestep/kernels"),
        gemms: None,
        fixed_gemms: false,
        check_each: false,
        separate_allocations: false,
    }
}

fn open(options: &Options) -> Arc<Gpu> {
    Arc::new(Gpu::open(options).unwrap())
}

fn used(gpu: &Gpu) -> usize {
    let (free, total) = gpu.memory().unwrap();
    total - free
}

#[test]
fn a_recording_takes_again_what_it_freed_and_computes_the_same() {
    let _alone = alone();
    let gpu = open(&options());
    let be = Cuda::new(gpu.clone());
    let n = 1 << 18;
    let numbers: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let put = |values: &[f32]| {
        let mut tensor = be.alloc(&[values.len()], DType::F32).unwrap();
        be.write(&mut tensor, &Tensor::from_slice(&[values.len()], values)).unwrap();
        tensor
    };
    let (x, mut y, mut z) = (put(&numbers), put(&[0.0]), be.alloc(&[n], DType::F32).unwrap());
    let before = used(&gpu);
    let mut addresses = vec![];
    let recording = be
        .record(&mut || {
            // x through a temporary into z; then the same memory full of sevens, of which y gets one.
            for step in 0..50 {
                let mut temporary = be.alloc(&[n], DType::F32)?;
                addresses.push(temporary.device_address().unwrap());
                if step % 2 == 0 {
                    be.copy(&x, &mut temporary)?;
                    be.copy(&temporary, &mut z)?;
                } else {
                    be.fill(&mut temporary, 7.0)?;
                    let first = Tensor::on_device(&[1], DType::F32, gpu.alloc(4)?);
                    gpu.copy(temporary.device_address().unwrap(), first.device_address().unwrap(), 4)?;
                    be.copy(&first, &mut y)?;
                }
            }
            // Another thread's memory is none of the recording's, or its replays would write there.
            let of_another = std::thread::scope(|s| s.spawn(|| gpu.alloc(4 * n)).join().unwrap())?;
            assert!(addresses.iter().all(|&own| own.abs_diff(of_another.address()) >= 4 * n as u64));
            Ok(())
        })
        .unwrap()
        .unwrap();
    assert!(addresses.iter().all(|&address| address == addresses[0]), "{addresses:x?}");
    let held = used(&gpu) - before;
    assert!(
        (4 * n..4 * n + 8192).contains(&(held - 4 * n)),
        "{held} bytes are held: the temporaries, and the other thread's"
    );
    assert!(recording.bytes() >= held, "{} of {held}", recording.bytes());
    for _ in 0..2 {
        recording.replay().unwrap();
        assert_eq!((be.read(&z).unwrap(), be.read(&y).unwrap()), (numbers.clone(), vec![7.0]));
        be.fill(&mut z, 1.0).unwrap();
    }
    drop(recording);
    assert_eq!(used(&gpu), before);
}

#[test]
fn a_graph_dropped_by_another_thread_is_destroyed() {
    let _alone = alone();
    let gpu = open(&options());
    let be = Cuda::new(gpu.clone());
    let mut x = be.alloc(&[64], DType::F32).unwrap();
    let (living, before) = (graphs(), used(&gpu));
    let recording = be.record(&mut || be.fill(&mut x, 1.0)).unwrap().unwrap();
    assert_eq!(graphs(), living + 1);
    // A thread that never used the GPU.
    std::thread::spawn(move || drop(recording)).join().unwrap();
    assert_eq!((graphs(), used(&gpu)), (living, before));
    // One that fails leaves nothing either.
    let failed = be.record(&mut || be.read(&x).map(drop));
    assert!(failed.is_err());
    assert_eq!((graphs(), used(&gpu)), (living, before));
}

/// What a burst of the 7B shape works on: B sequences of `context` tokens, decoded by one under an adapter.
#[test]
fn a_recorded_burst_of_a_large_model_holds_less_than_half_a_gigabyte() {
    const B: usize = 256;
    const CONTEXT: usize = 4096;
    const BLOCK: usize = 16;
    let _alone = alone();
    ask(&STAND_INS.driver, "simt_idle");
    let be = Cuda::new(open(&options()));
    let config = shapes::named("qwen2.5-7b").unwrap();
    let model = Model::new(&be, config.clone(), &mut |_, shape| be.alloc(shape, DType::BF16)).unwrap();
    let lora = LoraConfig { rank: 16, alpha: 32.0, rslora: false, modules: Module::ALL.to_vec() };
    let adapter = Adapter::new(&be, &config, lora, &mut Philox::new(1, 0)).unwrap();
    let policy = Policy { model: &model, adapter: Some(&adapter) };
    let pages = CONTEXT / BLOCK;
    let mut cache = KvCache::new(&be, &config, B * pages, BLOCK).unwrap();
    let mut blocks = BlockManager::new(B * pages, BLOCK);
    let sequences: Vec<_> = (0..B).map(|_| blocks.allocate(CONTEXT).unwrap()).collect();
    let starts: Vec<_> = sequences.iter().map(|s| (s, CONTEXT - 8..CONTEXT - 7)).collect();
    let mut plan = PagedPlan::new(&be, &starts, &[], pages).unwrap();
    let mut ids = index_tensor(&be, &[B], &[0; B]).unwrap();
    let mut counter = index_tensor(&be, &[B], &[0; B]).unwrap();
    let top_k = index_tensor(&be, &[B], &[0; B]).unwrap();
    let seed = index_tensor(&be, &[B, 2], &[0; 2 * B]).unwrap();
    let [ones, mut logp] = [1.0, 0.0].map(|value| {
        let mut tensor = be.alloc(&[B], DType::F32).unwrap();
        be.fill(&mut tensor, value).unwrap();
        tensor
    });
    let mut logits = be.alloc(&[B, config.vocab], DType::F32).unwrap();
    let mut acts = Activations::default();
    // The first pass fits the buffers; the second is what is recorded.
    forward_paged(&be, policy, &ids, &mut cache, &plan, &mut acts).unwrap();
    ops::Logits { x: acts.hidden(), w: model.lm_head(), out: &mut logits }.run(&be).unwrap();
    let recording = be
        .record(&mut || {
            for _ in 0..8 {
                forward_paged(&be, policy, &ids, &mut cache, &plan, &mut acts)?;
                ops::Logits { x: acts.hidden(), w: model.lm_head(), out: &mut logits }.run(&be)?;
                let sampling =
                    Sampling { temperature: &ones, top_p: &ones, top_k: &top_k, seed: &seed, counter: &counter };
                ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(&be)?;
                let table = &plan.block_table;
                ops::Advance {
                    block_size: BLOCK,
                    block_table: table,
                    positions: &mut plan.positions,
                    lens: &mut plan.lens,
                    slots: &mut plan.slots,
                    counter: &mut counter,
                }
                .run(&be)?;
            }
            Ok(())
        })
        .unwrap()
        .unwrap();
    // Split attention's part of it, once: (B, NH, tiles of 128 keys, HS + 2) in f32.
    let tiles = B * 28 * (CONTEXT / 128) * 130 * 4;
    assert!(recording.bytes() > tiles && recording.bytes() < 500_000_000, "{} bytes", recording.bytes());
}

/// (M, 24) = a (M, 40) b (24, 40)^T in bf16, its values from `draw`.
struct Product {
    a: Tensor,
    b: Tensor,
    c: Tensor,
}

const N: usize = 24;
const K: usize = 40;

impl Product {
    fn new(be: &Cuda, m: usize) -> Self {
        let draw = |rows: usize, seed: u64| {
            let mut random = Philox::new(seed, rows as u64);
            let values: Vec<f32> = (0..rows * K).map(|_| random.below(5) as f32 - 2.0).collect();
            let mut tensor = be.alloc(&[rows, K], DType::BF16).unwrap();
            be.write(&mut tensor, &Tensor::from_slice(&[rows, K], &values)).unwrap();
            tensor
        };
        Self { a: draw(m, 1), b: draw(N, 2), c: be.alloc(&[m, N], DType::F32).unwrap() }
    }

    fn run(&self, gpu: &Gpu) {
        let matrix =
            |t: &Tensor| Matrix { address: t.device_address().unwrap(), stride: t.columns(), dtype: t.dtype() };
        let (a, b, c, m) = (matrix(&self.a), matrix(&self.b), matrix(&self.c), self.a.rows());
        let g = Gemm { m, n: N, k: K, a, transpose_a: false, b, transpose_b: true, c, alpha: 1.0, beta: 0.0 };
        assert!(gpu.gemm(&g).unwrap());
    }

    /// Whole numbers: exact in f32.
    fn is_right(&self, be: &Cuda) -> bool {
        let [a, b, c] = [&self.a, &self.b, &self.c].map(|t| be.read(t).unwrap());
        let dot = |i: usize, j: usize| (0..K).map(|l| a[i * K + l] * b[j * K + l]).sum::<f32>();
        (0..self.a.rows()).all(|i| (0..N).all(|j| c[i * N + j] == dot(i, j)))
    }
}

/// Runs products of `rows` rows each on a fresh GPU; returns how many products were timed.
fn timed(options: &Options, rows: &[usize], keeps: bool) -> i64 {
    let gpu = open(options);
    let be = Cuda::new(gpu.clone());
    let before = ask(&STAND_INS.gemms, "simt_products");
    for &m in rows {
        let product = Product::new(&be, m);
        product.run(&gpu);
        assert!(product.is_right(&be), "{m} rows");
    }
    if keeps {
        be.keep_choices().unwrap();
    }
    ask(&STAND_INS.gemms, "simt_products") - before - rows.len() as i64
}

#[test]
fn an_algorithm_is_chosen_once_for_ragged_batches_and_again_where_it_cannot_serve() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gemms.json");
    let kept = Options { gemms: Some(file.clone()), ..options() };
    // Two algorithms, each run once and timed three times, for each of the classes up to 64, up to 256 and up to 512 tokens. The fast one
    // does no odd number of rows: there the library's first serves.
    let ragged = [130, 64, 62, 61, 140, 131, 256, 254, 255, 300, 77, 257, 512];
    assert_eq!(timed(&kept, &ragged, false), 3 * 2 * 4);
    assert!(!file.exists(), "written before the end of a step");
    assert_eq!(timed(&kept, &ragged, true), 3 * 2 * 4);
    let written = std::fs::read_to_string(&file).unwrap();
    let choices: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(choices["algorithms"].as_object().unwrap().len(), 3, "{written}");

    // A resumed run times nothing of what is there, and does not write what it has not changed.
    assert_eq!(timed(&kept, &[66, 250, 63, 20, 400], true), 0);
    std::fs::remove_file(&file).unwrap();
    let gpu = open(&kept);
    Product::new(&Cuda::new(gpu.clone()), 100).run(&gpu);
    gpu.keep_choices().unwrap();
    let first = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    gpu.keep_choices().unwrap();
    assert!(!file.exists(), "written without a new choice");
    // Choices by another rule are made again.
    let text = String::from_utf8(first).unwrap().replace("\"rule\": 1", "\"rule\": 0");
    std::fs::write(&file, text).unwrap();
    assert_eq!(timed(&kept, &[100], false), 2 * 4);

    // Fixed: nothing timed, nothing kept.
    std::fs::remove_file(&file).unwrap();
    let fixed = Options { fixed_gemms: true, ..kept };
    assert_eq!(timed(&fixed, &ragged, true), 0);
    assert!(!file.exists());
}

#[test]
fn tensors_can_have_allocations_of_their_own() {
    let _alone = alone();
    let allocations = || ask(&STAND_INS.driver, "simt_allocations");
    let before = allocations();
    let gpu = open(&Options { separate_allocations: true, ..options() });
    let be = Cuda::new(gpu.clone());
    assert_eq!(allocations(), before, "no arena");
    let values: Vec<f32> = (0..100).map(|i| i as f32).collect();
    let mut tensors: Vec<Tensor> = (0..3).map(|_| be.alloc(&[100], DType::F32).unwrap()).collect();
    assert_eq!((allocations(), used(&gpu)), (before + 3, 3 * 512));
    be.write(&mut tensors[1], &Tensor::from_slice(&[100], &values)).unwrap();
    assert_eq!(be.read(&tensors[1]).unwrap(), values);
    // A thread that never used the GPU may drop the last one.
    let last = tensors.pop();
    std::thread::spawn(move || drop(last)).join().unwrap();
    drop(tensors);
    assert_eq!((allocations(), used(&gpu)), (before, 0));
    assert!(!be.records() && be.record(&mut || Ok(())).is_err(), "a recording needs an arena");
}

/// Samples that end one after the other, so that bursts of fewer and fewer rows are recorded.
#[test]
fn an_engines_recordings_stay_within_their_bytes() {
    const CONTEXT: usize = 16_384;
    let _alone = alone();
    ask(&STAND_INS.driver, "simt_idle");
    let gpu = open(&options());
    let be = Cuda::new(gpu.clone());
    // Few layers and channels: what attention gives for its tiles is that of the 7B shape.
    let seven = shapes::named("qwen2.5-7b").unwrap();
    let config = ModelConfig { layers: 2, hidden: 64, mlp: 64, vocab: 64, ..seven };
    let model = Model::new(&be, config, &mut |_, shape| be.alloc(shape, DType::BF16)).unwrap();
    let cache_tokens = 256 * (CONTEXT + 16);
    let settings = Settings { block_size: 16, cache_tokens, prefill_tokens: CONTEXT, max_running: 256, burst: 8 };
    let mut engine = Engine::new(&be, &model, &settings).unwrap();
    let request = |i: usize| Request {
        prompt: vec![1; CONTEXT - 2100],
        samples: 1,
        seed: 0,
        stream: format!("{i}"),
        max_tokens: 8 * (i + 1),
    };
    let requests: Vec<Request> = (0..256).map(request).collect();
    let sampling = onestep::rollout::Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, max_tokens: 2048 };
    let policy = Policy { model: &model, adapter: None };
    // Buffers of prefills are there before it is counted.
    engine.generate(policy, &requests[..1], &sampling, &[]).unwrap();
    let before = used(&gpu);
    let replies = engine.generate(policy, &requests, &sampling, &[]).unwrap();
    assert!(replies.iter().zip(&requests).all(|(reply, request)| reply[0].ids.len() == request.max_tokens));
    let one = 256 * 28 * (CONTEXT / 128) * 130 * 4;
    let held = used(&gpu) - before;
    assert!(held > one, "{held}: nothing was recorded");
    assert!(held < recording_bytes(usize::MAX) + one + (200 << 20), "{held} bytes are held");
}

#[test]
fn the_callers_bytes_have_been_read_when_an_upload_returns() {
    let _alone = alone();
    let gpu = open(&options());
    // More than the ring has, in copies of all sizes; the stand-in reads the host as late as it may.
    let sizes = [1usize, 3, 4096, 9 << 20, 70 << 20, 257, 31 << 20, 0, 5];
    let uploads: Vec<(usize, Tensor)> = sizes
        .iter()
        .enumerate()
        .map(|(i, &bytes)| {
            let tensor = Tensor::on_device(&[bytes], DType::BF16, gpu.alloc(2 * bytes).unwrap());
            let mut values: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251 + i) as u8).collect();
            gpu.upload(tensor.device_address().unwrap(), &values).unwrap();
            values.fill(0xaa);
            (i, tensor)
        })
        .collect();
    // Many small ones, as batches have them.
    let many = gpu.alloc(1 << 20).unwrap();
    for at in 0..4096u64 {
        let mut bytes = [at as u8; 256];
        gpu.upload(many.address() + 256 * at, &bytes).unwrap();
        bytes.fill(0xaa);
        std::hint::black_box(&bytes);
    }
    for (i, tensor) in uploads {
        let copy = tensor.host_copy().unwrap().unwrap();
        let found = &copy.as_bytes()[..tensor.len()];
        let wrong = found.iter().enumerate().position(|(at, &byte)| byte != (at * 7 + at / 251 + i) as u8);
        assert_eq!(wrong, None, "upload {i}, of {} bytes", tensor.len());
    }
    let mut found = vec![0; 1 << 20];
    many.download(&mut found).unwrap();
    assert!(found.iter().enumerate().all(|(at, &byte)| byte == (at / 256) as u8));
}

#[test]
fn activations_are_made_once_and_not_filled() {
    let _alone = alone();
    let gpu = open(&options());
    let be = Cuda::new(gpu.clone());
    let json = std::fs::read_to_string(Path::new(ROOT).join("weights/quickstart/config.json")).unwrap();
    let config = ModelConfig::from_json(&json, Path::new("config.json")).unwrap();
    let model = Model::random(&be, config.clone(), 3, DType::BF16).unwrap();
    let lora = LoraConfig { rank: 4, alpha: 8.0, rslora: false, modules: Module::ALL.to_vec() };
    let adapter = Adapter::new(&be, &config, lora, &mut Philox::new(1, 0)).unwrap();
    let policy = Policy { model: &model, adapter: Some(&adapter) };
    let mut grads = Gradients::new(&be, policy, false).unwrap();
    let mut pass = |tokens: usize, acts: &mut Activations| -> Vec<f32> {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 13 % 500).collect();
        let segment = Segment { ids: &ids, start_position: 0, parent: None };
        let batch = Batch::new(&be, &config, &[segment]).unwrap();
        grads.zero(&be).unwrap();
        let before = (acts.bytes(), ask(&STAND_INS.driver, "simt_filled"));
        forward(&be, policy, &batch, true, acts).unwrap();
        let filled = ask(&STAND_INS.driver, "simt_filled") - before.1;
        // The segments of a batch are counted from zero.
        assert!(filled <= 64, "a forward of {tokens} tokens filled {filled} bytes");
        let hidden = be.read(acts.hidden()).unwrap();
        let mut dhidden = be.alloc(&[tokens, config.hidden], DType::BF16).unwrap();
        be.fill(&mut dhidden, 0.5).unwrap();
        backward(&be, policy, &batch, acts, &dhidden, &mut grads).unwrap();
        let found = grads.adapter.iter().flatten().flat_map(|grad| be.read(grad).unwrap());
        hidden.into_iter().chain(found).collect()
    };
    let mut acts = Activations::default().with_room(40);
    let mut sizes = vec![];
    for tokens in [17, 40, 9, 33] {
        let found = pass(tokens, &mut acts);
        sizes.push((acts.bytes(), used(&gpu)));
        assert_eq!(found, pass(tokens, &mut Activations::default()), "{tokens} tokens");
    }
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
}
