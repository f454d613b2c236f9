//! What is exported: `verify` finds what is not as it should be; a GGUF file, read by a small reader of its own, holds the model.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::Heads;
use onestep::export::gguf::{Storage, write};
use onestep::export::{Source, hugging_face, verify};
use onestep::model::config::{ModelConfig, RopeConfig, RopeScaling};
use onestep::model::{Model, Policy};
use onestep::tensor::DType;
use onestep::weights::WeightMap;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

#[path = "common/byte_tokenizer.rs"]
mod fixture;

/// A chat template that closes replies with the tokenizer's end.
const TEMPLATE: &str = "{% for message in messages %}{{ message.role + ' ' + message.content + '<|im_end|>' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}";

const VOCAB: usize = 272;

fn config() -> ModelConfig {
    ModelConfig {
        vocab: VOCAB,
        hidden: 32,
        layers: 2,
        heads: Heads { nh: 4, nkv: 2, hs: 8 },
        mlp: 48, // no multiple of 32
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 64,
    }
}

fn llama() -> ModelConfig {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 32 };
    ModelConfig { qkv_bias: false, tied: false, rope: RopeConfig { theta: 1e4, scaling }, ..config() }
}

/// A random model and a folder with a tokenizer for it.
fn source(config: ModelConfig) -> (Model, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    fixture::byte_tokenizer_files(folder.path(), &[], &json!({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}));
    std::fs::write(folder.path().join("config.json"), config.to_json("float32")).unwrap();
    let mut model = Model::random(&Cpu, config, 1, DType::F32).unwrap();
    // Larger than at birth, so that logits tell models apart.
    model.weights.iter_mut().for_each(|w| w.slice_mut::<f32>().iter_mut().for_each(|w| *w *= 4.0));
    (model, folder)
}

#[test]
fn verify_finds_a_changed_weight_and_a_changed_configuration() {
    let (model, folder) = source(config());
    let source = Source { policy: Policy { model: &model, adapter: None }, folder: folder.path() };
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("model");
    hugging_face(&Cpu, source, &to, DType::BF16, 10_000).unwrap();
    let found = verify(&Cpu, source, &to, DType::BF16).unwrap();
    assert_eq!(found.difference, found.rounding);
    assert!(found.rounding > 0.0 && found.rounding < 0.1 * found.greatest, "{found:?}");

    // Another base frequency: every weight is right, every position is wrong.
    let path = to.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = text.replace("10000.0", "100.0");
    assert_ne!(text, changed);
    std::fs::write(&path, changed).unwrap();
    let error = verify(&Cpu, source, &to, DType::BF16).unwrap_err().to_string();
    assert!(error.contains("logits differ") && error.contains("rounding to BF16 explains"), "{error}");
    std::fs::write(&path, text).unwrap();

    let shards = std::fs::read_dir(&to).unwrap().map(|e| e.unwrap().path());
    let shard = shards.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).max().unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&shard).unwrap();
    std::fs::write(&shard, bytes).unwrap();
    let error = verify(&Cpu, source, &to, DType::BF16).unwrap_err().to_string();
    assert!(error.contains("tensor model.") && error.contains("is not the merged weight rounded to BF16"), "{error}");
}

/// A tensor of a GGUF file: extents innermost first, GGML's number of the type, bytes from its offset to the end.
struct Found<'a> {
    extents: Vec<u64>,
    kind: u32,
    data: &'a [u8],
}

/// A reader of GGUF as its specification has it (version 3): metadata as text, tensors by name.
struct Gguf<'a> {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Found<'a>>,
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }
    fn text(&mut self) -> String {
        let n = self.u64() as usize;
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }
    fn value(&mut self, kind: u32) -> String {
        match kind {
            4 => self.u32().to_string(),
            5 => (self.u32() as i32).to_string(),
            6 => f32::from_bits(self.u32()).to_string(),
            7 => (self.take(1)[0] == 1).to_string(),
            8 => self.text(),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                (0..n).map(|_| self.value(kind)).collect::<Vec<_>>().join("\n")
            }
            other => panic!("value type {other}"),
        }
    }
}

