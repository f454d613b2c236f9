//! Whole updates of reinforcement learning against PyTorch, transformers and PEFT (tests/reference/updates.json, made by updates.py;
//! needs no PyTorch): advantages, targets, losses, statistics, gradient norms, and the change of every tensor of actor and critic,
//! over consecutive rounds of every algorithm and option.
//!
//! There are two bars. With the naive backend in f64 an update is off by what the host carries in f32: advantages, targets, weights,
//! log-probabilities, values, rates. The reference was computed again with those numbers off by up to four roundings, in eight draws;
//! ours may be off by twice the worst of them. With the fast backend in f32 the bar is twice the error of PyTorch's own f32, the
//! largest of sixteen runs that sum in other orders; the tensors of one adapter share it, as in tests/reference.rs.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::oracle::Oracle;
use onestep::batch::{self, Group, LossBatch};
use onestep::checkpoint::{load_adapter, load_model};
use onestep::config::Config;
use onestep::model::lora::Adapter;
use onestep::model::{Activations, Model, Policy};
use onestep::ppo::Settings as Rl;
use onestep::ppo::advantages::{Signal, live, signal};
use onestep::ppo::{Learner, MinibatchStats, Round, UpdateStats};
use onestep::tensor::{DType, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// As updates.py has them.
const PROJECTIONS: [u64; 3] = [2654435761, 2246822519, 3266489917];

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    temperature: f32,
    max_tokens: usize,
    settings: Map<String, Value>,
    rounds: Vec<Inputs>,
    /// ROUND.NAME: values, the error of a host in f32, the error of PyTorch in f32.
    quantities: BTreeMap<String, (Vec<f64>, f64, f64)>,
}

#[derive(Deserialize)]
struct Inputs {
    groups: Vec<Prompted>,
    rewards: Vec<f64>,
    truncated: Vec<bool>,
    behaviour: Vec<Vec<f32>>,
}

#[derive(Deserialize)]
struct Prompted {
    prompt: Vec<u32>,
    replies: Vec<Vec<u32>>,
}

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference")
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(reference().join("updates.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => tensor.slice::<f64>().to_vec(),
        _ => wide(tensor.slice()),
    }
}

/// Sums over a tensor's change, in order, by weights from -1 to 1 that look like chance.
fn projections(start: &[f64], now: &[f64]) -> Vec<f64> {
    let weight =
        |i: usize, multiplier: u64| ((i as u64 + 1) * multiplier % (1 << 32)) as f64 / f64::from(1u32 << 31) - 1.0;
    let sum = |m| now.iter().zip(start).enumerate().map(|(i, (now, start))| weight(i, m) * (now - start)).sum();
    PROJECTIONS.map(sum).to_vec()
}

/// The tensors of an adapter by the names of the reference.
fn tensors(adapter: &Adapter) -> BTreeMap<String, Vec<f64>> {
    let short = |name: &str| name.trim_start_matches("model.layers.").trim_end_matches(".weight").to_string();
    adapter.names.iter().map(|name| short(name)).zip(adapter.tensors.iter().map(values)).collect()
}

fn figures(stats: &UpdateStats) -> Vec<(&'static str, Vec<f64>)> {
    let mut figures = vec![
        ("loss", stats.policy.loss),
        ("policy_loss", stats.policy.policy_loss),
        ("kl", stats.policy.kl),
        ("entropy", stats.policy.entropy),
        ("clip_fraction", stats.policy.clip_fraction),
        ("approx_kl", stats.policy.approx_kl),
        ("ratio_max", stats.policy.ratio_max),
        ("grad_norm", stats.grad_norm),
        ("passes", stats.passes as f64),
        ("factor", stats.rate_factor.into()),
    ];
    figures.extend(stats.value_loss.map(|x| ("value_loss", x)));
    figures.extend(stats.explained_variance.map(|x| ("explained_variance", x)));
    figures.extend(stats.dead_groups.map(|x| ("dead_share", x)));
    let steps = |name, of: fn(&MinibatchStats) -> Option<f64>| -> Option<(&'static str, Vec<f64>)> {
        Some((name, stats.minibatches.iter().map(of).collect::<Option<_>>()?))
    };
    let lists = [
        steps("losses", |x| Some(x.policy.loss)),
        steps("grad_norms", |x| Some(x.grad_norm)),
        steps("critic_grad_norms", |x| x.critic_grad_norm),
    ];
    figures.into_iter().map(|(name, x)| (name, vec![x])).chain(lists.into_iter().flatten()).collect()
}

/// What a round teaches, from log-probabilities and values as the learner has them before it.
fn taught(be: &dyn Backend, model: &Model, learner: &Learner, settings: &Rl, round: &Round) -> Signal {
    let batch = LossBatch::from_groups(be, &model.config, round.groups, false).unwrap();
    let mut acts = Activations::default();
    let policy = Policy { model, adapter: Some(&learner.reference) };
    let scores = batch::forward(be, policy, &batch, round.temperature, false, &mut acts).unwrap();
    let critic = learner.critic.as_ref();
    let values = critic.map(|critic| critic.values(be, model, &batch, false, &mut acts).unwrap().0);
    let host = |tensor| be.read(tensor).unwrap();
    signal(settings, round, &host(&scores.logp), &values.as_ref().map(host).unwrap_or_default())
}

