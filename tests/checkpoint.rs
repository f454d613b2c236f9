//! Models, adapters, optimizers and checkpoints on disk: what comes back is bit for bit what was stored, what does not fit is
//! refused by name, a failure leaves the old files.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::Heads;
use onestep::backend::oracle::Oracle;
use onestep::checkpoint::{
    load_adapter, load_model, load_optimizer, load_state, newest, save_adapter, save_checkpoint, save_model,
    save_optimizer,
};
use onestep::error::{Error, Kind};
use onestep::model::config::{ModelConfig, RopeConfig, RopeScaling};
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{Activations, Batch, Gradients, Model, Policy, Segment, backward, forward};
use onestep::optimizer::{AdamWConfig, Optimizer};
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};
use onestep::weights::save;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::Path;

fn config() -> ModelConfig {
    ModelConfig {
        vocab: 30,
        hidden: 16,
        layers: 2,
        heads: Heads { nh: 4, nkv: 2, hs: 4 },
        mlp: 24,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 64,
    }
}

fn lora(modules: &[Module]) -> LoraConfig {
    LoraConfig { rank: 3, alpha: 6.0, rslora: false, modules: modules.to_vec() }
}

/// B is made non-zero, so that saving it says something.
fn adapter(be: &dyn Backend, config: LoraConfig) -> Adapter {
    let mut adapter = Adapter::new(be, &self::config(), config, &mut Philox::new(3, 0)).unwrap();
    adapter.tensors.iter_mut().enumerate().for_each(|(i, t)| be.fill(t, 0.1 + i as f32).unwrap());
    adapter
}

fn bytes(tensors: &[Tensor]) -> Vec<&[u8]> {
    tensors.iter().map(Tensor::as_bytes).collect()
}

const ADAMW: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

/// One optimizer step on a loss made of the hidden states; text and direction come from the step.
fn train(be: &dyn Backend, model: &Model, adapter: &mut Adapter, optimizer: &mut Optimizer) {
    let step = optimizer.steps;
    let policy = Policy { model, adapter: Some(adapter) };
    let ids: Vec<u32> = (0..9).map(|i| (i * 7 + step) % 30).collect();
    let batch = Batch::new(be, &model.config, &[Segment { ids: &ids, start_position: 0, parent: None }]).unwrap();
    let mut acts = Activations::default();
    forward(be, policy, &batch, true, &mut acts).unwrap();
    let mut grads = Gradients::new(be, policy, false).unwrap();
    let mut dhidden = be.alloc(acts.hidden().shape(), be.activation()).unwrap();
    be.copy(acts.hidden(), &mut dhidden).unwrap();
    backward(be, policy, &batch, &mut acts, &dhidden, &mut grads).unwrap();
    optimizer.step(be, &mut adapter.tensors, &grads.adapter.unwrap(), 0.01, 1.0).unwrap();
}

#[test]
fn three_steps_saved_and_three_more_equal_six_bit_for_bit() {
    for be in [&Cpu as &dyn Backend, &Oracle::f64()] {
        let dir = tempfile::tempdir().unwrap();
        let model = Model::random(be, config(), 1, DType::BF16).unwrap();
        let fresh = || Adapter::new(be, &model.config, lora(&Module::ALL), &mut Philox::new(2, 0)).unwrap();
        let (mut straight, mut stopped) = (fresh(), fresh());
        let mut straight_optimizer = Optimizer::new(be, &straight.tensors, ADAMW).unwrap();
        let mut stopped_optimizer = Optimizer::new(be, &stopped.tensors, ADAMW).unwrap();
        for _ in 0..3 {
            train(be, &model, &mut stopped, &mut stopped_optimizer);
        }
        save_checkpoint(dir.path(), 3, 1, &json!({"note": "half"}), &quiet, |folder| {
            save_adapter(&folder.join("adapter"), &stopped, "base")?;
            save_optimizer(&folder.join("optimizer.safetensors"), &stopped_optimizer)
        })
        .unwrap();
        drop((stopped, stopped_optimizer));

        let (step, folder) = newest(dir.path(), &quiet).unwrap().unwrap();
        assert_eq!(step, 3);
        assert_eq!(load_state::<Value>(&folder).unwrap(), json!({"note": "half"}));
        let mut resumed = load_adapter(be, &model.config, &folder.join("adapter")).unwrap();
        let mut optimizer = Optimizer::new(be, &resumed.tensors, ADAMW).unwrap();
        load_optimizer(be, &folder.join("optimizer.safetensors"), &mut optimizer).unwrap();
        assert_eq!(optimizer.steps, 3);
        for _ in 0..3 {
            train(be, &model, &mut resumed, &mut optimizer);
        }
        for _ in 0..6 {
            train(be, &model, &mut straight, &mut straight_optimizer);
        }
        assert_ne!(bytes(&straight.tensors), bytes(&fresh().tensors), "training moved something");
        assert_eq!(bytes(&resumed.tensors), bytes(&straight.tensors));
        assert_eq!(bytes(&optimizer.m), bytes(&straight_optimizer.m));
        assert_eq!(bytes(&optimizer.v), bytes(&straight_optimizer.v));
    }
}

