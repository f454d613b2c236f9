//! Writes GGUF, the single-file format of llama.cpp (version 3, docs/gguf.md of ggml): metadata, a byte-level BPE
//! vocabulary and tensors under llama.cpp's names, for the architectures qwen2, qwen3 and llama. Does not read GGUF.
//! Holds one tensor in memory at a time.

use super::Source;
use super::header::{Header, put_text};
use super::vocabulary::Vocabulary;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::files;
use crate::model::config::{ModelConfig, RopeScaling};
use crate::model::rope;
use crate::tensor::{DType, Tensor};
use crate::weights::converted;
use half::f16;
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The type of the matrices; vectors (norms, biases) are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// Blocks of 32 signed bytes with one f16 scale; matrices whose row length is no multiple of 32 stay f16.
    Q8_0,
}

/// Values per block of q8_0.
const BLOCK: usize = 32;
/// Every tensor starts at a multiple of this many bytes, counted from the first tensor.
const ALIGNMENT: usize = 32;

impl Storage {
    /// GGML's number for the type.
    fn tensor_type(self) -> u32 {
        match self {
            Storage::F32 => 0,
            Storage::F16 => 1,
            Storage::Q8_0 => 8,
            Storage::Bf16 => 30,
        }
    }

    /// llama.cpp's number for a file whose matrices are mostly of this type.
    fn file_type(self) -> u32 {
        match self {
            Storage::F32 => 0,
            Storage::F16 => 1,
            Storage::Q8_0 => 7,
            Storage::Bf16 => 32,
        }
    }

    /// The type of one tensor in a file of this type.
    fn of(self, shape: &[usize]) -> Self {
        match self {
            _ if shape.len() < 2 => Storage::F32,
            Storage::Q8_0 if !shape[shape.len() - 1].is_multiple_of(BLOCK) => Storage::F16,
            other => other,
        }
    }

    fn bytes(self, elements: usize) -> usize {
        match self {
            Storage::F32 => 4 * elements,
            Storage::F16 | Storage::Bf16 => 2 * elements,
            Storage::Q8_0 => elements / BLOCK * (2 + BLOCK),
        }
    }

    fn encoded(self, tensor: &Tensor) -> Vec<u8> {
        match self {
            Storage::F32 => converted(tensor, DType::F32).as_bytes().to_vec(),
            Storage::F16 => converted(tensor, DType::F16).as_bytes().to_vec(),
            Storage::Bf16 => converted(tensor, DType::BF16).as_bytes().to_vec(),
            Storage::Q8_0 => {
                let wide = converted(tensor, DType::F32);
                let mut out = vec![0; self.bytes(tensor.len())];
                let blocks = out.par_chunks_exact_mut(2 + BLOCK).zip(wide.slice::<f32>().par_chunks_exact(BLOCK));
                blocks.for_each(|(out, values)| quantise(values, out));
                out
            }
        }
    }
}

/// Quantises one block as ggml's reference does: the scale is the greatest magnitude / 127, values are divided by the
/// f32 scale and rounded half away from zero, and the scale is stored in f16. The error is at most half a scale, plus
/// what rounding the scale to f16 adds.
fn quantise(values: &[f32], out: &mut [u8]) {
    let scale = values.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    out[2..].iter_mut().zip(values).for_each(|(out, x)| *out = (x * inverse).round() as i8 as u8);
}

/// A tensor of the file.
struct Item {
    name: String,
    shape: Vec<usize>,
    storage: Storage,
    content: Content,
}

enum Content {
    /// The parameter at this index; if a number of heads is given, with its rows in llama.cpp's order.
    Parameter(usize, Option<usize>),
    /// f32 values.
    Values(Vec<f32>),
}