fn read(bytes: &[u8]) -> Gguf<'_> {
    let mut at = Cursor(bytes);
    assert_eq!(at.take(4), b"GGUF");
    assert_eq!(at.u32(), 3);
    let (tensors, pairs) = (at.u64(), at.u64());
    let metadata = (0..pairs).map(|_| {
        let (key, kind) = (at.text(), at.u32());
        let value = at.value(kind);
        (key, value)
    });
    let metadata = metadata.collect();
    let infos: Vec<_> = (0..tensors)
        .map(|_| {
            let (name, n) = (at.text(), at.u32());
            let extents: Vec<u64> = (0..n).map(|_| at.u64()).collect();
            (name, extents, at.u32(), at.u64() as usize)
        })
        .collect();
    let start = (bytes.len() - at.0.len()).next_multiple_of(32);
    let found = |(name, extents, kind, offset): (String, Vec<u64>, u32, usize)| {
        assert_eq!(offset % 32, 0, "{name}");
        (name, Found { extents, kind, data: &bytes[start + offset..] })
    };
    Gguf { metadata, tensors: infos.into_iter().map(found).collect() }
}

fn exported(config: ModelConfig, storage: Storage) -> (Model, Vec<u8>) {
    let (model, folder) = source(config);
    let source = Source { policy: Policy { model: &model, adapter: None }, folder: folder.path() };
    let path = folder.path().join("model.gguf");
    let notes = write(&Cpu, source, &path, storage).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    (model, std::fs::read(path).unwrap())
}

/// Writes a GGUF file of a folder whose tokenizer files are changed first; its metadata and the notes.
fn of_tokenizer(change: impl Fn(&mut Value, &mut Value)) -> (BTreeMap<String, String>, Vec<String>) {
    let (model, folder) = source(config());
    let paths = ["tokenizer.json", "tokenizer_config.json"].map(|name| folder.path().join(name));
    let [mut tokenizer, mut settings] =
        [0, 1].map(|i| serde_json::from_slice::<Value>(&std::fs::read(&paths[i]).unwrap()).unwrap());
    change(&mut tokenizer, &mut settings);
    std::fs::write(&paths[0], tokenizer.to_string()).unwrap();
    std::fs::write(&paths[1], settings.to_string()).unwrap();
    let source = Source { policy: Policy { model: &model, adapter: None }, folder: folder.path() };
    let path = folder.path().join("model.gguf");
    let notes = write(&Cpu, source, &path, Storage::F16).unwrap();
    (read(&std::fs::read(path).unwrap()).metadata, notes)
}

#[test]
fn pre_tokenizers_are_known_by_their_structure_or_noted() {
    let qwen2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let llama3 = qwen2.replace(r"|\p{N}|", r"|\p{N}{1,3}|");
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let bytes =
        |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
    let removed = json!({"type": "Split", "pattern": {"Regex": qwen2}, "behavior": "Removed", "invert": false});
    for (parts, name) in [
        (vec![bytes(true)], "gpt-2"),
        (vec![digits(true), bytes(true)], "smollm"),
        (vec![split(qwen2), bytes(false)], "qwen2"),
        (vec![split(&llama3), bytes(false)], "llama-bpe"),
        (vec![digits(false), bytes(true)], "default"),
        (vec![split(qwen2), digits(true), bytes(false)], "default"),
        (vec![split(qwen2), bytes(true)], "default"),
        (vec![removed, bytes(false)], "default"),
        (vec![split("[a-z]+"), bytes(false)], "default"),
        (vec![bytes(false)], "default"),
    ] {
        let (metadata, notes) = of_tokenizer(|tokenizer, _| {
            tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": parts});
            tokenizer["model"]["ignore_merges"] = json!(name == "llama-bpe");
        });
        assert_eq!(metadata["tokenizer.ggml.pre"], name, "{parts:?}");
        let noted = notes.iter().filter(|note| note.contains("no name for its pre-tokenizer")).count();
        assert_eq!((noted, notes.len()), (usize::from(name == "default"), noted), "{parts:?}: {notes:?}");
    }
    for (change, part) in [
        (json!({"normalizer": {"type": "Lowercase"}}), "its normalizer ({\"type\":\"Lowercase\"})"),
        (
            json!({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}}),
            "add_prefix_space",
        ),
    ] {
        let (_, notes) = of_tokenizer(|tokenizer, _| {
            tokenizer.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        });
        assert!(notes.len() == 1 && notes[0].contains(part), "{notes:?}");
    }
}

