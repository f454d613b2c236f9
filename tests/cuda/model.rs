//! Whole models on the emulated GPU: loss and gradients against f64, and sampling in recorded bursts.

use crate::simt::Order;
use crate::support::{error, gpu};
use onestep::backend::Backend;
use onestep::backend::oracle::Oracle;
use onestep::batch::{self, Group, LossBatch};
use onestep::bench::plain::Plain;
use onestep::model::config::ModelConfig;
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{Activations, Gradients, Model, Policy};
use onestep::rng::Philox;
use onestep::rollout::{Engine, Request, Sample};
use onestep::rollout::{Sampling, Settings};
use onestep::sft::cross_entropy;
use onestep::tensor::{DType, Tensor};
use std::path::Path;

const QWEN2: &str = r#"{"model_type": "qwen2", "vocab_size": 101, "hidden_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 72, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": true}"#;
const QWEN3: &str = r#"{"model_type": "qwen3", "vocab_size": 89, "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 96, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": false}"#;

/// A model with bf16 weights, fifteen times as large as a fresh one's, so that attention and entropies are not all but uniform.
fn model(be: &dyn Backend, text: &str) -> Model {
    let config = ModelConfig::from_json(text, Path::new("test")).unwrap();
    let drawn = Model::random(&Oracle::f32(), config.clone(), 3, DType::F32).unwrap();
    Model::new(be, config, &mut |name, shape| {
        let place = drawn.names.iter().position(|drawn| drawn == name).unwrap();
        let tensor = &drawn.weights[place];
        assert_eq!(tensor.shape(), shape);
        let scale = if name.ends_with("norm.weight") { 1.0 } else { 15.0 };
        let values: Vec<half::bf16> = tensor.slice::<f32>().iter().map(|x| half::bf16::from_f32(x * scale)).collect();
        be.place(Tensor::from_slice(shape, &values))
    })
    .unwrap()
}

/// An adapter whose B is not zero.
fn adapter(be: &dyn Backend, config: &ModelConfig) -> Adapter {
    let lora = LoraConfig { rank: 4, alpha: 8.0, rslora: false, modules: Module::ALL.to_vec() };
    let mut random = Philox::new(5, 0);
    let mut adapter = Adapter::new(be, config, lora, &mut random).unwrap();
    for tensor in &mut adapter.tensors {
        let values: Vec<f32> =
            (0..tensor.len()).map(|_| half::bf16::from_f32(random.normal() as f32 * 0.1).to_f32()).collect();
        be.write(tensor, &Tensor::from_slice(tensor.shape(), &values)).unwrap();
    }
    adapter
}

fn groups(vocab: u32) -> Vec<Group> {
    let ids = |n: u32, by: u32| (0..n).map(|i| (i * by + n) % vocab).collect::<Vec<u32>>();
    vec![
        Group { prompt: ids(11, 7), replies: vec![ids(5, 3), ids(1, 2), ids(9, 5)] },
        Group { prompt: ids(3, 13), replies: vec![ids(4, 11)] },
    ]
}

fn wide(be: &dyn Backend, tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => tensor.slice::<f64>().to_vec(),
        _ => be.read(tensor).unwrap().into_iter().map(f64::from).collect(),
    }
}

/// Log-probabilities, loss and gradients: of the adapter, and of all weights with `full`.
fn pass(be: &dyn Backend, text: &str, full: bool) -> Vec<Vec<f64>> {
    let (base, groups) = (model(be, text), groups(80));
    let adapter = adapter(be, &base.config);
    let trained = full.then(|| base.widen(be).unwrap());
    let policy = match &trained {
        Some(model) => Policy { model, adapter: None },
        None => Policy { model: &base, adapter: Some(&adapter) },
    };
    let batch = LossBatch::from_groups(be, &base.config, &groups, true).unwrap();
    let mut acts = Activations::default();
    let scores = batch::forward(be, policy, &batch, 0.7, false, &mut acts).unwrap();
    let mut grads = Gradients::new(be, policy, full).unwrap();
    let loss = cross_entropy(be, policy, &batch, 1.0 / 30.0, &mut acts, Some(&mut grads)).unwrap();
    let mut all = vec![wide(be, &scores.logp), wide(be, &scores.entropy), vec![loss]];
    let lists = [grads.adapter, grads.weights];
    all.extend(lists.iter().flatten().flatten().map(|tensor| wide(be, tensor)));
    all
}