#[test]
fn the_state_of_other_parameters_is_refused() {
    let (be, dir) = (&Cpu, tempfile::tempdir().unwrap());
    let path = dir.path().join("optimizer.safetensors");
    let state = |modules: &[Module]| Optimizer::new(be, &adapter(be, lora(modules)).tensors, ADAMW).unwrap();
    save_optimizer(&path, &state(&[Module::Q])).unwrap();
    let error = load_optimizer(be, &path, &mut state(&Module::ALL)).unwrap_err();
    assert!(error.to_string().contains("it is the state of other parameters"), "{error}");
    let error = load_optimizer(be, &path, &mut state(&[Module::Down])).unwrap_err();
    assert!(error.to_string().contains("tensor m.0 has shape [3, 16], expected [3, 24]"), "{error}");
}

#[test]
fn a_saved_model_is_loaded_in_place_bit_for_bit() {
    let be = &Cpu;
    let untied = ModelConfig { tied: false, qkv_bias: false, qk_norm: true, ..config() };
    for config in [config(), untied] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let dir = tempfile::tempdir().unwrap();
            let model = Model::random(be, config.clone(), 5, dtype).unwrap();
            save_model(&dir.path().join("m"), &model, dtype).unwrap();
            let (loaded, notes) = load_model(be, &dir.path().join("m")).unwrap();
            assert_eq!((&loaded.config, &loaded.names, notes.len()), (&config, &model.names, 0));
            assert_eq!(bytes(&loaded.weights), bytes(&model.weights));
            assert!(loaded.weights.iter().all(|w| w.is_mapped() && w.dtype() == dtype));
        }
    }
}

#[test]
fn a_model_folder_that_disagrees_with_its_configuration_is_refused() {
    let (be, dir) = (&Cpu, tempfile::tempdir().unwrap());
    let model = Model::random(be, config(), 5, DType::F32).unwrap();
    for (change, expected) in [
        (ModelConfig { mlp: 25, ..config() }, "mlp.gate_proj.weight has shape [24, 16], expected [25, 16]"),
        (ModelConfig { tied: false, ..config() }, "no tensor lm_head.weight"),
        (ModelConfig { layers: 3, ..config() }, "no tensor model.layers.2.input_layernorm.weight"),
    ] {
        save_model(dir.path(), &model, DType::F32).unwrap();
        std::fs::write(dir.path().join("config.json"), change.to_json("float32")).unwrap();
        let error = load_model(be, dir.path()).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        assert!(error.to_string().contains(expected), "{error} should contain {expected:?}");
    }
    let error = load_model(be, &dir.path().join("none")).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("none: no such folder") && error.kind() == Kind::Content, "{error}");
}

