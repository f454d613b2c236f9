//! Hints for options that do not exist: the setting that was meant (`--lr 1e-4` is learning_rate=1e-4), the option's
//! name here, or the options that the verb does have.

use super::args::Typed;
use crate::config::{self, DEFAULTS};
use crate::identity::is_read;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use toml::{Table, Value};

/// Verbs that take settings, each with the section that its bare keys belong to.
const SECTIONS: [(&str, &str); 10] = [
    ("quickstart", "rl"),
    ("sft", "sft"),
    ("rl", "rl"),
    ("eval", "eval"),
    ("collect", "collect"),
    ("pretrain", "pretrain"),
    ("plan", "sft"),
    ("generate", "sampling"),
    ("task", "tasks"),
    ("data", "sft"),
];

/// Names that other trainers give to options, and the option here.
const OPTIONS: &[(&[&str], &str)] = &[
    (&["output_dir", "output", "save_dir"], "out"),
    (&["base_model", "model_name_or_path", "model_name", "model_path"], "model"),
    (&["dataset", "train_file", "train_data", "data_path", "dataset_name"], "data"),
    (&["lora", "peft", "adapter_path", "adapter_name_or_path"], "adapter"),
    (&["resume_from_checkpoint", "continue"], "resume"),
];

/// Names that other trainers give to settings, and the settings here: the one in the verb's own section is taken, else
/// the first that the verb reads.
const SETTINGS: &[(&[&str], &[&str])] = &[
    (&["lr", "learningrate", "actor_lr"], &["sft.learning_rate", "rl.learning_rate", "pretrain.learning_rate"]),
    (&["critic_lr", "value_lr"], &["rl.critic_learning_rate"]),
    (&["num_epochs", "n_epochs", "num_train_epochs", "epoch", "ppo_epochs"], &["sft.epochs", "rl.epochs"]),
    (
        &["max_steps", "num_steps", "iterations", "total_steps"],
        &["rl.steps", "pretrain.steps", "environment.max_steps"],
    ),
    (
        &["max_grad_norm", "grad_clip", "clip_grad", "gradient_clipping"],
        &["sft.max_norm", "rl.max_norm", "pretrain.max_norm"],
    ),
    (&["lora_rank", "lora_r", "rank", "r"], &["lora.rank"]),
    (&["lora_alpha", "alpha"], &["lora.alpha"]),
    (&["lora_target_modules", "target_modules", "lora_modules"], &["lora.modules"]),
    (&["max_length", "max_seq_length", "max_seq_len", "seq_len", "cutoff_len", "block_size"], &["sft.max_tokens"]),
    (&["max_new_tokens", "max_completion_length", "max_response_length"], &["sampling.max_tokens"]),
    (&["temp"], &["sampling.temperature"]),
    (&["warmup_steps", "num_warmup_steps"], &["sft.warmup", "rl.warmup", "pretrain.warmup"]),
    (&["scheduler", "lr_scheduler", "lr_scheduler_type", "lr_schedule"], &["sft.schedule", "rl.schedule"]),
    (&["wd"], &["sft.weight_decay", "rl.weight_decay", "pretrain.weight_decay"]),
    (&["adam_beta1"], &["sft.beta1", "rl.beta1"]),
    (&["adam_beta2"], &["sft.beta2", "rl.beta2"]),
    (&["val_size", "validation_split", "eval_split", "test_size"], &["sft.validation_share"]),
    (&["save_steps", "save_every", "checkpoint_interval"], &["run.checkpoint_every"]),
    (&["save_total_limit", "keep_checkpoints"], &["run.keep"]),
    (&["num_workers", "num_proc"], &["run.workers"]),
    (&["num_threads"], &["run.threads"]),
    (&["kl_coef", "beta", "kl_coeff"], &["rl.kl_coefficient"]),
    (&["entropy_coef", "entropy_coeff", "ent_coef"], &["rl.entropy_coefficient"]),
    (&["clip_range", "cliprange", "clip_ratio", "clip_eps", "epsilon"], &["rl.clip_low"]),
    (&["clip_range_high", "clip_ratio_high", "epsilon_high"], &["rl.clip_high"]),
    (&["clip_ratio_c"], &["rl.dual_clip"]),
    (&["cliprange_value", "clip_range_vf", "vf_clip"], &["rl.value_clip"]),
    (&["num_minibatches", "num_mini_batches"], &["rl.minibatches"]),
    (&["num_generations", "group_size", "rollout_n"], &["rl.samples"]),
    (&["gae_lambda", "lam"], &["rl.lambda"]),
    (&["algo", "adv_estimator"], &["rl.algorithm"]),
    (&["tasks", "task"], &["tasks.names"]),
    (&["name", "policy_name", "source"], &["eval.source"]),
];

