//! Losses, advantages, schedules and AdamW against PyTorch in f64 (tests/reference/losses.py): ours in f64 to rounding; ours in f32 at most
//! twice as far off as PyTorch in f32, or one unit of f32's rounding where PyTorch's happens to be smaller. Distances are in units
//! of the largest magnitude.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::{self, KlEstimator, PpoInputs, PpoParams, PpoStats, Surrogate, ValueInputs};
use onestep::backend::oracle::Oracle;
use onestep::batch::{self, Group, LossBatch};
use onestep::config::Config;
use onestep::model::config::ModelConfig;
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{Activations, Model, Policy};
use onestep::optimizer::{AdamWConfig, Optimizer, Schedule};
use onestep::ppo::advantages::{gae, group_advantages, kl, loss_weights, whiten};
use onestep::ppo::{GroupBaseline, GroupDeviation, LossAverage};
use onestep::ppo::{Learner, Round};
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};
use serde_json::Value;
use std::path::Path;

/// f64 sums of at most a few hundred terms, some of which cancel.
const F64: f64 = 1e-12;

fn reference() -> Value {
    serde_json::from_str(include_str!("reference/losses.json")).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let items = value[key].as_array().unwrap_or_else(|| panic!("no list {key}"));
    assert!(!items.is_empty(), "{key} is empty");
    items
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn narrow(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|x| x as f32).collect()
}

fn setting(value: &Value) -> f32 {
    number(value) as f32
}

fn backends() -> [(&'static dyn Backend, bool); 3] {
    static CPU: Cpu = Cpu;
    static ORACLES: std::sync::LazyLock<[Oracle; 2]> = std::sync::LazyLock::new(|| [Oracle::f64(), Oracle::f32()]);
    [(&ORACLES[0], true), (&ORACLES[1], false), (&CPU, false)]
}

/// A tensor of the backend's type; the reference's inputs are f32 numbers, so exact in both.
fn tensor(be: &dyn Backend, shape: &[usize], values: &Value) -> Tensor {
    match be.accumulator() {
        DType::F64 => Tensor::from_slice(shape, &numbers(values)),
        _ => Tensor::from_slice(shape, &narrow(values)),
    }
}

fn wide(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => tensor.slice::<f64>().to_vec(),
        _ => tensor.slice::<f32>().iter().map(|&x| x.into()).collect(),
    }
}

/// Compares with one output of the reference.
fn check(what: &str, found: &[f64], output: &Value, exact: bool) {
    let (expected, scale) = (numbers(&output["value"]), number(&output["scale"]));
    assert_eq!(found.len(), expected.len(), "{what}");
    let allowed = if exact { F64 } else { f64::from(f32::EPSILON).max(2.0 * number(&output["f32"])) };
    for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (a - b).abs() <= allowed * scale,
            "{what} [{i}]: {a:e} against {b:e}, scale {scale:e}, allowed {allowed:e}"
        );
    }
}

fn estimator(name: &Value) -> KlEstimator {
    match name.as_str().unwrap() {
        "k1" => KlEstimator::K1,
        "k2" => KlEstimator::K2,
        "k3" => KlEstimator::K3,
        other => panic!("{other}"),
    }
}

