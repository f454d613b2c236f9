//! Builds packed batches that know which rows have a loss: one prompt with many replies (each reply sees the prompt and
//! itself), or plain sequences with a mask. Computes the log-probabilities of those rows and their backward. Has no
//! optimizer and no loss of its own.

use crate::backend::Backend;
use crate::backend::ops::{self};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::{self, Activations, Batch, Gradients, Policy, Segment};
use crate::tensor::{DType, Tensor};
use std::ops::Range;

/// One prompt and the replies sampled for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// The prompt's ids; at least one.
    pub prompt: Vec<u32>,
    /// Token ids of each reply, at least one per reply.
    pub replies: Vec<Vec<u32>>,
}

impl Group {
    /// Rows the group takes in a batch.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.replies.iter().map(|r| r.len() - 1).sum::<usize>()
    }
}

/// A batch and its M loss rows.
pub struct LossBatch {
    /// The packed segments.
    pub batch: Batch,
    /// (M), the row that predicts each target.
    pub rows: Tensor,
    /// (M), token ids.
    pub targets: Tensor,
    /// The loss rows of each reply (or sequence), in order.
    pub samples: Vec<Range<usize>>,
}

impl LossBatch {
    /// Packs each prompt as a segment and its replies as its children, so that the prompt is computed once. Samples are
    /// the replies in order. With `prompts`, the prompts' own tokens (except the first of each) are loss rows too,
    /// after those of the samples.
    pub fn from_groups(backend: &dyn Backend, config: &ModelConfig, groups: &[Group], prompts: bool) -> Result<Self> {
        let (mut segments, mut rows, mut targets, mut samples) = (vec![], vec![], vec![], vec![]);
        let (mut prompt_rows, mut prompt_targets) = (vec![], vec![]);
        let mut offset = 0;
        for group in groups {
            let parent = segments.len();
            segments.push(Segment { ids: &group.prompt, start_position: 0, parent: None });
            prompt_rows.extend((offset..offset + group.prompt.len() - 1).map(|row| row as i32));
            prompt_targets.extend(group.prompt[1..].iter().map(|&id| id as i32));
            offset += group.prompt.len();
            let last_of_prompt = offset - 1;
            for reply in &group.replies {
                let start = rows.len();
                rows.push(last_of_prompt as i32);
                rows.extend((offset..offset + reply.len() - 1).map(|row| row as i32));
                targets.extend(reply.iter().map(|&id| id as i32));
                samples.push(start..rows.len());
                if reply.len() > 1 {
                    let ids = &reply[..reply.len() - 1];
                    segments.push(Segment { ids, start_position: group.prompt.len(), parent: Some(parent) });
                    offset += ids.len();
                }
            }
        }
        if prompts {
            rows.extend(prompt_rows);
            targets.extend(prompt_targets);
        }
        Self::new(backend, config, &segments, &rows, &targets, samples)
    }

    /// Packs one segment per sequence. A token has a loss where `is_sampled` is true (never the first token of a
    /// sequence).
    pub fn from_sequences(
        backend: &dyn Backend,
        config: &ModelConfig,
        sequences: &[(&[u32], &[bool])],
    ) -> Result<Self> {
        let (mut segments, mut rows, mut targets, mut samples) = (vec![], vec![], vec![], vec![]);
        let mut offset = 0;
        for (ids, is_sampled) in sequences {
            segments.push(Segment { ids, start_position: 0, parent: None });
            let start = rows.len();
            for i in (1..ids.len()).filter(|&i| is_sampled[i]) {
                rows.push((offset + i - 1) as i32);
                targets.push(ids[i] as i32);
            }
            samples.push(start..rows.len());
            offset += ids.len();
        }
        Self::new(backend, config, &segments, &rows, &targets, samples)
    }

    fn new(
        backend: &dyn Backend,
        config: &ModelConfig,
        segments: &[Segment],
        rows: &[i32],
        targets: &[i32],
        samples: Vec<Range<usize>>,
    ) -> Result<Self> {
        let put = |values: &[i32]| -> Result<Tensor> {
            let mut tensor = backend.alloc_unset(&[values.len()], DType::I32)?;
            backend.write(&mut tensor, &Tensor::from_slice(&[values.len()], values))?;
            Ok(tensor)
        };
        Ok(Self { batch: Batch::new(backend, config, segments)?, rows: put(rows)?, targets: put(targets)?, samples })
    }