#[test]
fn what_tokenizer_config_says_of_bos_and_eos_is_written() {
    for (settings, expected) in [
        (json!({"bos_token": "<|im_start|>"}), ("false", None, 0)),
        (json!({"bos_token": "<|im_start|>", "add_bos_token": true}), ("true", None, 0)),
        (
            json!({"bos_token": "<|im_start|>", "add_bos_token": false, "add_eos_token": true}),
            ("false", Some("true"), 0),
        ),
        (json!({"add_bos_token": true, "add_eos_token": false}), ("false", Some("false"), 1)),
    ] {
        let (metadata, notes) = of_tokenizer(|_, config| {
            config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        });
        let found = |key: &str| metadata.get(&format!("tokenizer.ggml.{key}")).map(String::as_str);
        let found = (found("add_bos_token").unwrap(), found("add_eos_token"), notes.len());
        assert_eq!(found, expected, "{settings}: {notes:?}");
    }
    // An opening token that only the post-processor adds; tokenizer_config.json has the last word.
    let adding = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [256], "tokens": ["<|im_start|>"]}}});
    for (says, expected) in [(Value::Null, "true"), (json!(false), "false")] {
        let (metadata, _) = of_tokenizer(|tokenizer, config| {
            tokenizer["post_processor"] = adding.clone();
            (config["bos_token"], config["add_bos_token"]) = (json!("<|im_start|>"), says.clone());
        });
        assert_eq!(metadata["tokenizer.ggml.add_bos_token"], expected);
    }
}

fn weight<'m>(model: &'m Model, name: &str) -> &'m [f32] {
    model.weights[model.names.iter().position(|n| n == name).unwrap()].slice::<f32>()
}

#[test]
fn a_gguf_file_describes_the_model_and_its_tokenizer() {
    let (_, bytes) = exported(config(), Storage::F16);
    let file = read(&bytes);
    for (key, value) in [
        ("general.architecture", "qwen2"),
        ("general.file_type", "1"),
        ("qwen2.context_length", "64"),
        ("qwen2.embedding_length", "32"),
        ("qwen2.block_count", "2"),
        ("qwen2.feed_forward_length", "48"),
        ("qwen2.attention.head_count", "4"),
        ("qwen2.attention.head_count_kv", "2"),
        ("qwen2.attention.key_length", "8"),
        ("qwen2.rope.freq_base", "10000"),
        ("qwen2.attention.layer_norm_rms_epsilon", "0.000001"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "gpt-2"),
        ("tokenizer.ggml.eos_token_id", "257"),
        ("tokenizer.ggml.add_bos_token", "false"),
        ("tokenizer.chat_template", TEMPLATE),
    ] {
        assert_eq!(file.metadata[key], value, "{key}");
    }
    let tokens: Vec<&str> = file.metadata["tokenizer.ggml.tokens"].split('\n').collect();
    assert_eq!((tokens.len(), tokens[65], tokens[257], tokens[258]), (VOCAB, "A", "<|im_end|>", "[PAD258]"));
    let kinds: Vec<&str> = file.metadata["tokenizer.ggml.token_type"].split('\n').collect();
    assert_eq!((kinds.len(), kinds[65], kinds[256], kinds[257], kinds[258]), (VOCAB, "1", "3", "3", "5"));
    assert!(!file.tensors.contains_key("output.weight"), "a tied head is not written");
    let (model, _) = source(config());
    assert_eq!(file.tensors.len(), model.weights.len());
    for (name, extents) in [
        ("token_embd.weight", vec![32, VOCAB as u64]),
        ("blk.1.attn_k.weight", vec![32, 16]),
        ("blk.1.attn_k.bias", vec![16]),
        ("blk.0.attn_output.weight", vec![32, 32]),
        ("blk.0.ffn_down.weight", vec![48, 32]),
        ("blk.0.ffn_gate.weight", vec![32, 48]),
        ("blk.0.ffn_norm.weight", vec![32]),
        ("output_norm.weight", vec![32]),
    ] {
        assert_eq!(file.tensors[name].extents, extents, "{name}");
    }
}

#[test]
fn gguf_tensors_are_the_weights_in_each_type() {
    for (storage, kind) in [(Storage::F32, 0), (Storage::F16, 1), (Storage::Bf16, 30), (Storage::Q8_0, 8)] {
        let (model, bytes) = exported(config(), storage);
        let file = read(&bytes);
        let up = weight(&model, "model.layers.1.mlp.up_proj.weight");
        let found = &file.tensors["blk.1.ffn_up.weight"];
        assert_eq!(found.kind, kind);
        let expected: Vec<u8> = match storage {
            Storage::F32 => up.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Storage::F16 => up.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Storage::Bf16 => up.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            Storage::Q8_0 => up
                .chunks(32)
                .flat_map(|block| {
                    let scale = block.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                    let quants = block.iter().map(move |x| (x * (1.0 / scale)).round() as i8 as u8);
                    f16::from_f32(scale).to_le_bytes().into_iter().chain(quants)
                })
                .collect(),
        };
        assert_eq!(&found.data[..expected.len()], expected, "{storage:?}");
        // Rows of 48 are no whole blocks; vectors stay f32.
        let down = &file.tensors["blk.0.ffn_down.weight"];
        assert_eq!(down.kind, if storage == Storage::Q8_0 { 1 } else { kind });
        assert_eq!(file.tensors["blk.0.attn_q.bias"].kind, 0);
        let norm = weight(&model, "model.norm.weight");
        assert_eq!(file.tensors["output_norm.weight"].data[..128], *bytemuck::cast_slice::<f32, u8>(norm));
    }
}

