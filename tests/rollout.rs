//! The engine: a sample depends on its request and its stream, never on what else is in the batch or on the cache's size; what
//! it records is what the trainer computes.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::oracle::Oracle;
use onestep::batch::{self, Group, LossBatch};
use onestep::config::{Engine as Settings, Sampling};
use onestep::model::config::ModelConfig;
use onestep::model::{Activations, Model, Policy};
use onestep::rollout::{Engine, Request, Sample};
use onestep::tensor::DType;
use std::path::Path;

fn model(backend: &dyn Backend) -> Model {
    let text = r#"{"model_type": "qwen2", "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": true}"#;
    Model::random(backend, ModelConfig::from_json(text, Path::new("test")).unwrap(), 5, DType::F32).unwrap()
}

const ROOMY: Settings = Settings { block_size: 4, cache_tokens: 4096, prefill_tokens: 512, max_running: 64, burst: 4 };
const SAMPLING: Sampling = Sampling { temperature: 0.7, top_p: 1.0, top_k: 0, max_tokens: 12 };
const STOP: [u32; 1] = [7];

fn requests() -> Vec<Request> {
    let prompt = |n: u32| (0..n).map(|i| (i * 13 + n) % 61).collect();
    let one = |(i, n): (usize, &u32)| Request {
        prompt: prompt(*n),
        samples: 1 + i % 4,
        seed: 3,
        stream: format!("request {i}"),
        max_tokens: 3 + 2 * i,
    };
    [1, 4, 9, 16, 5, 23].iter().enumerate().map(one).collect()
}

fn generate(backend: &dyn Backend, model: &Model, settings: &Settings, requests: &[Request]) -> Vec<Vec<Sample>> {
    let policy = Policy { model, adapter: None };
    let mut engine = Engine::new(backend, model, settings).unwrap();
    let first = engine.generate(policy, requests, &SAMPLING, &STOP).unwrap();
    assert_eq!(engine.generate(policy, requests, &SAMPLING, &STOP).unwrap(), first, "a used engine samples the same");
    first
}

#[test]
fn a_sample_does_not_depend_on_its_batch_or_the_cache() {
    for backend in [&Cpu as &dyn Backend, &Oracle::f32()] {
        let (model, requests) = (model(backend), requests());
        let together = generate(backend, &model, &ROOMY, &requests);
        let alone: Vec<Vec<Sample>> =
            requests.iter().map(|r| generate(backend, &model, &ROOMY, std::slice::from_ref(r)).remove(0)).collect();
        assert_eq!(together, alone, "{}", backend.name());
        let tight = Settings { block_size: 3, cache_tokens: 72, prefill_tokens: 8, max_running: 4, burst: 2 };
        assert_eq!(generate(backend, &model, &tight, &requests), together, "{}", backend.name());
        for (request, samples) in requests.iter().zip(&together) {
            assert_eq!(samples.len(), request.samples);
            for sample in samples {
                let ended = sample.ids.iter().position(|id| STOP.contains(id)).map_or(request.max_tokens, |at| at + 1);
                assert_eq!((sample.ids.len(), sample.logprobs.len()), (ended, ended));
            }
        }
        assert_ne!(together[3][0], together[3][1], "samples of one request have streams of their own");
    }
}

#[test]
fn recorded_log_probabilities_are_the_trainers_to_the_bit() {
    let backend = Cpu;
    let (model, requests) = (model(&backend), requests());
    let samples = generate(&backend, &model, &ROOMY, &requests);
    let groups: Vec<Group> = requests
        .iter()
        .zip(&samples)
        .map(|(r, s)| Group { prompt: r.prompt.clone(), replies: s.iter().map(|s| s.ids.clone()).collect() })
        .collect();
    let recorded: Vec<f32> = samples.iter().flatten().flat_map(|s| s.logprobs.clone()).collect();
    let trained = |batch: &LossBatch| {
        let policy = Policy { model: &model, adapter: None };
        let scores =
            batch::forward(&backend, policy, batch, SAMPLING.temperature, false, &mut Activations::default()).unwrap();
        backend.read(&scores.logp).unwrap()
    };
    assert_eq!(trained(&LossBatch::from_groups(&backend, &model.config, &groups, false).unwrap()), recorded);

    // The same replies as plain sequences, each with its prompt in front.
    let whole: Vec<(Vec<u32>, Vec<bool>)> = groups
        .iter()
        .flat_map(|g| g.replies.iter().map(move |r| (g, r)))
        .map(|(g, r)| {
            ([g.prompt.clone(), r.clone()].concat(), [vec![false; g.prompt.len()], vec![true; r.len()]].concat())
        })
        .collect();
    let views: Vec<(&[u32], &[bool])> = whole.iter().map(|(ids, mask)| (ids.as_slice(), mask.as_slice())).collect();
    assert_eq!(trained(&LossBatch::from_sequences(&backend, &model.config, &views).unwrap()), recorded);
}

#[test]
fn what_can_never_fit_is_refused_with_what_would_help() {
    let backend = Cpu;
    let model = model(&backend);
    let small = Settings { block_size: 4, cache_tokens: 16, prefill_tokens: 8, max_running: 2, burst: 1 };
    let policy = Policy { model: &model, adapter: None };
    let mut engine = Engine::new(&backend, &model, &small).unwrap();
    let request =
        |samples, max_tokens| Request { prompt: vec![1; 6], samples, seed: 0, stream: String::new(), max_tokens };
    for (request, part) in [(request(1, 60), "engine.cache_tokens"), (request(3, 1), "engine.max_running")] {
        let error = engine.generate(policy, &[request], &SAMPLING, &STOP).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(engine.generate(policy, &[request(1, 2)], &SAMPLING, &STOP).unwrap()[0].len(), 1);
}