#[test]
fn an_adapter_comes_back_bit_for_bit_in_peft_layout() {
    let (be, dir) = (&Cpu, tempfile::tempdir().unwrap());
    let config = LoraConfig { rslora: true, ..lora(&[Module::Down, Module::Q]) };
    let adapter = adapter(be, config);
    save_adapter(dir.path(), &adapter, "Qwen/Qwen2.5-0.5B").unwrap();
    let back = load_adapter(be, &self::config(), dir.path()).unwrap();
    assert_eq!((&back.config, &back.names), (&adapter.config, &adapter.names));
    assert_eq!(bytes(&back.tensors), bytes(&adapter.tensors));
    assert_eq!(back.lora(1, Module::Q).unwrap().scale, 6.0 / 3f32.sqrt());
    assert!(back.lora(1, Module::K).is_none());
    let names = onestep::weights::WeightMap::open_file(&dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(names.contains("base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"));
    assert!(names.contains("base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"));
    let written: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("adapter_config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("r", json!(3)),
        ("use_rslora", json!(true)),
        ("target_modules", json!(["q_proj", "down_proj"])),
        ("base_model_name_or_path", json!("Qwen/Qwen2.5-0.5B")),
    ] {
        assert_eq!(written[key], value, "{key}");
    }
}

#[test]
fn options_of_an_adapter_that_are_not_ours_are_refused_by_name() {
    let (be, dir) = (&Cpu, tempfile::tempdir().unwrap());
    save_adapter(dir.path(), &adapter(be, lora(&[Module::Q])), "base").unwrap();
    let path = dir.path().join("adapter_config.json");
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut changed = original.clone();
        changed[key] = value;
        std::fs::write(&path, changed.to_string()).unwrap();
        load_adapter(be, &config(), dir.path()).map(|_| ())
    };
    for (key, value) in [
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!(4)),
        ("rank_pattern", json!({"q_(proj": 4})),
        ("alpha_pattern", json!({"q_proj": -4})),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("kasa_config", json!({"beta": 0.1})),
        ("monteclora_config", json!({"samples": 4})),
        ("peft_type", json!("LOHA")),
        ("fan_in_fan_out", json!(true)),
        ("layers_to_transform", json!([0])),
        ("r", json!(0)),
        ("lora_alpha", json!("six")),
        ("use_rslora", json!("yes")),
        ("target_modules", json!(["c_attn"])),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!([])),
        ("target_modules", json!(3)),
        ("target_modules", json!("no_such_.*")),
        ("target_modules", json!(".*(proj")),
    ] {
        let error = with(key, value).unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        let start = format!("{}: {key}: ", path.display());
        assert!(error.to_string().starts_with(&start), "{error} should start with {start:?}");
    }
    with("rank_pattern", json!({})).unwrap();
    with("modules_to_save", Value::Null).unwrap();
    let error = with("r", json!(4)).unwrap_err();
    assert!(error.to_string().contains("lora_A.weight has shape [3, 16], expected [4, 16]"), "{error}");
    let error = with("target_modules", json!(["q_proj", "k_proj"])).unwrap_err();
    assert!(error.to_string().contains("no tensor base_model.model.model.layers.0.self_attn.k_proj.lora_A"), "{error}");
    save_adapter(dir.path(), &adapter(be, lora(&[Module::Q, Module::K])), "base").unwrap();
    let error = with("target_modules", json!(["q_proj"])).unwrap_err();
    assert!(error.to_string().contains("k_proj.lora_A.weight belongs to no adapted layer"), "{error}");
}

/// What an adapter adds to the weight of `module` in `layer`: scale B A.
fn change(adapter: &Adapter, layer: usize, module: Module) -> Vec<f64> {
    let Some(lora) = adapter.lora(layer, module) else { return vec![] };
    let (a, b, r, k) = (lora.a.slice::<f32>(), lora.b.slice::<f32>(), lora.a.rows(), lora.a.columns());
    let cell = |n: usize, k_: usize| (0..r).map(|j| f64::from(b[n * r + j]) * f64::from(a[j * k + k_])).sum::<f64>();
    (0..lora.b.rows() * k).map(|i| f64::from(lora.scale) * cell(i / k, i % k)).collect()
}

