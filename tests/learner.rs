//! Whole updates of the learner on a tiny model: what has a loss, what is stepped, when it ends, what is said of it.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::batch::{self, Group, LossBatch};
use onestep::config::Config;
use onestep::model::config::ModelConfig;
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{Activations, Model, Policy};
use onestep::ppo::Settings as Rl;
use onestep::ppo::advantages::signal;
use onestep::ppo::{Learner, Round, UpdateStats};
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};
use std::path::Path;
use std::sync::LazyLock;

const CONFIG: &str = r#"{"model_type": "qwen2", "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "tie_word_embeddings": true}"#;

static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let config = ModelConfig::from_json(CONFIG, Path::new("test")).unwrap();
    Model::random(&Cpu, config, 5, DType::F32).unwrap()
});

/// An adapter that changes the model: A and B are both drawn.
fn reference() -> Adapter {
    let lora = LoraConfig { rank: 2, alpha: 4.0, rslora: false, modules: Module::ALL.to_vec() };
    let mut rng = Philox::new(1, 0);
    let mut adapter = Adapter::new(&Cpu, &MODEL.config, lora, &mut rng).unwrap();
    for tensor in &mut adapter.tensors {
        tensor.slice_mut::<f32>().fill_with(|| rng.normal() as f32 * 0.2);
    }
    adapter
}

fn settings(overrides: &[&str]) -> Rl {
    // Larger steps than the defaults', so that a step shows.
    let all: Vec<String> =
        ["learning_rate=1e-2", "critic_learning_rate=1e-2"].iter().chain(overrides).map(|s| s.to_string()).collect();
    Config::load(&[], &all, "rl").unwrap().rl
}

/// Four groups of two replies; the second reply of each group is cut off at 9 tokens.
struct Sampled {
    groups: Vec<Group>,
    logprobs: Vec<Vec<f32>>,
    rewards: Vec<f64>,
    is_truncated: Vec<bool>,
}

const MOST: usize = 9;

impl Sampled {
    /// Rewards of groups 2 and 3 are equal. Behaviour is what the reference would say, moved by up to `spread`.
    fn new(spread: f32) -> Self {
        let ids = |n: u32, by: u32| (0..n).map(|i| (i * by + n) % 31).collect::<Vec<u32>>();
        let group = |(prompt, reply): (u32, u32)| Group {
            prompt: ids(prompt, 7),
            replies: vec![ids(reply, 5), ids(MOST as u32, 3)],
        };
        let groups: Vec<Group> = [(4, 1), (6, 8), (2, 5), (3, 2)].map(group).to_vec();
        let batch = LossBatch::from_groups(&Cpu, &MODEL.config, &groups, false).unwrap();
        let adapter = reference();
        let policy = Policy { model: &MODEL, adapter: Some(&adapter) };
        let scores = batch::forward(&Cpu, policy, &batch, 1.0, false, &mut Activations::default()).unwrap();
        let logp = Cpu.read(&scores.logp).unwrap();
        let moved: Vec<f32> = logp.iter().enumerate().map(|(i, l)| l + ((i % 7) as f32 - 3.0) / 3.0 * spread).collect();
        Self {
            logprobs: batch.samples.iter().map(|s| moved[s.clone()].to_vec()).collect(),
            groups,
            rewards: vec![1.0, -0.5, 0.25, 0.5, 0.75, 0.75, -1.0, -1.0],
            is_truncated: [false, true].repeat(4),
        }
    }

    fn round(&self) -> Round<'_> {
        Round {
            groups: &self.groups,
            logprobs: &self.logprobs,
            rewards: &self.rewards,
            is_truncated: &self.is_truncated,
            max_tokens: MOST,
            temperature: 1.0,
        }
    }
}

/// `rounds` updates from the reference.
fn updates(sampled: &Sampled, settings: &Rl, rounds: usize) -> (Vec<UpdateStats>, Vec<f32>, u32) {
    let mut learner = Learner::new(&Cpu, &MODEL, settings, reference()).unwrap();
    let stats = (0..rounds).map(|_| learner.update(&sampled.round()).unwrap()).collect();
    (stats, flat(&learner.actor.tensors), learner.actor_optimizer.steps)
}

