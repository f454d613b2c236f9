//! Finds settings that a model cannot work under, whatever the memory: lengths against its positions, the cache against
//! one request, the rank of an adapter against its layers.

use super::asked::Asked;
use crate::error::{Error, Result};
use crate::model::lora::Module;

impl Asked {
    /// Checks the settings. Error: a setting under which no request can run; says which, and what the model allows.
    pub(super) fn check_settings(&self) -> Result<()> {
        let found = self.samples().then(|| self.request_too_large()).flatten();
        found.map_or(Ok(()), |text| Err(Error::content(text)))
    }

    /// Checks the rank. Error: lora.rank is above both dimensions of every layer that a fresh adapter adapts.
    pub(super) fn check_rank(&self) -> Result<()> {
        let found = self.trains().then(|| self.rank_too_large()).flatten();
        found.map_or(Ok(()), |text| Err(Error::content(text)))
    }

    /// Message about a rank above both dimensions of every adapted layer: no layer has use for it. (One rank for layers
    /// of many shapes may well be above the smaller dimension of some of them.)
    fn rank_too_large(&self) -> Option<String> {
        let rank = self.rank();
        let largest = |module: &Module| {
            let (n, k) = module.shape(&self.model);
            n.max(k)
        };
        let module = self.modules().into_iter().max_by_key(largest).filter(|module| rank > largest(module))?;
        let ((n, k), most) = (module.shape(&self.model), largest(&module));
        Some(format!(
            "lora.rank = {rank}: the largest layer it adapts, {} of this model, is ({n}, {k}); expected at most {most}",
            module.name()
        ))
    }

    /// Message about a request that can never run: a reply beyond the model's positions, a cache block longer than a
    /// sequence, more samples than are decoded together, or a cache too small for a prompt of one token with its
    /// replies.
    fn request_too_large(&self) -> Option<String> {
        let (engine, positions) = (&self.config.engine, self.model.max_positions);
        let (reply, samples) = (self.config.sampling.max_tokens, self.samples_of_a_prompt());
        let context = positions.min(self.config.environment.context_limit);
        let blocks = |tokens: usize| tokens.div_ceil(engine.block_size);
        let needed = 1 + samples * blocks(1 + reply);
        if reply >= positions {
            Some(format!(
                "sampling.max_tokens = {reply}: beside such a reply a prompt may have 0 tokens: the model has {positions} positions; \
                 expected less than that"
            ))
        } else if engine.block_size > context {
            Some(format!(
                "engine.block_size = {}: a sequence has at most {context} tokens here (environment.context_limit, the model's positions); \
                 expected no more, for example 16",
                engine.block_size
            ))
        } else if samples > engine.max_running {
            Some(format!(
                "rl.samples = {samples} with engine.max_running = {}: the samples of a state are decoded together; expected no more \
                 samples than that",
                engine.max_running
            ))
        } else if needed > blocks(engine.cache_tokens) {
            Some(format!(
                "engine.cache_tokens = {} with engine.block_size = {}: a prompt with {samples} replies of sampling.max_tokens = {reply} \
                 needs {} tokens or more of the cache",
                engine.cache_tokens,
                engine.block_size,
                needed * engine.block_size
            ))
        } else {
            None
        }
    }
}