#[test]
fn heads_of_llama_are_written_as_neighbours() {
    let (model, bytes) = exported(llama(), Storage::F32);
    let file = read(&bytes);
    assert_eq!(file.metadata["general.architecture"], "llama");
    for (name, heads, ours) in [("blk.1.attn_q.weight", 4, "q_proj"), ("blk.1.attn_k.weight", 2, "k_proj")] {
        let weight = weight(&model, &format!("model.layers.1.self_attn.{ours}.weight"));
        let data = file.tensors[name].data;
        for head in 0..heads {
            for pair in 0..4 {
                for (half, place) in [(0, 2 * pair), (1, 2 * pair + 1)] {
                    let from = &weight[(head * 8 + half * 4 + pair) * 32..][..32];
                    let to = &data[(head * 8 + place) * 128..][..128];
                    assert_eq!(to, bytemuck::cast_slice::<f32, u8>(from), "{name}: head {head}, row {place}");
                }
            }
        }
    }
    let value = weight(&model, "model.layers.1.self_attn.v_proj.weight");
    assert_eq!(&file.tensors["blk.1.attn_v.weight"].data[..4 * value.len()], bytemuck::cast_slice::<f32, u8>(value));
    assert_eq!(file.tensors["output.weight"].extents, [32, VOCAB as u64]);
    // Speeds 1, 0.1, 0.01, 0.001: 32 positions turn 5.09 (kept), 0.51, 0.05, 0.005 times (stretched whole).
    let factors: Vec<f32> = file.tensors["rope_freqs.weight"].data[..16]
        .chunks(4)
        .map(|x| f32::from_le_bytes(x.try_into().unwrap()))
        .collect();
    assert_eq!(factors, [1.0, 8.0, 8.0, 8.0]);
}

#[test]
fn what_llama_cpp_cannot_express_is_refused() {
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 16,
        attention_factor: 1.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: false,
    };
    let rope = |scaling| RopeConfig { theta: 1e4, scaling };
    for (config, part) in [
        (ModelConfig { rope: rope(yarn), ..config() }, "YaRN with \"truncate\": false"),
        (ModelConfig { rope: llama().rope, ..config() }, "llama3 rope scaling outside"),
        (ModelConfig { qk_norm: true, o_bias: true, ..config() }, "biases in the attention of qwen3"),
    ] {
        let (model, folder) = source(config);
        let source = Source { policy: Policy { model: &model, adapter: None }, folder: folder.path() };
        let path = folder.path().join("model.gguf");
        let error = write(&Cpu, source, &path, Storage::F16).unwrap_err().to_string();
        assert!(error.contains(part) && !path.exists(), "{error}");
    }
}

#[test]
fn f32_is_rounded_to_half_types_to_nearest_even() {
    // Just above the middle between two bf16 (or f16) neighbours, by a bit that an f64 conversion of the upper half does not see.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let values = [f32::from_bits(0x3f80_8001), f32::from_bits(0x3f80_8000), f32::from_bits(0x3f80_1001)];
    let tensor = onestep::tensor::Tensor::from_slice(&[3], &values);
    onestep::weights::save(&path, &[("x".into(), &tensor)], Some(DType::BF16)).unwrap();
    let back = WeightMap::open_file(&path).unwrap().get("x", &[3]).unwrap();
    assert_eq!(back.slice::<bf16>().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), [0x3f81, 0x3f80, 0x3f80]);
    onestep::weights::save(&path, &[("x".into(), &tensor)], Some(DType::F16)).unwrap();
    let back = WeightMap::open_file(Path::new(&path)).unwrap().get("x", &[3]).unwrap();
    assert_eq!(back.slice::<f16>()[2].to_bits(), 0x3c01);
}
