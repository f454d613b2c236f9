//! The whole model: gradients against finite differences on the naive backend in f64, the fast backend against both, packing,
//! parents and the paged cache against plain forwards on either, batches that must be refused.
#![allow(clippy::unwrap_used)]

use onestep::backend::Backend;
use onestep::backend::cpu::Cpu;
use onestep::backend::ops::{self, Heads};
use onestep::backend::oracle::Oracle;
use onestep::model::config::{ModelConfig, RopeConfig, RopeScaling};
use onestep::model::kv_cache::{BlockManager, KvCache, PagedPlan, Sequence};
use onestep::model::lora::{Adapter, LoraConfig, Module};
use onestep::model::{
    Activations, Batch, Gradients, Model, Policy, Recompute, Segment, backward, forward, forward_paged, index_tensor,
};
use onestep::rng::Philox;
use onestep::tensor::{DType, Tensor};

fn config() -> ModelConfig {
    ModelConfig {
        vocab: 11,
        hidden: 8,
        layers: 2,
        heads: Heads { nh: 4, nkv: 2, hs: 4 },
        mlp: 6,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 100.0, scaling: RopeScaling::None },
        tied: true,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 32,
    }
}

fn qwen3() -> ModelConfig {
    let heads = Heads { nh: 2, nkv: 2, hs: 6 };
    ModelConfig { heads, tied: false, qkv_bias: true, o_bias: true, qk_norm: true, ..config() }
}

fn llama() -> ModelConfig {
    let scaling = RopeScaling::Linear { factor: 2.0 };
    let rope = RopeConfig { theta: 100.0, scaling };
    ModelConfig { heads: Heads { nh: 4, nkv: 1, hs: 2 }, tied: false, qkv_bias: false, rope, ..config() }
}

/// f64 in one, f32 in the other.
fn backends() -> [Box<dyn Backend>; 2] {
    [Box::new(Oracle::f64()), Box::new(Cpu)]
}

fn values(tensor: &Tensor) -> Vec<f64> {
    match tensor.dtype() {
        DType::F64 => tensor.slice::<f64>().to_vec(),
        _ => tensor.slice::<f32>().iter().map(|&x| x.into()).collect(),
    }
}

/// Weights of order one, so that every gradient is far above rounding; norms around 1. The same f32 values on every backend.
fn model(be: &dyn Backend, config: ModelConfig) -> Model {
    let mut rng = Philox::new(1, 0);
    Model::new(be, config, &mut |name, shape| {
        let centre = if name.ends_with("norm.weight") { 1.0 } else { 0.0 };
        let mut host = Tensor::zeros(shape, DType::F32);
        host.slice_mut::<f32>().fill_with(|| (centre + rng.uniform() - 0.5) as f32);
        let mut tensor = be.alloc(shape, be.activation())?;
        be.write(&mut tensor, &host)?;
        Ok(tensor)
    })
    .unwrap()
}

fn adapter(be: &dyn Backend, config: &ModelConfig, modules: &[Module]) -> Adapter {
    let lora = LoraConfig { rank: 2, alpha: 1.0, rslora: false, modules: modules.to_vec() };
    let mut rng = Philox::new(2, 0);
    let mut adapter = Adapter::new(be, config, lora, &mut rng).unwrap();
    for b in adapter.tensors.iter_mut().skip(1).step_by(2) {
        let mut host = Tensor::zeros(b.shape(), DType::F32);
        host.slice_mut::<f32>().fill_with(|| (rng.uniform() - 0.5) as f32);
        be.write(b, &host).unwrap();
    }
    adapter
}

/// A prompt with two replies, and a text of its own between them.
fn segments() -> [Segment<'static>; 4] {
    [
        Segment { ids: &[1, 5, 2, 9], start_position: 0, parent: None },
        Segment { ids: &[3, 4, 10], start_position: 4, parent: Some(0) },
        Segment { ids: &[7, 0, 7], start_position: 0, parent: None },
        Segment { ids: &[8, 6], start_position: 4, parent: Some(0) },
    ]
}

