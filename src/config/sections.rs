//! All sections together.

use crate::model::lora;
use crate::settings::section;
use crate::{chat, environment, evaluate, expert, ppo, pretrain, reward, rollout, run, sft, task};

section! {
    /// A whole run's settings.
    Config {
        run: run::Settings, tasks: task::Settings, chat: chat::Settings, environment: environment::Settings,
        reward: reward::Settings, sampling: rollout::Sampling, engine: rollout::Settings, lora: lora::Settings,
        sft: sft::Settings, rl: ppo::Settings, eval: evaluate::Settings, collect: expert::Settings,
        pretrain: pretrain::Settings,
    }
}
