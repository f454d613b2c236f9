//! Trains the quickstart's base model, a small Qwen2, from random weights: next-token loss on generated exercises,
//! never on a held-out script or idea (exercises.rs sees to that).

use crate::agent::Dialog;
use crate::backend::Backend;
use crate::batch::{self, Group, LossBatch};
use crate::checkpoint;
use crate::error::Result;
use crate::exercises::{self, Exercise, Exercises};
use crate::message::Message;
use crate::model::config::ModelConfig;
use crate::model::{Activations, Gradients, Model, Policy};
use crate::optimizer::{AdamWConfig, Optimizer};
use crate::rng::Philox;
use crate::run::{Run, Suspect, Suspects, finite};
use crate::settings::section;
use crate::tensor::{DType, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

section! {
    /// `[pretrain]`
    Settings {
        steps: usize, exercises: usize, replies: usize, learning_rate: f32, warmup: usize, decay_from: f32,
        weight_decay: f32, max_norm: f32, prompt_weight: f32, hidden: usize, layers: usize, heads: usize,
        kv_heads: usize, mlp: usize,
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
}

/// The model shape that the settings give over the exercises' tokenizer; the vocabulary is padded to a multiple of 16.
/// Error: a shape that no model can have.
pub fn shape(settings: &Settings) -> Result<ModelConfig> {
    let vocab = exercises::vocab_size().next_multiple_of(16);
    let text = json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": vocab,
        "hidden_size": settings.hidden,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "intermediate_size": settings.mlp,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
    });
    ModelConfig::from_json(&text.to_string(), Path::new("[pretrain]"))
        .map_err(|e| e.context("pretrain.hidden, pretrain.layers, pretrain.heads, pretrain.kv_heads, pretrain.mlp"))
}

/// Trains for `pretrain.steps` steps of `exercises` prompts with `replies` replies each.
pub fn train(run: &mut Run, settings: &Settings, dialog: &Dialog, mut model: Model) -> Result<Model> {
    let (backend, seed) = (run.backend, run.settings.seed);
    let exercises = Exercises::bundled()?;
    let constants = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: settings.weight_decay };
    let mut optimizer = Optimizer::new(backend, &model.weights, constants)?;
    let mut start = 0;
    if let Some((dir, State { step })) = run.resumed()? {
        model = checkpoint::load_model(backend, &dir.join("model"))?.0.widen(backend)?;
        checkpoint::load_optimizer(backend, &dir.join("optimizer.safetensors"), &mut optimizer)?;
        start = step;
    }
    let mut grads = Gradients::new(backend, Policy { model: &model, adapter: None }, true)?;
    let mut acts = Activations::default();
    let mut progress = run.progress(settings.steps, start);
    let mut divergence = run.divergence(model.config.vocab)?;
    for step in start + 1..=settings.steps {
        let drawn: Vec<Exercise> = (0..settings.exercises)
            .map(|i| exercises.draw(&mut Philox::named(seed, &format!("exercise {step} {i}")), settings.replies))
            .collect();
        let groups = drawn.par_iter().map(|e| group(dialog, e)).collect::<Result<Vec<_>>>()?;
        let done = (step - 1) as f32 / settings.steps as f32;
        let with_prompts = done < 0.5 && settings.prompt_weight > 0.0;
        let batch = LossBatch::from_groups(backend, &model.config, &groups, with_prompts)?;

        let policy = Policy { model: &model, adapter: None };
        grads.zero(backend)?;
        let scores = batch::forward(backend, policy, &batch, 1.0, true, &mut acts)?;
        let replies = batch.samples.last().map_or(0, |last| last.end);
        let dlogp = gradient(backend, replies, batch.loss_rows(), settings.prompt_weight)?;
        batch::backward(backend, policy, &batch, 1.0, &mut acts, &scores, &dlogp, None, &mut grads)?;
        let logp = backend.read(&scores.logp)?;
        let loss = -logp[..replies].iter().map(|&x| f64::from(x)).sum::<f64>() / replies as f64;

        let lr = settings.learning_rate * rate(settings, step, done);
        let weights = grads.weights.as_deref().unwrap_or_default();
        let stepped = finite("the loss", loss)
            .and_then(|()| optimizer.step(backend, &mut model.weights, weights, lr, settings.max_norm));
        let grad_norm = stepped.map_err(|error| {
            let trained = Suspect { what: "the model", names: &model.names, tensors: &model.weights, rate: lr };
            run.lost(
                error,
                step,
                &Suspects { base: (&[], &[]), trained: vec![trained] },
                || json!({"loss": loss.to_string(), "groups": groups.iter().map(content).collect::<Vec<_>>()}),
            )
        })?;
        let tokens = batch.batch.tokens();
        run.log(step, &json!({"loss": loss, "learning_rate": lr, "grad_norm": grad_norm, "tokens": tokens}))?;
        if let Some(line) = divergence.loss(loss).map_err(|error| error.context(format!("pretrain step {step}")))? {
            progress.say(&format!("warning: pretrain step {step}: {line}"));
        }
        progress.advance(step, tokens, &format!("loss {loss:.3}"));
        run.step_done(step, settings.steps, &State { step }, |dir| {
            checkpoint::save_model(&dir.join("model"), &model, DType::F32)?;
            checkpoint::save_optimizer(&dir.join("optimizer.safetensors"), &optimizer)
        })?;
    }
    progress.finish();
    Ok(model)
}

/// Learning-rate factor: a warm-up, a plateau, then a linear fall to 3 %.
fn rate(settings: &Settings, step: usize, done: f32) -> f32 {
    let warm = (step as f32 / settings.warmup.max(1) as f32).min(1.0);
    let fall = ((1.0 - done) / (1.0 - settings.decay_from).max(f32::EPSILON)).clamp(0.03, 1.0);
    warm * fall
}

/// d loss / d logp: the replies' tokens share a weight of 1, the prompts' own tokens share `prompt_weight`.
fn gradient(backend: &dyn Backend, replies: usize, rows: usize, prompt_weight: f32) -> Result<Tensor> {
    let mut values = vec![-1.0 / replies as f32; rows];
    let prompts = rows - replies;
    values[replies..].fill(-prompt_weight / prompts.max(1) as f32);
    let mut dlogp = backend.alloc(&[rows], backend.accumulator())?;
    backend.write(&mut dlogp, &Tensor::from_slice(&[rows], &values))?;
    Ok(dlogp)
}

/// A group's ids, for inspection.
fn content(group: &Group) -> Value {
    json!({"prompt": group.prompt, "replies": group.replies})
}

fn group(dialog: &Dialog, exercise: &Exercise) -> Result<Group> {
    let prompt = dialog.prompt(&[Message::new("user", &exercise.prompt)])?;
    let reply = |text: &String| {
        let mut ids = dialog.tokenizer.encode(text)?;
        ids.extend(dialog.stop.first());
        Ok(ids)
    };
    Ok(Group { prompt, replies: exercise.replies.iter().map(reply).collect::<Result<_>>()? })
}