#[test]
fn loss_and_gradients_are_as_exact_as_bf16_allows() {
    for (name, text) in [("qwen2", QWEN2), ("qwen3", QWEN3)] {
        for full in [false, true] {
            let (exact, plain) = (pass(&Oracle::f64(), text, full), pass(&Plain::new(), text, full));
            for (order, has_gemm) in [(Order::Forward, true), (Order::Random, false)] {
                let found = pass(&gpu(order, 3, has_gemm), text, full);
                assert_eq!(found.len(), exact.len());
                // The yardstick of all tensors of one kind together: a single one may be lucky.
                let mut worst = (0.0f64, 0.0f64);
                for ((found, exact), plain) in found.iter().zip(&exact).zip(&plain) {
                    let largest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                    assert!(largest > 0.0 && found.iter().all(|x| x.is_finite()));
                    let (ours, theirs) = (error(found, exact) / largest, error(plain, exact) / largest);
                    worst = (worst.0.max(ours), worst.1.max(theirs));
                }
                assert!(
                    worst.0 <= 2.0 * worst.1,
                    "{name}, full {full}, {order:?}: off by {:e}, a plain bf16 computation by {:e}",
                    worst.0,
                    worst.1
                );
            }
        }
    }
}

/// A few samples of each prompt, of other lengths.
fn requests() -> Vec<Request> {
    let request = |(i, group): (usize, Group)| Request {
        prompt: group.prompt,
        samples: 2 + i,
        seed: 1,
        stream: format!("{i}"),
        max_tokens: 9 - 2 * i,
    };
    groups(80).into_iter().enumerate().map(request).collect()
}

fn generate(be: &dyn Backend, base: &Model, adapter: &Adapter, burst: usize, rounds: usize) -> Vec<Vec<Sample>> {
    let settings = Settings { block_size: 8, cache_tokens: 1024, prefill_tokens: 64, max_running: 16, burst };
    let sampling = Sampling { temperature: 0.7, top_p: 1.0, top_k: 0, max_tokens: 9 };
    let requests = requests();
    let mut engine = Engine::new(be, base, &settings).unwrap();
    let policy = Policy { model: base, adapter: Some(adapter) };
    let samples = engine.generate(policy, &requests, &sampling, &[7, 9]).unwrap();
    for _ in 1..rounds {
        assert_eq!(
            engine.generate(policy, &requests, &sampling, &[7, 9]).unwrap(),
            samples,
            "a replay samples the same"
        );
    }
    samples
}

#[test]
fn recorded_bursts_sample_what_single_steps_sample_and_the_trainer_scores() {
    let be = gpu(Order::Forward, 0, false);
    let base = model(&be, QWEN2);
    let adapter = adapter(&be, &base.config);
    let single = generate(&be, &base, &adapter, 1, 1);
    // Three rounds: the first runs op by op, the second records and replays, the third replays.
    assert_eq!(generate(&be, &base, &adapter, 4, 3), single);
    let groups: Vec<Group> = groups(80)
        .into_iter()
        .zip(&single)
        .map(|(g, s)| Group { prompt: g.prompt, replies: s.iter().map(|s| s.ids.clone()).collect() })
        .collect();
    let recorded: Vec<f64> = single.iter().flatten().flat_map(|s| s.logprobs.iter().map(|&l| l.into())).collect();
    let [trained, exact, plain] = [&be as &dyn Backend, &Oracle::f64(), &Plain::new()].map(|be| scored(be, &groups));
    // Engine and trainer order their sums differently, and each may be as far from exact as a plain bf16 computation.
    let (gauge, bound) = (mean_difference(&recorded, &trained), 2.0 * mean_difference(&plain, &exact));
    assert!(gauge <= bound, "engine and trainer differ by {gauge} a token, allowed {bound}");
}

#[test]
fn one_engine_serves_an_adapter_and_the_base_in_turns() {
    let be = gpu(Order::Forward, 0, false);
    let base = model(&be, QWEN2);
    let adapter = adapter(&be, &base.config);
    let settings = Settings { block_size: 8, cache_tokens: 1024, prefill_tokens: 64, max_running: 16, burst: 4 };
    let sampling = Sampling { temperature: 0.7, top_p: 1.0, top_k: 0, max_tokens: 9 };
    let requests = requests();
    let mut engine = Engine::new(&be, &base, &settings).unwrap();
    // The same rows, in turns. The second turn of either is recorded, later ones are replayed. The base's first turn, op by op, must leave the
    // adapter's recording the memory that it works in; so must the turn that is recorded.
    let mut first: [Option<Vec<Vec<Sample>>>; 2] = [None, None];
    for is_base in [false, false, true, false, true, false, true] {
        let policy = Policy { model: &base, adapter: (!is_base).then_some(&adapter) };
        let samples = engine.generate(policy, &requests, &sampling, &[7, 9]).unwrap();
        let first = first[usize::from(is_base)].get_or_insert_with(|| samples.clone());
        assert_eq!(*first, samples, "base: {is_base}");
    }
    assert_ne!(first[0], first[1], "the adapter changes nothing, and shows nothing");
}

/// The trainer's log-probabilities of the replies.
fn scored(be: &dyn Backend, groups: &[Group]) -> Vec<f64> {
    let base = model(be, QWEN2);
    let adapter = adapter(be, &base.config);
    let batch = LossBatch::from_groups(be, &base.config, groups, false).unwrap();
    let policy = Policy { model: &base, adapter: Some(&adapter) };
    wide(be, &batch::forward(be, policy, &batch, 0.7, false, &mut Activations::default()).unwrap().logp)
}

fn mean_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}
