//! Low-rank adapters (LoRA, arXiv 2106.09685; rsLoRA, arXiv 2312.03732) over a frozen model. Reads and writes no files.

use crate::backend::ops::Lora;
use crate::backend::{Backend, duplicate};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
pub use crate::model::parameters::Module;
use crate::rng::Philox;
use crate::settings::section;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

section! {
    /// `[lora]`
    Settings { rank: usize, alpha: f32, rslora: bool, modules: Vec<String> }
}

/// Modules that an adapter adapts, its rank and its scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// R, the rank.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Scale by alpha / sqrt(R) instead of alpha / R.
    pub rslora: bool,
    /// The adapted linear layers of every block.
    pub modules: Vec<Module>,
}

impl LoraConfig {
    /// The factor on the low-rank product.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        if self.rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }
    }
}

/// Tensors of an adapter in the accumulator type: A (R, K) then B (N, R), by layer, then by module in the order of the
/// forward pass.
pub struct Adapter {
    /// The configuration as given, with its modules sorted and without duplicates.
    pub config: LoraConfig,
    /// One name per tensor: `model.layers.{i}.self_attn.q_proj.lora_A.weight` and so on.
    pub names: Vec<String>,
    /// The trained tensors.
    pub tensors: Vec<Tensor>,
}

impl Adapter {
    /// An adapter that changes nothing yet: A uniform in +-1/sqrt(K) (Kaiming with a = sqrt 5, as in PEFT), B zero.
    /// Errors: rank zero, an alpha that is not positive, no modules.
    pub fn new(be: &dyn Backend, model: &ModelConfig, config: LoraConfig, rng: &mut Philox) -> Result<Self> {
        let mut adapter = Self::zeros(be, model, config)?;
        for a in adapter.tensors.iter_mut().step_by(2) {
            let bound = 1.0 / (a.columns() as f64).sqrt();
            let mut host = Tensor::zeros(a.shape(), DType::F32);
            host.slice_mut::<f32>().fill_with(|| ((2.0 * rng.uniform() - 1.0) * bound) as f32);
            be.write(a, &host)?;
        }
        Ok(adapter)
    }

    /// An adapter of zeros. Errors as in `new`.
    pub fn zeros(be: &dyn Backend, model: &ModelConfig, mut config: LoraConfig) -> Result<Self> {
        config.modules.sort();
        config.modules.dedup();
        if config.rank == 0 || config.alpha <= 0.0 || !config.alpha.is_finite() || config.modules.is_empty() {
            return Err(Error::content(format!(
                "lora: rank {}, alpha {}, {} modules; expected a rank from 1, a positive alpha and at least one of {}",
                config.rank,
                config.alpha,
                config.modules.len(),
                Module::ALL.map(Module::name).join(", ")
            )));
        }
        let (mut names, mut tensors) = (Vec::new(), Vec::new());
        for layer in 0..model.layers {
            for &module in &config.modules {
                let (n, k) = module.shape(model);
                let path = module.path(layer);
                names.extend([format!("{path}.lora_A.weight"), format!("{path}.lora_B.weight")]);
                tensors.push(be.alloc(&[config.rank, k], be.accumulator())?);
                tensors.push(be.alloc(&[n, config.rank], be.accumulator())?);
            }
        }
        Ok(Self { config, names, tensors })
    }

    /// A copy with tensors of its own.
    pub fn copied(&self, be: &dyn Backend) -> Result<Self> {
        let tensors = self.tensors.iter().map(|t| duplicate(be, t)).collect::<Result<_>>()?;
        Ok(Self { config: self.config.clone(), names: self.names.clone(), tensors })
    }

    /// The low-rank pair of `module` in `layer`, if it is adapted.
    pub fn lora(&self, layer: usize, module: Module) -> Option<Lora<'_>> {
        let place = self.place(layer, module)?;
        Some(Lora { a: &self.tensors[place], b: &self.tensors[place + 1], scale: self.config.scale() })
    }

    /// Index of A of `module` in `layer` in the flat list; B follows.
    pub fn place(&self, layer: usize, module: Module) -> Option<usize> {
        let slot = self.config.modules.iter().position(|&m| m == module)?;
        Some(2 * (layer * self.config.modules.len() + slot))
    }
}
