//! The table of settings: each key's range and its meaning to a user. Defaults, and the values that the paper or
//! another program has, are in data/config/default.toml.

use super::range::{Range, above, below, within};
use Range::{Device, Flag, Modules, Names, PerCore, Table, Text, Whole, Word, ZeroOr};
use std::ops::Bound::{Excluded, Included};

/// The defaults, as text.
pub const DEFAULTS: &str = include_str!("../../data/config/default.toml");

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// `section.key`
    pub key: &'static str,
    /// The values it may have.
    pub range: Range,
    /// What it does, in a sentence.
    pub meaning: &'static str,
}

/// The most tokens of a sequence or a pass: the most positions that a model's config.json may state (2^24).
const TOKENS: i64 = 1 << 24;
/// The most steps of a run: no learning-rate schedule (32 bits) ends before it.
const STEPS: i64 = 1_000_000_000;
/// Bytes of the longest path, and of the longest name of a file.
const PATH: usize = 4096;
const NAME: usize = 255;
/// Bound of rates, norms and weights that are multiplied with sums over a model in f32: products stay far below its
/// largest number.
const LARGE: f64 = 1e9;

const SCHEDULES: &[&str] = &["constant", "cosine", "linear"];
const RECOMPUTED: &[&str] = &["norms", "blocks"];
const RECOMPUTE: &str = "What the backward pass computes again: the norms and SwiGLU (norms), or whole blocks (blocks: the least \
                         memory, one more forward pass).";

macro_rules! settings {
    ($($key:literal: $range:expr, $meaning:expr;)*) => {
        &[$(Setting { key: $key, range: $range, meaning: $meaning }),*]
    };
}