/// The loss: a weighted sum of log-probabilities and entropies of some rows, one of them twice.
struct Loss {
    rows: Tensor,
    targets: Tensor,
    dlogp: Tensor,
    dentropy: Tensor,
}

impl Loss {
    fn new(be: &dyn Backend) -> Self {
        Self {
            rows: index_tensor(be, &[6], &[0, 3, 3, 5, 8, 11]).unwrap(),
            targets: index_tensor(be, &[6], &[5, 3, 8, 10, 0, 6]).unwrap(),
            dlogp: Self::weights(be, [1.0, -0.5, 0.75, 1.25, -1.0, 0.5]),
            dentropy: Self::weights(be, [0.5, 0.25, -0.5, 1.0, 0.0, 0.75]),
        }
    }

    fn weights(be: &dyn Backend, values: [f32; 6]) -> Tensor {
        let mut tensor = be.alloc(&[6], be.activation()).unwrap();
        be.write(&mut tensor, &Tensor::from_slice(&[6], &values)).unwrap();
        tensor
    }

    /// x, logp, entropy, lse.
    fn forward(&self, be: &dyn Backend, model: &Model, hidden: &Tensor) -> [Tensor; 4] {
        let mut x = be.alloc(&[6, model.config.hidden], be.activation()).unwrap();
        let [mut logp, mut entropy, mut lse] = [0; 3].map(|_| be.alloc(&[6], be.activation()).unwrap());
        ops::GatherRows { x: hidden, rows: &self.rows, y: &mut x }.run(be).unwrap();
        ops::LinearLogprob {
            x: &x,
            w: model.lm_head(),
            targets: &self.targets,
            temperature: 0.75,
            logp: &mut logp,
            entropy: &mut entropy,
            lse: &mut lse,
        }
        .run(be)
        .unwrap();
        [x, logp, entropy, lse]
    }

    fn value(&self, be: &dyn Backend, policy: Policy, batch: &Batch, acts: &mut Activations) -> f64 {
        forward(be, policy, batch, false, acts).unwrap();
        let [_, logp, entropy, _] = self.forward(be, policy.model, acts.hidden());
        let dot =
            |a: &Tensor, b: &Tensor| a.slice::<f64>().iter().zip(b.slice::<f64>()).map(|(a, b)| a * b).sum::<f64>();
        dot(&logp, &self.dlogp) + dot(&entropy, &self.dentropy)
    }

    fn gradients(&self, be: &dyn Backend, policy: Policy, batch: &Batch, trains_weights: bool) -> Gradients {
        self.gradients_with(be, policy, batch, trains_weights, Recompute::Norms)
    }

    fn gradients_with(
        &self,
        be: &dyn Backend,
        policy: Policy,
        batch: &Batch,
        trains_weights: bool,
        recompute: Recompute,
    ) -> Gradients {
        let mut acts = Activations::new(recompute);
        forward(be, policy, batch, true, &mut acts).unwrap();
        let [x, _, entropy, lse] = self.forward(be, policy.model, acts.hidden());
        let mut grads = Gradients::new(be, policy, trains_weights).unwrap();
        let mut dx = be.alloc(x.shape(), be.activation()).unwrap();
        let (w, dw) = (policy.model.lm_head(), grads.lm_head(policy.model));
        let (dlogp, dentropy) = (&self.dlogp, Some(&self.dentropy));
        ops::LinearLogprobBackward {
            x: &x,
            w,
            targets: &self.targets,
            temperature: 0.75,
            entropy: &entropy,
            lse: &lse,
            dlogp,
            dentropy,
            dx: &mut dx,
            dw,
        }
        .run(be)
        .unwrap();
        let mut dhidden = be.alloc(acts.hidden().shape(), be.activation()).unwrap();
        ops::ScatterAddRows { dy: &dx, rows: &self.rows, dx: &mut dhidden }.run(be).unwrap();
        backward(be, policy, batch, &mut acts, &dhidden, &mut grads).unwrap();
        grads
    }
}