#[test]
fn the_policy_loss_and_its_gradients() {
    for case in list(&reference(), "policy") {
        let (p, inputs) = (&case["params"], &case["inputs"]);
        let params = PpoParams {
            surrogate: match p["surrogate"].as_str().unwrap() {
                "clip" => Surrogate::Clip,
                "cispo" => Surrogate::Cispo,
                other => panic!("{other}"),
            },
            clip_low: setting(&p["clip_low"]),
            clip_high: setting(&p["clip_high"]),
            dual_clip: p["dual_clip"].as_f64().map(|c| c as f32),
            kl_coefficient: setting(&p["kl_coefficient"]),
            kl_estimator: estimator(&p["kl_estimator"]),
            entropy_coefficient: setting(&p["entropy_coefficient"]),
        };
        let m = list(inputs, "logp").len();
        for (be, exact) in backends() {
            let [logp, entropy, behaviour, reference, advantage] =
                ["logp", "entropy", "behaviour", "reference", "advantage"].map(|key| tensor(be, &[m], &inputs[key]));
            let weight = tensor(be, &[m], &inputs["weight"]);
            let inputs = PpoInputs {
                logp: &logp,
                entropy: &entropy,
                behaviour: &behaviour,
                reference: &reference,
                advantage: &advantage,
                weight: &weight,
            };
            let mut out = [(); 2].map(|()| be.alloc(&[m], be.accumulator()).unwrap());
            let [dlogp, dentropy] = &mut out;
            let mut stats = PpoStats::default();
            ops::PpoLoss { params: &params, inputs: &inputs, dlogp, dentropy, stats: &mut stats }.run(be).unwrap();
            for (key, found) in [
                ("loss", vec![stats.loss]),
                ("policy_loss", vec![stats.policy_loss]),
                ("kl", vec![stats.kl]),
                ("entropy", vec![stats.entropy]),
                ("clip_fraction", vec![stats.clip_fraction]),
                ("approx_kl", vec![stats.approx_kl]),
                ("ratio_max", vec![stats.ratio_max]),
                ("dlogp", wide(&out[0])),
                ("dentropy", wide(&out[1])),
            ] {
                let what = format!("{}, {} {key}", case["name"], be.name());
                check(&what, &found, &case["outputs"][key], exact);
            }
        }
    }
}

#[test]
fn the_kl_of_the_reward_is_the_one_of_the_loss() {
    for case in list(&reference(), "policy").iter().filter(|c| number(&c["params"]["kl_coefficient"]) > 0.0) {
        let inputs = &case["inputs"];
        let estimator = estimator(&case["params"]["kl_estimator"]);
        let (logp, reference) = (narrow(&inputs["logp"]), narrow(&inputs["reference"]));
        let tokens = logp.iter().zip(&reference).zip(numbers(&inputs["weight"]));
        let sum = tokens.map(|((&p, &q), weight)| f64::from(kl(estimator, p, q)) * weight).sum();
        check(&case["name"].to_string(), &[sum], &case["outputs"]["kl"], false);
    }
}

#[test]
fn averages_of_the_loss() {
    for case in list(&reference(), "averages") {
        let average = match case["average"].as_str().unwrap() {
            "token" => LossAverage::Token,
            "sample" => LossAverage::Sample,
            "reply" => LossAverage::Reply,
            other => panic!("{other}"),
        };
        let lengths: Vec<usize> = numbers(&case["lengths"]).into_iter().map(|n| n as usize).collect();
        let found = loss_weights(average, &lengths, &vec![true; lengths.len()], setting(&case["reply_scale"]));
        let expected = narrow(&case["weights"]);
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= f32::EPSILON * b, "{case}: {a} against {b}");
        }
    }
}

#[test]
fn the_value_loss_and_its_gradient() {
    for case in list(&reference(), "values") {
        let clip = case["clip"].as_f64().map(|c| c as f32);
        let inputs = &case["inputs"];
        let m = list(inputs, "value").len();
        for (be, exact) in backends() {
            let [value, old_value, target, weight] =
                ["value", "old_value", "target", "weight"].map(|key| tensor(be, &[m], &inputs[key]));
            let inputs = ValueInputs { value: &value, old_value: &old_value, target: &target, weight: &weight };
            let mut dvalue = be.alloc(&[m], be.accumulator()).unwrap();
            let mut loss = 0.0;
            ops::ValueLoss { clip, inputs: &inputs, dvalue: &mut dvalue, loss: &mut loss }.run(be).unwrap();
            let what = |key: &str| format!("{}, {} {key}", case["name"], be.name());
            check(&what("loss"), &[loss], &case["outputs"]["loss"], exact);
            check(&what("dvalue"), &wide(&dvalue), &case["outputs"]["dvalue"], exact);
        }
    }
}

