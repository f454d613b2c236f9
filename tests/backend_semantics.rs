//! What the ops mean, on the oracle: segments, pages, sampling, the loss cases, the optimiser, and what is refused.
#![allow(clippy::unwrap_used)]

use half::{bf16, f16};
use onestep::backend::Backend;
use onestep::backend::ops::{
    self, AdamW, Heads, KlEstimator, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Sampling,
    Segments, Surrogate, Trained, ValueInputs,
};
use onestep::backend::oracle::Oracle;
use onestep::error::{Kind, Result};
use onestep::optimizer::squared_norm;
use onestep::rng::{Philox, philox4x32, unit_f32};
use onestep::tensor::{Bytes, DType, Tensor};
use std::sync::Arc;

const HEADS: Heads = Heads { nh: 4, nkv: 2, hs: 4 };
const D: usize = 32;
const O: usize = 16;

fn normal(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Philox::new(seed, 0);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.normal()).collect();
    Tensor::from_slice(shape, &values)
}

fn floats(values: &[f64]) -> Tensor {
    Tensor::from_slice(&[values.len()], values)
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values)
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F64)
}

/// o (T, NH HS) and lse (NH, T) of packed segments.
fn attend(qkv: &Tensor, cu_seqlens: &[i32], parent: &[i32]) -> (Vec<f64>, Vec<f64>) {
    let (mut o, mut lse) = (zeros(&[qkv.rows(), O]), zeros(&[HEADS.nh, qkv.rows()]));
    let segments = Segments { cu_seqlens: &ints(cu_seqlens), parent: &ints(parent) };
    ops::Attention { qkv, heads: HEADS, segments: &segments, o: &mut o, lse: &mut lse }.run(&Oracle::f64()).unwrap();
    (o.slice().to_vec(), lse.slice().to_vec())
}

/// The named rows of a matrix, one after the other.
fn pick(x: &Tensor, rows: impl Iterator<Item = usize>) -> Tensor {
    let values: Vec<f64> = rows.flat_map(|r| x.slice()[r * x.columns()..][..x.columns()].to_vec()).collect();
    Tensor::from_slice(&[values.len() / x.columns(), x.columns()], &values)
}

#[test]
fn attention_of_one_token_and_of_two() {
    // One token: o = v, lse = q.k / 2. Two equal keys: the mean of the values.
    let qkv = normal(1, &[1, D]);
    let (o, lse) = attend(&qkv, &[0, 1], &[-1]);
    let x = qkv.slice::<f64>();
    for h in 0..4 {
        assert_eq!(o[h * 4..][..4], x[24 + h / 2 * 4..][..4]);
        let score: f64 = (0..4).map(|i| x[h * 4 + i] * x[16 + h / 2 * 4 + i]).sum::<f64>() / 2.0;
        assert_eq!(lse[h], score);
    }
    let mut two = [x, x].concat();
    two[D + 24..].fill(5.0);
    let (o, _) = attend(&Tensor::from_slice(&[2, D], &two), &[0, 2], &[-1]);
    for (i, o) in o[O..].iter().enumerate() {
        let expected = (x[24 + i / 8 * 4 + i % 4] + 5.0) / 2.0;
        assert!((o - expected).abs() <= 4.0 * f64::EPSILON * 5.0, "{o} is not {expected}");
    }
}

#[test]
fn packed_segments_equal_one_by_one() {
    let (qkv, cu_seqlens) = (normal(2, &[9, D]), [0, 4, 4, 5, 9]);
    let (o, _) = attend(&qkv, &cu_seqlens, &[-1; 4]);
    for pair in cu_seqlens.windows(2) {
        let (from, to) = (pair[0] as usize, pair[1] as usize);
        let (alone, _) = attend(&pick(&qkv, from..to), &[0, (to - from) as i32], &[-1]);
        assert_eq!(o[from * O..to * O], alone);
    }
}

#[test]
fn children_equal_their_parent_and_themselves_in_one_sequence() {
    // Segments: prompt a, reply of a, prompt b, reply of b, second reply of a.
    let (qkv, cu_seqlens, parent) = (normal(3, &[12, D]), [0, 3, 5, 7, 10, 12], [-1, 0, -1, 2, 0]);
    let (o, lse) = attend(&qkv, &cu_seqlens, &parent);
    let range = |s: usize| cu_seqlens[s] as usize..cu_seqlens[s + 1] as usize;
    for child in [1, 3, 4] {
        let rows = range(parent[child] as usize).chain(range(child));
        let n = rows.clone().count();
        let (whole, whole_lse) = attend(&pick(&qkv, rows.clone()), &[0, n as i32], &[-1]);
        for (i, row) in rows.enumerate() {
            assert_eq!(o[row * O..][..O], whole[i * O..][..O], "child {child}, row {row}");
            for h in 0..4 {
                assert_eq!(lse[h * 12 + row], whole_lse[h * n + i]);
            }
        }
    }
}

#[test]
fn attention_paged_equals_attention() {
    // Two sequences of 5 and 3 tokens on pages of 2 in disorder; the last 2 and the last 3 tokens are queries.
    let (oracle, qkv) = (Oracle::f64(), normal(4, &[8, D]));
    let (mut k, mut v) = (zeros(&[12, 8]), zeros(&[12, 8]));
    let table = Tensor::from_slice(&[2, 3], &[4, 0, 3, 5, 1, -1]);
    let slots = ints(&[8, 9, 0, 1, 6, 10, 11, 2]);
    ops::KvAppend { qkv: &qkv, heads: HEADS, slots: &slots, k_cache: &mut k, v_cache: &mut v }.run(&oracle).unwrap();
    assert_eq!(k.slice::<f64>()[8 * 8..][..8], qkv.slice::<f64>()[16..24]);
    assert_eq!(v.slice::<f64>()[2 * 8..][..8], qkv.slice::<f64>()[7 * D + 24..]);
    assert_eq!(v.slice::<f64>()[3 * 8..][..8], [0.0; 8]);

    let queries = pick(&qkv, [3, 4, 5, 6, 7].into_iter());
    let mut o = zeros(&[5, O]);
    let (lens, cu_q) = (ints(&[5, 3]), ints(&[0, 2, 5]));
    ops::AttentionPaged {
        qkv: &queries,
        heads: HEADS,
        k_cache: &k,
        v_cache: &v,
        block_size: 2,
        block_table: &table,
        lens: &lens,
        cu_q: &cu_q,
        o: &mut o,
    }
    .run(&oracle)
    .unwrap();
    let (whole, _) = attend(&qkv, &[0, 5, 8], &[-1, -1]);
    assert_eq!(o.slice::<f64>(), &whole[3 * O..]);
}