/// Like `SETTINGS`, for settings whose unit differs from the one that the typed name implies.
const OTHER_UNITS: &[(&[&str], &[&str])] = &[
    (
        &["batch_size", "train_batch_size", "per_device_train_batch_size", "global_batch_size", "bs"],
        &["sft.batch_tokens", "rl.states"],
    ),
    (&["micro_batch_size", "gradient_accumulation_steps"], &["sft.micro_tokens", "rl.micro_tokens"]),
    (&["mini_batch_size", "ppo_mini_batch_size"], &["rl.minibatches", "sft.micro_tokens"]),
    (&["warmup_ratio"], &["sft.warmup", "rl.warmup", "pretrain.warmup"]),
];

/// The section of a verb's bare keys; `None` for a verb without settings.
pub fn section(verb: &str) -> Option<&'static str> {
    SECTIONS.iter().find(|(name, _)| *name == verb).map(|(_, section)| *section)
}

/// The message to print instead of clap's for an option that does not exist; `None` when clap's is best. `words` is the
/// command line without the program's name.
pub fn hint(error: &clap::Error, words: &[String]) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return None };
    let verb = words.first()?.as_str();
    // clap reports `-lr` as `-l`.
    let at = words.iter().position(|word| word.starts_with(argument.as_str()))?;
    let (option, attached) = match words[at].split_once('=') {
        Some((option, value)) => (option, Some(value)),
        None => (words[at].as_str(), None),
    };
    let is_value = |word: &&String| (!word.starts_with('-') || word.parse::<f64>().is_ok()) && !word.contains('=');
    let value = attached.or_else(|| words.get(at + 1).filter(is_value).map(String::as_str));
    let name = option.trim_start_matches('-').replace('-', "_").to_lowercase();

    let takes = options(verb)?;
    if let Some((_, ours)) =
        OPTIONS.iter().find(|(names, ours)| names.contains(&name.as_str()) && takes.iter().any(|o| o == ours))
    {
        return Some(format!("{option}: {verb} calls it --{ours}"));
    }
    let is_elsewhere = Typed::command()
        .get_subcommands()
        .any(|c| c.get_arguments().any(|a| a.get_long() == option.strip_prefix("--")));
    if is_elsewhere && option.starts_with("--") && name != "name" {
        let takes = takes.iter().map(|option| format!("--{option}")).collect::<Vec<_>>().join(" ");
        return Some(format!("{verb} does not use {option}; its options are {takes}"));
    }
    let own = section(verb)?;
    let defaults: Table = DEFAULTS.parse().ok()?;
    let has_suggestion = error.get(ContextKind::SuggestedArg).is_some();
    let (key, is_same_unit) = setting(&name, verb, own, &defaults, has_suggestion)?;
    let (section, bare) = key.split_once('.')?;
    let default = defaults.get(section)?.get(bare)?;
    let shown = match (value.filter(|_| is_same_unit), default) {
        (Some(value), _) => value.to_string(),
        (None, Value::Boolean(on)) => (!on).to_string(),
        (None, Value::String(text)) => text.clone(),
        (None, other) => other.to_string(),
    };
    let typed = if section == own { bare } else { key.as_str() };
    Some(match is_same_unit {
        true => format!(
            "{option} is a setting, not an option: settings are typed as key=value without dashes, here {typed}={shown}"
        ),
        false => format!(
            "{option} is no option; the setting for it is {typed}={shown}, in a unit of its own (`onestep config {key}` says which)"
        ),
    })
}

/// The setting whose full or bare key is most similar to `name`; `None` when none is similar enough.
pub fn nearest(name: &str) -> Option<&'static str> {
    let bare: Vec<&str> = config::SETTINGS.iter().flat_map(|setting| [setting.key, setting.parts().1]).collect();
    let near = similar::get_close_matches(name, &bare, 1, 0.75);
    let found = config::SETTINGS.iter().find(|s| near.iter().any(|near| *near == s.key || *near == s.parts().1));
    found.map(|setting| setting.key)
}