/// Writes `source` to the file `out`, whole or not at all. Returns notes for the user. Errors: a vocabulary that is not
/// byte-level BPE; something llama.cpp cannot express (YaRN without truncation, biases of qwen3, Llama 3's scaling in
/// another architecture).
pub fn write(backend: &dyn Backend, source: Source, out: &Path, storage: Storage) -> Result<Vec<String>> {
    let config = &source.policy.model.config;
    let vocabulary = Vocabulary::read(source.folder, config.vocab)?;
    let mut header = Header::default();
    describe(&mut header, config, source.folder, storage)?;
    vocabulary.describe(&mut header);
    let items = items(source, storage);
    let mut infos = vec![];
    let mut offset = 0;
    for item in &items {
        put_text(&mut infos, &item.name);
        infos.extend((item.shape.len() as u32).to_le_bytes());
        item.shape.iter().rev().for_each(|&extent| infos.extend((extent as u64).to_le_bytes()));
        infos.extend(item.storage.tensor_type().to_le_bytes());
        infos.extend((offset as u64).to_le_bytes());
        offset += item.storage.bytes(item.shape.iter().product()).next_multiple_of(ALIGNMENT);
    }
    let mut head = b"GGUF\x03\0\0\0".to_vec();
    head.extend((items.len() as u64).to_le_bytes());
    head.extend(header.count.to_le_bytes());
    head.extend(header.bytes);
    head.extend(infos);
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    files::publish(out, |temporary| {
        let failed = |e: std::io::Error| Error::io("writing", out, &e);
        let mut file = BufWriter::new(File::create(temporary).map_err(failed)?);
        file.write_all(&head).map_err(failed)?;
        for item in &items {
            let mut bytes = match &item.content {
                Content::Values(values) => bytemuck::cast_slice(values).to_vec(),
                Content::Parameter(index, heads) => {
                    let given = source.parameter(backend, *index)?;
                    match heads {
                        None => item.storage.encoded(given.tensor()),
                        Some(heads) => item.storage.encoded(&interleaved(given.tensor(), *heads)),
                    }
                }
            };
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            file.write_all(&bytes).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok((head.len() + offset) as u64)
    })?;
    Ok(vocabulary.notes)
}

fn items(source: Source, storage: Storage) -> Vec<Item> {
    let model = source.policy.model;
    let (config, llama) = (&model.config, model.config.family() == "llama");
    let mut items: Vec<Item> = vec![];
    if let RopeScaling::Llama3 { .. } = config.rope.scaling {
        // llama.cpp divides its unscaled rotation speeds by these.
        let plain = rope::frequencies(
            &crate::model::config::RopeConfig { scaling: RopeScaling::None, ..config.rope },
            config.heads.hs,
        )
        .0;
        let scaled = rope::frequencies(&config.rope, config.heads.hs).0;
        let values: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect();
        let shape = vec![values.len()];
        items.push(Item {
            name: "rope_freqs.weight".into(),
            shape,
            storage: Storage::F32,
            content: Content::Values(values),
        });
    }
    for (index, (name, weight)) in model.names.iter().zip(&model.weights).enumerate() {
        let heads = match () {
            () if llama && name.contains(".q_proj.") => Some(config.heads.nh),
            () if llama && name.contains(".k_proj.") => Some(config.heads.nkv),
            () => None,
        };
        let shape = weight.shape().to_vec();
        let storage = storage.of(&shape);
        items.push(Item { name: renamed(name), shape, storage, content: Content::Parameter(index, heads) });
    }
    items
}

/// llama.cpp's name for a parameter.
fn renamed(name: &str) -> String {
    let parts = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.o_proj.", "attn_output."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("input_layernorm.", "attn_norm."),
    ];
    parts.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to))
}

/// Reorders the rows of each head: for the architecture llama, llama.cpp rotates neighbours, Hugging Face halves. Row
/// 2j + i of a head comes from row i HS/2 + j.
fn interleaved(tensor: &Tensor, heads: usize) -> Tensor {
    let wide = converted(tensor, DType::F32);
    let (columns, half) = (wide.columns(), wide.rows() / heads / 2);
    let mut out = Tensor::zeros(wide.shape(), DType::F32);
    for (row, to) in out.slice_mut::<f32>().chunks_exact_mut(columns).enumerate() {
        let (head, within) = (row / (2 * half), row % (2 * half));
        let from = head * 2 * half + within % 2 * half + within / 2;
        to.copy_from_slice(&wide.slice::<f32>()[from * columns..][..columns]);
    }
    out
}

fn describe(header: &mut Header, config: &ModelConfig, folder: &Path, storage: Storage) -> Result<()> {
    let arch = config.family();
    let refuse = |what: &str| Err(Error::content(format!("{}: llama.cpp has no {what}", folder.display())));
    if arch == "qwen3" && config.qkv_bias {
        return refuse("biases in the attention of qwen3; export it with --format hf");
    }
    let name = folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_string()));
    header.text("general.architecture", arch);
    header.text("general.type", "model");
    header.text("general.name", name.as_deref().unwrap_or("model"));
    header.u32("general.file_type", storage.file_type());
    header.u32("general.quantization_version", 2);
    let heads = config.heads;
    for (key, value) in [
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden),
        ("block_count", config.layers),
        ("feed_forward_length", config.mlp),
        ("attention.head_count", heads.nh),
        ("attention.head_count_kv", heads.nkv),
        ("attention.key_length", heads.hs),
        ("attention.value_length", heads.hs),
        ("rope.dimension_count", heads.hs),
        ("vocab_size", config.vocab),
    ] {
        header.u32(&format!("{arch}.{key}"), value as u32);
    }
    header.f32(&format!("{arch}.attention.layer_norm_rms_epsilon"), config.rms_eps);
    header.f32(&format!("{arch}.rope.freq_base"), config.rope.theta as f32);
    let scaling = format!("{arch}.rope.scaling");
    match config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Llama3 { .. } if arch == "llama" => {} // written as the tensor rope_freqs.weight
        RopeScaling::Llama3 { .. } => return refuse("llama3 rope scaling outside the architecture llama"),
        RopeScaling::Linear { factor } => {
            header.text(&format!("{scaling}.type"), "linear");
            header.f32(&format!("{scaling}.factor"), factor as f32);
        }
        RopeScaling::Yarn { truncate: false, .. } => return refuse("YaRN with \"truncate\": false"),
        RopeScaling::Yarn { factor, original_max_positions, attention_factor, beta_fast, beta_slow, .. } => {
            header.text(&format!("{scaling}.type"), "yarn");
            header.f32(&format!("{scaling}.factor"), factor as f32);
            header.u32(&format!("{scaling}.original_context_length"), original_max_positions as u32);
            header.f32(&format!("{scaling}.yarn_beta_fast"), beta_fast as f32);
            header.f32(&format!("{scaling}.yarn_beta_slow"), beta_slow as f32);
            // llama.cpp multiplies by 1 + 0.1 ln(factor) itself.
            header.f32(&format!("{scaling}.attn_factor"), (attention_factor / (1.0 + 0.1 * factor.ln())) as f32);
        }
    }
    Ok(())
}
