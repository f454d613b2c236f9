//! The settings of sampling and of the engine.

use crate::settings::section;

section! {
    /// `[sampling]`
    Sampling { temperature: f32, top_p: f32, top_k: i32, max_tokens: usize }
}
section! {
    /// `[engine]`
    Settings { block_size: usize, cache_tokens: usize, prefill_tokens: usize, max_running: usize, burst: usize }
}
