//! Folders that are given for a model or an adapter: what is used, what is noted by name, what is refused with a word on what to give.

use crate::support::*;
use onestep::tensor::{DType, Tensor};
use onestep::weights::{WeightMap, converted, save};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

/// A folder with the tiny model, an adapter for it, and something to score.
struct Place {
    folder: TempDir,
    model: PathBuf,
    adapter: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let model = model(folder.path());
        let (adapter, _) = adapter(folder.path());
        fs::write(folder.path().join("in.jsonl"), "{\"ids\": [5, 9, 300, 7, 7, 2, 41]}\n").unwrap();
        Self { folder, model, adapter }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn arguments<'a>(&self, paths: &'a [PathBuf; 2], model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let named = ["score", "--model", model, "--input", text(&paths[0]), "--output", text(&paths[1])];
        [&named[..], more].concat()
    }

    /// The log-probabilities that `score` writes, and what it says on stderr.
    fn score(&self, model: &Path, more: &[&str]) -> (Vec<f64>, String) {
        let paths = ["in.jsonl", "out.jsonl"].map(|name| self.path(name));
        let ended = onestep(&self.arguments(&paths, text(model), more));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let line = &lines(&paths[1])[0];
        (line["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect(), ended.stderr)
    }

    /// `score` refuses, says `parts`, and changes nothing.
    fn refuses(&self, model: &str, more: &[&str], parts: &[&str]) {
        let paths = ["in.jsonl", "out.jsonl"].map(|name| self.path(name));
        refused(self.folder.path(), &self.arguments(&paths, model, more), parts);
    }

    /// The model with keys of its config.json changed, in the folder it is in.
    fn configured(&self, change: Value) {
        let mut config = tiny_config();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        fs::write(self.model.join("config.json"), config.to_string()).unwrap();
    }

    /// Writes the model's weights again: under other names (none drops one), with more tensors.
    fn rewritten(&self, rename: impl Fn(&str) -> Option<String>, more: &[(&str, Tensor)]) {
        let path = self.model.join("model.safetensors");
        let map = WeightMap::open_file(&path).unwrap();
        let names: Vec<String> = map.names().map(str::to_string).collect();
        let tensors: Vec<(String, Tensor)> =
            names.iter().filter_map(|name| Some((rename(name)?, map.get_any(name).unwrap()))).collect();
        let old = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
        let list: Vec<(String, &Tensor)> = old.chain(more.iter().map(|(name, t)| (name.to_string(), t))).collect();
        save(&path, &list, None).unwrap();
    }
}

fn kept(name: &str) -> Option<String> {
    Some(name.to_string())
}

/// A tensor of the embedding's shape: the embedding times `factor`.
fn head(place: &Place, factor: f32) -> Tensor {
    let map = WeightMap::open_file(&place.model.join("model.safetensors")).unwrap();
    let mut head = converted(&map.get_any("model.embed_tokens.weight").unwrap(), DType::F32);
    head.slice_mut::<f32>().iter_mut().for_each(|x| *x *= factor);
    head
}

#[test]
fn rope_scaling_counts_beside_rope_parameters() {
    let place = Place::new();
    place.configured(json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}));
    let (alone, _) = place.score(&place.model, &[]);
    place.configured(json!({"rope_theta": null, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
                            "rope_scaling": {"rope_type": "linear", "factor": 4.0}}));
    let (beside, said) = place.score(&place.model, &[]);
    assert_eq!(alone, beside);
    assert!(said.contains("config.json, line 1: rope_parameters: it has no effect beside rope_scaling"), "{said}");
    place.configured(json!({}));
    assert_ne!(place.score(&place.model, &[]).0, beside);
}

#[test]
fn configurations_are_loaded_refused_by_key_or_noted_by_key() {
    let place = Place::new();
    let (plain, said) = place.score(&place.model, &[]);
    assert_eq!(said, "", "a plain folder needs no word");
    for (change, part) in [
        (json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 28}), ""),
        (json!({"initializer_range": 0.2, "torch_dtype": "torch.float32", "temperature": 0.7}), ""),
        (json!({"scale_everything": 2}), "note: "),
        (json!({"scale_everything": 2}), "config.json, line 1: scale_everything: this key is not understood"),
    ] {
        place.configured(change.clone());
        let (found, said) = place.score(&place.model, &[]);
        assert_eq!(found, plain, "{change}");
        assert!(said.contains(part) && (!part.is_empty() || said.is_empty()), "{change}: {said}");
    }
    for (change, part) in [
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}}),
            "rope_parameters.full_attention: ",
        ),
        (json!({"use_sliding_window": true, "sliding_window": 4, "max_window_layers": 1}), "use_sliding_window: "),
        (json!({"layer_types": ["full_attention", "sliding_attention"]}), "layer_types: "),
        (json!({"logit_scale": 0.0625}), "logit_scale: found 0.0625"),
    ] {
        place.configured(change);
        place.refuses(text(&place.model), &[], &["config.json: ", part]);
    }
}

