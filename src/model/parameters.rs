//! Names, shapes and places of a model's parameters in its flat list. The names are those of Hugging Face.

use crate::backend::ops::Heads;
use crate::model::config::ModelConfig;
use serde::{Deserialize, Serialize};

/// The linear layers of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Module {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of attention.
    O,
    /// Gate of the MLP.
    Gate,
    /// Up-projection of the MLP.
    Up,
    /// Down-projection of the MLP.
    Down,
}

impl Module {
    /// All modules, in the order of the forward pass.
    pub const ALL: [Module; 7] = [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// The name in adapter_config.json, for example `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Module::Q => "q_proj",
            Module::K => "k_proj",
            Module::V => "v_proj",
            Module::O => "o_proj",
            Module::Gate => "gate_proj",
            Module::Up => "up_proj",
            Module::Down => "down_proj",
        }
    }

    /// The module called `name`: `q` or `q_proj`, and so on.
    pub fn named(name: &str) -> Option<Module> {
        Self::ALL.into_iter().find(|m| name == m.name() || name == m.name().trim_end_matches("_proj"))
    }

    /// Name of the layer's parameters without `.weight`, for example `model.layers.0.self_attn.q_proj`.
    pub fn path(self, layer: usize) -> String {
        let part = match self {
            Module::Q | Module::K | Module::V | Module::O => "self_attn",
            Module::Gate | Module::Up | Module::Down => "mlp",
        };
        format!("model.layers.{layer}.{part}.{}", self.name())
    }

    /// Shape (N, K) of the weight.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let Heads { nh, nkv, hs } = config.heads;
        match self {
            Module::Q => (nh * hs, config.hidden),
            Module::K | Module::V => (nkv * hs, config.hidden),
            Module::O => (config.hidden, nh * hs),
            Module::Gate | Module::Up => (config.mlp, config.hidden),
            Module::Down => (config.hidden, config.mlp),
        }
    }

    fn has_bias(self, config: &ModelConfig) -> bool {
        match self {
            Module::Q | Module::K | Module::V => config.qkv_bias,
            Module::O => config.o_bias,
            Module::Gate | Module::Up | Module::Down => false,
        }
    }
}

/// Places of one block's parameters in the flat list.
#[derive(Debug, Clone)]
pub(super) struct LayerPlaces {
    pub input_norm: usize,
    /// Weight and bias, by `Module as usize`.
    pub linears: [(usize, Option<usize>); 7],
    /// Weights of the q and k norms.
    pub qk_norm: Option<(usize, usize)>,
    pub post_norm: usize,
}

/// Places of all parameters.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub embed: usize,
    pub layers: Vec<LayerPlaces>,
    pub norm: usize,
    /// Same as `embed` when tied.
    pub lm_head: usize,
}

/// Name and shape of every parameter in the order of the flat list, and their places.
pub(super) fn parameters(config: &ModelConfig) -> (Vec<(String, Vec<usize>)>, Places) {
    let mut list: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        list.push((name, shape.to_vec()));
        list.len() - 1
    };
    let (vocab, hidden, hs) = (config.vocab, config.hidden, config.heads.hs);
    let embed = add("model.embed_tokens.weight".into(), &[vocab, hidden]);
    let layers = (0..config.layers)
        .map(|layer| LayerPlaces {
            input_norm: add(format!("model.layers.{layer}.input_layernorm.weight"), &[hidden]),
            linears: Module::ALL.map(|module| {
                let (n, k) = module.shape(config);
                let path = module.path(layer);
                let bias = module.has_bias(config).then(|| add(format!("{path}.bias"), &[n]));
                (add(format!("{path}.weight"), &[n, k]), bias)
            }),
            qk_norm: config.qk_norm.then(|| {
                (
                    add(format!("model.layers.{layer}.self_attn.q_norm.weight"), &[hs]),
                    add(format!("model.layers.{layer}.self_attn.k_norm.weight"), &[hs]),
                )
            }),
            post_norm: add(format!("model.layers.{layer}.post_attention_layernorm.weight"), &[hidden]),
        })
        .collect();
    let norm = add("model.norm.weight".into(), &[hidden]);
    let lm_head = if config.tied { embed } else { add("lm_head.weight".into(), &[vocab, hidden]) };
    (list, Places { embed, layers, norm, lm_head })
}

/// Name and shape of every parameter of a model of this shape, in the order of `Model::weights`.
pub fn parameter_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    parameters(config).0
}