    /// M, the number of loss rows.
    pub fn loss_rows(&self) -> usize {
        self.rows.len()
    }
}

/// Splits `lengths` into consecutive ranges whose sums stay within `limit`; a single longer length gets its own range.
pub fn split(lengths: impl IntoIterator<Item = usize>, limit: usize) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut sum, mut end) = (vec![], 0, 0, 0);
    for (i, length) in lengths.into_iter().enumerate() {
        if i > start && sum + length > limit {
            ranges.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += length;
        end = i + 1;
    }
    if end > start {
        ranges.push(start..end);
    }
    ranges
}

/// Results of a forward pass for the loss rows.
pub struct RowScores {
    /// (M, C), hidden states of the rows.
    pub hidden: Tensor,
    /// (M), log-probability of each target.
    pub logp: Tensor,
    /// (M), entropy of each row's distribution.
    pub entropy: Tensor,
    lse: Tensor,
}

/// Runs a forward pass and returns the hidden states (M, C) of the loss rows; with `keep`, a backward pass can follow.
pub fn forward_hidden(
    backend: &dyn Backend,
    policy: Policy,
    batch: &LossBatch,
    keep: bool,
    acts: &mut Activations,
) -> Result<Tensor> {
    model::forward(backend, policy, &batch.batch, keep, acts)?;
    let mut hidden = backend.alloc_unset(&[batch.loss_rows(), policy.model.config.hidden], backend.activation())?;
    ops::GatherRows { x: acts.hidden(), rows: &batch.rows, y: &mut hidden }.run(backend)?;
    Ok(hidden)
}

/// Computes log-probabilities and entropies of the loss rows at `temperature`; `keep` as in `forward_hidden`.
pub fn forward(
    backend: &dyn Backend,
    policy: Policy,
    batch: &LossBatch,
    temperature: f32,
    keep: bool,
    acts: &mut Activations,
) -> Result<RowScores> {
    let hidden = forward_hidden(backend, policy, batch, keep, acts)?;
    let vector = || backend.alloc_unset(&[batch.loss_rows()], backend.accumulator());
    let (mut logp, mut entropy, mut lse) = (vector()?, vector()?, vector()?);
    let head = policy.model.lm_head();
    ops::LinearLogprob {
        x: &hidden,
        w: head,
        targets: &batch.targets,
        temperature,
        logp: &mut logp,
        entropy: &mut entropy,
        lse: &mut lse,
    }
    .run(backend)?;
    Ok(RowScores { hidden, logp, entropy, lse })
}

/// Accumulates parameter gradients into `grads`, given `drows` (M, C), the gradient of the rows' hidden states.
pub fn backward_hidden(
    backend: &dyn Backend,
    policy: Policy,
    batch: &LossBatch,
    acts: &mut Activations,
    drows: &Tensor,
    grads: &mut Gradients,
) -> Result<()> {
    let mut dhidden = backend.alloc(acts.hidden().shape(), backend.activation())?;
    ops::ScatterAddRows { dy: drows, rows: &batch.rows, dx: &mut dhidden }.run(backend)?;
    model::backward(backend, policy, &batch.batch, acts, &dhidden, grads)
}

/// Accumulates parameter gradients into `grads`, given the gradients of log-probabilities and entropies (M).
#[allow(clippy::too_many_arguments)]
pub fn backward(
    backend: &dyn Backend,
    policy: Policy,
    batch: &LossBatch,
    temperature: f32,
    acts: &mut Activations,
    scores: &RowScores,
    dlogp: &Tensor,
    dentropy: Option<&Tensor>,
    grads: &mut Gradients,
) -> Result<()> {
    let mut drows = backend.alloc_unset(scores.hidden.shape(), backend.activation())?;
    ops::LinearLogprobBackward {
        x: &scores.hidden,
        w: policy.model.lm_head(),
        targets: &batch.targets,
        temperature,
        entropy: &scores.entropy,
        lse: &scores.lse,
        dlogp,
        dentropy,
        dx: &mut drows,
        dw: grads.lm_head(policy.model),
    }
    .run(backend)?;
    backward_hidden(backend, policy, batch, acts, &drows, grads)
}