#[test]
fn a_stored_head_that_differs_is_used_though_config_says_tied() {
    let place = Place::new();
    let (tied, _) = place.score(&place.model, &[]);
    place.rewritten(kept, &[("lm_head.weight", head(&place, 1.0))]);
    assert_eq!(place.score(&place.model, &[]), (tied.clone(), String::new()), "the same head in two places is tied");

    place.rewritten(kept, &[]);
    let other = head(&place, -0.5);
    place.rewritten(|name| (name != "lm_head.weight").then(|| name.to_string()), &[("lm_head.weight", other)]);
    let (found, said) = place.score(&place.model, &[]);
    assert_ne!(found, tied);
    assert!(said.contains("tie_word_embeddings is true, but lm_head.weight is stored and differs"), "{said}");
    let out = place.path("out");
    done(&["export", "--model", text(&place.model), "--out", text(&out), "--dtype", "f32", "--verify"]);
    assert_eq!(place.score(&out, &[]), (found, String::new()));
    let written: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(written["tie_word_embeddings"], json!(false));

    // Only the head is stored: it is the embedding too.
    let place = Place::new();
    place.rewritten(|name| Some(name.replace("model.embed_tokens", "lm_head")), &[]);
    let (found, said) = place.score(&place.model, &[]);
    assert_eq!(found, tied);
    assert!(said.contains("model.embed_tokens.weight is not stored; lm_head.weight is used"), "{said}");
    place.configured(json!({"tie_word_embeddings": false}));
    place.refuses(text(&place.model), &[], &["no tensor model.embed_tokens.weight; it holds lm_head.weight"]);
    let place = Place::new();
    place.configured(json!({"tie_word_embeddings": false}));
    place.refuses(text(&place.model), &[], &["no tensor lm_head.weight, and tie_word_embeddings", "set it to true"]);
}

#[test]
fn weights_load_under_the_names_that_programs_write() {
    let place = Place::new();
    let (plain, _) = place.score(&place.model, &[]);
    for (prefix, note) in [
        ("", ""),
        ("model.", ""),
        ("module.model.", "\"module.model.\" before the names"),
        ("_orig_mod.model.", "before"),
    ] {
        let place = Place::new();
        place.rewritten(|name| Some(name.replacen("model.", prefix, 1)), &[]);
        let (found, said) = place.score(&place.model, &[]);
        assert_eq!(found, plain, "{prefix:?}");
        assert!(said.contains(note) && (!note.is_empty() || said.is_empty()), "{prefix:?}: {said}");
        let untied = head(&Place::new(), 2.0);
        place.configured(json!({"tie_word_embeddings": false}));
        let name = format!("{}lm_head.weight", prefix.strip_suffix("model.").unwrap_or_default());
        place.rewritten(kept, &[(&name, untied)]);
        assert_ne!(place.score(&place.model, &[]).0, plain);
    }
}

#[test]
fn tensors_that_nobody_asks_for_are_named() {
    let place = Place::new();
    let one = || Tensor::from_slice(&[1], &[1.0f32]);
    let names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.mlp.up_proj.bias", "score.weight"];
    let more: Vec<(&str, Tensor)> = names.iter().map(|name| (*name, one())).collect();
    place.rewritten(kept, &more);
    let (_, said) = place.score(&place.model, &[]);
    let listed = "are not used: model.layers.0.mlp.up_proj.bias, score.weight\n";
    assert!(said.contains(listed) && !said.contains("inv_freq") && said.lines().count() == 1, "{said}");

    // A tensor that the index does not list is no other thing.
    let names: Vec<String> = WeightMap::open(&place.model).unwrap().names().map(str::to_string).collect();
    let listed: Map<String, Value> = names
        .iter()
        .filter(|name| *name != "score.weight")
        .map(|name| (name.clone(), json!("model-00001-of-00001.safetensors")))
        .collect();
    fs::rename(place.model.join("model.safetensors"), place.model.join("model-00001-of-00001.safetensors")).unwrap();
    fs::write(place.model.join("model.safetensors.index.json"), json!({"weight_map": listed}).to_string()).unwrap();
    assert!(place.score(&place.model, &[]).1.contains("score.weight"));
}