/// Every setting, in the order of data/config/default.toml.
pub const SETTINGS: &[Setting] = settings! {
    "run.seed": Whole(0, i64::MAX),
        "Seed of everything random: equal seeds give equal runs, bit for bit, on one machine.";
    "run.device": Device,
        "Where to compute; auto takes the first GPU when there is one, else the CPU.";
    "run.gpu_memory": above(0.0, 1.0),
        "Share of the GPU's free memory that is taken at the start.";
    "run.gpu_check": Flag,
        "Wait after every launch on the GPU, so that an error names the launch it comes from; slow.";
    "run.gpu_fixed_gemms": Flag,
        "Take the GEMM library's first algorithm in place of the fastest of several.";
    "run.gpu_separate_allocations": Flag,
        "A device allocation for each tensor, so that compute-sanitizer sees accesses outside of one; slow.";
    // More threads than cores gain nothing; a few times as many serve tests that results do not depend on the number.
    "run.threads": PerCore { most: 16, bytes: 8 << 20 },
        "Compute threads; 0 takes one for each core.";
    // A worker is a Python process with its libraries; forks share much of its memory.
    "run.workers": PerCore { most: 16, bytes: 64 << 20 },
        "Sandboxes that run scripts side by side; 0 takes one for each core.";
    "run.sandbox_tier": Whole(0, 3),
        "The best protection of scripts that is tried: 3 namespaces and cgroups, 2 namespaces, 1 Landlock and \
         seccomp, 0 none (only with run.unsafe_no_sandbox).";
    "run.unsafe_no_sandbox": Flag,
        "Run scripts without protection where none is possible.";
    "run.reuse_rewards": Flag,
        "Do not execute again what was executed before, also by other runs and processes: what came of it is kept in \
         store.sqlite in the cache folder.";
    "run.store_bytes": Whole(0, 1 << 50),
        "Bytes of content above which opening store.sqlite drops what was not used for longest, but nothing of the \
         last 24 hours.";
    "run.checkpoint_every": Whole(1, STEPS),
        "Steps between checkpoints.";
    "run.keep": Whole(1, 1_000_000),
        "Checkpoints that are kept.";
    "run.divergence_patience": Whole(0, STEPS),
        "Steps in a row that may look diverged (the loss near that of equal probabilities or risen far, the policy's \
         entropy or distance as large) before a run ends; 0 only tells.";
    "tasks.dir": Text(1, PATH),
        "Folder of task folders.";
    "tasks.ideas": Text(1, PATH),
        "Idea library that the scripted expert draws from.";
    "tasks.expert": Text(1, PATH),
        "Bundled expert trajectories, for the quickstart.";
    "tasks.names": Names(NAME),
        "The tasks: held_in, held_out, all, or names of tasks.";
    "chat.template_arguments": Table,
        "Arguments of the model's chat template in every conversation; an item's chat_template_kwargs win.";
    "environment.prompt": Word(&["compact", "full"]),
        "What the agent sees: system message and whole history (full), or description, script and last observation \
         (compact, for small models).";
    "environment.format": Word(&["thought", "no_thought"]),
        "What the agent writes: the six fields of the paper (thought), or action and input only (no_thought).";
    "environment.max_steps": Whole(1, 1_000_000),
        "Steps of an episode.";
    "environment.episode_seconds": above(0.0, LARGE),
        "Seconds of executed scripts after which an episode ends.";
    "environment.observation_limit": Whole(1, 1_000_000_000),
        "Characters of an observation; the middle of a longer one is cut.";
    "environment.context_limit": Whole(2, TOKENS),
        "Tokens of a prompt with its reply; the oldest observations of a longer one are shortened.";
    "environment.undo_failed_edits": Flag,
        "Undo an edit whose run fails, and tell the agent.";
    "reward.form": Word(&["linear", "sigmoid"]),
        "The reward of a step by its gain: linear (version 2 of the paper) or sigmoid (version 1).";
    "reward.clip": within(0.0, LARGE),
        "The linear form is clipped to this, up and down; 0 does not clip.";
    "reward.flagged": Word(&["full", "neutral"]),
        "What a submission that is constant or too good to be true earns: its full reward, or that of a neutral \
         action.";
    // Logits divided by a lower temperature would leave the range of f32.
    "sampling.temperature": ZeroOr("takes the likeliest token", Included(0.001), Included(1000.0)),
        "What logits are divided by before a token is drawn.";
    "sampling.top_p": above(0.0, 1.0),
        "Tokens are drawn from the fewest likeliest ones that have this probability together.";
    "sampling.top_k": Whole(0, i32::MAX as i64),
        "Tokens are drawn from so many likeliest ones; 0, which keeps all tokens, is off.";
    "sampling.max_tokens": Whole(1, TOKENS),
        "Tokens of one reply.";
    "engine.block_size": Whole(1, 65_536),
        "Tokens of one block of the key/value cache.";
    // Rows of the cache, including a spare block, are numbered in 32 bits.
    "engine.cache_tokens": Whole(1, 2_000_000_000),
        "Tokens that the key/value cache holds.";
    "engine.prefill_tokens": Whole(1, TOKENS),
        "Prompt tokens of one prefill pass; a longer prompt has a pass of its own.";
    "engine.max_running": Whole(1, 1_000_000),
        "Samples that are decoded together.";
    "engine.burst": Whole(1, 65_536),
        "Tokens decoded on a GPU between two words with the host; never more than engine.block_size.";
    "lora.rank": Whole(1, 131_072),
        "Rank of the adapter; at most the largest dimension of the layers that it adapts.";
    "lora.alpha": within(1e-6, LARGE),
        "The adapter's product is scaled by this divided by the rank.";
    "lora.rslora": Flag,
        "Divide by the root of the rank in place of the rank (rsLoRA).";
    "lora.modules": Modules,
        "The linear layers of each block that are adapted.";
    "sft.epochs": Whole(1, 100_000),
        "Passes over the data.";
    "sft.learning_rate": within(0.0, LARGE),
        "Peak learning rate.";
    "sft.schedule": Word(SCHEDULES),
        "How the learning rate goes after the warm-up.";
    "sft.warmup": Whole(0, STEPS),
        "First steps, in which the learning rate rises.";
    "sft.batch_tokens": Whole(1, STEPS),
        "Tokens of one optimizer step, packed.";
    "sft.micro_tokens": Whole(1, TOKENS),
        "Tokens of one forward pass; gradients are accumulated over the passes of a step.";
    "sft.recompute": Word(RECOMPUTED),
        RECOMPUTE;
    "sft.max_tokens": Whole(2, TOKENS),
        "Tokens of an example; longer ones are refused.";
    "sft.beta1": below(0.0, 1.0),
        "AdamW's decay of the first moment.";
    "sft.beta2": below(0.0, 1.0),
        "AdamW's decay of the second moment.";
    "sft.weight_decay": within(0.0, 1000.0),
        "AdamW's weight decay, times the rate; on matrices only.";
    "sft.max_norm": within(0.0, LARGE),
        "The gradient's norm is clipped to this; 0 does not clip.";
    "sft.full": Flag,
        "Train all weights in place of an adapter.";
    "sft.save_dtype": Word(&["base", "bf16", "f16", "f32"]),
        "With sft.full: the type that the trained weights are written in; base is the type that the base is stored \
         in.";
    "sft.validation_share": within(0.0, 1.0),
        "Share of the data that is not trained on but measured after each epoch.";
    "rl.algorithm": Word(&["ppo", "grpo"]),
        "How advantages are made: with a critic and GAE (ppo), or within the group of a state's samples (grpo).";
    "rl.steps": Whole(1, STEPS),
        "Steps, each of sampling, executing and learning.";
    "rl.states": Whole(1, 1_000_000),
        "States of one step.";
    "rl.samples": Whole(1, 1_000_000),
        "Replies that are sampled for each state; states times samples are at most 1000000.";
    "rl.initial_share": within(0.0, 1.0),
        "Share of the states that are a task's first state.";
    "rl.refresh_share": within(0.0, 1.0),
        "Share of the other states that earlier samples of this run led to.";
    "rl.learning_rate": within(0.0, LARGE),
        "Learning rate of the actor.";
    "rl.critic_learning_rate": within(0.0, LARGE),
        "ppo: learning rate of the critic.";
    "rl.schedule": Word(SCHEDULES),
        "How both learning rates go over the steps, after the warm-up.";
    "rl.warmup": Whole(0, STEPS),
        "First steps, in which the learning rates rise; fewer than rl.steps.";
    "rl.beta1": below(0.0, 1.0),
        "AdamW's decay of the first moment.";
    "rl.beta2": below(0.0, 1.0),
        "AdamW's decay of the second moment.";
    "rl.weight_decay": within(0.0, 1000.0),
        "AdamW's weight decay, times the rate; on matrices only.";
    "rl.max_norm": within(0.0, LARGE),
        "The gradient's norm is clipped to this; 0 does not clip.";
    "rl.epochs": Whole(1, 10_000),
        "Passes over the samples of a step.";
    "rl.minibatches": Whole(1, 1_000_000),
        "Optimizer steps of one pass, each on as many states; a divisor of rl.states.";
    "rl.target_kl": within(0.0, LARGE),
        "No further pass is made once the policy has moved by more than this (mean estimate of a pass); 0 is off.";
    "rl.micro_tokens": Whole(1, TOKENS),
        "Tokens of one forward pass; gradients are accumulated over the passes of an optimizer step.";
    "rl.recompute": Word(RECOMPUTED),
        RECOMPUTE;
    "rl.objective": Word(&["clip", "cispo", "gspo"]),
        "The policy's loss: PPO's clipped ratios (clip), clipped weights (cispo, arXiv 2506.13585), or a reply's \
         mean ratio (gspo, arXiv 2507.18071).";
    "rl.clip_low": below(0.0, 1.0),
        "The ratio is clipped below at 1 - rl.clip_low.";
    "rl.clip_high": within(0.0, LARGE),
        "The ratio is clipped above at 1 + rl.clip_high.";
    "rl.dual_clip": ZeroOr("turns it off", Excluded(1.0), Included(LARGE)),
        "clip: bound of the ratio where the advantage is negative (arXiv 1912.09729).";
    "rl.value_clip": within(0.0, LARGE),
        "ppo: a value moves by at most this in a step; 0 does not clip.";
    "rl.gamma": within(0.0, 1.0),
        "ppo: discount.";
    "rl.lambda": within(0.0, 1.0),
        "ppo: GAE's decay.";
    "rl.kl_in": Word(&["reward", "loss"]),
        "Where the KL to the reference policy enters: in the reward of each token, or in the loss.";
    "rl.kl_estimator": Word(&["k1", "k2", "k3"]),
        "Estimator of the KL; in the loss k2 has the gradient of the KL, and k1 has none.";
    "rl.kl_coefficient": within(0.0, LARGE),
        "Weight of the KL to the reference policy.";
    "rl.entropy_coefficient": within(0.0, LARGE),
        "Weight of the entropy bonus.";
    "rl.whiten": Flag,
        "ppo: bring advantages to mean 0 and deviation 1 over the batch.";
    "rl.group_baseline": Word(&["mean", "leave_one_out"]),
        "grpo: what a reply is compared with: the group's mean, or the mean of the others (arXiv 2402.14740).";
    "rl.group_deviation": Word(&["group", "batch", "none"]),
        "grpo: what advantages are divided by: the group's deviation, that of the batch (arXiv 2508.08221), or \
         nothing (arXiv 2503.20783).";
    "rl.group_epsilon": within(0.0, LARGE),
        "grpo: added to the deviation; a small one blows up groups that hardly differ.";
    "rl.drop_dead_groups": Flag,
        "grpo: groups of equal rewards have no loss.";
    "rl.overlong": Word(&["keep", "mask", "penalise", "soft"]),
        "Replies cut off at sampling.max_tokens: keep them; mask their loss; penalise them by rl.overlong_penalty; \
         or soft: take more and more away towards the limit.";
    "rl.overlong_penalty": within(0.0, LARGE),
        "penalise, soft: what the reward loses at most.";
    "rl.overlong_buffer": Whole(0, TOKENS),
        "soft: last tokens over which the loss of reward grows (arXiv 2503.14476); at least 1 and below \
         sampling.max_tokens.";
    "rl.loss_average": Word(&["token", "sample", "reply"]),
        "The mean over tokens (token), over replies of their sums divided by rl.reply_scale (sample), or over \
         replies of their means (reply, GRPO's).";
    "rl.reply_scale": within(1e-6, LARGE),
        "sample: what a reply's sum is divided by (arXiv 2503.20783).";
    "rl.critic_warmup": Whole(0, STEPS),
        "ppo: first steps, which train the critic only; fewer than rl.steps.";
    "eval.trajectories": Whole(1, 100_000),
        "Episodes of each task.";
    "eval.source": Text(0, 100),
        "Name of the policy in evaluation.json; empty: base without an adapter, else that of the run or folder that \
         the adapter lies in.";
    "collect.trajectories": Whole(0, 100_000),
        "Episodes of each task.";
    "collect.rounds": Whole(0, 1000),
        "Times that 1, 2 or 3 axes are drawn in an episode, from each of which one idea comes.";
    "collect.redraws": Whole(0, 1000),
        "Times that the expert draws again when its idea crashes or hurts (it looks at the true metric).";
    "collect.select": Whole(0, 1_000_000),
        "Ideas of each axis that are kept by farthest-point selection; 0 keeps all.";
    "collect.other_share": within(0.0, 1.0),
        "Share of the steps that are no edits.";
    "pretrain.steps": Whole(1, STEPS),
        "Optimizer steps.";
    "pretrain.exercises": Whole(1, 65_536),
        "Exercises of one step.";
    "pretrain.replies": Whole(1, 4096),
        "Replies of one exercise.";
    "pretrain.learning_rate": within(0.0, LARGE),
        "Peak learning rate.";
    "pretrain.warmup": Whole(0, STEPS),
        "First steps, in which the learning rate rises.";
    "pretrain.decay_from": within(0.0, 1.0),
        "Share of the steps after which the rate falls linearly to 3 %.";
    "pretrain.weight_decay": within(0.0, 1000.0),
        "AdamW's weight decay, times the rate; on matrices only.";
    "pretrain.max_norm": within(0.0, LARGE),
        "The gradient's norm is clipped to this; 0 does not clip.";
    "pretrain.prompt_weight": within(0.0, LARGE),
        "Weight of the prompts' own tokens in the first half of the steps.";
    // The limits of the shapes in a config.json.
    "pretrain.hidden": Whole(2, 131_072),
        "Channels of the model (C); a multiple of twice pretrain.heads.";
    "pretrain.layers": Whole(1, 1024),
        "Blocks of the model (L).";
    "pretrain.heads": Whole(1, 4096),
        "Query heads (NH).";
    "pretrain.kv_heads": Whole(1, 4096),
        "Key and value heads (NKV); a divisor of pretrain.heads.";
    "pretrain.mlp": Whole(1, 1_048_576),
        "Width of the MLP (F).";
};