/// Central differences at h and h/2. Their difference bounds the error of the better one (it falls with h^2); rounding adds some
/// 1e3 operations' worth of f64 epsilon of a loss of order 10, over h.
fn check_gradient(name: &str, analytic: f64, mut loss_at: impl FnMut(f64) -> f64) {
    let h = 1e-3;
    let mut difference = |h: f64| (loss_at(h) - loss_at(-h)) / (2.0 * h);
    let (coarse, fine) = (difference(h), difference(h / 2.0));
    let bound = (coarse - fine).abs() + 1e4 * f64::EPSILON / h;
    assert!((analytic - fine).abs() <= bound, "{name}: backward gives {analytic}, differences {fine} +- {bound}");
}

fn check_all_gradients(config: ModelConfig, modules: &[Module]) {
    let be = &Oracle::f64();
    let mut model = model(be, config.clone());
    let mut adapter = adapter(be, &config, modules);
    let batch = Batch::new(be, &config, &segments()).unwrap();
    let (loss, mut acts) = (Loss::new(be), Activations::default());
    let grads = loss.gradients(be, Policy { model: &model, adapter: Some(&adapter) }, &batch, true);
    let alone = loss.gradients(be, Policy { model: &model, adapter: Some(&adapter) }, &batch, false);
    let mut largest = 0.0f64;

    for (index, grad) in grads.adapter.unwrap().iter().enumerate() {
        assert_eq!(grad.slice::<f64>(), alone.adapter.as_ref().unwrap()[index].slice::<f64>(), "adapter only");
        for (i, &analytic) in grad.slice::<f64>().iter().enumerate() {
            let name = format!("{}[{i}]", adapter.names[index]);
            let value = adapter.tensors[index].slice::<f64>()[i];
            check_gradient(&name, analytic, |h| {
                adapter.tensors[index].slice_mut::<f64>()[i] = value + h;
                loss.value(be, Policy { model: &model, adapter: Some(&adapter) }, &batch, &mut acts)
            });
            adapter.tensors[index].slice_mut::<f64>()[i] = value;
            largest = largest.max(analytic.abs());
        }
    }
    for (index, grad) in grads.weights.unwrap().iter().enumerate() {
        for (i, &analytic) in grad.slice::<f64>().iter().enumerate() {
            let name = format!("{}[{i}]", model.names[index]);
            let value = model.weights[index].slice::<f64>()[i];
            check_gradient(&name, analytic, |h| {
                model.weights[index].slice_mut::<f64>()[i] = value + h;
                loss.value(be, Policy { model: &model, adapter: Some(&adapter) }, &batch, &mut acts)
            });
            model.weights[index].slice_mut::<f64>()[i] = value;
        }
    }
    assert!(largest > 0.01, "the adapter's gradients are all but zero: the check says nothing");
}

#[test]
fn gradients_with_tied_embeddings_biases_and_grouped_queries() {
    check_all_gradients(config(), &Module::ALL);
}

#[test]
fn gradients_with_qk_norm_all_biases_and_untied_head() {
    check_all_gradients(qwen3(), &Module::ALL);
}

#[test]
fn gradients_without_biases_with_one_kv_head_and_a_partial_adapter() {
    check_all_gradients(llama(), &[Module::Down, Module::Q, Module::V]);
}

#[test]
fn recomputing_whole_blocks_changes_no_bit_and_keeps_less() {
    for (be, config) in on_every_backend() {
        let be = &*be;
        let (model, adapter) = (model(be, config.clone()), adapter(be, &config, &Module::ALL));
        let policy = Policy { model: &model, adapter: Some(&adapter) };
        let batch = Batch::new(be, &config, &segments()).unwrap();
        let [kept, again] = [Recompute::Norms, Recompute::Blocks].map(|recompute| {
            let grads = Loss::new(be).gradients_with(be, policy, &batch, true, recompute);
            grads.adapter.iter().chain(&grads.weights).flatten().map(values).collect::<Vec<_>>()
        });
        assert_eq!(kept, again);
        let [kept, again] = [Recompute::Norms, Recompute::Blocks].map(|recompute| {
            let mut acts = Activations::new(recompute);
            forward(be, policy, &batch, true, &mut acts).unwrap();
            acts.bytes()
        });
        assert!(again < kept, "{again} bytes where {kept} are kept");
    }
}