/// The long options of a verb.
fn options(verb: &str) -> Option<Vec<String>> {
    let command = Typed::command();
    let command = command.get_subcommands().find(|command| command.get_name() == verb)?;
    Some(command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_string).collect())
}

/// Finds the setting that `name` means among those that `verb` reads, and says whether a value typed for it is in the
/// setting's unit. Tried in this order: a key of the verb's own section, another trainer's name, a key of any section,
/// a name with another unit and, unless `exact`, a similar key.
fn setting(name: &str, verb: &str, own: &str, defaults: &Table, exact: bool) -> Option<(String, bool)> {
    let keys: Vec<(String, &str)> = defaults
        .iter()
        .filter_map(|(section, keys)| Some((section, keys.as_table()?)))
        .flat_map(|(section, keys)| keys.keys().map(move |key| (format!("{section}.{key}"), key.as_str())))
        .filter(|(key, _)| is_read(verb, key))
        .collect();
    // The verb's own section first.
    let pick = |found: Vec<&str>| {
        let own = found.iter().find(|key| key.split('.').next() == Some(own));
        own.or(found.first()).map(|key| key.to_string())
    };
    let named = |name: &str| {
        let full = name.replacen('_', ".", 1);
        pick(
            keys.iter()
                .filter(|(key, bare)| *bare == name || *key == name || *key == full)
                .map(|(key, _)| key.as_str())
                .collect(),
        )
    };
    let of_others = |table: &[(&[&str], &[&str])]| {
        let (_, ours) = table.iter().find(|(names, _)| names.contains(&name))?;
        pick(ours.iter().copied().filter(|key| is_read(verb, key)).collect())
    };
    let is_own = |key: &String| key.split('.').next() == Some(own);
    if let Some(key) = named(name).filter(is_own).or_else(|| of_others(SETTINGS)).or_else(|| named(name)) {
        return Some((key, true));
    }
    if let Some(key) = of_others(OTHER_UNITS) {
        return Some((key, false));
    }
    if exact {
        return None;
    }
    let bare: Vec<&str> = keys.iter().map(|(_, bare)| *bare).collect();
    let near = similar::get_close_matches(name, &bare, 1, 0.75);
    near.first().and_then(|near| named(near)).map(|key| (key, true))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_a_setting_that_the_verb_reads() {
        let defaults: Table = DEFAULTS.parse().unwrap();
        let exists =
            |key: &str| key.split_once('.').is_some_and(|(section, bare)| defaults[section].get(bare).is_some());
        let of_others = SETTINGS.iter().chain(OTHER_UNITS);
        of_others.clone().flat_map(|(_, ours)| *ours).for_each(|key| assert!(exists(key), "{key}"));
        let bare = defaults.values().filter_map(Value::as_table).flat_map(|keys| keys.keys().map(String::as_str));
        let names: Vec<&str> = of_others.flat_map(|(names, _)| *names).copied().chain(bare).collect();
        let mut answers = 0;
        for (verb, own) in SECTIONS {
            for name in &names {
                if let Some((key, _)) = setting(name, verb, own, &defaults, false) {
                    assert!(exists(&key) && is_read(verb, &key), "{verb} --{name}: {key}");
                    answers += 1;
                }
            }
        }
        assert!(answers > names.len(), "{answers}");
        for (verb, name, expected) in [
            ("rl", "warmup_steps", Some("rl.warmup")),
            ("rl", "lr_scheduler_type", Some("rl.schedule")),
            ("rl", "wd", Some("rl.weight_decay")),
            ("rl", "adam_beta1", Some("rl.beta1")),
            ("rl", "mini_batch_size", Some("rl.minibatches")),
            ("rl", "max_steps", Some("rl.steps")),
            ("eval", "max_steps", Some("environment.max_steps")),
            ("sft", "mini_batch_size", Some("sft.micro_tokens")),
            ("sft", "temperature", None),
            ("eval", "lr", None),
        ] {
            let found = setting(name, verb, section(verb).unwrap(), &defaults, true);
            assert_eq!(found.as_ref().map(|(key, _)| key.as_str()), expected, "{verb} --{name}");
        }
    }
}