#[test]
fn advantages() {
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let reference = &reference()["advantages"];
    for case in list(reference, "gae") {
        let (rewards, values) = (narrow(&case["rewards"]), narrow(&case["values"]));
        let (advantages, targets) = gae(&rewards, &values, setting(&case["gamma"]), setting(&case["lam"]));
        check("advantages", &wide(&advantages), &case["outputs"]["advantages"], false);
        check("targets", &wide(&targets), &case["outputs"]["targets"], false);
    }
    for case in list(reference, "whiten") {
        let mut values = narrow(&case["values"]);
        whiten(&mut values);
        check("whitened", &wide(&values), &case["outputs"]["whitened"], false);
    }
    for case in list(reference, "groups") {
        let size = number(&case["size"]) as usize;
        let deviation = match case["deviation"].as_str().unwrap() {
            "group" => GroupDeviation::Group,
            "batch" => GroupDeviation::Batch,
            "none" => GroupDeviation::None,
            other => panic!("{other}"),
        };
        let baseline = match case["baseline"].as_str().unwrap() {
            "mean" => GroupBaseline::Mean,
            "leave_one_out" => GroupBaseline::LeaveOneOut,
            other => panic!("{other}"),
        };
        let found = group_advantages(&numbers(&case["scores"]), size, baseline, deviation, number(&case["epsilon"]));
        check("group", &wide(&found), &case["outputs"]["advantages"], false);
    }
}

#[test]
fn schedules_are_those_of_transformers() {
    for case in list(&reference(), "schedules") {
        let (warmup, total) = (number(&case["warmup"]) as u32, number(&case["total"]) as u32);
        let schedule = match case["kind"].as_str().unwrap() {
            "cosine" => Schedule::Cosine { warmup, total, floor: setting(&case["floor"]) },
            "linear" => Schedule::Linear { warmup, total },
            other => panic!("{other}"),
        };
        let (warming, then) = (numbers(&case["warming"]), numbers(&case["then"]));
        assert_eq!((warming.len(), then.len()), (warmup as usize, (total + 1 - warmup) as usize));
        for (step, expected) in (0..).zip(warming.into_iter().chain(then)) {
            let found = f64::from(schedule.factor(step));
            assert!(
                (found - expected).abs() <= f64::from(f32::EPSILON),
                "{case}, step {step}: {found} against {expected}"
            );
        }
    }
}

#[test]
fn adamw_with_clipping() {
    for (index, case) in list(&reference(), "adamw").iter().enumerate() {
        let shapes: Vec<Vec<usize>> =
            list(case, "shapes").iter().map(|s| numbers(s).into_iter().map(|n| n as usize).collect()).collect();
        let config = AdamWConfig {
            beta1: setting(&case["beta1"]),
            beta2: setting(&case["beta2"]),
            eps: setting(&case["eps"]),
            weight_decay: setting(&case["weight_decay"]),
        };
        for (be, exact) in backends() {
            let tensors = |values: &Value| -> Vec<Tensor> {
                shapes.iter().zip(values.as_array().unwrap()).map(|(shape, v)| tensor(be, shape, v)).collect()
            };
            let mut params = tensors(&case["params"]);
            let mut optimizer = Optimizer::new(be, &params, config).unwrap();
            for (grads, norm) in list(case, "grads").iter().zip(numbers(&case["norms"])) {
                let (lr, max_norm) = (setting(&case["lr"]), setting(&case["max_norm"]));
                let found = optimizer.step(be, &mut params, &tensors(grads), lr, max_norm).unwrap();
                assert!((f64::from(found) - norm).abs() <= f64::from(f32::EPSILON) * norm, "{found} against {norm}");
            }
            for (name, tensors) in [("p", &params), ("m", &optimizer.m), ("v", &optimizer.v)] {
                for (i, tensor) in tensors.iter().enumerate() {
                    let what = format!("case {index}, {} {name}{i}", be.name());
                    check(&what, &wide(tensor), &case["outputs"][format!("{name}{i}")], exact);
                }
            }
        }
    }
}

