//! A model's weights, an adapter over them, and gradients of both.

use super::config::ModelConfig;
use super::lora::{Adapter, Module};
use super::parameters::{Places, parameter_shapes, parameters};
use super::rope;
use crate::backend::Backend;
use crate::backend::ops::{self, Lora};
use crate::error::{Error, Result};
use crate::rng::Philox;
use crate::tensor::{DType, Tensor};
use rayon::prelude::*;
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
    pub(super) places: Places,
    pub(super) rope_table: Arc<Tensor>, // (P, HS)
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

/// A model with an adapter, or alone. Actor, critic, reference and behaviour are policies over one model.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    /// Base model.
    pub model: &'a Model,
    /// Adapter over it, if any.
    pub adapter: Option<&'a Adapter>,
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

/// Borrows two elements of a list at once; `i` and `j` must differ.
pub(super) fn two<T>(list: &mut [T], i: usize, j: usize) -> (&mut T, &mut T) {
    if i < j {
        let (head, tail) = list.split_at_mut(j);
        (&mut head[i], &mut tail[0])
    } else {
        let (head, tail) = list.split_at_mut(i);
        (&mut tail[0], &mut head[j])
    }
}
