//! The transformer: a model, an adapter over it, and their forward and backward as a short list of op calls. Knows no
//! file formats.

pub mod config;
pub mod kv_cache;
pub mod lora;
pub mod rope;
pub mod shapes;

mod block;
mod parameters;

use crate::backend::Backend;
use crate::backend::ops::{self, Lora, Segments};
use crate::error::{Error, Result};
use crate::rng::Philox;
use crate::tensor::{DType, Tensor};
use block::{Attention, Block, BlockBuffers, Normed, Passing, Scratch, bytes, fit};
use config::ModelConfig;
use kv_cache::{KvCache, PagedPlan};
use lora::{Adapter, Module};
use parameters::{Places, parameters};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// A model's weights, in the type they are stored in.
pub struct Model {
    /// Shape of the model.
    pub config: ModelConfig,
    /// Hugging Face name of each tensor of `weights`.
    pub names: Vec<String>,
    /// All parameters; mapped ones are frozen.
    pub weights: Vec<Tensor>,
    places: Places,
    rope_table: Arc<Tensor>, // (P, HS)
}

impl Model {
    /// Makes a model with the parameters that `get` returns for a name and shape. Asks for vectors first, so that the
    /// matrices of layers that share their input are contiguous in device memory (see `ops::Linears`). Errors: those of
    /// `get`, an invalid configuration, an integer tensor.
    pub fn new(
        be: &dyn Backend,
        config: ModelConfig,
        get: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<Self> {
        config.validate()?;
        let (list, places) = parameters(&config);
        let mut weights: Vec<_> = list.iter().map(|_| Tensor::default()).collect();
        let mut order: Vec<usize> = (0..list.len()).collect();
        order.sort_by_key(|&place| list[place].1.len());
        for place in order {
            let (name, shape) = &list[place];
            weights[place] = get(name, shape)?;
            if weights[place].dtype() == DType::I32 {
                return Err(Error::content(format!("tensor {name} holds integers; expected f32, f16 or bf16")));
            }
        }
        let rope_table = Arc::new(rope::table(be, &config.rope, config.max_positions, config.heads.hs)?);
        let names = list.into_iter().map(|(name, _)| name).collect();
        Ok(Self { config, names, weights, places, rope_table })
    }

    /// Makes a model with random weights as in GPT-2: normal with standard deviation 0.02, divided by sqrt(2L) for the
    /// projections into the residual stream; norms 1, biases 0. Equal seeds give equal weights.
    pub fn random(be: &dyn Backend, config: ModelConfig, seed: u64, dtype: DType) -> Result<Self> {
        let into_residual = 0.02 / (2.0 * config.layers as f64).sqrt();
        let list = parameter_shapes(&config);
        let places: HashMap<&str, u64> =
            list.iter().zip(1..).map(|((name, _), place)| (name.as_str(), place)).collect();
        Self::new(be, config, &mut |name, shape| {
            let index = places[name];
            let mut host = Tensor::zeros(shape, DType::F32);
            if name.ends_with("norm.weight") {
                host.slice_mut::<f32>().fill(1.0);
            } else if !name.ends_with(".bias") {
                let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                let deviation = if residual { into_residual } else { 0.02 };
                let columns = host.columns();
                host.slice_mut::<f32>().par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
                    let mut rng = Philox::new(seed, index << 32 | row as u64);
                    values.fill_with(|| (deviation * rng.normal()) as f32);
                });
            }
            let mut tensor = be.alloc(shape, dtype)?;
            be.write(&mut tensor, &host)?;
            Ok(tensor)
        })
    }

    /// A trainable copy in the accumulator type.
    pub fn widen(&self, be: &dyn Backend) -> Result<Self> {
        self.copied(be, |_| be.accumulator())
    }

    /// A copy, in the same types, with `adapter` folded into its weights.
    pub fn merged(&self, be: &dyn Backend, adapter: &Adapter) -> Result<Self> {
        let mut model = self.copied(be, Tensor::dtype)?;
        for (index, weight) in model.weights.iter_mut().enumerate() {
            if let Some(lora) = self.lora_on(adapter, index) {
                ops::MergeLora { w: weight, lora }.run(be)?;
            }
        }
        Ok(model)
    }

    /// The weight at `index` of the flat list with `adapter` folded in, in the accumulator type, so not rounded to the
    /// type of the base. `None` when the adapter does not change it.
    pub fn merged_weight(&self, be: &dyn Backend, adapter: &Adapter, index: usize) -> Result<Option<Tensor>> {
        let Some(lora) = self.lora_on(adapter, index) else { return Ok(None) };
        let mut weight = be.alloc(self.weights[index].shape(), be.accumulator())?;
        be.write(&mut weight, &self.weights[index])?;
        ops::MergeLora { w: &mut weight, lora }.run(be)?;
        Ok(Some(weight))
    }

    /// The low-rank pair of `adapter` for the weight at `index` of the flat list.
    fn lora_on<'a>(&self, adapter: &'a Adapter, index: usize) -> Option<Lora<'a>> {
        let layer = self.places.layers.iter().rposition(|layer| layer.input_norm < index)?;
        let linears = &self.places.layers[layer].linears;
        let module = Module::ALL.into_iter().find(|&module| linears[module as usize].0 == index)?;
        adapter.lora(layer, module)
    }

    fn copied(&self, be: &dyn Backend, dtype: impl Fn(&Tensor) -> DType) -> Result<Self> {
        let mut weights = Vec::with_capacity(self.weights.len());
        for weight in &self.weights {
            let mut copy = be.alloc(weight.shape(), dtype(weight))?;
            be.write(&mut copy, weight)?;
            weights.push(copy);
        }
        let (config, names, places) = (self.config.clone(), self.names.clone(), self.places.clone());
        Ok(Self { config, names, weights, places, rope_table: self.rope_table.clone() })
    }

    /// (V, C), the matrix from hidden states to logits: the embedding when tied.
    pub fn lm_head(&self) -> &Tensor {
        &self.weights[self.places.lm_head]
    }

    /// The number of parameters; a tied lm-head counts once.
    pub fn parameters(&self) -> usize {
        self.weights.iter().map(Tensor::len).sum()
    }
}