#[test]
fn paths_that_are_no_model_are_refused_with_what_to_give() {
    let place = Place::new();
    let folder = |name: &str, files: &[&str]| {
        let dir = place.path(name);
        fs::create_dir_all(&dir).unwrap();
        for file in files {
            fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            fs::write(dir.join(file), "{}").unwrap();
        }
        text(&dir).to_string()
    };
    let hub = ["Hugging Face hub: this program downloads nothing", "--local-dir models/Qwen3-0.6B"];
    for (model, parts) in [
        ("Qwen/Qwen3-0.6B".to_string(), &hub[..]),
        ("https://huggingface.co/Qwen/Qwen3-0.6B".into(), &hub),
        ("~/models/x".into(), &["~/models/x: no such folder", "unquoted"]),
        ("runs/no/such".into(), &["runs/no/such: no such folder; expected one with config.json"]),
        ("src/no_such".into(), &["src/no_such: no such folder; expected"]),
        (text(&place.model.join("config.json")).into(), &["this is a file; give its folder"]),
        (folder("bin", &["config.json", "pytorch_model.bin"]), &["pickles (pytorch_model.bin)", "save_pretrained"]),
        (folder("pth", &["params.json", "consolidated.00.pth"]), &["pickles (consolidated.00.pth)"]),
        (folder("gguf", &["model-q4.gguf"]), &["GGUF (model-q4.gguf)", "give the Hugging Face folder"]),
        (
            folder("other", &["config.json", "weights.safetensors"]),
            &["(weights.safetensors) have other names", "model.safetensors.index.json"],
        ),
        (folder("bare", &["model.safetensors"]), &["bare/config.json: missing beside the weights"]),
        (folder("nothing", &["config.json"]), &["no weights; expected model.safetensors"]),
        (folder("empty", &[]), &["no model here; expected a folder"]),
        (
            folder("cache", &["snapshots/abc/config.json", "snapshots/abc/model.safetensors"]),
            &["give --model ", "snapshots/abc"],
        ),
        (text(&place.adapter).into(), &["an adapter's folder, not a model's", "(model) as --model", "as --adapter"]),
        (folder("run", &["adapter/adapter_config.json"]), &["but an adapter", "run/adapter"]),
    ] {
        place.refuses(&model, &[], parts);
    }
    // Every verb that takes a model says the same, before it starts anything.
    let data = messages(place.folder.path());
    for verb in ["sft", "eval", "plan", "export", "generate"] {
        let out = place.path("out");
        let more: &[&str] = match verb {
            "sft" => &["--data", text(&data), "--out", text(&out)],
            "eval" | "export" => &["--out", text(&out)],
            "generate" => &["--prompt", "x"],
            _ => &[],
        };
        refused(place.folder.path(), &[&[verb, "--model", "Qwen/Qwen3-0.6B"], more].concat(), &hub);
    }
    for verb in ["preview", "validate"] {
        refused(place.folder.path(), &["data", verb, "--model", "Qwen/Qwen3-0.6B", "--data", text(&data)], &hub);
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(place.model.join("model.safetensors"), pointer).unwrap();
    place.refuses(text(&place.model), &[], &["Git LFS pointer"]);
}

#[test]
fn an_adapter_is_found_where_a_run_or_a_checkpoint_keeps_it() {
    let place = Place::new();
    let (adapted, said) = place.score(&place.model, &["--adapter", text(&place.adapter)]);
    assert_eq!(said, "");
    let copy = |to: &str| {
        let to = place.path(to);
        fs::create_dir_all(&to).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(place.adapter.join(file), to.join(file)).unwrap();
        }
    };
    copy("run/adapter");
    copy("run/checkpoints/rl/step-00000010/actor");
    copy("run/checkpoints/rl/step-00000010/critic");
    for (dir, inner) in [("run", "run/adapter"), ("run/checkpoints/rl/step-00000010", "step-00000010/actor")] {
        let (found, said) = place.score(&place.model, &["--adapter", text(&place.path(dir))]);
        assert_eq!(found, adapted);
        assert!(said.contains("its adapter is") && said.contains(inner), "{said}");
    }
    let below = ["no adapter here, but in folders below; give one of them: ", "step-00000010/actor"];
    place.refuses(text(&place.model), &["--adapter", text(&place.path("run/checkpoints"))], &below);
    let whole = ["this is a whole model, not an adapter; give --model "];
    place.refuses(text(&place.model), &["--adapter", text(&place.model)], &whole);
    fs::create_dir(place.path("full")).unwrap();
    fs::rename(&place.model, place.path("full/model")).unwrap();
    place.refuses("weights/quickstart", &["--adapter", text(&place.path("full"))], &[whole[0], "full/model without"]);
    place.refuses(
        "weights/quickstart",
        &["--adapter", "someone/adapter-1"],
        &["someone/adapter-1", "downloads nothing"],
    );
}

