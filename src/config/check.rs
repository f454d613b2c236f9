//! Which values settings may have: ranges, settings that exclude each other, and settings that do nothing beside others. All of it is looked
//! at when every layer and override is known, so their order does not matter.

use super::{Algorithm, Config, GroupDeviation, KlIn, LossAverage, Objective, Overlong, SaveDtype};
use crate::backend::KlEstimator;
use crate::reward::Form;
use toml::{Table, Value};

/// Why settings cannot stand, and the keys whose values are to blame.
pub(super) struct Fault {
    pub keys: Vec<&'static str>,
    pub text: String,
}

/// The numbers a setting may be.
#[derive(Debug, Clone, Copy)]
enum Range {
    /// Whole, above 0.
    Count,
    /// At least 0.
    NotNegative,
    /// Above 0.
    Positive,
    /// From 0 to 1.
    Share,
    /// At least 0, below 1.
    BelowOne,
    /// Above 0, at most 1.
    Portion,
    /// 0, which turns it off, or above 1.
    OffOrAboveOne,
}

impl Range {
    fn has(self, x: f64) -> bool {
        match self {
            Range::Count => x >= 1.0,
            Range::NotNegative => x >= 0.0,
            Range::Positive => x > 0.0,
            Range::Share => (0.0..=1.0).contains(&x),
            Range::BelowOne => (0.0..1.0).contains(&x),
            Range::Portion => x > 0.0 && x <= 1.0,
            Range::OffOrAboveOne => x == 0.0 || x > 1.0,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Range::Count => "a whole number above 0",
            Range::NotNegative => "a number of at least 0",
            Range::Positive => "a number above 0",
            Range::Share => "a share from 0 to 1",
            Range::BelowOne => "a number in [0, 1)",
            Range::Portion => "a number in (0, 1]",
            Range::OffOrAboveOne => "0, which turns it off, or a number above 1",
        }
    }
}

/// (key, its range, a valid value)
const RANGES: &[(&str, Range, &str)] = &[
    ("run.checkpoint_every", Range::Count, "10"),
    ("run.keep", Range::Count, "2"),
    ("environment.max_steps", Range::Count, "15"),
    ("reward.clip", Range::NotNegative, "1.0"),
    ("sampling.temperature", Range::NotNegative, "1.0"),
    ("sampling.top_p", Range::Portion, "1.0"),
    ("sampling.top_k", Range::NotNegative, "0, which keeps all tokens"),
    ("sampling.max_tokens", Range::Count, "1024"),
    ("engine.block_size", Range::Count, "16"),
    ("engine.cache_tokens", Range::Count, "65536"),
    ("engine.prefill_tokens", Range::Count, "4096"),
    ("engine.max_running", Range::Count, "256"),
    ("lora.rank", Range::Count, "16"),
    ("sft.epochs", Range::Count, "2"),
    ("sft.learning_rate", Range::NotNegative, "2e-4"),
    ("sft.batch_tokens", Range::Count, "16384"),
    ("sft.micro_tokens", Range::Count, "4096"),
    ("sft.beta1", Range::BelowOne, "0.9"),
    ("sft.beta2", Range::BelowOne, "0.999"),
    ("sft.weight_decay", Range::NotNegative, "0.0"),
    ("sft.max_norm", Range::NotNegative, "1.0"),
    ("sft.validation_share", Range::Share, "0.05"),
    ("rl.steps", Range::Count, "39"),
    ("rl.states", Range::Count, "256"),
    ("rl.samples", Range::Count, "8"),
    ("rl.initial_share", Range::Share, "0.3"),
    ("rl.refresh_share", Range::Share, "0.3"),
    ("rl.learning_rate", Range::NotNegative, "1e-5"),
    ("rl.critic_learning_rate", Range::NotNegative, "1e-4"),
    ("rl.beta1", Range::BelowOne, "0.9"),
    ("rl.beta2", Range::BelowOne, "0.999"),
    ("rl.weight_decay", Range::NotNegative, "0.01"),
    ("rl.max_norm", Range::NotNegative, "1.0"),
    ("rl.epochs", Range::Count, "1"),
    ("rl.minibatches", Range::Count, "1"),
    ("rl.target_kl", Range::NotNegative, "0.02"),
    ("rl.micro_tokens", Range::Count, "8192"),
    ("rl.clip_low", Range::BelowOne, "0.2"),
    ("rl.clip_high", Range::NotNegative, "0.2"),
    ("rl.dual_clip", Range::OffOrAboveOne, "3.0"),
    ("rl.value_clip", Range::NotNegative, "0.5"),
    ("rl.gamma", Range::Share, "1.0"),
    ("rl.lambda", Range::Share, "1.0"),
    ("rl.kl_coefficient", Range::NotNegative, "0.001"),
    ("rl.entropy_coefficient", Range::NotNegative, "0.01"),
    ("rl.group_epsilon", Range::NotNegative, "0.02"),
    ("rl.overlong_penalty", Range::NotNegative, "1.0"),
    ("rl.reply_scale", Range::Positive, "8.0"),
    ("eval.trajectories", Range::Count, "8"),
];