/// Everything a training step computes: hidden states, then all gradients.
fn step(be: &dyn Backend, config: &ModelConfig) -> Vec<Vec<f64>> {
    let (model, adapter) = (model(be, config.clone()), adapter(be, config, &Module::ALL));
    let policy = Policy { model: &model, adapter: Some(&adapter) };
    let batch = Batch::new(be, config, &segments()).unwrap();
    let grads = Loss::new(be).gradients(be, policy, &batch, true);
    let mut all = vec![hidden(be, policy, &segments(), false).concat()];
    all.extend(grads.adapter.iter().chain(&grads.weights).flatten().map(values));
    all
}

#[test]
fn the_fast_backend_is_as_exact_as_the_naive_one() {
    for config in [config(), qwen3(), llama()] {
        let [exact, plain, fast] = [&Oracle::f64() as &dyn Backend, &Oracle::f32(), &Cpu].map(|be| step(be, &config));
        // Errors relative to the largest element of each tensor. The naive backend in f32 shows what f32 gives; another order of
        // sums draws its roundings anew, so the worst of all tensors counts, and four times that is the bound.
        let largest = |values: &[f64]| values.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let error = |exact: &[f64], found: &[f64]| {
            largest(&exact.iter().zip(found).map(|(a, b)| a - b).collect::<Vec<_>>()) / largest(exact)
        };
        let bound = 4.0 * exact.iter().zip(&plain).map(|(exact, plain)| error(exact, plain)).fold(0.0, f64::max);
        for (index, (exact, fast)) in exact.iter().zip(&fast).enumerate() {
            let found = error(exact, fast);
            assert!(found <= bound, "tensor {index}: relative error {found}, bound {bound}");
        }
        assert!(bound < 1e-4, "the naive backend itself is off: {bound}");
    }
}

#[test]
fn one_and_two_threads_give_the_same_bits() {
    let steps = [1, 2].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let wide =
            ModelConfig { vocab: 1000, hidden: 192, mlp: 300, heads: Heads { nh: 6, nkv: 2, hs: 32 }, ..config() };
        pool.install(|| step(&Cpu, &wide))
    });
    assert_eq!(steps[0], steps[1]);
}

fn hidden(be: &dyn Backend, policy: Policy, segments: &[Segment], keep: bool) -> Vec<Vec<f64>> {
    let batch = Batch::new(be, &policy.model.config, segments).unwrap();
    let mut acts = Activations::default();
    forward(be, policy, &batch, keep, &mut acts).unwrap();
    rows(&acts)
}

fn rows(acts: &Activations) -> Vec<Vec<f64>> {
    values(acts.hidden()).chunks(acts.hidden().columns()).map(<[f64]>::to_vec).collect()
}

fn on_every_backend() -> impl Iterator<Item = (Box<dyn Backend>, ModelConfig)> {
    [config(), qwen3(), llama()].into_iter().flat_map(|config| backends().map(|be| (be, config.clone())))
}

#[test]
fn a_packed_batch_equals_its_sequences_one_by_one_bit_for_bit() {
    for (be, config) in on_every_backend() {
        let be = &*be;
        let (model, adapter) = (model(be, config.clone()), adapter(be, &config, &Module::ALL));
        let policy = Policy { model: &model, adapter: Some(&adapter) };
        let packed = hidden(be, policy, &segments(), false);
        assert_eq!(packed, hidden(be, policy, &segments(), true), "keeping activations");
        for (parent, own, rows) in [(vec![], &[1, 5, 2, 9][..], 0..4), (vec![], &[7, 0, 7], 7..10)] {
            let ids = [parent, own.to_vec()].concat();
            let plain = hidden(be, policy, &[Segment { ids: &ids, start_position: 0, parent: None }], false);
            assert_eq!(plain, packed[rows]);
        }
        for (reply, rows) in [(&[3, 4, 10][..], 4..7), (&[8, 6], 10..12)] {
            let ids = [&[1, 5, 2, 9], reply].concat();
            let plain = hidden(be, policy, &[Segment { ids: &ids, start_position: 0, parent: None }], false);
            assert_eq!(plain[4..], packed[rows], "a child sees its parent as if written before it");
        }
    }
}