impl Setting {
    /// The setting with this key, `section.key`.
    pub fn named(key: &str) -> Option<&'static Setting> {
        SETTINGS.iter().find(|setting| setting.key == key)
    }

    /// The section, and the key within it.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.key.split_once('.').unwrap_or(("", self.key))
    }

    /// The default as it is written in data/config/default.toml.
    pub fn default(&self) -> &'static str {
        self.line().0
    }

    /// The value that the paper or another program has, from data/config/default.toml; empty when none is given.
    pub fn origin(&self) -> &'static str {
        self.line().1
    }

    /// The text after the key's `=`, and the text after the `#` that follows.
    fn line(&self) -> (&'static str, &'static str) {
        let (section, key) = self.parts();
        let lines = DEFAULTS.lines().skip_while(|line| line.strip_prefix('[') != Some(&format!("{section}]")));
        let line = lines.skip(1).take_while(|line| !line.starts_with('[')).find_map(|line| {
            let (found, rest) = line.split_once('=')?;
            (found.trim() == key).then_some(rest)
        });
        let (value, note) = line.unwrap_or_default().split_once('#').unwrap_or((line.unwrap_or_default(), ""));
        (value.trim(), note.trim())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Config;
    use super::*;
    use std::collections::BTreeSet;
    use toml::Value;

    #[test]
    fn the_table_has_every_default_in_its_order_and_every_default_is_valid() {
        let mut section = "";
        let mut keys = vec![];
        for line in DEFAULTS.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
                keys.push(format!("{section}.{}", key.trim()));
            }
        }
        assert_eq!(SETTINGS.iter().map(|setting| setting.key).collect::<Vec<_>>(), keys);
        let defaults: toml::Table = DEFAULTS.parse().unwrap();
        for setting in SETTINGS {
            let (section, key) = setting.parts();
            assert_eq!(setting.range.fault(&defaults[section][key]), None, "{}", setting.key);
            assert_eq!(setting.default().parse::<Value>().unwrap(), defaults[section][key], "{}", setting.key);
            assert!(setting.meaning.ends_with('.'), "{}", setting.key);
        }
    }

    #[test]
    fn the_words_of_a_choice_are_those_that_the_program_reads() {
        let mut seen = 0;
        for setting in SETTINGS {
            let Word(words) = setting.range else { continue };
            let (section, key) = setting.parts();
            let mut table: toml::Table = DEFAULTS.parse().unwrap();
            table[section][key] = "?".into();
            let error = table.try_into::<Config>().unwrap_err().message().to_string();
            let named: BTreeSet<&str> = error.split('`').skip(3).step_by(2).collect();
            assert_eq!(named, words.iter().copied().collect(), "{}: {error}", setting.key);
            seen += 1;
        }
        assert!(seen > 10, "{seen}");
    }
}
