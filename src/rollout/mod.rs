//! Sampling of replies: schedule, run, post-process. Never sees environments, tasks or text.

mod burst;
mod engine;
mod sampler;
mod scheduler;
mod settings;

pub use burst::recording_bytes;
pub use engine::Engine;
pub use settings::{Sampling, Settings};

/// A prompt and how many replies it wants.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt's ids; at least one.
    pub prompt: Vec<u32>,
    /// Replies to sample; at least one. The prompt is computed once for all.
    pub samples: usize,
    /// The run's seed.
    pub seed: u64,
    /// Names the random stream: equal (seed, stream, sample) draw equal numbers, whatever else is in the batch.
    pub stream: String,
    /// Maximum tokens of a reply, the end token included.
    pub max_tokens: usize,
}

/// One reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its ids; the last one is an end token unless it hit the length limit.
    pub ids: Vec<u32>,
    /// Log-probability of each id at the sampling temperature.
    pub logprobs: Vec<f32>,
}