#[test]
fn decoding_over_a_paged_cache_with_forks_equals_plain_forwards_bit_for_bit() {
    for (be, config) in on_every_backend() {
        let be = &*be;
        let (model, adapter) = (model(be, config.clone()), adapter(be, &config, &Module::ALL));
        let policy = Policy { model: &model, adapter: Some(&adapter) };
        let mut acts = Activations::default();
        let mut cache = KvCache::new(be, &config, 12, 4).unwrap();
        let mut manager = BlockManager::new(12, 4);
        let ids = |values: &[i32]| index_tensor(be, &[values.len()], values).unwrap();

        // A prompt of six tokens for three replies and another of two, prefilled together; the first in two chunks.
        let prompt = [1, 5, 2, 9, 3, 4];
        let mut first = manager.allocate(3).unwrap();
        let plan = PagedPlan::new(be, &[(&first, 0..3)], &[], 0).unwrap();
        forward_paged(be, policy, &ids(&prompt[..3]), &mut cache, &plan, &mut acts).unwrap();
        let mut computed = rows(&acts);
        manager.append(&mut first, 3).unwrap();
        let other = manager.allocate(2).unwrap();
        let (second, copies_a) = manager.fork(&first).unwrap();
        let (third, copies_b) = manager.fork(&first).unwrap();
        // The pass computes tokens 3, 4, 5 in rows 0, 1, 2; the partial block holds 4 and 5.
        let row_of = |slot: usize| (3..6).position(|t| first.slot(t) == slot).unwrap();
        let copies: Vec<_> = [copies_a, copies_b].concat().iter().map(|&(from, to)| (row_of(from), to)).collect();
        assert_eq!(copies.len(), 4);
        let plan = PagedPlan::new(be, &[(&first, 3..6), (&other, 0..2)], &copies, 0).unwrap();
        forward_paged(be, policy, &ids(&[9, 3, 4, 7, 0]), &mut cache, &plan, &mut acts).unwrap();
        computed.extend(rows(&acts));
        let whole = [Segment { ids: &[1, 5, 2, 9, 3, 4], start_position: 0, parent: None }];
        assert_eq!(computed[..6], hidden(be, policy, &whole, false));

        let replies = [[3, 10, 3, 8, 2], [9, 9, 1, 0, 5], [6, 2, 7, 7, 7], [10, 8, 6, 4, 2]];
        let mut sequences: Vec<Sequence> = vec![first, second, third, other];
        let mut decoded: Vec<Vec<Vec<f64>>> = vec![Vec::new(); 4];
        for step in 0..5 {
            for sequence in &mut sequences {
                manager.append(sequence, 1).unwrap();
            }
            let last: Vec<_> = sequences.iter().map(|s| (s, s.len() - 1..s.len())).collect();
            let plan = PagedPlan::new(be, &last, &[], 0).unwrap();
            let tokens = ids(&replies.map(|reply| reply[step]));
            forward_paged(be, policy, &tokens, &mut cache, &plan, &mut acts).unwrap();
            decoded.iter_mut().zip(rows(&acts)).for_each(|(list, row)| list.push(row));
        }
        for (index, reply) in replies.iter().enumerate() {
            let before = if index == 3 { &[7, 0][..] } else { &prompt };
            let text: Vec<u32> = before.iter().chain(reply).map(|&id| id as u32).collect();
            let plain = hidden(be, policy, &[Segment { ids: &text, start_position: 0, parent: None }], false);
            assert_eq!(plain[before.len()..], decoded[index], "reply {index}");
        }
    }
}

#[test]
fn buffers_serve_batches_of_other_sizes_and_other_adapters() {
    let be = &Oracle::f64();
    let config = config();
    let (model, adapter) = (model(be, config.clone()), adapter(be, &config, &[Module::Q]));
    let mut acts = Activations::default();
    for count in [4, 1, 3] {
        for adapter in [Some(&adapter), None] {
            let policy = Policy { model: &model, adapter };
            let batch = Batch::new(be, &config, &segments()[..count]).unwrap();
            forward(be, policy, &batch, count != 1, &mut acts).unwrap();
            assert_eq!(rows(&acts), hidden(be, policy, &segments()[..count], false));
        }
    }
}

