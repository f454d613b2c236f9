//! Where files come in, each with a furnished folder in which all is well.

use crate::policy;
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::Heads;
use onestep::chat::ChatTemplate;
use onestep::checkpoint::{load_adapter, load_model, read_config, save_adapter, save_model};
use onestep::dataset;
use onestep::error::Result;
use onestep::export::{Source, hugging_face};
use onestep::message::Message;
use onestep::model::config::{ModelConfig, RopeConfig, RopeScaling};
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{Model, Policy};
use onestep::rng::Philox;
use onestep::tensor::DType;
use onestep::tokenizer::Tokenizer;
use onestep::weights::WeightMap;
use serde_json::json;
use std::path::Path;
use std::sync::OnceLock;

#[path = "../common/byte_tokenizer.rs"]
mod fixture;

/// One way in.
pub struct Door {
    pub name: &'static str,
    /// The file that is damaged, below the furnished folder.
    pub file: &'static str,
    /// Reads it as the program does.
    pub open: fn(&Path) -> Result<()>,
    /// Whether memory is bounded by the file's size; not where it is compressed.
    pub bounded: bool,
}

pub const DOORS: [Door; 18] = [
    Door { name: "weights", file: "model/model.safetensors", open: weights, bounded: true },
    Door { name: "index", file: "sharded/model.safetensors.index.json", open: sharded, bounded: true },
    Door { name: "shard", file: "sharded/model-00001-of-00002.safetensors", open: sharded, bounded: true },
    Door { name: "config", file: "model/config.json", open: config, bounded: true },
    Door { name: "tokenizer", file: "model/tokenizer.json", open: tokenizer, bounded: true },
    Door { name: "tokenizer_config", file: "model/tokenizer_config.json", open: tokenizer, bounded: true },
    Door { name: "generation_config", file: "model/generation_config.json", open: tokenizer, bounded: true },
    Door { name: "adapter_config", file: "adapter/adapter_config.json", open: adapter, bounded: true },
    Door { name: "adapter_weights", file: "adapter/adapter_model.safetensors", open: adapter, bounded: true },
    Door { name: "conversations", file: "data.jsonl", open: |folder| data(folder, "data.jsonl"), bounded: true },
    Door { name: "trajectories", file: "played.jsonl", open: |folder| data(folder, "played.jsonl"), bounded: true },
    Door { name: "parquet", file: "data.parquet", open: |folder| data(folder, "data.parquet"), bounded: false },
    Door { name: "reply", file: "reply.txt", open: policy::reply, bounded: true },
    Door { name: "patch", file: "patch.txt", open: policy::patch, bounded: true },
    Door { name: "csv", file: "submission.csv", open: policy::csv, bounded: true },
    Door { name: "csv_by_id", file: "by_id/submission.csv", open: policy::csv_by_id, bounded: true },
    Door { name: "npy", file: "submission.npy", open: policy::npy, bounded: true },
    Door { name: "trajectory_file", file: "played.jsonl", open: policy::trajectories, bounded: true },
];

fn shape() -> ModelConfig {
    ModelConfig {
        vocab: 258,
        hidden: 8,
        layers: 1,
        heads: Heads { nh: 2, nkv: 1, hs: 4 },
        mlp: 12,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::Linear { factor: 2.0 } },
        tied: false,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 64,
    }
}

const TRAJECTORY: &str = r#"{"task": "digits", "source": "expert", "index": 0, "ideas": [], "metric_final": 0.5, "metric_best": 0.5, "report_final": 0.5, "report_best": 0.5, "failed": false, "steps": [{"prompt": [{"role": "user", "content": "go"}], "reply": "b", "ids": [97, 98], "is_sampled": [false, true], "logprobs": [-0.5], "action": "List Files", "case": "neutral", "reward": 0.0, "metric_before": 0.5, "metric_after": 0.5, "report_before": 0.5, "report_after": 0.5, "observation": "", "snapshot_before": "", "snapshot_after": ""}]}"#;