#[test]
fn rope_rotates_halves_and_norm_is_per_head() {
    let (oracle, (sin, cos)) = (Oracle::f64(), 0.5_f64.sin_cos());
    let heads = Heads { nh: 1, nkv: 1, hs: 2 };
    let table = Tensor::from_slice(&[2, 2], &[1.0, 0.0, cos, sin]);
    let mut qkv = Tensor::from_slice(&[1, 6], &[3.0, 4.0, 0.0, 2.0, 7.0, 8.0]);
    ops::QkNormRope { qkv: &mut qkv, heads, norm: None, positions: &ints(&[1]), table: &table, raw: None }
        .run(&oracle)
        .unwrap();
    let rotated = [3.0 * cos - 4.0 * sin, 4.0 * cos + 3.0 * sin, 0.0 - 2.0 * sin, 2.0 * cos, 7.0, 8.0];
    assert_eq!(qkv.slice::<f64>(), rotated);

    let mut qkv = Tensor::from_slice(&[1, 6], &[3.0, 4.0, 0.0, 2.0, 7.0, 8.0]);
    let (q, k, mut raw) = (floats(&[1.0, 2.0]), floats(&[1.0, 3.0]), zeros(&[1, 4]));
    let norm = QkNorm { q: &q, k: &k, eps: 0.0 };
    ops::QkNormRope {
        qkv: &mut qkv,
        heads,
        norm: Some(norm),
        positions: &ints(&[0]),
        table: &table,
        raw: Some(&mut raw),
    }
    .run(&oracle)
    .unwrap();
    let root = 12.5_f64.sqrt().recip();
    assert_eq!(qkv.slice::<f64>(), [3.0 * root, 4.0 * root * 2.0, 0.0, 2.0 * 2.0_f64.sqrt().recip() * 3.0, 7.0, 8.0]);
    assert_eq!(raw.slice::<f64>(), [3.0, 4.0, 0.0, 2.0]);
}

#[test]
fn logprob_entropy_and_lse_of_known_logits() {
    // Logits 0, ln 3 at temperature 1/2: odds 1 to 9.
    let x = Tensor::from_slice(&[2, 1], &[1.0, 0.0]);
    let w = Tensor::from_slice(&[2, 1], &[0.0, 3.0_f64.ln()]);
    let [mut logp, mut entropy, mut lse] = [0; 3].map(|_| zeros(&[2]));
    let targets = ints(&[1, 0]);
    ops::LinearLogprob {
        x: &x,
        w: &w,
        targets: &targets,
        temperature: 0.5,
        logp: &mut logp,
        entropy: &mut entropy,
        lse: &mut lse,
    }
    .run(&Oracle::f64())
    .unwrap();
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 16.0 * f64::EPSILON, "{a} is not {b}");
    near(logp.slice::<f64>()[0], 0.9_f64.ln());
    near(entropy.slice::<f64>()[0], -(0.9 * 0.9_f64.ln() + 0.1 * 0.1_f64.ln()));
    near(lse.slice::<f64>()[0], 10.0_f64.ln());
    near(logp.slice::<f64>()[1], 0.5_f64.ln());
    near(entropy.slice::<f64>()[1], 2.0_f64.ln());
}

/// Draws `n` ids from one row of logits, with counters 0..n.
fn draws(logits: &[f64], n: usize, temperature: f32, top_k: i32, top_p: f32) -> Result<(Vec<i32>, Vec<f64>)> {
    let sampling = Sampling {
        temperature: &Tensor::from_slice(&[n], &vec![temperature; n]),
        top_p: &Tensor::from_slice(&[n], &vec![top_p; n]),
        top_k: &ints(&vec![top_k; n]),
        seed: &Tensor::from_slice(&[n, 2], &[7, -3].repeat(n)),
        counter: &ints(&(0..n as i32).collect::<Vec<_>>()),
    };
    let logits = Tensor::from_slice(&[n, logits.len()], &logits.repeat(n));
    let (mut ids, mut logp) = (Tensor::zeros(&[n], DType::I32), zeros(&[n]));
    ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(&Oracle::f64())?;
    Ok((ids.slice().to_vec(), logp.slice().to_vec()))
}

#[test]
fn sample_draws_the_distribution_by_inverse_transform() {
    let (probabilities, n) = ([0.1, 0.4, 0.05, 0.45_f64], 4000);
    let logits = probabilities.map(|p| p.ln() / 2.0 + 3.0);
    let (ids, logp) = draws(&logits, n, 0.5, 0, 1.0).unwrap();
    for (counter, (&id, &logp)) in ids.iter().zip(&logp).enumerate() {
        let u = f64::from(unit_f32(philox4x32([counter as u32, 0, 0, 0], [7, -3_i32 as u32])[0]));
        let expected = [0.1, 0.5, 0.55].iter().filter(|&&edge| edge <= u).count();
        assert_eq!(id as usize, expected, "u = {u}");
        assert!((logp - probabilities[expected].ln()).abs() < 1e-14);
    }
    for (id, p) in probabilities.into_iter().enumerate() {
        let share = ids.iter().filter(|&&i| i as usize == id).count() as f64 / n as f64;
        let deviation = (p * (1.0 - p) / n as f64).sqrt();
        assert!((share - p).abs() < 4.0 * deviation, "id {id}: {share} is not {p}");
    }
}

