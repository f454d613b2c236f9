//! The transformer: a model, an adapter over it, and their forward and backward as a short list of op calls. Knows no
//! file formats.

pub mod config;
pub mod kv_cache;
pub mod lora;
pub mod rope;
pub mod shapes;

mod block;
mod indices;
mod parameters;
mod policy;

pub use indices::index_tensor;
pub use parameters::parameter_shapes;
pub use policy::{Gradients, Model, Policy};

use crate::backend::Backend;
use crate::backend::ops::{self, Segments};
use crate::error::{Error, Result};
use crate::tensor::Tensor;
use block::{Attention, Block, BlockBuffers, Normed, Passing, Scratch, bytes, fit};
use config::ModelConfig;
use indices::narrow;
use kv_cache::{KvCache, PagedPlan};
use policy::two;
use serde::{Deserialize, Serialize};

/// One sequence of a packed batch, or a continuation of one.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Its tokens, at least one.
    pub ids: &'a [u32],
    /// Position of the first token: 0, or the parent's length.
    pub start_position: usize,
    /// Index of the earlier segment that this one continues and sees whole. That segment must have no parent.
    pub parent: Option<usize>,
}

/// Packed segments as tensors. No token sees another segment, except its parent.
pub struct Batch {
    /// (T), token ids.
    pub ids: Tensor,
    /// (T), position of each token.
    pub positions: Tensor,
    /// (S + 1), offsets of the segments.
    pub cu_seqlens: Tensor,
    /// (S), index of the parent, -1 for none.
    pub parent: Tensor,
}

impl Batch {
    /// Packs `segments`, at least one, in order. Errors name the segment: no tokens, an id outside the vocabulary, a
    /// position beyond the model's last, a parent that is not an earlier segment without a parent.
    pub fn new(be: &dyn Backend, config: &ModelConfig, segments: &[Segment]) -> Result<Self> {
        if segments.is_empty() {
            return Err(Error::content("a batch without segments; expected at least one"));
        }
        let (mut ids, mut positions, mut offsets, mut parents) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        for (index, segment) in segments.iter().enumerate() {
            let fail = |what: String| Err(Error::content(format!("segment {index} of the batch {what}")));
            if segment.ids.is_empty() {
                return fail("has no tokens".into());
            }
            if let Some(id) = segment.ids.iter().find(|&&id| id as usize >= config.vocab) {
                return fail(format!("has token id {id}; the model has ids 0 to {}", config.vocab - 1));
            }
            let end = segment.start_position + segment.ids.len();
            if end > config.max_positions {
                return fail(format!("ends at position {end}; the model has {} positions", config.max_positions));
            }
            if let Some(parent) = segment.parent
                && (parent >= index || segments[parent].parent.is_some())
            {
                return fail(format!("has parent {parent}; expected an earlier segment that has none itself"));
            }
            ids.extend(segment.ids.iter().map(|&id| id as i32));
            positions.extend(segment.start_position..end);
            offsets.push(ids.len());
            parents.push(segment.parent.map_or(-1, |p| p as i32));
        }
        Ok(Self {
            ids: index_tensor(be, &[ids.len()], &ids)?,
            positions: index_tensor(be, &[positions.len()], &narrow(&positions)?)?,
            cu_seqlens: index_tensor(be, &[offsets.len()], &narrow(&offsets)?)?,
            parent: index_tensor(be, &[parents.len()], &parents)?,
        })
    }

    /// T, number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    fn segments(&self) -> Segments<'_> {
        Segments { cu_seqlens: &self.cu_seqlens, parent: &self.parent }
    }
}

/// Values that the backward computes again instead of keeping them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Norms and SwiGLU: cheap, and as large as their inputs.
    #[default]
    Norms,
    /// Whole blocks, from their input: least memory, at the cost of one more forward.
    Blocks,
}