#[test]
fn backward_needs_a_kept_forward() {
    let be = &Oracle::f64();
    let model = model(be, config());
    let policy = Policy { model: &model, adapter: None };
    let batch = Batch::new(be, &model.config, &segments()).unwrap();
    let (mut acts, mut grads) = (Activations::default(), Gradients::new(be, policy, true).unwrap());
    forward(be, policy, &batch, true, &mut acts).unwrap();
    forward(be, policy, &batch, false, &mut acts).unwrap();
    let dhidden = be.alloc(acts.hidden().shape(), DType::F64).unwrap();
    let error = backward(be, policy, &batch, &mut acts, &dhidden, &mut grads).unwrap_err();
    assert!(error.to_string().contains("run forward with keep first"), "{error}");
}

#[test]
fn batches_that_do_not_fit_the_model_are_refused() {
    let long = [0; 30];
    let plain = |ids, start_position, parent| Segment { ids, start_position, parent };
    for (segments, expected) in [
        (vec![], "without segments"),
        (vec![plain(&[][..], 0, None)], "segment 0 of the batch has no tokens"),
        (vec![plain(&[1, 11], 0, None)], "token id 11; the model has ids 0 to 10"),
        (vec![plain(&[1], 0, None), plain(&long, 3, Some(0))], "segment 1 of the batch ends at position 33"),
        (vec![plain(&[1], 0, Some(0))], "has parent 0"),
        (
            vec![plain(&[1], 0, None), plain(&[1], 1, Some(0)), plain(&[1], 2, Some(1))],
            "segment 2 of the batch has parent 1",
        ),
    ] {
        let error = Batch::new(&Oracle::f64(), &config(), &segments).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} should contain {expected:?}");
    }
}

#[test]
fn a_merged_adapter_gives_what_the_adapter_gives() {
    let be = &Oracle::f64();
    for config in [config(), qwen3(), llama()] {
        let (model, adapter) = (model(be, config.clone()), adapter(be, &config, &Module::ALL));
        let merged = model.merged(be, &adapter).unwrap();
        let beside = hidden(be, Policy { model: &model, adapter: Some(&adapter) }, &segments(), false);
        let inside = hidden(be, Policy { model: &merged, adapter: None }, &segments(), false);
        let without = hidden(be, Policy { model: &model, adapter: None }, &segments(), false);
        // Both sum the same products in another order: some 1e3 roundings of numbers of order 10.
        let distance = |a: &[Vec<f64>], b: &[Vec<f64>]| {
            a.concat().iter().zip(b.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
        };
        assert!(distance(&beside, &inside) < 1e4 * f64::EPSILON, "{}", distance(&beside, &inside));
        assert!(distance(&beside, &without) > 0.01);
    }
}

#[test]
fn random_weights_depend_on_the_seed_only() {
    let be = &Oracle::f32();
    let config = ModelConfig { vocab: 300, ..config() };
    let [a, b, c] = [1, 1, 2].map(|seed| Model::random(be, config.clone(), seed, DType::BF16).unwrap());
    let bytes = |model: &Model| model.weights.iter().flat_map(|w| w.as_bytes().to_vec()).collect::<Vec<_>>();
    assert_eq!(bytes(&a), bytes(&b));
    assert_ne!(bytes(&a), bytes(&c));
    let embed: Vec<f32> = be.read(a.lm_head()).unwrap();
    let deviation = (embed.iter().map(|x| x * x).sum::<f32>() / embed.len() as f32).sqrt();
    // The relative standard error of a deviation over n numbers is 1 / sqrt(2n): five of them, and bf16's rounding.
    assert!((deviation / 0.02 - 1.0).abs() < 5.0 / (2.0 * embed.len() as f32).sqrt() + 0.004, "{deviation}");
    assert!(a.weights.iter().all(|w| w.dtype() == DType::BF16));
    let wide = a.widen(be).unwrap();
    assert!(wide.weights.iter().zip(&a.weights).all(|(w, a)| w.dtype() == DType::F32 && w.shape() == a.shape()));
    assert_eq!(wide.parameters(), a.parameters());
}