/// All the files of all the doors.
pub fn furnish(folder: &Path) {
    let model = Model::random(&Cpu, shape(), 1, DType::BF16).unwrap();
    let base = folder.join("model");
    save_model(&base, &model, DType::BF16).unwrap();
    fixture::byte_tokenizer_files(&base, &[], &json!({"eos_token": "<|im_end|>", "bos_token": null}));
    std::fs::write(base.join("generation_config.json"), r#"{"eos_token_id": [257, 3], "bos_token_id": 256}"#).unwrap();
    let source = Source { policy: Policy { model: &model, adapter: None }, folder: &base };
    assert_eq!(hugging_face(&Cpu, source, &folder.join("sharded"), DType::BF16, 5000).unwrap().0, 2);
    let lora = LoraConfig { rank: 2, alpha: 4.0, rslora: false, modules: vec![Module::Q, Module::Down] };
    save_adapter(&folder.join("adapter"), &Adapter::new(&Cpu, &shape(), lora, &mut Philox::new(1, 0)).unwrap(), "b")
        .unwrap();
    let lines = [
        json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        json!({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}], "system": "s"}),
        json!({"instruction": "x", "input": "i", "output": "y", "history": [["a", "b"]]}),
    ];
    std::fs::write(folder.join("data.jsonl"), lines.map(|line| format!("{line}\n")).concat()).unwrap();
    std::fs::write(folder.join("played.jsonl"), format!("{TRAJECTORY}\n")).unwrap();
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/sharegpt.parquet");
    std::fs::copy(reference, folder.join("data.parquet")).unwrap();
    policy::furnish(folder);
}

/// Puts other bytes in a file's place; a map of the old one keeps what it has.
pub fn replace(file: &Path, bytes: &[u8]) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, bytes).unwrap();
}

fn every_tensor(folder: &Path) -> Result<()> {
    let map = WeightMap::open(folder)?;
    map.names().try_for_each(|name| map.get_any(name).map(|tensor| assert!(tensor.as_bytes().len() < 1 << 20)))?;
    load_model(&Cpu, folder).map(|_| ())
}

fn weights(folder: &Path) -> Result<()> {
    every_tensor(&folder.join("model"))
}

fn sharded(folder: &Path) -> Result<()> {
    every_tensor(&folder.join("sharded"))
}

fn config(folder: &Path) -> Result<()> {
    let config = read_config(&folder.join("model"))?;
    assert!(config.validate().is_ok() && ModelConfig::from_json(&config.to_json("float32"), folder).is_ok());
    Ok(())
}

fn tokenizer(folder: &Path) -> Result<()> {
    let tokenizer = Tokenizer::open(&folder.join("model"))?;
    tokenizer.check(shape().vocab)?;
    let place = |e: onestep::error::Error| e.context(folder.join("model").display());
    let template = ChatTemplate::of(&tokenizer).map_err(place)?;
    let ids = template.prompt_ids(&[Message::new("user", "héllo\n")], &tokenizer).map_err(place)?;
    template.stop_ids(&tokenizer).map_err(place)?;
    assert!(tokenizer.decode(&ids).len() < 1 << 12);
    Ok(())
}

fn adapter(folder: &Path) -> Result<()> {
    load_adapter(&Cpu, &shape(), &folder.join("adapter")).map(|_| ())
}

fn data(folder: &Path, file: &str) -> Result<()> {
    // Opened once: every furnished folder has the same.
    static SPEAKER: OnceLock<(Tokenizer, ChatTemplate)> = OnceLock::new();
    let (tokenizer, template) = SPEAKER.get_or_init(|| {
        let tokenizer = Tokenizer::open(&folder.join("model")).unwrap();
        let template = ChatTemplate::of(&tokenizer).unwrap();
        (tokenizer, template)
    });
    let limit = dataset::Limit { max_tokens: 1000, positions: 1000 };
    let report = dataset::validate(&folder.join(file), tokenizer, template, limit);
    let loaded = dataset::load(&folder.join(file), tokenizer, template, limit);
    let errors = report.as_ref().map_or(1, |report| report.count(dataset::Severity::Error));
    assert_eq!(errors > 0, loaded.is_err(), "validate and load disagree: {report:?}");
    loaded.map(|_| ())
}