/// Buffers of the forward and backward passes: as large as the largest pass so far; smaller passes use part of them.
/// The values of a kept pass serve one backward.
#[derive(Default)]
pub struct Activations {
    recompute: Recompute,
    /// Number of tokens that buffers have room for at least.
    room: usize,
    norms: Vec<Normed>,
    blocks: Vec<BlockBuffers>,
    passing: Passing,
    copied: Tensor, // (X, D)
    scratch: Scratch,
    /// T of a kept pass, until another pass overwrites it.
    kept: Option<usize>,
}

impl Activations {
    /// Starts without buffers.
    pub fn new(recompute: Recompute) -> Self {
        Self { recompute, ..Self::default() }
    }

    /// Sets the room to `tokens` tokens, so that buffers are allocated only once for passes of up to that size.
    pub fn with_room(self, tokens: usize) -> Self {
        Self { room: tokens, ..self }
    }

    /// Hidden states (T, C) of the last pass after the final norm; valid until its backward.
    pub fn hidden(&self) -> &Tensor {
        &self.passing.y
    }

    /// Bytes of all buffers, which are those of the largest pass so far of each kind.
    pub fn bytes(&self) -> usize {
        let norms: usize = self.norms.iter().map(Normed::bytes).sum();
        let blocks: usize = self.blocks.iter().map(BlockBuffers::bytes).sum();
        norms + blocks + self.passing.bytes() + bytes(&self.copied) + self.scratch.bytes()
    }

    /// Fits the buffers of all layers (with `keep`), or those of one layer that all layers share.
    fn prepare(&mut self, be: &dyn Backend, policy: Policy, rows: usize, keep: bool) -> Result<()> {
        let layers = policy.model.config.layers;
        let norms = if keep { layers + 1 } else { 2 };
        let blocks = if keep && self.recompute == Recompute::Norms { layers } else { 1 };
        self.kept = None;
        self.norms.resize_with(self.norms.len().max(norms), Normed::default);
        self.blocks.resize_with(self.blocks.len().max(blocks), BlockBuffers::default);
        for rows in [rows.max(self.room), rows] {
            self.norms[..norms].iter_mut().try_for_each(|normed| normed.fit(be, policy, rows))?;
            self.blocks[..blocks].iter_mut().try_for_each(|block| block.fit(be, policy, rows))?;
            self.passing.fit(be, policy, rows)?;
        }
        Ok(())
    }
}

/// Computes the hidden states of a packed batch, into `acts.hidden()`. With `keep`, everything that the layers'
/// backward needs stays (see `Recompute`); without, all layers share one layer's buffers.
pub fn forward(be: &dyn Backend, policy: Policy, batch: &Batch, keep: bool, acts: &mut Activations) -> Result<()> {
    acts.prepare(be, policy, batch.tokens(), keep)?;
    run(be, policy, &batch.ids, &batch.positions, Source::Packed(batch), keep, acts)?;
    acts.kept = keep.then_some(batch.tokens());
    Ok(())
}

/// Computes the hidden states (Q, C) of the new tokens `ids` (Q) of sequences in a paged cache, into `acts.hidden()`.
/// Appends their keys and values to the cache.
pub fn forward_paged(
    be: &dyn Backend,
    policy: Policy,
    ids: &Tensor,
    cache: &mut KvCache,
    plan: &PagedPlan,
    acts: &mut Activations,
) -> Result<()> {
    acts.prepare(be, policy, ids.len(), false)?;
    if let Some((rows, _)) = &plan.copies {
        fit(be, &mut acts.copied, &[rows.len(), policy.model.config.heads.qkv_width()])?;
    }
    run(be, policy, ids, &plan.positions, Source::Paged(plan, cache), false, acts)
}

/// Where the attention of all layers finds its keys and values.
enum Source<'a> {
    Packed(&'a Batch),
    Paged(&'a PagedPlan, &'a mut KvCache),
}