#[test]
fn sample_keeps_top_k_then_top_p() {
    let distinct = |logits: &[f64], top_k, top_p| {
        let (mut ids, logp) = draws(logits, 400, 1.0, top_k, top_p).unwrap();
        assert!(logp.iter().all(|&l| l <= 0.0 && l.is_finite()));
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let logits = [0.1, 0.4, 0.1, 0.3, 0.1_f64].map(f64::ln);
    assert_eq!(distinct(&logits, 0, 1.0), [0, 1, 2, 3, 4]);
    assert_eq!(distinct(&logits, 9, 1.0), [0, 1, 2, 3, 4]);
    assert_eq!(distinct(&logits, 2, 1.0), [1, 3]);
    assert_eq!(distinct(&logits, 3, 1.0), [0, 1, 3], "a tie goes to the lower id");
    assert_eq!(distinct(&logits, 1, 1.0), [1]);
    assert_eq!(distinct(&logits, 0, 1e-6), [1]);
    assert_eq!(distinct(&logits, 0, 0.35), [1]);
    assert_eq!(distinct(&logits, 0, 0.6), [1, 3]);
    assert_eq!(distinct(&logits, 0, 0.75), [0, 1, 3]);
    // top_p is of what top_k left: 0.4 of 0.7 is more than a half.
    assert_eq!(distinct(&logits, 2, 0.5), [1]);
    assert_eq!(distinct(&[f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY, 0.0], 0, 1.0), [1, 3]);
    // The log-probability is of the whole distribution, whatever was kept.
    assert!((draws(&logits, 1, 1.0, 1, 1.0).unwrap().1[0] - 0.4_f64.ln()).abs() < 1e-14);
}

#[test]
fn sample_at_temperature_zero_is_the_first_largest() {
    let logits = [0.1, 0.4, 0.1, 0.4_f64].map(f64::ln);
    let (ids, logp) = draws(&logits, 50, 0.0, 0, 1.0).unwrap();
    assert!(ids.iter().all(|&id| id == 1));
    assert!((logp[0] - 0.4_f64.ln()).abs() < 1e-14, "at temperature 1");
    assert!(draws(&logits, 50, 1e-30, 0, 1.0).unwrap().0.iter().all(|&id| id == 1 || id == 3));
}

#[test]
fn sample_refuses_broken_rows_and_settings() {
    for bad in [[0.0, f64::NAN], [0.0, f64::INFINITY], [f64::NEG_INFINITY; 2]] {
        let error = draws(&bad, 1, 1.0, 0, 1.0).unwrap_err().to_string();
        assert!(error.contains("sample: row 0"), "{error}");
    }
    for (temperature, top_k, top_p) in
        [(-1.0, 0, 1.0), (f32::NAN, 0, 1.0), (1.0, -1, 1.0), (1.0, 0, 0.0), (1.0, 0, 1.5)]
    {
        let error = draws(&[0.0, 0.0], 1, temperature, top_k, top_p).unwrap_err().to_string();
        assert!(error.contains("0 < top_p <= 1"), "{error}");
    }
}

const PPO: PpoParams = PpoParams {
    surrogate: Surrogate::Clip,
    clip_low: 0.25,
    clip_high: 0.5,
    dual_clip: None,
    kl_coefficient: 0.0,
    kl_estimator: KlEstimator::K1,
    entropy_coefficient: 0.0,
};

fn ppo_loss(params: &PpoParams, inputs: &PpoInputs, dlogp: &mut Tensor, dentropy: &mut Tensor) -> PpoStats {
    let mut stats = PpoStats::default();
    ops::PpoLoss { params, inputs, dlogp, dentropy, stats: &mut stats }.run(&Oracle::f64()).unwrap();
    stats
}

/// Statistics and dlogp of one token with weight 1, entropy 2 and reference log-probability -1.
fn token(params: &PpoParams, ratio: f64, advantage: f64) -> (PpoStats, f64, f64) {
    let (mut dlogp, mut dentropy) = (zeros(&[1]), zeros(&[1]));
    let inputs = PpoInputs {
        logp: &floats(&[-1.5]),
        entropy: &floats(&[2.0]),
        behaviour: &floats(&[-1.5 - ratio.ln()]),
        reference: &floats(&[-1.0]),
        advantage: &floats(&[advantage]),
        weight: &floats(&[1.0]),
    };
    let stats = ppo_loss(params, &inputs, &mut dlogp, &mut dentropy);
    (stats, dlogp.slice()[0], dentropy.slice()[0])
}

fn near(a: f64, b: f64) {
    assert!((a - b).abs() <= 32.0 * f64::EPSILON * (1.0 + b.abs()), "{a} is not {b}");
}

#[test]
fn ppo_clips_where_the_objective_would_gain() {
    let dual = PpoParams { dual_clip: Some(3.0), ..PPO };
    let cispo = PpoParams { surrogate: Surrogate::Cispo, ..dual };
    // (parameters, ratio, advantage) -> (objective, d objective / d logp, clipped)
    for (params, ratio, advantage, objective, gradient, clipped) in [
        (&PPO, 1.0, 2.0, 2.0, 2.0, 0.0),
        (&PPO, 1.4, 2.0, 2.8, 2.8, 0.0),
        (&PPO, 2.0, 2.0, 3.0, 0.0, 1.0),
        (&PPO, 0.5, 2.0, 1.0, 1.0, 0.0),
        (&PPO, 0.5, -2.0, -1.5, 0.0, 1.0),
        (&PPO, 2.0, -2.0, -4.0, -4.0, 0.0),
        (&PPO, 8.0, -2.0, -16.0, -16.0, 0.0),
        (&dual, 8.0, -2.0, -6.0, 0.0, 0.0),
        (&dual, 2.0, -2.0, -4.0, -4.0, 0.0),
        (&dual, 8.0, 2.0, 3.0, 0.0, 1.0),
        // CISPO: the clipped ratio weighs log p = -1.5, on both sides and whatever the advantage's sign; no dual clip.
        (&cispo, 1.0, 2.0, -3.0, 2.0, 0.0),
        (&cispo, 2.0, 2.0, -4.5, 3.0, 1.0),
        (&cispo, 0.5, 2.0, -2.25, 1.5, 1.0),
        (&cispo, 8.0, -2.0, 4.5, -3.0, 1.0),
        (&cispo, 0.5, -2.0, 2.25, -1.5, 1.0),
    ] {
        let (stats, dlogp, dentropy) = token(params, ratio, advantage);
        near(stats.policy_loss, -objective);
        near(stats.loss, -objective);
        near(dlogp, -gradient);
        assert_eq!(stats.clip_fraction, clipped, "ratio {ratio}, advantage {advantage}");
        near(stats.approx_kl, ratio - 1.0 - ratio.ln());
        assert_eq!((stats.entropy, dentropy), (2.0, 0.0));
        near(stats.ratio_max, ratio);
    }
}

#[test]
fn log_ratios_are_held_within_20_and_have_no_gradient_outside() {
    // (log ratio, advantage) -> (policy loss, d policy loss / d logp); nothing is clipped on the side that the advantage chooses.
    let e20 = 20.0_f64.exp();
    for (log_ratio, advantage, loss, gradient) in
        [(19.0, -1.0, 19.0_f64.exp(), 19.0_f64.exp()), (25.0, -1.0, e20, 0.0), (-25.0, 1.0, -1.0 / e20, 0.0)]
    {
        let (stats, dlogp, _) = token(&PPO, f64::exp(log_ratio), advantage);
        near(stats.policy_loss / loss, 1.0);
        near(dlogp / loss, gradient / loss);
    }
    // The KL's difference too: d = -1.5 - 30.
    let logp = [-31.5, -1.5];
    for (estimator, kl) in [(KlEstimator::K1, -20.0), (KlEstimator::K2, 200.0), (KlEstimator::K3, e20 - 21.0)] {
        let params = PpoParams { kl_estimator: estimator, kl_coefficient: 1.0, ..PPO };
        let (mut dlogp, mut dentropy) = (zeros(&[1]), zeros(&[1]));
        let inputs = PpoInputs {
            logp: &floats(&logp[..1]),
            entropy: &floats(&[0.0]),
            behaviour: &floats(&logp[..1]),
            reference: &floats(&logp[1..]),
            advantage: &floats(&[0.0]),
            weight: &floats(&[1.0]),
        };
        let stats = ppo_loss(&params, &inputs, &mut dlogp, &mut dentropy);
        near(stats.kl / kl, 1.0);
        assert_eq!(dlogp.slice::<f64>(), [0.0], "{estimator:?}");
    }
}

#[test]
fn the_kl_of_the_loss_is_weighed_by_a_ratio_without_a_gradient() {
    // d = log p - log q = -0.5; ratio 2 in the second pass, no advantage.
    for (kl_estimator, kl, gradient) in
        [(KlEstimator::K2, 0.125, -0.5), (KlEstimator::K3, 0.5_f64.exp() - 1.5, 1.0 - 0.5_f64.exp())]
    {
        let (stats, dlogp, _) = token(&PpoParams { kl_estimator, kl_coefficient: 0.25, ..PPO }, 2.0, 0.0);
        near(stats.kl, kl);
        near(stats.loss, 0.25 * 2.0 * kl);
        near(dlogp, 0.25 * 2.0 * gradient);
    }
}

#[test]
fn the_greatest_ratio_is_one_of_a_token_with_a_loss() {
    let (mut dlogp, mut dentropy) = (zeros(&[3]), zeros(&[3]));
    let inputs = PpoInputs {
        logp: &floats(&[-1.0; 3]),
        entropy: &floats(&[0.0; 3]),
        behaviour: &floats(&[-1.0, -1.5, -4.0]),
        reference: &floats(&[-1.0; 3]),
        advantage: &floats(&[1.0; 3]),
        weight: &floats(&[0.5, 0.5, 0.0]),
    };
    near(ppo_loss(&PPO, &inputs, &mut dlogp, &mut dentropy).ratio_max, 0.5_f64.exp());
}

#[test]
fn kl_estimators_and_entropy_bonus() {
    // log p - log q = -0.5
    let k3 = 0.5_f64.exp() - 1.0 - 0.5;
    for (kl_estimator, kl, gradient) in
        [(KlEstimator::K1, -0.5, 1.0), (KlEstimator::K2, 0.125, -0.5), (KlEstimator::K3, k3, 1.0 - 0.5_f64.exp())]
    {
        let params = PpoParams { kl_estimator, kl_coefficient: 0.5, entropy_coefficient: 0.25, ..PPO };
        let (stats, dlogp, dentropy) = token(&params, 1.0, 0.0);
        near(stats.kl, kl);
        near(stats.loss, 0.5 * kl - 0.25 * 2.0);
        near(dlogp, 0.5 * gradient);
        near(dentropy, -0.25);
    }
    near(token(&PpoParams { kl_estimator: KlEstimator::K3, ..PPO }, 1.0, 0.0).0.kl, k3);
}

#[test]
fn value_loss_takes_the_larger_error() {
    // Old value 1, clip 0.5: (value, target) -> (loss, gradient).
    for (clip, value, target, loss, gradient) in [
        (None, 2.0, 0.0, 2.0, 2.0),
        (Some(0.5), 1.25, 3.0, 0.5 * 1.75 * 1.75, -1.75),
        (Some(0.5), 2.0, 0.0, 2.0, 2.0),
        (Some(0.5), 2.0, 3.0, 0.5 * 1.5 * 1.5, 0.0),
        (Some(0.5), 0.0, -1.0, 0.5 * 1.5 * 1.5, 0.0),
    ] {
        let mut dvalue = zeros(&[1]);
        let (value, target) = (floats(&[value]), floats(&[target]));
        let inputs =
            ValueInputs { value: &value, old_value: &floats(&[1.0]), target: &target, weight: &floats(&[0.5]) };
        let mut found = 0.0;
        ops::ValueLoss { clip, inputs: &inputs, dvalue: &mut dvalue, loss: &mut found }.run(&Oracle::f64()).unwrap();
        assert_eq!(found, 0.5 * loss);
        assert_eq!(dvalue.slice::<f64>(), [0.5 * gradient]);
    }
}

#[test]
fn adamw_follows_its_definition_for_two_steps() {
    let (oracle, mut p, mut m, mut v) = (Oracle::f64(), floats(&[1.0, -2.0]), zeros(&[2]), zeros(&[2]));
    let (lr, b1, b2, eps, decay) = (0.125_f32, 0.75_f32, 0.5_f32, 0.25_f32, 0.5_f32);
    let grads = [[4.0, -1.0], [-2.0, 3.0]];
    for (step, g) in (1..).zip(&grads) {
        let settings = AdamW { lr, beta1: b1, beta2: b2, eps, weight_decay: decay, step, grad_scale: 0.5 };
        let grad = floats(g);
        let tensors = vec![Trained { param: &mut p, grad: &grad, m: &mut m, v: &mut v }];
        ops::AdamWStep { settings, tensors }.run(&oracle).unwrap();
    }
    for (i, start) in [1.0, -2.0].into_iter().enumerate() {
        let (g1, g2): (f64, f64) = (0.5 * grads[0][i], 0.5 * grads[1][i]);
        let first = start * (1.0 - 0.125 * 0.5) - 0.125 * g1 / (g1.abs() + 0.25);
        let mean = (0.75 * 0.25 * g1 + 0.25 * g2) / (1.0 - 0.5625);
        let square = (0.25 * g1 * g1 + 0.5 * g2 * g2) / 0.75;
        near(p.slice::<f64>()[i], first * (1.0 - 0.125 * 0.5) - 0.125 * mean / (square.sqrt() + 0.25));
    }
}

#[test]
fn squared_norm_is_over_all_tensors() {
    let oracle = Oracle::f32();
    let (a, b) = (Tensor::from_slice(&[2], &[3.0_f32, 4.0]), Tensor::from_slice(&[1, 1], &[4096.5_f32]));
    // 4096.5^2 + 25 needs more bits than an f32 has.
    assert_eq!(squared_norm(&oracle, &[&a, &b]).unwrap(), 16_781_312.25 + 25.0);
    assert_eq!(squared_norm(&oracle, &[]).unwrap(), 0.0);
}

#[test]
fn merged_adapter_equals_adapter_beside_the_weight() {
    let oracle = Oracle::f64();
    let (x, mut w, a, b) = (normal(5, &[3, 4]), normal(6, &[5, 4]), normal(7, &[2, 4]), normal(8, &[5, 2]));
    let lora = Lora { a: &a, b: &b, scale: 0.5 };
    let (mut beside, mut merged, mut s) = (zeros(&[3, 5]), zeros(&[3, 5]), zeros(&[3, 2]));
    let p = Linear { w: &w, bias: None, lora: Some(lora) };
    ops::Linears { x: &x, layers: std::slice::from_ref(&p), y: &mut beside, column: 0, s: vec![Some(&mut s)] }
        .run(&oracle)
        .unwrap();
    ops::MergeLora { w: &mut w, lora }.run(&oracle).unwrap();
    ops::Linears {
        x: &x,
        layers: std::slice::from_ref(&Linear { w: &w, bias: None, lora: None }),
        y: &mut merged,
        column: 0,
        s: vec![None],
    }
    .run(&oracle)
    .unwrap();
    for (a, b) in merged.slice::<f64>().iter().zip(beside.slice::<f64>()) {
        assert!((a - b).abs() < 1e-13, "{a} is not {b}");
    }

    // In bf16 (8 bits) the sum is rounded once: 1 + 1/128 stays, 1 + 3/512 goes up to 1 + 1/128.
    let mut w = Tensor::from_slice(&[2, 1], &[bf16::ONE; 2]);
    let (a, b) = (Tensor::from_slice(&[1, 1], &[1.0 / 512.0]), Tensor::from_slice(&[2, 1], &[4.0, 3.0]));
    ops::MergeLora { w: &mut w, lora: Lora { a: &a, b: &b, scale: 1.0 } }.run(&oracle).unwrap();
    assert_eq!(w.slice::<bf16>(), [bf16::from_f64(1.0 + 1.0 / 128.0); 2]);
}

#[test]
fn narrow_weights_are_widened_exactly() {
    let (oracle, x) = (Oracle::f32(), Tensor::from_slice(&[1, 2], &[3.0_f32, 0.5]));
    let values = [1.5_f32, -0.25];
    for w in [
        Tensor::from_slice(&[1, 2], &values),
        Tensor::from_slice(&[1, 2], &values.map(f64::from)),
        Tensor::from_slice(&[1, 2], &values.map(f16::from_f32)),
        Tensor::from_slice(&[1, 2], &values.map(bf16::from_f32)),
    ] {
        let (mut y, mut row) = (Tensor::zeros(&[1, 1], DType::F32), Tensor::zeros(&[1, 2], DType::F32));
        ops::Linears {
            x: &x,
            layers: std::slice::from_ref(&Linear { w: &w, bias: None, lora: None }),
            y: &mut y,
            column: 0,
            s: vec![None],
        }
        .run(&oracle)
        .unwrap();
        ops::Embed { ids: &ints(&[0]), wte: &w, out: &mut row }.run(&oracle).unwrap();
        assert_eq!((y.slice::<f32>(), row.slice::<f32>()), ([4.375].as_slice(), values.as_slice()));
        ops::Logits { x: &x, w: &w, out: &mut y }.run(&oracle).unwrap();
        assert_eq!(y.slice::<f32>(), [4.375]);
    }
}

struct Page(Vec<u64>);
impl Bytes for Page {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[test]
fn host_copies_convert_and_refuse() {
    let oracle = Oracle::f64();
    let mut half = oracle.alloc(&[2], DType::F16).unwrap();
    oracle.write(&mut half, &floats(&[1.5, 2.0])).unwrap();
    assert_eq!(oracle.read(&half).unwrap(), [1.5, 2.0]);
    let mut other = oracle.alloc(&[2], DType::F16).unwrap();
    oracle.copy(&half, &mut other).unwrap();
    assert_eq!(oracle.read(&other).unwrap(), [1.5, 2.0]);
    oracle.fill(&mut other, 0.25).unwrap();
    assert_eq!(oracle.read(&other).unwrap(), [0.25; 2]);
    let mut whole = oracle.alloc(&[2], DType::I32).unwrap();
    oracle.write(&mut whole, &ints(&[i32::MAX, i32::MIN])).unwrap();
    assert_eq!(oracle.read_i32(&whole).unwrap(), [i32::MAX, i32::MIN]);

    let mut mapped = Tensor::mapped(&[2], DType::F64, Arc::new(Page(vec![0; 2])), 0).unwrap();
    for error in [
        oracle.write(&mut whole, &half).unwrap_err(),
        oracle.write(&mut half, &floats(&[1.0])).unwrap_err(),
        oracle.write(&mut mapped, &floats(&[1.0, 2.0])).unwrap_err(),
        oracle.fill(&mut mapped, 1.0).unwrap_err(),
        oracle.copy(&half, &mut whole).unwrap_err(),
        oracle.read(&whole).unwrap_err(),
        oracle.read_i32(&half).unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Content, "{error}");
    }
}

/// The op was refused, and the message names it and every one of `parts`.
fn refused<T>(result: Result<T>, op: &str, parts: &[&str]) {
    let message = result.err().unwrap_or_else(|| panic!("{op} accepted {parts:?}")).to_string();
    assert!(message.starts_with(&format!("{op}: ")), "{message}");
    parts.iter().for_each(|part| assert!(message.contains(part), "{message} lacks {part}"));
}

#[test]
fn mismatched_shapes_name_the_op_and_the_shapes() {
    let o = Oracle::f64();
    let z = zeros;
    let (ids, parts) = (ints(&[0, 0]), ["F64[2, 3]", "[2, 4]"]);
    let (wide, narrow) = (z(&[7, 4]), z(&[7, 3]));
    let plain = |w| Linear { w, bias: None, lora: None };
    refused(ops::Embed { ids: &ids, wte: &z(&[5, 4]), out: &mut z(&[2, 3]) }.run(&o), "embed", &parts);
    refused(
        ops::EmbedBackward { ids: &ids, dout: &z(&[2, 3]), dwte: &mut z(&[5, 4]) }.run(&o),
        "embed_backward",
        &parts,
    );
    let (r, w) = (&z(&[2, 4]), &z(&[4]));
    refused(
        ops::AddRmsnorm { residual: r, x: None, w, eps: 0.0, sum: None, y: &mut z(&[2, 3]), rstd: &mut z(&[2]) }
            .run(&o),
        "add_rmsnorm",
        &parts,
    );
    refused(
        ops::AddRmsnorm { residual: r, x: Some(r), w, eps: 0.0, sum: None, y: &mut z(&[2, 4]), rstd: &mut z(&[2]) }
            .run(&o),
        "add_rmsnorm",
        &["F64[2, 4]"],
    );
    refused(
        ops::AddRmsnormBackward { sum: r, w, rstd: &z(&[2]), dy: &z(&[2, 3]), dsum: &mut z(&[2, 4]), dw: None }.run(&o),
        "add_rmsnorm_backward",
        &parts,
    );
    refused(
        ops::Linears {
            x: r,
            layers: std::slice::from_ref(&plain(&narrow)),
            y: &mut z(&[2, 7]),
            column: 0,
            s: vec![None],
        }
        .run(&o),
        "linear",
        &["F64[7, 3]", "[7, 4]"],
    );
    refused(
        ops::Linears {
            x: r,
            layers: std::slice::from_ref(&plain(&wide)),
            y: &mut z(&[2, 8]),
            column: 2,
            s: vec![None],
        }
        .run(&o),
        "linear",
        &["F64[2, 8]", "2..2+7"],
    );
    let lora = Lora { a: &z(&[2, 4]), b: &z(&[7, 2]), scale: 1.0 };
    let p = Linear { lora: Some(lora), ..plain(&wide) };
    refused(
        ops::Linears { x: r, layers: std::slice::from_ref(&p), y: &mut z(&[2, 7]), column: 0, s: vec![None] }.run(&o),
        "linear",
        &["s (T, R)"],
    );
    refused(
        ops::Linears {
            x: r,
            layers: std::slice::from_ref(&p),
            y: &mut z(&[2, 7]),
            column: 0,
            s: vec![Some(&mut z(&[2, 3]))],
        }
        .run(&o),
        "linear",
        &["F64[2, 3]", "[2, 2]"],
    );
    let (grads, dx) = (LinearGrads::default(), &mut z(&[2, 3]));
    refused(
        ops::LinearsBackward {
            x: r,
            layers: std::slice::from_ref(&p),
            dy: &z(&[2, 7]),
            column: 0,
            s: vec![None],
            dx: Some(dx),
            grads: vec![grads],
        }
        .run(&o),
        "linear_backward",
        &parts,
    );
    let (positions, table) = (ints(&[0, 0]), z(&[3, 4]));
    let rope = ops::QkNormRope {
        qkv: &mut z(&[2, 3]),
        heads: HEADS,
        norm: None,
        positions: &positions,
        table: &table,
        raw: None,
    }
    .run(&o);
    refused(rope, "qk_norm_rope", &["F64[2, 3]", "[2, 32]"]);
    let rope = ops::QkNormRopeBackward {
        dqkv: &mut z(&[2, D]),
        heads: HEADS,
        norm: None,
        positions: &positions,
        table: &z(&[3, 2]),
        raw: None,
        dnorm: None,
    }
    .run(&o);
    refused(rope, "qk_norm_rope_backward", &["F64[3, 2]", "[3, 4]"]);
    let segments = Segments { cu_seqlens: &ints(&[0, 2]), parent: &ints(&[-1]) };
    let (qkv, lse) = (&z(&[2, D]), &mut z(&[4, 2]));
    refused(
        ops::Attention { qkv, heads: HEADS, segments: &segments, o: &mut z(&[2, 3]), lse }.run(&o),
        "attention",
        &["F64[2, 3]", "[2, 16]"],
    );
    let uneven = Heads { nh: 3, ..HEADS };
    refused(
        ops::Attention { qkv, heads: uneven, segments: &segments, o: &mut z(&[2, 12]), lse }.run(&o),
        "attention",
        &["nh: 3", "nkv: 2"],
    );
    let backward = ops::AttentionBackward {
        qkv,
        o: &z(&[2, O]),
        lse,
        dout: &z(&[2, O]),
        heads: HEADS,
        segments: &segments,
        dqkv: &mut z(&[2, 3]),
    }
    .run(&o);
    refused(backward, "attention_backward", &["F64[2, 3]", "[2, 32]"]);
    let (k, v) = (&mut z(&[6, 8]), &mut z(&[6, 7]));
    refused(
        ops::KvAppend { qkv, heads: HEADS, slots: &ints(&[0, 1]), k_cache: k, v_cache: v }.run(&o),
        "kv_append",
        &["F64[6, 7]", "[6, 8]"],
    );
    let (table, lens, cu_q) = (Tensor::from_slice(&[1, 1], &[0]), ints(&[2]), ints(&[0, 2]));
    let paged = ops::AttentionPaged {
        qkv,
        heads: HEADS,
        k_cache: k,
        v_cache: k,
        block_size: 4,
        block_table: &table,
        lens: &lens,
        cu_q: &cu_q,
        o: &mut z(&[2, O]),
    }
    .run(&o);
    refused(paged, "attention_paged", &["4", "F64[6, 8]"]);
    refused(ops::Swiglu { gate_up: &z(&[2, 3]), y: &mut z(&[2, 2]) }.run(&o), "swiglu", &parts);
    refused(
        ops::SwigluBackward { gate_up: &z(&[2, 3]), dy: &z(&[2, 2]), dgate_up: &mut z(&[2, 4]) }.run(&o),
        "swiglu_backward",
        &parts,
    );
    refused(ops::GatherRows { x: r, rows: &ids, y: &mut z(&[2, 3]) }.run(&o), "gather_rows", &parts);
    refused(
        ops::ScatterAddRows { dy: &z(&[2, 3]), rows: &ids, dx: &mut z(&[5, 4]) }.run(&o),
        "scatter_add_rows",
        &parts,
    );
    let [mut a, mut b, mut c] = [z(&[2]), z(&[2]), z(&[3])];
    let logprob = ops::LinearLogprob {
        x: r,
        w: &z(&[5, 4]),
        targets: &ids,
        temperature: 1.0,
        logp: &mut a,
        entropy: &mut b,
        lse: &mut c,
    }
    .run(&o);
    refused(logprob, "linear_logprob", &["lse", "F64[3]", "[2]"]);
    let logprob = ops::LinearLogprob {
        x: r,
        w: &z(&[5, 4]),
        targets: &ids,
        temperature: 0.0,
        logp: &mut a,
        entropy: &mut b,
        lse: &mut z(&[2]),
    }
    .run(&o);
    refused(logprob, "linear_logprob", &["temperature is 0"]);
    let mut dx = z(&[2, 3]);
    let logprob = ops::LinearLogprobBackward {
        x: r,
        w: &z(&[5, 4]),
        targets: &ids,
        temperature: 1.0,
        entropy: &a,
        lse: &a,
        dlogp: &a,
        dentropy: None,
        dx: &mut dx,
        dw: None,
    }
    .run(&o);
    refused(logprob, "linear_logprob_backward", &parts);
    refused(ops::Logits { x: r, w: &z(&[5, 4]), out: &mut z(&[2, 3]) }.run(&o), "logits", &["F64[5, 4]", "[3, 4]"]);
    let t = Tensor::zeros(&[2], DType::F32);
    let seed = Tensor::zeros(&[2], DType::I32);
    let sampling = Sampling { temperature: &t, top_p: &t, top_k: &ids, seed: &seed, counter: &ids };
    refused(
        ops::Sample { logits: r, sampling: &sampling, ids: &mut ints(&[0, 0]), logp: &mut a }.run(&o),
        "sample",
        &["I32[2]", "I32[2, 2]"],
    );
    let given = PpoInputs { logp: &a, entropy: &a, behaviour: &a, reference: &a, advantage: &c, weight: &a };
    let (dlogp, stats) = (&mut z(&[2]), &mut PpoStats::default());
    let loss = ops::PpoLoss { params: &PPO, inputs: &given, dlogp, dentropy: &mut b, stats }.run(&o);
    refused(loss, "ppo_loss", &["advantage", "F64[3]", "F64[2]"]);
    let given = ValueInputs { value: &a, old_value: &a, target: &c, weight: &a };
    let loss = ops::ValueLoss { clip: None, inputs: &given, dvalue: &mut b, loss: &mut 0.0 }.run(&o);
    refused(loss, "value_loss", &["target", "F64[3]", "F64[2]"]);
    refused(squared_norm(&o, &[&a, &t]).map(drop), "squared_norm", &["F32[2]", "F64[2]"]);
    let settings = AdamW { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 1.0, weight_decay: 0.0, step: 1, grad_scale: 1.0 };
    let (m, v) = (&mut z(&[2]), &mut z(&[2]));
    let tensors = vec![Trained { param: &mut a, grad: &c, m, v }];
    refused(ops::AdamWStep { settings, tensors }.run(&o), "adamw", &["F64[3]", "F64[2]"]);
    refused(ops::MergeLora { w: &mut z(&[7, 3]), lora }.run(&o), "merge_lora", &["F64[2, 4]", "[2, 3]"]);
}

#[test]
fn values_out_of_range_are_named() {
    let o = Oracle::f64();
    let (ids, x) = (ints(&[0, 5]), zeros(&[2, 4]));
    refused(
        ops::Embed { ids: &ids, wte: &zeros(&[5, 4]), out: &mut zeros(&[2, 4]) }.run(&o),
        "embed",
        &["id 5", "V = 5"],
    );
    refused(
        ops::EmbedBackward { ids: &ints(&[0, -1]), dout: &x, dwte: &mut zeros(&[5, 4]) }.run(&o),
        "embed_backward",
        &["id -1", "V = 5"],
    );
    refused(ops::GatherRows { x: &x, rows: &ids, y: &mut zeros(&[2, 4]) }.run(&o), "gather_rows", &["row 5", "T = 2"]);
    refused(
        ops::ScatterAddRows { dy: &x, rows: &ids, dx: &mut zeros(&[5, 4]) }.run(&o),
        "scatter_add_rows",
        &["row 5", "T = 5"],
    );
    let (mut qkv, table) = (zeros(&[2, D]), zeros(&[5, 4]));
    let rope =
        ops::QkNormRope { qkv: &mut qkv, heads: HEADS, norm: None, positions: &ids, table: &table, raw: None }.run(&o);
    refused(rope, "qk_norm_rope", &["position 5", "P = 5"]);
    let rope = ops::QkNormRopeBackward {
        dqkv: &mut qkv,
        heads: HEADS,
        norm: None,
        positions: &ids,
        table: &table,
        raw: None,
        dnorm: None,
    }
    .run(&o);
    refused(rope, "qk_norm_rope_backward", &["position 5", "P = 5"]);
    let [mut a, mut b, mut c] = [0; 3].map(|_| zeros(&[2]));
    let logprob = ops::LinearLogprob {
        x: &x,
        w: &zeros(&[5, 4]),
        targets: &ids,
        temperature: 1.0,
        logp: &mut a,
        entropy: &mut b,
        lse: &mut c,
    }
    .run(&o);
    refused(logprob, "linear_logprob", &["target 5", "V = 5"]);
    let mut dx = zeros(&[2, 4]);
    let logprob = ops::LinearLogprobBackward {
        x: &x,
        w: &zeros(&[5, 4]),
        targets: &ids,
        temperature: 1.0,
        entropy: &a,
        lse: &a,
        dlogp: &a,
        dentropy: None,
        dx: &mut dx,
        dw: None,
    }
    .run(&o);
    refused(logprob, "linear_logprob_backward", &["target 5", "V = 5"]);
    for (cu_seqlens, parent, part) in [
        (vec![0, 3], vec![-1], "cu_seqlens"),
        (vec![1, 2], vec![-1], "cu_seqlens"),
        (vec![0, 2, 1, 2], vec![-1, -1, -1], "cu_seqlens"),
        (vec![0, 1, 2], vec![1, -1], "segment 0 has parent 1"),
        (vec![0, 1, 2], vec![-2, -1], "segment 0 has parent -2"),
        (vec![0, 1, 2, 2], vec![-1, 0, 1], "segment 2 has parent 1"),
    ] {
        let segments = Segments { cu_seqlens: &ints(&cu_seqlens), parent: &ints(&parent) };
        let (mut out, mut lse) = (zeros(&[2, O]), zeros(&[4, 2]));
        refused(
            ops::Attention { qkv: &qkv, heads: HEADS, segments: &segments, o: &mut out, lse: &mut lse }.run(&o),
            "attention",
            &[part],
        );
        let backward = ops::AttentionBackward {
            qkv: &qkv,
            o: &out,
            lse: &lse,
            dout: &out,
            heads: HEADS,
            segments: &segments,
            dqkv: &mut zeros(&[2, D]),
        }
        .run(&o);
        refused(backward, "attention_backward", &[part]);
    }
    let (mut k, mut v) = (zeros(&[4, 8]), zeros(&[4, 8]));
    refused(
        ops::KvAppend { qkv: &qkv, heads: HEADS, slots: &ids, k_cache: &mut k, v_cache: &mut v }.run(&o),
        "kv_append",
        &["slot 5", "rows = 4"],
    );
    for (table, len, cu_q, part) in [
        ([0, 2], 4, [0, 2], "page 2"),
        ([0, 1], 5, [0, 2], "at most 2 pages"),
        ([0, 1], 1, [0, 2], "1 tokens and 2 queries"),
        ([0, 1], -1, [0, 2], "-1 tokens"),
        ([0, 1], 4, [0, 1], "cu_q"),
    ] {
        let (table, lens, cu_q) = (Tensor::from_slice(&[1, 2], &table), ints(&[len]), ints(&cu_q));
        let paged = ops::AttentionPaged {
            qkv: &qkv,
            heads: HEADS,
            k_cache: &k,
            v_cache: &v,
            block_size: 2,
            block_table: &table,
            lens: &lens,
            cu_q: &cu_q,
            o: &mut zeros(&[2, O]),
        }
        .run(&o);
        refused(paged, "attention_paged", &[part]);
    }
}