#[test]
fn ranks_and_alphas_by_pattern_make_one_adapter_that_does_the_same() {
    let (be, dir) = (&Cpu, tempfile::tempdir().unwrap());
    let model = config();
    for rslora in [false, true] {
        // Pairs of their own rank and alpha, written as PEFT does; what PEFT's rules say of them is spelled out here.
        let pairs = [
            (0, Module::Q, 5, 8.0), // "layers.0.self_attn.q_proj": 5, and alpha by "q_proj"
            (1, Module::Q, 2, 8.0), // rank by ".*1.*q_proj"
            (0, Module::Down, 4, 6.0),
        ];
        let mut rng = Philox::new(7, 0);
        let mut random = |shape: &[usize], dtype: DType| {
            let mut tensor = Tensor::zeros(shape, DType::F32);
            tensor.slice_mut::<f32>().fill_with(|| rng.normal() as f32);
            onestep::weights::converted(&tensor, dtype)
        };
        let (mut tensors, mut expected) = (vec![], vec![]);
        for (layer, module, rank, alpha) in pairs {
            let (n, k) = module.shape(&model);
            let (a, b) = (random(&[rank, k], DType::BF16), random(&[n, rank], DType::F16));
            let scale = alpha / if rslora { (rank as f64).sqrt() } else { rank as f64 };
            let (wide_a, wide_b) = [&a, &b].map(|t| onestep::weights::converted(t, DType::F64)).into();
            let (wide_a, wide_b) = (wide_a.slice::<f64>(), wide_b.slice::<f64>());
            let cell = |i: usize| (0..rank).map(|j| wide_b[i / k * rank + j] * wide_a[j * k + i % k]).sum::<f64>();
            expected.push((0..n * k).map(|i| scale * cell(i)).collect::<Vec<_>>());
            // Three ways to write names.
            let path = module.path(layer);
            let (front, name) = match (layer, module) {
                (0, Module::Q) => ("base_model.model.", ""),
                (1, _) => ("", ".default"),
                _ => ("base_model.model.", ".default"),
            };
            tensors.push((format!("{front}{path}.lora_A{name}.weight"), a));
            tensors.push((format!("{front}{path}.lora_B{name}.weight"), b));
        }
        let list: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        save(&dir.path().join("adapter_model.safetensors"), &list, None).unwrap();
        let settings = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": rslora,
            "target_modules": r"model\.layers\.(\d\.self_attn\.q_proj|0\.mlp\.down_proj)",
            "rank_pattern": {"layers.0.self_attn.q_proj": 5, ".*1.*q_proj": 2, "q_proj": 7},
            "alpha_pattern": {"q_proj": 8}});
        std::fs::write(dir.path().join("adapter_config.json"), settings.to_string()).unwrap();
        let loaded = load_adapter(be, &model, dir.path()).unwrap();
        assert_eq!((loaded.config.rank, &loaded.config.modules[..]), (5, &[Module::Q, Module::Down][..]));
        for ((layer, module, rank, _), expected) in pairs.into_iter().zip(&expected) {
            let found = change(&loaded, layer, module);
            // B is rounded once more and the shared scale twice: three roundings of every one of `rank` products.
            let largest = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            let bound = 3.0 * rank as f64 * f64::from(f32::EPSILON) * largest;
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= bound), "{module:?} of {layer}, {rslora}");
        }
        assert!(change(&loaded, 1, Module::Down).iter().all(|&x| x == 0.0), "a layer that is not adapted");
        let again = tempfile::tempdir().unwrap();
        save_adapter(again.path(), &loaded, "base").unwrap();
        let back = load_adapter(be, &model, again.path()).unwrap();
        assert_eq!((back.config, bytes(&back.tensors)), (loaded.config.clone(), bytes(&loaded.tensors)));
    }
}

#[test]
fn targets_are_read_as_peft_reads_them() {
    let (be, dir) = (&Cpu, tempfile::tempdir().unwrap());
    let path = dir.path().join("adapter_config.json");
    let with = |modules: &[Module], settings: Value| {
        save_adapter(dir.path(), &adapter(be, lora(modules)), "base").unwrap();
        std::fs::write(&path, settings.to_string()).unwrap();
        load_adapter(be, &config(), dir.path()).unwrap().config
    };
    let (r, alpha) = (3, 6.0);
    let suffixes = json!(["self_attn.q_proj", "model.layers.0.mlp.up_proj", "layers.1.mlp.up_proj"]);
    let found = with(&[Module::Q, Module::Up], json!({"r": r, "lora_alpha": alpha, "target_modules": suffixes}));
    assert_eq!(found, lora(&[Module::Q, Module::Up]));
    let found = with(&Module::ALL, json!({"r": r, "lora_alpha": alpha, "target_modules": "all-linear"}));
    assert_eq!(found, lora(&Module::ALL));
    let found = with(&[Module::K, Module::V], json!({"r": r, "lora_alpha": alpha, "target_modules": ".*\\.[kv]_proj"}));
    assert_eq!(found, lora(&[Module::K, Module::V]));
    // As an early version wrote it: q_proj and v_proj are PEFT's defaults for these models.
    let found = with(&[Module::Q, Module::V], json!({"r": r, "lora_alpha": alpha, "target_modules": null}));
    assert_eq!(found, lora(&[Module::Q, Module::V]));
    std::fs::rename(dir.path().join("adapter_model.safetensors"), dir.path().join("adapter_model.bin")).unwrap();
    let error = load_adapter(be, &config(), dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin is a pickle") && error.contains("safe_serialization"), "{error}");
}

#[test]
fn an_adapter_that_adapts_nothing_is_refused() {
    for (rank, alpha, modules) in
        [(0, 1.0, vec![Module::Q]), (1, 0.0, vec![Module::Q]), (1, f32::NAN, vec![Module::Q]), (1, 1.0, vec![])]
    {
        let config = LoraConfig { rank, alpha, rslora: false, modules };
        let error = Adapter::zeros(&Cpu, &self::config(), config).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("expected a rank from 1, a positive alpha"), "{error}");
    }
}