/// Of the tokens that have a loss.
fn advantages(round: &Round, signal: &Signal) -> Vec<f64> {
    let replies = round.logprobs.iter().zip(&signal.is_live);
    let is_live: Vec<bool> = replies.flat_map(|(reply, live)| vec![*live; reply.len()]).collect();
    wide(&live(&signal.advantages, &is_live))
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&x| x.into()).collect()
}

/// A case by the program's own learner: quantities by the reference's names.
fn played(be: &dyn Backend, case: &Case) -> BTreeMap<String, Vec<f64>> {
    let folder = reference().join("models").join(&case.model);
    let model = load_model(be, &folder).unwrap().0;
    let adapter = || load_adapter(be, &model.config, &folder.join("adapter")).unwrap();
    let start = tensors(&adapter());
    // A round has as many states as it has groups; the key must be divisible by the minibatches, which a test's round need not be.
    let mut keys = case.settings.clone();
    keys["states"] = keys["minibatches"].clone();
    let keys = keys.iter().map(|(key, value)| format!("{key} = {value}\n"));
    let layer = (case.name.clone(), format!("[rl]\n{}", keys.collect::<String>()));
    let settings = Config::load(&[layer], &[], "rl").unwrap().rl;
    let mut learner = Learner::new(be, &model, &settings, adapter()).unwrap();
    let mut found = BTreeMap::new();
    for (u, inputs) in case.rounds.iter().enumerate() {
        let groups: Vec<Group> =
            inputs.groups.iter().map(|g| Group { prompt: g.prompt.clone(), replies: g.replies.clone() }).collect();
        let round = Round {
            groups: &groups,
            logprobs: &inputs.behaviour,
            rewards: &inputs.rewards,
            is_truncated: &inputs.truncated,
            max_tokens: case.max_tokens,
            temperature: case.temperature,
        };
        let signal = taught(be, &model, &learner, &settings, &round);
        found.insert(format!("{u}.advantages"), advantages(&round, &signal));
        if learner.critic.is_some() {
            found.insert(format!("{u}.targets"), wide(&signal.targets));
        }
        let stats = learner.update(&round).unwrap();
        found.extend(figures(&stats).into_iter().map(|(name, x)| (format!("{u}.{name}"), x)));
        let changes = |now: &Adapter| -> Vec<(String, Vec<f64>)> {
            tensors(now).into_iter().map(|(name, now)| (name.clone(), projections(&start[&name], &now))).collect()
        };
        found.extend(changes(&learner.actor).into_iter().map(|(name, x)| (format!("{u}.actor.{name}"), x)));
        if let Some(critic) = &learner.critic {
            found.extend(changes(&critic.adapter).into_iter().map(|(name, x)| (format!("{u}.critic.{name}"), x)));
            for (name, tensor) in ["w", "b"].iter().zip(&critic.head) {
                let now = values(tensor);
                found.insert(format!("{u}.critic.{name}"), projections(&vec![0.0; now.len()], &now));
            }
        }
    }
    found
}

/// The largest difference, as a share of the largest magnitude; where that is below 1, of 1, but for tensors. Infinite when there
/// are more or fewer numbers.
fn error(name: &str, exact: &[f64], found: &[f64]) -> f64 {
    if exact.len() != found.len() {
        return f64::INFINITY;
    }
    let largest = exact.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let is_tensor = matches!(kind(name), "actor" | "critic");
    let scale = if largest == 0.0 || !is_tensor { largest.max(1.0) } else { largest };
    let differences = exact.iter().zip(found).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) }) / scale
}

/// What a quantity shares its bar with: its name without the round and without the tensor; a step's figure is one with their mean.
fn kind(name: &str) -> &str {
    match name.split('.').nth(1).unwrap() {
        "losses" => "loss",
        "grad_norms" => "grad_norm",
        other => other,
    }
}

/// What is above its bar, as lines.
fn missed(be: &dyn Backend, case: &Case, bar: impl Fn(&str) -> f64) -> Vec<String> {
    let found = played(be, case);
    let mut lines = vec![];
    for (name, (exact, ..)) in &case.quantities {
        match found.get(name) {
            None => lines.push(format!("{}: no {name}", case.name)),
            Some(found) => {
                let (error, bar) = (error(name, exact, found), bar(name));
                if error > bar {
                    lines.push(format!(
                        "{}: {name} is off by {error:.1e}, above {bar:.1e}: {found:?}, not {exact:?}",
                        case.name
                    ));
                }
            }
        }
    }
    let unknown = found.keys().filter(|name| !case.quantities.contains_key(*name));
    lines.extend(unknown.map(|name| format!("{}: the reference has no {name}", case.name)));
    lines
}

fn check(be: &dyn Backend, bar: impl Fn(&Case, &str) -> f64) {
    let lines: Vec<String> = cases().iter().flat_map(|case| missed(be, case, |name| bar(case, name))).collect();
    assert!(lines.is_empty(), "{} above the bar:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn the_naive_backend_means_the_same_as_pytorch() {
    // No figure is better than the rounding that was drawn.
    check(&Oracle::f64(), |case, name| 2.0 * case.quantities[name].1.max(2f64.powi(-22)));
}

#[test]
fn errors_in_f32_are_at_most_twice_those_of_pytorch_in_f32() {
    check(&Cpu, |case, name| {
        let alike = case.quantities.iter().filter(|(other, _)| kind(other) == kind(name));
        2.0 * alike.map(|(_, (.., own))| *own).fold(2f64.powi(-24), f64::max)
    });
}
