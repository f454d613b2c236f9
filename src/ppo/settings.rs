//! The settings of step-wise RL.

use crate::backend::ops::KlEstimator;
use crate::model::Recompute;
use crate::optimizer::Decay;
use crate::settings::{choice, section};

section! {
    /// `[rl]`
    Settings {
        algorithm: Algorithm, steps: usize, states: usize, samples: usize, initial_share: f64, refresh_share: f64,
        learning_rate: f32, critic_learning_rate: f32, schedule: Decay, warmup: usize, beta1: f32, beta2: f32,
        weight_decay: f32, max_norm: f32,
        epochs: usize, minibatches: usize, target_kl: f32, micro_tokens: usize, recompute: Recompute,
        objective: Objective, clip_low: f32, clip_high: f32, dual_clip: f32, value_clip: f32, gamma: f32, lambda: f32,
        kl_in: KlIn, kl_estimator: KlEstimator, kl_coefficient: f32, entropy_coefficient: f32, whiten: bool,
        group_baseline: GroupBaseline, group_deviation: GroupDeviation, group_epsilon: f32, drop_dead_groups: bool,
        overlong: Overlong, overlong_penalty: f32, overlong_buffer: usize, loss_average: LossAverage,
        reply_scale: f32, critic_warmup: usize,
    }
}

choice! {
    /// How advantages are computed.
    Algorithm { Ppo, Grpo }
}
choice! {
    /// Which quantity the policy loss clips: PPO's token ratios, CISPO's weights, or GSPO's sequence ratios.
    Objective { Clip, Cispo, Gspo }
}
choice! {
    /// The baseline that a reply's score is compared with.
    GroupBaseline { Mean, LeaveOneOut }
}
choice! {
    /// The deviation that group advantages are divided by.
    GroupDeviation { Group, Batch, None }
}
choice! {
    /// How replies that reach the token limit are treated.
    Overlong { Keep, Mask, Penalise, Soft }
}
choice! {
    /// Where the KL to the reference enters.
    KlIn { Reward, Loss }
}
choice! {
    /// How the losses of tokens are averaged.
    LossAverage { Token, Sample, Reply }
}