/// The first number outside its range. `table` has all settings.
pub(super) fn ranges(table: &Table) -> Option<Fault> {
    let number = |key: &str| {
        let (section, name) = key.split_once('.')?;
        let value = table.get(section)?.get(name)?;
        value.as_float().or_else(|| value.as_integer().map(|n| n as f64))
    };
    RANGES.iter().find_map(|&(key, range, example)| {
        // Judged as most are used: rounded to f32.
        let value = number(key).filter(|&value| !range.has(f64::from(value as f32)))?;
        Some(Fault {
            keys: vec![key],
            text: format!("{key} = {value}: expected {}, for example {example}", range.words()),
        })
    })
}

/// The first float of `table` that is not finite in f32, as section.key and value.
pub(super) fn not_finite(table: &Table) -> Option<(String, f64)> {
    let entries = table.iter().filter_map(|(section, value)| Some((section, value.as_table()?)));
    let mut values = entries.flat_map(|(section, keys)| keys.iter().map(move |(key, value)| (section, key, value)));
    values.find_map(|(section, key, value)| match value {
        Value::Float(x) if !(*x as f32).is_finite() => Some((format!("{section}.{key}"), *x)),
        _ => None,
    })
}

/// The first two settings that exclude each other. `section` is that of the command: `rl` has rules of its own for sampling, which
/// evaluation does not.
pub(super) fn combinations(config: &Config, section: &str) -> Option<Fault> {
    let (rl, sampling) = (&config.rl, &config.sampling);
    let is_rl = section == "rl";
    let ppo = rl.algorithm == Algorithm::Ppo;
    let rules: [(bool, &[&'static str], String); 10] = [
        (
            config.sft.save_dtype != SaveDtype::Base && !config.sft.full,
            &["sft.save_dtype", "sft.full"],
            "sft.save_dtype without sft.full=true: an adapter is written in f32; leave it at sft.save_dtype=base".into(),
        ),
        (
            rl.algorithm == Algorithm::Grpo && rl.samples < 2,
            &["rl.samples", "rl.algorithm"],
            "rl.samples = 1 with rl.algorithm = \"grpo\": a group needs 2 or more samples, for example rl.samples=8".into(),
        ),
        (
            rl.kl_in == KlIn::Loss && rl.kl_estimator == KlEstimator::K1 && rl.kl_coefficient > 0.0,
            &["rl.kl_in", "rl.kl_estimator"],
            "rl.kl_in = \"loss\" with rl.kl_estimator = \"k1\": the gradient of k1 is 0 on the mean, so nothing would hold the policy; \
             expected rl.kl_estimator=k2, or rl.kl_in=reward"
                .into(),
        ),
        (
            !rl.states.is_multiple_of(rl.minibatches),
            &["rl.minibatches", "rl.states"],
            format!(
                "rl.minibatches = {}: it does not divide rl.states = {}, and minibatches are of whole states; expected a divisor, for \
                 example rl.minibatches={}",
                rl.minibatches,
                rl.states,
                (1..=rl.minibatches.min(rl.states)).rev().find(|&n| rl.states.is_multiple_of(n)).unwrap_or(1)
            ),
        ),
        (
            rl.overlong == Overlong::Soft && !(1..sampling.max_tokens).contains(&rl.overlong_buffer),
            &["rl.overlong_buffer", "rl.overlong", "sampling.max_tokens"],
            format!(
                "rl.overlong_buffer = {} with rl.overlong = \"soft\": expected at least 1 and less than sampling.max_tokens = {}, for \
                 example a quarter of it",
                rl.overlong_buffer, sampling.max_tokens
            ),
        ),
        (
            rl.warmup >= rl.steps,
            &["rl.warmup", "rl.steps"],
            format!(
                "rl.warmup = {} with rl.steps = {}: the learning rate would never be reached; expected less than the steps",
                rl.warmup, rl.steps
            ),
        ),
        (
            ppo && rl.critic_warmup >= rl.steps,
            &["rl.critic_warmup", "rl.steps"],
            format!(
                "rl.critic_warmup = {} with rl.steps = {}: the policy would never be trained; expected less than the steps",
                rl.critic_warmup, rl.steps
            ),
        ),
        (
            is_rl && sampling.temperature == 0.0,
            &["sampling.temperature"],
            "sampling.temperature = 0 in rl: greedy samples are all alike and have no probability to learn from; expected a temperature \
             above 0, for example 1.0"
                .into(),
        ),
        (
            is_rl && sampling.top_p < 1.0,
            &["sampling.top_p"],
            format!(
                "sampling.top_p = {} in rl: recorded log-probabilities are those of the whole distribution, so that learning from \
                 samples of a part of it is biased; expected sampling.top_p=1.0",
                sampling.top_p
            ),
        ),
        (
            is_rl && sampling.top_k > 0,
            &["sampling.top_k"],
            format!(
                "sampling.top_k = {} in rl: recorded log-probabilities are those of the whole distribution, so that learning from \
                 samples of a part of it is biased; expected sampling.top_k=0",
                sampling.top_k
            ),
        ),
    ];
    let found = rules.into_iter().find(|(is_broken, ..)| *is_broken);
    found.map(|(_, keys, text)| Fault { keys: keys.to_vec(), text })
}

/// Keys that do nothing under these settings, and the setting that makes it so.
pub(super) fn idle(config: &Config) -> Vec<(&'static str, String)> {
    let rl = &config.rl;
    let quoted = |key: &str, value: String| format!("rl.{key} = \"{value}\"");
    let algorithm = quoted("algorithm", super::word(&rl.algorithm));
    let rules: [(bool, &[&'static str], String); 10] = [
        (
            rl.algorithm == Algorithm::Grpo,
            &["rl.gamma", "rl.lambda", "rl.value_clip", "rl.critic_learning_rate", "rl.critic_warmup", "rl.whiten"],
            algorithm.clone(),
        ),
        (
            rl.algorithm == Algorithm::Ppo,
            &["rl.group_baseline", "rl.group_deviation", "rl.group_epsilon", "rl.drop_dead_groups"],
            algorithm,
        ),
        (rl.objective != Objective::Clip, &["rl.dual_clip"], quoted("objective", super::word(&rl.objective))),
        (
            rl.algorithm == Algorithm::Grpo && rl.group_deviation == GroupDeviation::None,
            &["rl.group_epsilon"],
            quoted("group_deviation", super::word(&rl.group_deviation)),
        ),
        (
            matches!(rl.overlong, Overlong::Keep | Overlong::Mask),
            &["rl.overlong_penalty"],
            quoted("overlong", super::word(&rl.overlong)),
        ),
        (rl.overlong != Overlong::Soft, &["rl.overlong_buffer"], quoted("overlong", super::word(&rl.overlong))),
        (
            rl.loss_average != LossAverage::Sample,
            &["rl.reply_scale"],
            quoted("loss_average", super::word(&rl.loss_average)),
        ),
        (rl.kl_coefficient == 0.0, &["rl.kl_in", "rl.kl_estimator"], "rl.kl_coefficient = 0".into()),
        (rl.epochs == 1, &["rl.target_kl"], "rl.epochs = 1: it ends passes over a batch, of which there is one".into()),
        (config.reward.form == Form::Sigmoid, &["reward.clip"], "reward.form = \"sigmoid\"".into()),
    ];
    let broken = rules.into_iter().filter(|(is_idle, ..)| *is_idle);
    broken.flat_map(|(_, keys, why)| keys.iter().map(move |key| (*key, why.clone())).collect::<Vec<_>>()).collect()
}