/// Hears nothing.
fn quiet(_: String) {}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn checkpoints_appear_whole_and_old_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("checkpoints");
    assert!(newest(&root, &quiet).unwrap().is_none());
    let tensor = Tensor::from_slice(&[1], &[1.0f32]);
    let write = |folder: &Path| save(&folder.join("t.safetensors"), &[("t".into(), &tensor)], None);
    for step in [5, 10, 20] {
        save_checkpoint(&root, step, 2, &step, &quiet, write).unwrap();
    }
    assert_eq!(names(&root), ["step-00000010", "step-00000020"]);
    let (step, folder) = newest(&root, &quiet).unwrap().unwrap();
    assert_eq!((step, load_state::<u64>(&folder).unwrap()), (20, 20));
    assert_eq!(names(&folder), ["manifest.json", "state.json", "t.safetensors"]);

    // The disk is full in the middle: the older ones stay as they were, and nothing half-written is left.
    let full = save_checkpoint(&root, 30, 2, &30, &quiet, |folder| {
        write(folder)?;
        Err(Error::system("No space left on device"))
    });
    let error = full.unwrap_err();
    assert_eq!(error.kind(), Kind::System);
    assert!(error.to_string().contains("step-00000030: No space left"), "{error}");
    assert_eq!(names(&root), ["step-00000010", "step-00000020"]);

    // Killed in the middle: what lies there is no checkpoint, and the next save of that step replaces it.
    std::fs::create_dir(root.join("step-00000030.tmp")).unwrap();
    std::fs::write(root.join("step-00000030.tmp/state.json"), "30").unwrap();
    assert_eq!(newest(&root, &quiet).unwrap().unwrap().0, 20);
    save_checkpoint(&root, 30, 2, &31, &quiet, write).unwrap();
    save_checkpoint(&root, 30, 2, &32, &quiet, write).unwrap();
    assert_eq!(names(&root), ["step-00000020", "step-00000030"]);
    assert_eq!(
        load_state::<u64>(&newest(&root, &quiet).unwrap().unwrap().1).unwrap(),
        32,
        "a step saved again is replaced"
    );

    // Killed between the two renames of such a replacement: the old one still counts, until the new one is there.
    std::fs::rename(root.join("step-00000030"), root.join("step-00000030.old")).unwrap();
    let (step, folder) = newest(&root, &quiet).unwrap().unwrap();
    assert_eq!((step, load_state::<u64>(&folder).unwrap()), (30, 32));
    save_checkpoint(&root, 30, 2, &33, &quiet, write).unwrap();
    assert_eq!(names(&root), ["step-00000020", "step-00000030"]);
}