fn flat(tensors: &[Tensor]) -> Vec<f32> {
    tensors.iter().flat_map(|t| t.slice::<f32>().to_vec()).collect()
}

const GRPO: [&str; 2] = ["algorithm=grpo", "samples=2"];

fn grpo(more: &[&str]) -> Rl {
    settings(&[&GRPO, more].concat())
}

#[test]
fn a_critic_starts_from_the_reference_and_says_zero() {
    let (settings, sampled) = (settings(&["samples=2", "epochs=2"]), Sampled::new(0.1));
    let mut learner = Learner::new(&Cpu, &MODEL, &settings, reference()).unwrap();
    let critic = learner.critic.as_ref().unwrap();
    assert_eq!(flat(&critic.adapter.tensors), flat(&reference().tensors));
    assert!(flat(&critic.head).iter().all(|&x| x == 0.0));
    // One list: adapter and head have one optimizer.
    assert_eq!(critic.optimizer.m.len(), critic.adapter.tensors.len() + 2);
    let stats = learner.update(&sampled.round()).unwrap();
    let critic = learner.critic.as_ref().unwrap();
    assert_ne!(flat(&critic.adapter.tensors), flat(&reference().tensors));
    assert!(flat(&critic.head).iter().all(|&x| x != 0.0));
    assert_eq!(critic.optimizer.steps, 2);
    // The critic has learnt from the first pass.
    let losses: Vec<f64> = stats.minibatches.iter().map(|m| m.value_loss.unwrap()).collect();
    assert!(losses[1] < losses[0] && stats.value_loss.unwrap() == (losses[0] + losses[1]) / 2.0, "{losses:?}");
}

#[test]
fn statistics_are_means_over_all_minibatches_of_all_passes() {
    let settings = grpo(&["epochs=2", "minibatches=2", "states=4", "entropy_coefficient=0.01"]);
    let (stats, ..) = updates(&Sampled::new(0.5), &settings, 1);
    let (stats, all) = (&stats[0], &stats[0].minibatches);
    assert_eq!((all.len(), stats.passes), (4, 2));
    for (name, mean, list) in [
        ("loss", stats.policy.loss, all.iter().map(|m| m.policy.loss).collect::<Vec<f64>>()),
        ("policy_loss", stats.policy.policy_loss, all.iter().map(|m| m.policy.policy_loss).collect()),
        ("kl", stats.policy.kl, all.iter().map(|m| m.policy.kl).collect()),
        ("entropy", stats.policy.entropy, all.iter().map(|m| m.policy.entropy).collect()),
        ("clip_fraction", stats.policy.clip_fraction, all.iter().map(|m| m.policy.clip_fraction).collect()),
        ("approx_kl", stats.policy.approx_kl, all.iter().map(|m| m.policy.approx_kl).collect()),
        ("grad_norm", stats.grad_norm, all.iter().map(|m| m.grad_norm).collect()),
    ] {
        assert_eq!(mean, list.iter().sum::<f64>() / 4.0, "{name}");
        assert_ne!(mean, list[3], "{name}: the last minibatch alone would do");
    }
    let greatest = all.iter().map(|m| m.policy.ratio_max).fold(0.0, f64::max);
    assert_eq!(stats.policy.ratio_max, greatest);
    // Behaviour is at most 0.5 above the reference's, and 0.5 below.
    assert!(greatest > 0.4_f64.exp(), "{greatest}");
}

#[test]
fn passes_end_where_the_policy_has_moved_too_far() {
    let sampled = Sampled::new(0.0);
    let passes = |target: &str| updates(&sampled, &grpo(&["epochs=3", target]), 1).0[0].passes;
    // The first pass is measured before any step: nothing has moved; the second sees one step.
    assert_eq!(passes("target_kl=0"), 3);
    assert_eq!(passes("target_kl=1e-9"), 2);
    assert_eq!(passes("target_kl=1000"), 3);
}

