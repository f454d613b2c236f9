//! Chooses what the next pass computes: waiting prompts that fit, else one token of every running sample. Computes
//! nothing itself.

use super::Request;
use super::settings::Settings;
use crate::error::{Error, Result};
use crate::model::kv_cache::{BlockManager, Sequence};
use std::collections::VecDeque;

/// A sample being decoded.
pub(super) struct Running {
    /// Its request.
    pub request: usize,
    /// Its place among the request's samples.
    pub sample: usize,
    /// Its tokens in the cache: all but the last drawn one.
    pub sequence: Sequence,
    /// Tokens it may still draw; the cache blocks for them are reserved.
    pub left: usize,
    /// The last drawn token, the input of its next pass.
    pub last: u32,
}

/// The next pass.
pub(super) enum Work {
    /// Prompts of these requests.
    Prefill(Vec<usize>),
    /// One token of every running sample.
    Decode,
    /// Nothing is left.
    Done,
}

/// Waiting requests, running samples, and the blocks they hold. A request starts only when the blocks of all its
/// samples at full length are free, so that nothing has to be taken back later.
pub(super) struct Scheduler {
    waiting: VecDeque<usize>,
    pub running: Vec<Running>,
    pub blocks: BlockManager,
    total: usize,
    block_size: usize,
    prefill_tokens: usize,
    max_running: usize,
}

impl Scheduler {
    /// A scheduler, and a one-token sequence in a block beside those that requests can have.
    pub fn new(settings: &Settings) -> Result<(Self, Sequence)> {
        let total = settings.cache_tokens.div_ceil(settings.block_size);
        let mut blocks = BlockManager::new(total + 1, settings.block_size);
        let padding = blocks.allocate(1)?;
        let (waiting, running) = (VecDeque::new(), vec![]);
        let Settings { block_size, prefill_tokens, max_running, .. } = *settings;
        Ok((Self { waiting, running, blocks, total, block_size, prefill_tokens, max_running }, padding))
    }

    /// Queues `requests`, all or none. Errors: a request without prompt, samples or tokens, or one whose samples can
    /// never fit into the cache or the model's `positions`.
    pub fn submit(&mut self, requests: &[Request], positions: usize) -> Result<()> {
        for (index, request) in requests.iter().enumerate() {
            if request.prompt.is_empty() || request.samples == 0 || request.max_tokens == 0 {
                return Err(Error::content(format!(
                    "request {index}: expected a prompt, a sample and a token or more"
                )));
            }
            let (prompt, reply) = (request.prompt.len(), request.max_tokens);
            if prompt.saturating_add(reply) > positions {
                return Err(Error::content(format!(
                    "a prompt of {prompt} tokens and a reply of at most {reply} do not fit into the model's {positions} positions: {}",
                    match positions.checked_sub(prompt) {
                        None | Some(0) => "shorten the prompt".to_string(),
                        Some(left) => format!("set sampling.max_tokens={left} or lower, or shorten the prompt"),
                    }
                )));
            }
            let (needed, samples) = (self.needed(request), request.samples);
            if needed > self.total || samples > self.max_running {
                return Err(Error::content(format!(
                    "a prompt of {} tokens with {samples} samples of at most {} needs {needed} cache blocks and {samples} \
                     places; there are {} and {}: raise engine.cache_tokens or engine.max_running, or lower the number of \
                     samples or sampling.max_tokens",
                    request.prompt.len(),
                    request.max_tokens,
                    self.total,
                    self.max_running,
                )));
            }
        }
        self.waiting.extend(0..requests.len());
        Ok(())
    }

    /// Maximum tokens of a prompt with which a request of `samples` samples of at most `max_tokens` tokens always fits:
    /// see `needed`.
    pub fn longest_prompt(&self, samples: usize, max_tokens: usize) -> usize {
        let own = self.blocks.blocks_for(max_tokens) + 1;
        self.total.saturating_sub(samples.saturating_mul(own)) * self.block_size
    }

    /// Blocks of a request's samples at full length: those of the prompt are shared, each sample has its own for the
    /// rest.
    fn needed(&self, request: &Request) -> usize {
        let prompt = self.blocks.blocks_for(request.prompt.len());
        let own = self.blocks.blocks_for(request.prompt.len() + request.max_tokens) - prompt + 1;
        prompt + request.samples * own
    }

    /// Blocks that running samples may still take.
    fn reserved(&self) -> usize {
        let one = |r: &Running| self.blocks.blocks_for(r.sequence.len() + r.left) - r.sequence.blocks().len();
        self.running.iter().map(one).sum()
    }

    /// Chooses the next pass.
    pub fn next(&mut self, requests: &[Request]) -> Work {
        let mut free = self.blocks.available().saturating_sub(self.reserved());
        let (mut places, mut tokens) = (self.max_running.saturating_sub(self.running.len()), 0);
        let mut chosen = vec![];
        while let Some(&index) = self.waiting.front() {
            let request = &requests[index];
            let (needed, length) = (self.needed(request), request.prompt.len());
            let fits = needed <= free && request.samples <= places;
            if !fits || (!chosen.is_empty() && tokens + length > self.prefill_tokens) {
                break;
            }
            free -= needed;
            places -= request.samples;
            tokens += length;
            chosen.push(index);
            self.waiting.pop_front();
        }
        match (chosen.is_empty(), self.running.is_empty()) {
            (false, _) => Work::Prefill(chosen),
            (true, false) => Work::Decode,
            (true, true) => Work::Done,
        }
    }

    /// Gives everything back, after an error in the middle of a batch.
    pub fn clear(&mut self) {
        self.waiting.clear();
        for running in self.running.drain(..) {
            self.blocks.free(running.sequence);
        }
    }
}