#[test]
fn a_minibatch_has_one_loss_in_one_pass_or_in_many() {
    let text = r#"{"model_type": "qwen2", "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 24, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": true}"#;
    let config = ModelConfig::from_json(text, Path::new("test")).unwrap();
    let model = Model::random(&Cpu, config, 5, DType::F32).unwrap();
    let ids = |n: u32, by: u32| (0..n).map(|i| (i * by + n) % 31).collect::<Vec<u32>>();
    let groups: Vec<Group> = [(4, [1, 9]), (6, [12, 3]), (2, [5, 2])]
        .map(|(n, lengths): (u32, [u32; 2])| Group { prompt: ids(n, 7), replies: lengths.map(|l| ids(l, 5)).to_vec() })
        .to_vec();
    let policy = Policy { model: &model, adapter: None };
    let batch = LossBatch::from_groups(&Cpu, &model.config, &groups, false).unwrap();
    let scores = batch::forward(&Cpu, policy, &batch, 1.0, false, &mut Activations::default()).unwrap();
    let logp = Cpu.read(&scores.logp).unwrap();
    // Behaviour a little off, so that ratios are not 1.
    let behaviour: Vec<f32> = logp.iter().enumerate().map(|(i, l)| l + ((i % 7) as f32 - 3.0) * 0.1).collect();
    let logprobs: Vec<Vec<f32>> = batch.samples.iter().map(|s| behaviour[s.clone()].to_vec()).collect();
    let rewards = [1.0, -0.5, 0.25, 0.5, 0.0, 1.0];
    for average in ["token", "sample", "reply"] {
        let update = |micro_tokens: usize| {
            let overrides = [
                "samples=2".to_string(),
                "algorithm=grpo".to_string(),
                "learning_rate=0.0".to_string(),
                "kl_coefficient=0.0".to_string(),
                format!("loss_average={average}"),
                format!("micro_tokens={micro_tokens}"),
            ];
            let settings = Config::load(&[], &overrides, "rl").unwrap().rl;
            let lora = LoraConfig { rank: 2, alpha: 4.0, rslora: false, modules: Module::ALL.to_vec() };
            let reference = Adapter::new(&Cpu, &model.config, lora, &mut Philox::new(1, 0)).unwrap();
            let mut learner = Learner::new(&Cpu, &model, &settings, reference).unwrap();
            let round = Round {
                groups: &groups,
                logprobs: &logprobs,
                rewards: &rewards,
                is_truncated: &[false; 6],
                max_tokens: 12,
                temperature: 1.0,
            };
            (learner.update(&round).unwrap(), settings)
        };
        let ((whole, settings), (parts, _)) = (update(10_000), update(1));
        // The same by hand.
        let scored: Vec<f64> = rewards
            .chunks(2)
            .flat_map(|r| {
                let (baseline, deviation) = (settings.group_baseline, settings.group_deviation);
                group_advantages(r, 2, baseline, deviation, f64::from(settings.group_epsilon))
            })
            .map(f64::from)
            .collect();
        let lengths: Vec<usize> = batch.samples.iter().map(|s| s.len()).collect();
        let weights = loss_weights(settings.loss_average, &lengths, &[true; 6], settings.reply_scale);
        let token = |(reply, i): (usize, usize)| {
            let (ratio, a) = (f64::from(logp[i] - behaviour[i]).exp(), scored[reply]);
            -f64::from(weights[i]) * (ratio * a).min(ratio.clamp(1.0 - 0.2, 1.0 + 0.2) * a)
        };
        let expected: f64 =
            batch.samples.iter().enumerate().flat_map(|(r, s)| s.clone().map(move |i| (r, i))).map(token).sum();
        for found in [whole.policy.policy_loss, parts.policy.policy_loss] {
            // Sums of 32 f32 numbers below 1.
            assert!((found - expected).abs() < 32.0 * f64::from(f32::EPSILON), "{average}: {found} against {expected}");
        }
        assert!((whole.grad_norm - parts.grad_norm).abs() <= 1e-5 * whole.grad_norm, "{average}: {whole:?} {parts:?}");
        assert!((whole.policy.entropy - parts.policy.entropy).abs() < 1e-5, "{average}");
    }
}