#[test]
fn the_learning_rate_follows_the_schedule_over_rounds() {
    let sampled = Sampled::new(0.1);
    for (schedule, expected) in [
        ("constant", [0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 2.0 / 3.0, 1.0 / 3.0]),
        ("cosine", [0.5, 1.0, 0.75, 0.25]),
    ] {
        let settings = grpo(&["steps=4", "warmup=1", &format!("schedule={schedule}")]);
        let (stats, actor, _) = updates(&sampled, &settings, 4);
        for (found, expected) in stats.iter().map(|s| s.rate_factor).zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{schedule}: {found} for {expected}");
        }
        // A learner that is read back goes on at the same place.
        let folder = tempfile::tempdir().unwrap();
        let mut first = Learner::new(&Cpu, &MODEL, &settings, reference()).unwrap();
        (0..2).for_each(|_| drop(first.update(&sampled.round()).unwrap()));
        first.save(folder.path()).unwrap();
        let mut second = Learner::new(&Cpu, &MODEL, &settings, reference()).unwrap();
        second.load(folder.path(), 2).unwrap();
        (0..2).for_each(|_| drop(second.update(&sampled.round()).unwrap()));
        assert_eq!(flat(&second.actor.tensors), actor, "{schedule}");
    }
}

#[test]
fn dead_groups_are_counted_and_can_be_dropped() {
    let mut sampled = Sampled::new(0.1);
    let (kept, with_all, _) = updates(&sampled, &grpo(&[]), 1);
    let (dropped, without, _) = updates(&sampled, &grpo(&["drop_dead_groups=true"]), 1);
    assert_eq!((kept[0].dead_groups, kept[0].dropped_groups), (Some(0.5), 0));
    assert_eq!((dropped[0].dead_groups, dropped[0].dropped_groups), (Some(0.5), 2));
    assert_ne!(with_all, without);
    // Nothing of a dropped reply counts: neither what it was sampled with nor what it could have said.
    sampled.logprobs[5].iter_mut().for_each(|l| *l -= 3.0);
    let (_, again, _) = updates(&sampled, &grpo(&["drop_dead_groups=true", "kl_coefficient=0"]), 1);
    sampled.logprobs[5].iter_mut().for_each(|l| *l += 1.0);
    let (_, moved, _) = updates(&sampled, &grpo(&["drop_dead_groups=true", "kl_coefficient=0"]), 1);
    assert_eq!(again, moved);
    // Minibatches without a loss make no step, and figures of nothing are none.
    let (halves, _, steps) = updates(&sampled, &grpo(&["drop_dead_groups=true", "states=4", "minibatches=2"]), 1);
    assert_eq!((halves[0].minibatches.len(), steps), (1, 1));
    sampled.rewards = vec![0.5; 8];
    let (none, actor, steps) = updates(&sampled, &grpo(&["drop_dead_groups=true"]), 2);
    assert_eq!((none[1].dead_groups, none[1].dropped_groups, steps), (Some(1.0), 4, 0));
    assert_eq!(actor, flat(&reference().tensors));
    assert!(none[1].policy.kl.is_nan() && none[1].grad_norm.is_nan() && none[1].gauge.is_none());
    // One reply a group is no group to compare within.
    let one = Sampled {
        groups: sampled.groups.iter().map(|g| Group { replies: vec![g.replies[0].clone()], ..g.clone() }).collect(),
        logprobs: sampled.logprobs.iter().step_by(2).cloned().collect(),
        rewards: vec![0.5; 4],
        is_truncated: vec![false; 4],
    };
    assert_eq!(updates(&one, &settings(&[]), 1).0[0].dead_groups, None);
}

