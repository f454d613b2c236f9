//! Checks settings when every layer and override is known, so that their order does not matter: values outside their
//! ranges, settings that exclude each other, settings that do nothing beside others.

use super::sections::Config;
use super::table::SETTINGS;
use crate::backend::ops::KlEstimator;
use crate::ppo::{Algorithm, GroupDeviation, KlIn, LossAverage, Objective, Overlong};
use crate::reward::Form;
use crate::sft::SaveDtype;
use serde::Serialize;
use toml::{Table, Value};

/// Why settings are refused, and the keys whose values are to blame.
pub(super) struct Fault {
    pub keys: Vec<&'static str>,
    pub text: String,
}

/// The first setting outside its range. `table` has all settings.
pub(super) fn ranges(table: &Table) -> Option<Fault> {
    SETTINGS.iter().find_map(|setting| {
        let (section, name) = setting.parts();
        let value = table.get(section)?.get(name)?;
        let fault = setting.range.fault(value)?;
        let example = setting.range.meant(value).map_or(setting.default().to_string(), |n| n.to_string());
        Some(Fault {
            keys: vec![setting.key],
            text: format!("{}{fault}: expected {}, for example {example}", setting.key, setting.range.words_here()),
        })
    })
}

/// Maximum replies of one step, which are held at once.
const MOST_REPLIES: usize = 1_000_000;

/// The first combination of settings that is not allowed. `section` is the command's: `rl` has rules for sampling that
/// evaluation does not have.
pub(super) fn combinations(config: &Config, section: &str) -> Option<Fault> {
    let (rl, sampling, pretrain) = (&config.rl, &config.sampling, &config.pretrain);
    let is_rl = section == "rl";
    let ppo = rl.algorithm == Algorithm::Ppo;
    let (context, replies) = (config.environment.context_limit, rl.states.saturating_mul(rl.samples));
    let rules: [(bool, &[&'static str], String); 14] = [
        (
            config.sft.save_dtype != SaveDtype::Base && !config.sft.full,
            &["sft.save_dtype", "sft.full"],
            "sft.save_dtype without sft.full=true: an adapter is written in f32; expected sft.save_dtype=base".into(),
        ),
        (
            rl.algorithm == Algorithm::Grpo && rl.samples < 2,
            &["rl.samples", "rl.algorithm"],
            "rl.samples = 1 with rl.algorithm = \"grpo\": a group needs 2 or more samples; expected, for example, rl.samples=8".into(),
        ),
        (
            replies > MOST_REPLIES,
            &["rl.states", "rl.samples"],
            format!(
                "rl.states = {} with rl.samples = {}: {replies} replies a step; expected at most {MOST_REPLIES} together",
                rl.states, rl.samples
            ),
        ),
        (
            (is_rl || section == "eval") && sampling.max_tokens >= context,
            &["sampling.max_tokens", "environment.context_limit"],
            format!(
                "sampling.max_tokens = {} with environment.context_limit = {context}: no prompt would have room beside its reply; \
                 expected a reply of fewer tokens than the context",
                sampling.max_tokens
            ),
        ),
        (
            !pretrain.hidden.is_multiple_of(2 * pretrain.heads),
            &["pretrain.heads", "pretrain.hidden"],
            format!(
                "pretrain.heads = {} with pretrain.hidden = {}: expected heads of an even number of channels each, so that twice the \
                 heads divide the channels",
                pretrain.heads, pretrain.hidden
            ),
        ),
        (
            !pretrain.heads.is_multiple_of(pretrain.kv_heads),
            &["pretrain.kv_heads", "pretrain.heads"],
            format!(
                "pretrain.kv_heads = {} with pretrain.heads = {}: expected a divisor of the heads",
                pretrain.kv_heads, pretrain.heads
            ),
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

/// Keys that do nothing under these settings, each with the setting that makes it so.
pub(super) fn idle(config: &Config) -> Vec<(&'static str, String)> {
    let rl = &config.rl;
    let quoted = |key: &str, value: String| format!("rl.{key} = \"{value}\"");
    let algorithm = quoted("algorithm", word(&rl.algorithm));
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
        (rl.objective != Objective::Clip, &["rl.dual_clip"], quoted("objective", word(&rl.objective))),
        (
            rl.algorithm == Algorithm::Grpo && rl.group_deviation == GroupDeviation::None,
            &["rl.group_epsilon"],
            quoted("group_deviation", word(&rl.group_deviation)),
        ),
        (
            matches!(rl.overlong, Overlong::Keep | Overlong::Mask),
            &["rl.overlong_penalty"],
            quoted("overlong", word(&rl.overlong)),
        ),
        (rl.overlong != Overlong::Soft, &["rl.overlong_buffer"], quoted("overlong", word(&rl.overlong))),
        (rl.loss_average != LossAverage::Sample, &["rl.reply_scale"], quoted("loss_average", word(&rl.loss_average))),
        (rl.kl_coefficient == 0.0, &["rl.kl_in", "rl.kl_estimator"], "rl.kl_coefficient = 0".into()),
        (rl.epochs == 1, &["rl.target_kl"], "rl.epochs = 1: it ends passes over a batch, of which there is one".into()),
        (config.reward.form == Form::Sigmoid, &["reward.clip"], "reward.form = \"sigmoid\"".into()),
    ];
    let broken = rules.into_iter().filter(|(is_idle, ..)| *is_idle);
    broken.flat_map(|(_, keys, why)| keys.iter().map(move |key| (*key, why.clone())).collect::<Vec<_>>()).collect()
}

/// A setting's word as written in TOML.
fn word(value: &impl Serialize) -> String {
    Value::try_from(value).ok().and_then(|value| value.as_str().map(String::from)).unwrap_or_default()
}