#[test]
fn keys_of_an_adapter_are_used_refused_or_noted() {
    let place = Place::new();
    let path = place.adapter.join("adapter_config.json");
    let original: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let change = |key: &str, value: Value| {
        let mut changed = original.clone();
        changed[key] = value;
        fs::write(&path, changed.to_string()).unwrap();
    };
    let arguments = ["--adapter", text(&place.adapter)];
    let (plain, _) = place.score(&place.model, &arguments);
    for (key, value, part) in [
        ("init_lora_weights", json!("gaussian"), ""),
        ("eva_config", json!({"rho": 2.0}), ""),
        ("qalora_group_size", json!(16), ""),
        ("task_type", json!("SEQ_CLS"), "task_type: found \"SEQ_CLS\""),
        ("lora_dropout", json!(0.1), "lora_dropout: 0.1 has no effect"),
        ("use_magic", json!(true), "use_magic: this key is not understood"),
        (
            "base_model_name_or_path",
            json!("Qwen/Qwen3-0.6B"),
            "base_model_name_or_path is Qwen/Qwen3-0.6B, and --model ",
        ),
        ("base_model_name_or_path", json!("elsewhere/Model"), ""),
        ("base_model_name_or_path", json!(""), ""),
    ] {
        change(key, value);
        let (found, said) = place.score(&place.model, &arguments);
        assert_eq!(found, plain, "{key}");
        assert!(said.contains(part) && said.lines().count() == usize::from(!part.is_empty()), "{key}: {said}");
    }
    // Tokenizer files that training put beside the adapter are the base's, or are said to be left out.
    fs::write(&path, original.to_string()).unwrap();
    fs::copy(place.model.join("tokenizer_config.json"), place.adapter.join("tokenizer_config.json")).unwrap();
    assert_eq!(place.score(&place.model, &arguments).1, "");
    fs::write(place.adapter.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let said = place.score(&place.model, &arguments).1;
    assert!(
        said.contains("chat_template.jinja differs from its base's, which is used") && said.lines().count() == 1,
        "{said}"
    );
    for (key, value) in [
        ("init_lora_weights", json!("pissa_niter_4")),
        ("init_lora_weights", json!("loftq")),
        ("lora_bias", json!(true)),
        ("exclude_modules", json!(["q_proj"])),
        ("trainable_token_indices", json!([1])),
        ("base_model_name_or_path", json!(3)),
    ] {
        change(key, value);
        place.refuses(text(&place.model), &arguments, &[&format!("adapter_config.json: {key}: found ")]);
    }
    fs::write(&path, original.to_string()).unwrap();
    let weights = place.adapter.join("adapter_model.safetensors");
    let stored = WeightMap::open_file(&weights).unwrap();
    for (from, to) in [
        ("base_model.model.model.", "model."),
        ("base_model.model.model.", "base_model.model."),
        ("base_model.model.", "base_model.model._orig_mod."),
        (".weight", ".default.weight"),
        (".weight", ".mine.weight"),
    ] {
        let names: Vec<String> = stored.names().map(str::to_string).collect();
        let tensors: Vec<Tensor> = names.iter().map(|name| stored.get_any(name).unwrap()).collect();
        let list: Vec<(String, &Tensor)> = names.iter().map(|name| name.replace(from, to)).zip(&tensors).collect();
        save(&weights, &list, None).unwrap();
        assert_eq!(place.score(&place.model, &arguments).0, plain, "{from} -> {to}");
        let extra = Tensor::from_slice(&[1], &[1.0f32]);
        let more: Vec<_> = list.into_iter().chain([("base_model.model.lm_head.weight".to_string(), &extra)]).collect();
        save(&weights, &more, None).unwrap();
        place.refuses(
            text(&place.model),
            &arguments,
            &["tensor base_model.model.lm_head.weight belongs to no adapted layer"],
        );
    }
}

#[test]
fn score_takes_the_device_as_every_verb_does() {
    let place = Place::new();
    let (fast, _) = place.score(&place.model, &[]);
    let paths = ["in.jsonl", "out.jsonl"].map(|name| place.path(name));
    for option in ["--device", "--backend"] {
        let arguments =
            ["score", "--model", text(&place.model), "--input", text(&paths[0]), "--output", text(&paths[1])];
        done(&[&arguments[..], &[option, "oracle"]].concat());
        let naive =
            lines(&paths[1])[0]["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        assert!(naive.iter().zip(&fast).all(|(a, b)| (a - b).abs() < 1e-4), "{naive:?} {fast:?}");
    }
}