/// Name and shape of every parameter of a model of this shape, in the order of `Model::weights`.
pub fn parameter_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    parameters(config).0
}

/// A model with an adapter, or alone. Actor, critic, reference and behaviour are policies over one model.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// Base model.
    pub model: &'a Model,
    /// Adapter over it, if any.
    pub adapter: Option<&'a Adapter>,
}

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

/// Gradients in the accumulator type, one for each tensor of their list; `None` when the list is frozen.
pub struct Gradients {
    /// Gradients of `Adapter::tensors`.
    pub adapter: Option<Vec<Tensor>>,
    /// Gradients of `Model::weights`.
    pub weights: Option<Vec<Tensor>>,
}

impl Gradients {
    /// Zeros for the adapter of `policy`, if it has one, and for the model's weights when they are trained too.
    pub fn new(be: &dyn Backend, policy: Policy, trains_weights: bool) -> Result<Self> {
        let zeros =
            |list: &[Tensor]| list.iter().map(|t| be.alloc(t.shape(), be.accumulator())).collect::<Result<Vec<_>>>();
        Ok(Self {
            adapter: policy.adapter.map(|adapter| zeros(&adapter.tensors)).transpose()?,
            weights: trains_weights.then(|| zeros(&policy.model.weights)).transpose()?,
        })
    }

    /// Sets everything to zero.
    pub fn zero(&mut self, be: &dyn Backend) -> Result<()> {
        let lists = [&mut self.adapter, &mut self.weights];
        lists.into_iter().flatten().flatten().try_for_each(|tensor| be.fill(tensor, 0.0))
    }

    /// The tensor in which the lm-head's gradient accumulates (the embedding's when tied), if weights are trained.
    pub fn lm_head(&mut self, model: &Model) -> Option<&mut Tensor> {
        self.weights.as_mut().map(|list| &mut list[model.places.lm_head])
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

/// Makes an integer tensor on the backend.
pub fn index_tensor(be: &dyn Backend, shape: &[usize], values: &[i32]) -> Result<Tensor> {
    let mut tensor = be.alloc_unset(shape, DType::I32)?;
    be.write(&mut tensor, &Tensor::from_slice(shape, values))?;
    Ok(tensor)
}

/// Converts offsets, rows and positions to the 32-bit integers that ops take.
fn narrow(values: &[usize]) -> Result<Vec<i32>> {
    let narrow = |&value: &usize| {
        i32::try_from(value)
            .map_err(|_| Error::system(format!("index {value} does not fit 32 bits; make the batch smaller")))
    };
    values.iter().map(narrow).collect()
}

/// Borrows two elements of a list at once; `i` and `j` must differ.
fn two<T>(list: &mut [T], i: usize, j: usize) -> (&mut T, &mut T) {
    if i < j {
        let (head, tail) = list.split_at_mut(j);
        (&mut head[i], &mut tail[0])
    } else {
        let (head, tail) = list.split_at_mut(i);
        (&mut tail[0], &mut head[j])
    }
}