#[test]
fn overlong_replies_are_kept_masked_or_penalised() {
    let sampled = Sampled::new(0.1);
    let tokens: usize = sampled.logprobs.iter().map(Vec::len).sum();
    let advantages = |more: &[&str]| {
        let settings = grpo(&[&["group_deviation=none", "kl_coefficient=0"], more].concat());
        let signal = signal(&settings, &sampled.round(), &vec![0.0; tokens], &[]);
        let mut start = 0;
        let first = sampled.logprobs.iter().map(|reply| {
            start += reply.len();
            signal.advantages[start - reply.len()]
        });
        (first.collect::<Vec<f32>>(), signal.is_live)
    };
    let soft = ["overlong=soft", "overlong_buffer=4", "overlong_penalty=2", "sampling.max_tokens=9"];
    // Half of what the second reply of each group loses more than the first goes to each side of the mean. Soft: 9 tokens lose 2, the
    // second group's first reply (8 tokens) loses 2 * 3/4.
    let cases: [(&[&str], [f32; 8]); 5] = [
        (&["overlong=keep"], [0.75, -0.75, -0.125, 0.125, 0.0, 0.0, 0.0, 0.0]),
        (&["overlong=penalise"], [1.25, -1.25, 0.375, -0.375, 0.5, -0.5, 0.5, -0.5]),
        (&["overlong=penalise", "overlong_penalty=0.5"], [1.0, -1.0, 0.125, -0.125, 0.25, -0.25, 0.25, -0.25]),
        (&soft, [1.75, -1.75, 0.125, -0.125, 1.0, -1.0, 1.0, -1.0]),
        // Without a loss, but in the baseline.
        (&["overlong=mask"], [0.75, 0.0, -0.125, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ];
    for (more, expected) in cases {
        let (found, is_live) = advantages(more);
        assert_eq!(found, expected, "{more:?}");
        let masked = more[0] == "overlong=mask";
        assert_eq!(is_live, [true, !masked].repeat(4), "{more:?}");
    }
    let (stats, ..) = updates(&sampled, &grpo(&["overlong=mask"]), 1);
    assert_eq!((stats[0].truncated, stats[0].dropped_groups), (0.5, 0));
}

#[test]
fn gspo_has_one_ratio_a_reply() {
    let sampled = Sampled::new(0.6);
    let (stats, ..) = updates(&sampled, &grpo(&["objective=gspo"]), 1);
    // Behaviour was moved away from the policy by a known pattern: a reply's ratio is e to the mean of what it was moved by.
    let (mut token, mut greatest, mut approx_kl) = (0, 0.0_f64, 0.0);
    for reply in &sampled.logprobs {
        let moved = (token..token + reply.len()).map(|i| -((i % 7) as f64 - 3.0) / 3.0 * 0.6);
        let mean = moved.sum::<f64>() / reply.len() as f64;
        greatest = greatest.max(mean.exp());
        approx_kl += reply.len() as f64 * (mean.exp() - 1.0 - mean);
        token += reply.len();
    }
    approx_kl /= token as f64;
    assert!((stats[0].policy.approx_kl - approx_kl).abs() < 1e-5, "{:?} for {approx_kl}", stats[0].policy.approx_kl);
    assert!((stats[0].policy.ratio_max - greatest).abs() < 1e-5, "{:?} for {greatest}", stats[0].policy.ratio_max);
    let by_token = updates(&sampled, &grpo(&[]), 1).0[0].policy.ratio_max;
    assert!((by_token - 0.6_f64.exp()).abs() < 1e-5, "{by_token}");
}

#[test]
fn rounds_that_do_not_belong_together_are_refused() {
    let refused = |change: fn(&mut Sampled), part: &str| {
        let mut sampled = Sampled::new(0.1);
        change(&mut sampled);
        let settings = grpo(&[]);
        let mut learner = Learner::new(&Cpu, &MODEL, &settings, reference()).unwrap();
        let error = learner.update(&sampled.round()).unwrap_err().to_string();
        assert!(error.contains(part), "{error} lacks {part}");
        assert_eq!(flat(&learner.actor.tensors), flat(&reference().tensors));
    };
    refused(|s| s.rewards[3] = f64::NEG_INFINITY, "reply 3 earned -inf");
    refused(|s| s.rewards[0] = f64::NAN, "reward.clip");
    refused(|s| s.rewards.truncate(7), "7 rewards");
    refused(|s| s.is_truncated.truncate(7), "7 flags");
    refused(|s| s.logprobs[2].truncate(1), "do not belong together");
    refused(|s| s.groups[1].replies.truncate(1), "7 replies");
}

#[test]
fn the_settings_of_the_docs_load_and_all_do_something() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rl.md")).unwrap();
    let rows = page.lines().filter(|line| line.contains("`rl.algorithm=")).collect::<Vec<_>>();
    assert_eq!(rows.len(), 7, "{rows:?}");
    for row in rows {
        let settings: Vec<String> = row.split('`').nth(1).unwrap().split(' ').map(String::from).collect();
        let (_, notes) = Config::load_noting(&[], &settings, "rl").unwrap_or_else(|e| panic!("{row}: {e}"));
        assert!(notes.is_empty(), "{row}: {notes:?}");
    }
}