/// Checkpoints of higher steps that lie there, of another run perhaps, do not cost the one that was just written.
#[test]
fn what_was_just_written_stays() {
    let dir = tempfile::tempdir().unwrap();
    let names = |path: &Path| {
        let mut names: Vec<String> =
            std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let nothing = |_: &Path| Ok(());
    for step in [100, 110] {
        save_checkpoint(dir.path(), step, 2, &step, &quiet, nothing).unwrap();
    }
    save_checkpoint(dir.path(), 3, 2, &3, &quiet, nothing).unwrap();
    assert_eq!(names(dir.path()), ["step-00000003", "step-00000110"]);
    save_checkpoint(dir.path(), 4, 2, &4, &quiet, nothing).unwrap();
    assert_eq!(names(dir.path()), ["step-00000003", "step-00000004"]);
    save_checkpoint(dir.path(), 2, 1, &2, &quiet, nothing).unwrap();
    assert_eq!(names(dir.path()), ["step-00000002"]);
}

/// Damage of every kind, each to the newest checkpoint: the one before it is taken, and what is wrong with the newest is told.
#[test]
fn a_damaged_checkpoint_is_told_and_the_newest_whole_one_taken() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 8] = [
        (|dir| flip(&dir.join("t.safetensors")), "t.safetensors has other bytes"),
        (|dir| flip(&dir.join("sub/note.json")), "sub/note.json has other bytes"),
        (|dir| std::fs::write(dir.join("state.json"), "7\n").unwrap(), "state.json has"),
        (|dir| std::fs::write(dir.join("t.safetensors"), "").unwrap(), "t.safetensors has 0 bytes, "),
        (|dir| std::fs::remove_file(dir.join("sub/note.json")).unwrap(), "sub/note.json is missing"),
        (|dir| std::fs::write(dir.join("more"), "x").unwrap(), "more was added later"),
        (|dir| std::fs::remove_file(dir.join("manifest.json")).unwrap(), "no manifest.json"),
        (|dir| std::fs::write(dir.join("manifest.json"), "{\"step\": 10").unwrap(), "manifest.json"),
    ];
    let tensor = Tensor::from_slice(&[1], &[1.0f32]);
    let write = |folder: &Path| {
        std::fs::create_dir(folder.join("sub")).unwrap();
        std::fs::write(folder.join("sub/note.json"), "{}\n").unwrap();
        save(&folder.join("t.safetensors"), &[("t".into(), &tensor)], None)
    };
    for (damage, told) in damages {
        let dir = tempfile::tempdir().unwrap();
        let said = RefCell::new(vec![]);
        let say = |line: String| said.borrow_mut().push(line);
        for step in [5, 10] {
            save_checkpoint(dir.path(), step, 2, &step, &quiet, write).unwrap();
        }
        assert_eq!(newest(dir.path(), &say).unwrap().unwrap().0, 10);
        damage(&dir.path().join("step-00000010"));
        assert_eq!(newest(dir.path(), &say).unwrap().unwrap().0, 5, "{told}");
        let line = said.take().join("");
        assert!(line.contains("step-00000010 is damaged: ") && line.contains(told), "{line} lacks {told}");
        assert!(line.contains("going on from ") && line.contains("step-00000005"), "{line}");
        // Without a whole one each is named.
        damage(&dir.path().join("step-00000005"));
        let error = newest(dir.path(), &say).unwrap_err();
        assert_eq!(error.kind(), Kind::Content);
        for step in ["step-00000005 is damaged", "step-00000010 is damaged"] {
            assert!(error.to_string().contains(step), "{error}");
        }
    }
}

/// Changes a bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// A whole checkpoint under the name of another step is not that step's.
#[test]
fn a_renamed_checkpoint_is_not_that_of_its_new_name() {
    let dir = tempfile::tempdir().unwrap();
    save_checkpoint(dir.path(), 5, 2, &5, &quiet, |_| Ok(())).unwrap();
    std::fs::rename(dir.path().join("step-00000005"), dir.path().join("step-00000007")).unwrap();
    let error = newest(dir.path(), &quiet).unwrap_err();
    assert!(error.to_string().contains("is that of step 5"), "{error}");
}

/// What cannot be removed costs a warning, and no training.
#[test]
fn a_checkpoint_that_cannot_be_removed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let said = RefCell::new(vec![]);
    let say = |line: String| said.borrow_mut().push(line);
    save_checkpoint(dir.path(), 5, 1, &5, &say, |_| Ok(())).unwrap();
    // A file in the place that the removed folder moves to.
    std::fs::write(dir.path().join("step-00000005.gone"), "").unwrap();
    save_checkpoint(dir.path(), 10, 1, &10, &say, |_| Ok(())).unwrap();
    let said = said.take();
    assert!(said.iter().any(|line| line.contains("step-00000005 stays")), "{said:?}");
    assert_eq!(newest(dir.path(), &quiet).unwrap().unwrap().0, 10);
}