fn run(
    be: &dyn Backend,
    policy: Policy,
    ids: &Tensor,
    positions: &Tensor,
    mut source: Source,
    keep: bool,
    acts: &mut Activations,
) -> Result<()> {
    let (weights, places, eps) = (&policy.model.weights, &policy.model.places, policy.model.config.rms_eps);
    let Activations { recompute, norms, blocks, passing, copied, .. } = acts;
    let stream = &mut norms[0];
    ops::Embed { ids, wte: &weights[places.embed], out: &mut stream.sum }.run(be)?;
    let first = &weights[places.layers[0].input_norm];
    ops::AddRmsnorm {
        residual: &stream.sum,
        x: None,
        w: first,
        eps,
        sum: None,
        y: &mut passing.y,
        rstd: &mut stream.rstd,
    }
    .run(be)?;
    for layer in 0..places.layers.len() {
        let (from, to) = if keep { (layer, layer + 1) } else { (layer % 2, (layer + 1) % 2) };
        let buffers = if keep && *recompute == Recompute::Norms { layer } else { 0 };
        let (input, next) = two(norms, from, to);
        let attention = match &mut source {
            Source::Packed(batch) => Attention::Packed(batch.segments()),
            Source::Paged(plan, KvCache { k, v, block_size }) => Attention::Paged {
                plan,
                k: &mut k[layer],
                v: &mut v[layer],
                block_size: *block_size,
                copied: &mut *copied,
            },
        };
        Block { policy, layer }.forward(be, positions, attention, input, &mut blocks[buffers], passing, next)?;
    }
    Ok(())
}

/// Accumulates gradients into `grads`. `dhidden` (T, C) is the gradient of `acts.hidden()` of a kept `forward` of the
/// same policy and batch. Error: the last pass was not kept, or had another number of tokens.
pub fn backward(
    be: &dyn Backend,
    policy: Policy,
    batch: &Batch,
    acts: &mut Activations,
    dhidden: &Tensor,
    grads: &mut Gradients,
) -> Result<()> {
    let (model, rows) = (policy.model, batch.tokens());
    if acts.kept != Some(rows) {
        return Err(Error::system(format!(
            "backward of {rows} tokens after a forward that kept {:?}; run forward with keep first",
            acts.kept
        )));
    }
    let (places, Activations { recompute, room, norms, blocks, passing, scratch, .. }) = (&model.places, acts);
    scratch.fit(be, policy, rows.max(*room))?;
    scratch.fit(be, policy, rows)?;
    be.fill(&mut scratch.dsum, 0.0)?;
    let dw = grads.weights.as_mut().map(|list| &mut list[places.norm]);
    let (end, norm) = (&norms[places.layers.len()], &model.weights[places.norm]);
    ops::AddRmsnormBackward { sum: &end.sum, w: norm, rstd: &end.rstd, dy: dhidden, dsum: &mut scratch.dsum, dw }
        .run(be)?;
    for layer in (0..places.layers.len()).rev() {
        let wants_input = layer > 0 || grads.weights.is_some();
        let (block, segments) = (Block { policy, layer }, batch.segments());
        let kept = match recompute {
            Recompute::Norms => &blocks[layer],
            Recompute::Blocks => {
                let (input, next) = two(norms, layer, layer + 1); // `next` gets the same values again
                block.normalise(be, input, passing, &mut scratch.rstd)?;
                let attention = Attention::Packed(batch.segments());
                block.forward(be, &batch.positions, attention, input, &mut blocks[0], passing, next)?;
                &blocks[0]
            }
        };
        block.backward(be, &batch.positions, &segments, &norms[layer], kept, passing, scratch, grads, wants_input)?;
    }
    match &mut grads.weights {
        Some(list) => {
            ops::EmbedBackward { ids: &batch.ids, dout: &scratch.dsum, dwte: &mut list[places.embed] }.run(be)
        }
        None => Ok(()),
    }
}
