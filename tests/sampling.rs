//! What the engine draws follows the trainer's log-probabilities: greedy exactly; temperature, top-k and top-p by a chi-square test at
//! level 0.001 with fixed seeds, so that it passes or fails for ever.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::oracle::Oracle;
use onestep::batch::{self, Group, LossBatch};
use onestep::model::config::ModelConfig;
use onestep::model::{Activations, Model, Policy};
use onestep::rollout::{Engine, Request, Sample};
use onestep::rollout::{Sampling, Settings};
use onestep::tensor::DType;
use std::path::Path;

const V: usize = 23;
const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];
const SAMPLES: usize = 48;
const REQUESTS: usize = 60;

/// A model whose weights are large enough that its distributions are far from uniform.
fn model(backend: &dyn Backend) -> Model {
    let text = r#"{"model_type": "qwen2", "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 24, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": false}"#;
    let config = ModelConfig::from_json(text, Path::new("test")).unwrap();
    let mut model = Model::random(backend, config, 5, DType::F32).unwrap();
    for (name, tensor) in model.names.iter().zip(&mut model.weights) {
        let scale = if name.ends_with("norm.weight") { 1.0 } else { 18.0 };
        tensor.slice_mut::<f32>().iter_mut().for_each(|x| *x *= scale);
    }
    model
}

/// The trainer's log-probabilities of every token behind `prompt`.
fn scores(backend: &dyn Backend, model: &Model, prompt: &[u32], temperature: f32) -> Vec<f32> {
    let replies = (0..V as u32).map(|id| vec![id]).collect();
    let group = Group { prompt: prompt.to_vec(), replies };
    let batch = LossBatch::from_groups(backend, &model.config, &[group], false).unwrap();
    let policy = Policy { model, adapter: None };
    let scores = batch::forward(backend, policy, &batch, temperature, false, &mut Activations::default()).unwrap();
    backend.read(&scores.logp).unwrap()
}

/// Replies of two tokens.
fn generate(backend: &dyn Backend, model: &Model, sampling: &Sampling, requests: usize) -> Vec<Sample> {
    let settings = Settings { block_size: 4, cache_tokens: 2048, prefill_tokens: 64, max_running: 96, burst: 4 };
    let request = |i: usize| Request {
        prompt: PROMPT.to_vec(),
        samples: SAMPLES,
        seed: 11,
        stream: format!("draw {i}"),
        max_tokens: 2,
    };
    let requests: Vec<Request> = (0..requests).map(request).collect();
    let mut engine = Engine::new(backend, model, &settings).unwrap();
    let policy = Policy { model, adapter: None };
    engine.generate(policy, &requests, sampling, &[]).unwrap().concat()
}

/// Probabilities after top-k, then top-p: of the k most probable tokens the fewest that hold p of their probability.
fn kept(logp: &[f32], top_k: usize, top_p: f32) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logp.len()).collect();
    order.sort_by(|&a, &b| logp[b].total_cmp(&logp[a]));
    order.truncate(if top_k == 0 { logp.len() } else { top_k });
    let p = |id: usize| f64::from(logp[id]).exp();
    let whole: f64 = order.iter().map(|&id| p(id)).sum();
    let needed =
        (1..=order.len()).find(|&n| order[..n].iter().map(|&id| p(id)).sum::<f64>() >= f64::from(top_p) * whole);
    order.truncate(needed.unwrap_or(order.len()));
    let total: f64 = order.iter().map(|&id| p(id)).sum();
    (0..logp.len()).map(|id| if order.contains(&id) { p(id) / total } else { 0.0 }).collect()
}

/// Pearson's statistic below its 0.999 quantile (Wilson and Hilferty 1931); cells that expect fewer than 5 draws are taken together.
fn follows(what: &str, drawn: &[u32], probabilities: &[f64]) {
    let n = drawn.len() as f64;
    let (mut statistic, mut cells, mut rest) = (0.0, 0.0, (0.0, 0.0));
    for (id, &p) in probabilities.iter().enumerate() {
        let found = drawn.iter().filter(|&&d| d as usize == id).count() as f64;
        assert!(p > 0.0 || found == 0.0, "{what}: token {id} was drawn and has no probability");
        if n * p >= 5.0 {
            statistic += (found - n * p).powi(2) / (n * p);
            cells += 1.0;
        } else {
            rest = (rest.0 + found, rest.1 + n * p);
        }
    }
    if rest.1 > 0.0 {
        statistic += (rest.0 - rest.1).powi(2) / rest.1;
        cells += 1.0;
    }
    let freedom: f64 = cells - 1.0;
    if freedom == 0.0 {
        return; // one token is left, and all draws are it
    }
    let spread = 2.0 / (9.0 * freedom);
    let quantile = freedom * (1.0 - spread + 3.0902 * spread.sqrt()).powi(3);
    assert!(
        statistic < quantile,
        "{what}: chi-square {statistic:.1} of {freedom} degrees of freedom, limit {quantile:.1}"
    );
}

/// Engine and trainer agree: to the bit on the CPU, to f32's rounding on the oracle, which draws in f64 and scores in f32.
fn recorded(backend: &dyn Backend, what: &str, engine: f32, trainer: f32) {
    let allowed = if backend.name() == "cpu" { 0.0 } else { 1e-5 };
    assert!((engine - trainer).abs() <= allowed, "{}, {what}: {engine} against {trainer}", backend.name());
}

fn check(backend: &dyn Backend, requests: usize) {
    let model = model(backend);
    for (temperature, top_k, top_p) in [
        (1.0, 0, 1.0),
        (0.6, 0, 1.0),
        (1.7, 0, 1.0),
        (1.0, 4, 1.0),
        (1.0, 1, 1.0),
        (1.3, 0, 0.8),
        (0.8, 6, 0.9),
        (1.0, 2, 0.3),
    ] {
        let sampling = Sampling { temperature, top_p, top_k, max_tokens: 2 };
        let what = format!("{}, temperature {temperature}, top-k {top_k}, top-p {top_p}", backend.name());
        let samples = generate(backend, &model, &sampling, requests);
        assert_eq!(samples.len(), requests * SAMPLES);
        let logp = scores(backend, &model, &PROMPT, temperature);
        let first: Vec<u32> = samples.iter().map(|s| s.ids[0]).collect();
        follows(&what, &first, &kept(&logp, top_k as usize, top_p));
        // The most frequent first token's successors, which the cache and the counter of the stream are part of.
        let usual = *first.iter().max_by_key(|&&id| first.iter().filter(|&&d| d == id).count()).unwrap();
        let after = scores(backend, &model, &[&PROMPT[..], &[usual]].concat(), temperature);
        let second: Vec<u32> = samples.iter().filter(|s| s.ids[0] == usual).map(|s| s.ids[1]).collect();
        follows(&format!("{what}, second token"), &second, &kept(&after, top_k as usize, top_p));
        for sample in &samples {
            // What is recorded is the log-probability before top-k and top-p.
            recorded(backend, &what, sample.logprobs[0], logp[sample.ids[0] as usize]);
        }
    }
}

#[test]
fn draws_follow_the_log_probabilities() {
    check(&Cpu, REQUESTS);
    check(&Oracle::f32(), REQUESTS / 6);
}

#[test]
fn greedy_takes_the_most_probable_token() {
    for backend in [&Cpu as &dyn Backend, &Oracle::f32()] {
        let model = model(backend);
        let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, max_tokens: 2 };
        let mut prompt = PROMPT.to_vec();
        let samples = generate(backend, &model, &greedy, 2);
        for place in 0..2 {
            let logp = scores(backend, &model, &prompt, 1.0);
            let best = (0..V).max_by(|&a, &b| logp[a].total_cmp(&logp[b])).unwrap();
            for sample in &samples {
                assert_eq!(sample.ids[place], best as u32, "{}", backend.name());
                recorded(backend, "greedy", sample.logprobs[place], logp[best]);
            }
            prompt.push(best as u32);
        }
    }
}
