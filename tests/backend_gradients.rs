//! Every hand-written backward against central differences of its forward, on the f64 oracle with random ragged shapes.
#![allow(clippy::unwrap_used)]

use onestep::backend::ops::{
    self, Heads, KlEstimator, Linear, LinearGrads, Lora, PpoInputs, PpoParams, PpoStats, QkNorm, Segments, Surrogate,
    ValueInputs,
};
use onestep::backend::oracle::Oracle;
use onestep::rng::Philox;
use onestep::tensor::Tensor;

const SEEDS: u64 = 4;

fn normal(rng: &mut Philox, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.normal()).collect()
}

fn tensor(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::from_slice(shape, values)
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_slice(&[values.len()], values)
}

/// What an op that writes its output whole must overwrite.
fn junk(shape: &[usize]) -> Tensor {
    tensor(shape, &vec![f64::NAN; shape.iter().product()])
}

/// What was added to `start` by an op that accumulates.
fn added(result: &Tensor, start: &[f64]) -> Vec<f64> {
    result.slice::<f64>().iter().zip(start).map(|(r, s)| r - s).collect()
}

/// Compares `analytic`, the gradient of sum_i cotangent_i forward(inputs)_i by each input, with central differences.
///
/// With step h, the difference quotient is D(h) = f' + a h^2 + O(h^4), a = f'''/6. So |D(2h) - D(h)| = 3 |a| h^2 bounds the
/// truncation error of D(h) three times over. Rounding: every term of the sum went through fewer than 256 roundings, each at
/// most eps of its size, so D(h) is off by at most 256 eps sum |terms| / (2 h). The tolerance is the sum of the two; it
/// must itself be small, or the check would say nothing (near a kink, for example).
fn check_gradient(
    what: &str,
    inputs: &[Vec<f64>],
    cotangent: &[f64],
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    analytic: &[Vec<f64>],
) {
    assert_eq!(inputs.len(), analytic.len(), "{what}");
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(input.len(), analytic[i].len(), "{what}: input {i}");
        for j in 0..input.len() {
            let mut moved = inputs.to_vec();
            let mut quotient = |h: f64| {
                let (above, below) = (input[j] + h, input[j] - h);
                moved[i][j] = above;
                let up = forward(&moved);
                moved[i][j] = below;
                let down = forward(&moved);
                assert_eq!(up.len(), cotangent.len(), "{what}");
                let (mut sum, mut size) = (0.0, 0.0);
                for ((up, down), c) in up.iter().zip(&down).zip(cotangent) {
                    sum += c * (up - down);
                    size += c.abs() * (up.abs() + down.abs());
                }
                (sum / (above - below), size / (above - below))
            };
            let h = 1e-4;
            let ((fine, size), (coarse, _)) = (quotient(h), quotient(2.0 * h));
            let tolerance = (coarse - fine).abs() + 256.0 * f64::EPSILON * size;
            assert!(tolerance < 1e-5 * (1.0 + fine.abs()), "{what}: input {i}[{j}]: blunt: {tolerance:e} at {fine}");
            let error = (analytic[i][j] - fine).abs();
            assert!(error <= tolerance, "{what}: input {i}[{j}]: {} is not {fine} +- {tolerance:e}", analytic[i][j]);
        }
    }
}

#[test]
fn embed() {
    let oracle = Oracle::f64();
    for seed in 0..SEEDS {
        let mut rng = Philox::new(seed, 0);
        let (t, v, c) = (1 + rng.below(7), 1 + rng.below(4), 1 + rng.below(5));
        let ids = ints(&(0..t).map(|_| rng.below(v) as i32).collect::<Vec<_>>());
        let (wte, dout, start) = (normal(&mut rng, v * c), normal(&mut rng, t * c), normal(&mut rng, v * c));
        let forward = |inputs: &[Vec<f64>]| {
            let mut out = junk(&[t, c]);
            ops::Embed { ids: &ids, wte: &tensor(&[v, c], &inputs[0]), out: &mut out }.run(&oracle).unwrap();
            out.slice().to_vec()
        };
        let mut dwte = tensor(&[v, c], &start);
        ops::EmbedBackward { ids: &ids, dout: &tensor(&[t, c], &dout), dwte: &mut dwte }.run(&oracle).unwrap();
        check_gradient("embed", &[wte], &dout, forward, &[added(&dwte, &start)]);
    }
}

#[test]
fn add_rmsnorm() {
    let oracle = Oracle::f64();
    for seed in 0..SEEDS {
        let mut rng = Philox::new(seed, 1);
        let (t, c, eps) = (1 + rng.below(4), 1 + rng.below(6), 1e-2);
        let (residual, x, w) = (normal(&mut rng, t * c), normal(&mut rng, t * c), normal(&mut rng, c));
        let (dy, start, start_w) = (normal(&mut rng, t * c), normal(&mut rng, t * c), normal(&mut rng, c));
        let run = |inputs: &[Vec<f64>]| {
            let (mut sum, mut y, mut rstd) = (junk(&[t, c]), junk(&[t, c]), junk(&[t]));
            let (residual, w) = (tensor(&[t, c], &inputs[0]), tensor(&[c], &inputs[1]));
            match inputs.get(2) {
                Some(x) => {
                    let x = tensor(&[t, c], x);
                    ops::AddRmsnorm {
                        residual: &residual,
                        x: Some(&x),
                        w: &w,
                        eps,
                        sum: Some(&mut sum),
                        y: &mut y,
                        rstd: &mut rstd,
                    }
                    .run(&oracle)
                    .unwrap();
                }
                None => {
                    ops::AddRmsnorm { residual: &residual, x: None, w: &w, eps, sum: None, y: &mut y, rstd: &mut rstd }
                        .run(&oracle)
                        .unwrap();
                    sum = residual;
                }
            }
            (sum, y, rstd)
        };
        let forward = |inputs: &[Vec<f64>]| {
            let (sum, y, _) = run(inputs);
            [y.slice::<f64>(), sum.slice()].concat()
        };
        // The gradient of `sum` from later layers is what dsum starts with.
        let cotangent = [dy.clone(), start.clone()].concat();
        for inputs in [vec![residual.clone(), w.clone()], vec![residual, w.clone(), x]] {
            let (sum, _, rstd) = run(&inputs);
            let (mut dsum, mut dw) = (tensor(&[t, c], &start), tensor(&[c], &start_w));
            let (w, dy) = (tensor(&[c], &w), tensor(&[t, c], &dy));
            ops::AddRmsnormBackward { sum: &sum, w: &w, rstd: &rstd, dy: &dy, dsum: &mut dsum, dw: Some(&mut dw) }
                .run(&oracle)
                .unwrap();
            let dsum = dsum.slice::<f64>().to_vec();
            let mut analytic = vec![dsum.clone(), added(&dw, &start_w)];
            analytic.extend(inputs.get(2).map(|_| dsum));
            check_gradient("add_rmsnorm", &inputs, &cotangent, forward, &analytic);
        }
    }
}

/// What is done with x, w, bias, a, b; the layer made of them; its y and s.
type Then<'a> = &'a mut dyn FnMut(&[Tensor; 5], &Linear, &Tensor, &Tensor);

#[test]
fn linear() {
    let oracle = Oracle::f64();
    for case in 0..4 * SEEDS {
        let (with_bias, with_lora) = (case % 2 == 0, case / 2 % 2 == 0);
        let mut rng = Philox::new(case, 2);
        let [t, k, n, r] = [0; 4].map(|_: usize| 1 + rng.below(5));
        let (column, scale) = (rng.below(4), 0.75);
        let width = column + n + rng.below(3);
        let inputs = [t * k, n * k, n, r * k, n * r].map(|n| normal(&mut rng, n));
        let starts = [t * k, n * k, n, r * k, n * r].map(|n| normal(&mut rng, n));
        let dy = normal(&mut rng, t * n);
        let shapes: [&[usize]; 5] = [&[t, k], &[n, k], &[n], &[r, k], &[n, r]];
        let run = |inputs: &[Vec<f64>], then: Then| {
            let given: [Tensor; 5] = std::array::from_fn(|i| tensor(shapes[i], &inputs[i]));
            let [x, w, bias, a, b] = &given;
            let lora = Lora { a, b, scale };
            let p = Linear { w, bias: with_bias.then_some(bias), lora: with_lora.then_some(lora) };
            let (mut y, mut s) = (tensor(&[t, width], &vec![7.0; t * width]), junk(&[t, r]));
            ops::Linears {
                x,
                layers: std::slice::from_ref(&p),
                y: &mut y,
                column,
                s: vec![with_lora.then_some(&mut s)],
            }
            .run(&oracle)
            .unwrap();
            then(&given, &p, &y, &s);
        };
        let inside = |y: &Tensor| -> Vec<f64> {
            y.slice::<f64>().chunks(width).flat_map(|row| row[column..column + n].to_vec()).collect()
        };
        let forward = |inputs: &[Vec<f64>]| {
            let mut out = vec![];
            run(inputs, &mut |_, _, y, _| out = inside(y));
            out
        };
        let mut grads: [Tensor; 5] = std::array::from_fn(|i| tensor(shapes[i], &starts[i]));
        run(&inputs, &mut |given, p, y, s| {
            let outside = y.slice::<f64>().chunks(width).flat_map(|row| [&row[..column], &row[column + n..]].concat());
            assert!(outside.into_iter().all(|y| y == 7.0), "linear wrote outside its columns");
            let mut wide = vec![f64::NAN; t * width];
            for (row, dy) in wide.chunks_mut(width).zip(dy.chunks(n)) {
                row[column..column + n].copy_from_slice(dy);
            }
            let [dx, dw, dbias, da, db] = &mut grads;
            let wanted =
                LinearGrads { lora: with_lora.then_some((da, db)), w: Some(dw), bias: with_bias.then_some(dbias) };
            let (dy, s) = (tensor(&[t, width], &wide), with_lora.then_some(s));
            ops::LinearsBackward {
                x: &given[0],
                layers: std::slice::from_ref(p),
                dy: &dy,
                column,
                s: vec![s],
                dx: Some(dx),
                grads: vec![wanted],
            }
            .run(&oracle)
            .unwrap();
            // dx alone, as for a frozen layer, is the same.
            let mut alone = tensor(&[t, k], &starts[0]);
            let none = LinearGrads::default();
            ops::LinearsBackward {
                x: &given[0],
                layers: std::slice::from_ref(p),
                dy: &dy,
                column,
                s: vec![None],
                dx: Some(&mut alone),
                grads: vec![none],
            }
            .run(&oracle)
            .unwrap();
            assert_eq!(alone.slice::<f64>(), dx.slice::<f64>());
        });
        let analytic: [Vec<f64>; 5] = std::array::from_fn(|i| added(&grads[i], &starts[i]));
        check_gradient(&format!("linear, case {case}"), &inputs, &dy, forward, &analytic);
    }
}

#[test]
fn qk_norm_rope() {
    let oracle = Oracle::f64();
    for (nh, nkv) in [(1, 1), (3, 1), (4, 1), (4, 2)] {
        for with_norm in [false, true] {
            let mut rng = Philox::new(nh as u64, 3);
            let heads = Heads { nh, nkv, hs: 2 + 2 * rng.below(3) };
            let (t, p, hs, d, qk) = (3, 5, heads.hs, heads.qkv_width(), (nh + nkv) * heads.hs);
            let positions = ints(&[4, 0, 2]);
            // Not cosines and sines of anything: the scaling is folded in, so the backward must be the transpose.
            let table = tensor(&[p, hs], &normal(&mut rng, p * hs));
            let inputs = [t * d, hs, hs].map(|n| normal(&mut rng, n));
            let (dout, starts) = (normal(&mut rng, t * d), [0; 2].map(|_| normal(&mut rng, hs)));
            let run = |inputs: &[Vec<f64>]| {
                let (mut qkv, mut raw) = (tensor(&[t, d], &inputs[0]), junk(&[t, qk]));
                let (q, k) = (tensor(&[hs], &inputs[1]), tensor(&[hs], &inputs[2]));
                let norm = with_norm.then_some(QkNorm { q: &q, k: &k, eps: 1e-2 });
                let keep = with_norm.then_some(&mut raw);
                ops::QkNormRope { qkv: &mut qkv, heads, norm, positions: &positions, table: &table, raw: keep }
                    .run(&oracle)
                    .unwrap();
                (qkv, raw)
            };
            let forward = |inputs: &[Vec<f64>]| run(inputs).0.slice().to_vec();
            let (_, raw) = run(&inputs);
            let mut dqkv = tensor(&[t, d], &dout);
            let [mut dq, mut dk] = [0, 1].map(|i| tensor(&[hs], &starts[i]));
            let (q, k) = (tensor(&[hs], &inputs[1]), tensor(&[hs], &inputs[2]));
            let norm = with_norm.then_some(QkNorm { q: &q, k: &k, eps: 1e-2 });
            let dnorm = with_norm.then_some((&mut dq, &mut dk));
            let raw = with_norm.then_some(&raw);
            ops::QkNormRopeBackward { dqkv: &mut dqkv, heads, norm, positions: &positions, table: &table, raw, dnorm }
                .run(&oracle)
                .unwrap();
            let analytic = [dqkv.slice().to_vec(), added(&dq, &starts[0]), added(&dk, &starts[1])];
            check_gradient(&format!("qk_norm_rope {heads:?} {with_norm}"), &inputs, &dout, forward, &analytic);
        }
    }
}

#[test]
fn attention() {
    let oracle = Oracle::f64();
    let layouts: [(&[i32], &[i32]); 4] = [
        (&[0, 5], &[-1]),
        (&[0, 2, 3, 6], &[-1, -1, -1]),
        (&[0, 3, 5, 5, 6], &[-1, 0, -1, 0]),
        (&[0, 2, 3, 5, 6], &[-1, -1, 0, 1]),
    ];
    for (nh, nkv) in [(1, 1), (2, 2), (3, 1), (4, 1), (6, 2)] {
        for (i, (cu_seqlens, parent)) in layouts.into_iter().enumerate() {
            let mut rng = Philox::new(nh as u64, 40 + i as u64);
            let heads = Heads { nh, nkv, hs: 2 };
            let (t, d, n) = (*cu_seqlens.last().unwrap() as usize, heads.qkv_width(), nh * 2);
            let (cu_seqlens, parent) = (ints(cu_seqlens), ints(parent));
            let segments = Segments { cu_seqlens: &cu_seqlens, parent: &parent };
            let (qkv, dout) = (normal(&mut rng, t * d), normal(&mut rng, t * n));
            let run = |inputs: &[Vec<f64>]| {
                let (mut o, mut lse) = (junk(&[t, n]), junk(&[nh, t]));
                ops::Attention {
                    qkv: &tensor(&[t, d], &inputs[0]),
                    heads,
                    segments: &segments,
                    o: &mut o,
                    lse: &mut lse,
                }
                .run(&oracle)
                .unwrap();
                (o, lse)
            };
            let inputs = [qkv];
            let ((o, lse), mut dqkv) = (run(&inputs), junk(&[t, d]));
            let (qkv, dout_tensor) = (tensor(&[t, d], &inputs[0]), tensor(&[t, n], &dout));
            ops::AttentionBackward {
                qkv: &qkv,
                o: &o,
                lse: &lse,
                dout: &dout_tensor,
                heads,
                segments: &segments,
                dqkv: &mut dqkv,
            }
            .run(&oracle)
            .unwrap();
            let forward = |inputs: &[Vec<f64>]| run(inputs).0.slice().to_vec();
            let what = format!("attention {heads:?}, layout {i}");
            check_gradient(&what, &inputs, &dout, forward, &[dqkv.slice().to_vec()]);
        }
    }
}

#[test]
fn swiglu() {
    let oracle = Oracle::f64();
    for seed in 0..SEEDS {
        let mut rng = Philox::new(seed, 5);
        let (t, f) = (1 + rng.below(4), 1 + rng.below(5));
        let (gate_up, dy) = (normal(&mut rng, t * 2 * f), normal(&mut rng, t * f));
        let forward = |inputs: &[Vec<f64>]| {
            let mut y = junk(&[t, f]);
            ops::Swiglu { gate_up: &tensor(&[t, 2 * f], &inputs[0]), y: &mut y }.run(&oracle).unwrap();
            y.slice().to_vec()
        };
        let mut dgate_up = junk(&[t, 2 * f]);
        ops::SwigluBackward {
            gate_up: &tensor(&[t, 2 * f], &gate_up),
            dy: &tensor(&[t, f], &dy),
            dgate_up: &mut dgate_up,
        }
        .run(&oracle)
        .unwrap();
        check_gradient("swiglu", &[gate_up], &dy, forward, &[dgate_up.slice().to_vec()]);
    }
}

#[test]
fn rows() {
    let oracle = Oracle::f64();
    for seed in 0..SEEDS {
        let mut rng = Philox::new(seed, 6);
        let (t, m, c) = (1 + rng.below(4), rng.below(7), 1 + rng.below(3));
        let rows = ints(&(0..m).map(|_| rng.below(t) as i32).collect::<Vec<_>>());
        let (x, dy, start) = (normal(&mut rng, t * c), normal(&mut rng, m * c), normal(&mut rng, t * c));
        let forward = |inputs: &[Vec<f64>]| {
            let mut y = junk(&[m, c]);
            ops::GatherRows { x: &tensor(&[t, c], &inputs[0]), rows: &rows, y: &mut y }.run(&oracle).unwrap();
            y.slice().to_vec()
        };
        let mut dx = tensor(&[t, c], &start);
        ops::ScatterAddRows { dy: &tensor(&[m, c], &dy), rows: &rows, dx: &mut dx }.run(&oracle).unwrap();
        check_gradient("gather_rows", &[x], &dy, forward, &[added(&dx, &start)]);
    }
}

#[test]
fn linear_logprob() {
    let oracle = Oracle::f64();
    for case in 0..2 * SEEDS {
        let with_entropy = case % 2 == 0;
        let mut rng = Philox::new(case, 7);
        let (m, v, c, temperature) = (1 + rng.below(4), 2 + rng.below(6), 1 + rng.below(4), 0.7);
        let targets = ints(&(0..m).map(|_| rng.below(v) as i32).collect::<Vec<_>>());
        let inputs = [m * c, v * c].map(|n| normal(&mut rng, n));
        let (dlogp, mut dentropy) = (normal(&mut rng, m), normal(&mut rng, m));
        if !with_entropy {
            dentropy.fill(0.0);
        }
        let run = |inputs: &[Vec<f64>]| {
            let [mut logp, mut entropy, mut lse] = [0; 3].map(|_| junk(&[m]));
            let (x, w) = (tensor(&[m, c], &inputs[0]), tensor(&[v, c], &inputs[1]));
            ops::LinearLogprob {
                x: &x,
                w: &w,
                targets: &targets,
                temperature,
                logp: &mut logp,
                entropy: &mut entropy,
                lse: &mut lse,
            }
            .run(&oracle)
            .unwrap();
            (logp, entropy, lse)
        };
        let forward = |inputs: &[Vec<f64>]| {
            let (logp, entropy, _) = run(inputs);
            [logp.slice::<f64>(), entropy.slice()].concat()
        };
        let start = normal(&mut rng, v * c);
        let (_, entropy, lse) = run(&inputs);
        let (mut dx, mut dw) = (junk(&[m, c]), tensor(&[v, c], &start));
        let (x, w) = (tensor(&[m, c], &inputs[0]), tensor(&[v, c], &inputs[1]));
        let (dl, dh) = (tensor(&[m], &dlogp), tensor(&[m], &dentropy));
        let dh = with_entropy.then_some(&dh);
        let backward = |dx: &mut Tensor, dw: Option<&mut Tensor>| {
            ops::LinearLogprobBackward {
                x: &x,
                w: &w,
                targets: &targets,
                temperature,
                entropy: &entropy,
                lse: &lse,
                dlogp: &dl,
                dentropy: dh,
                dx,
                dw,
            }
            .run(&oracle)
            .unwrap();
        };
        backward(&mut dx, Some(&mut dw));
        let mut alone = junk(&[m, c]);
        backward(&mut alone, None);
        assert_eq!(alone.slice::<f64>(), dx.slice::<f64>());
        let (cotangent, analytic) = ([dlogp, dentropy].concat(), [dx.slice().to_vec(), added(&dw, &start)]);
        check_gradient("linear_logprob", &inputs, &cotangent, forward, &analytic);
    }
}

#[test]
fn ppo_loss() {
    let oracle = Oracle::f64();
    for (case, kl_estimator) in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3].into_iter().enumerate() {
        for dual_clip in [None, Some(1.5)] {
            let mut rng = Philox::new(case as u64, 8);
            let m = 24;
            let params = PpoParams {
                surrogate: Surrogate::Clip,
                clip_low: 0.2,
                clip_high: 0.3,
                dual_clip,
                kl_coefficient: 0.5,
                kl_estimator,
                entropy_coefficient: 0.25,
            };
            let inputs = [normal(&mut rng, m), normal(&mut rng, m)];
            let rest = [0; 4].map(|_| tensor(&[m], &normal(&mut rng, m)));
            let run = |params: &PpoParams, inputs: &[Vec<f64>], weight: &Tensor| {
                let (logp, entropy) = (tensor(&[m], &inputs[0]), tensor(&[m], &inputs[1]));
                let [behaviour, reference, advantage, _] = &rest;
                let given = PpoInputs { logp: &logp, entropy: &entropy, behaviour, reference, advantage, weight };
                let (mut dlogp, mut dentropy) = (junk(&[m]), junk(&[m]));
                let mut stats = PpoStats::default();
                let (dlogp_, dentropy_) = (&mut dlogp, &mut dentropy);
                ops::PpoLoss { params, inputs: &given, dlogp: dlogp_, dentropy: dentropy_, stats: &mut stats }
                    .run(&oracle)
                    .unwrap();
                (stats, dlogp, dentropy)
            };
            let (_, dlogp, dentropy) = run(&params, &inputs, &rest[3]);
            let analytic = [dlogp, dentropy].map(|t| t.slice().to_vec());
            // The ratio that weighs the KL term has no gradient: it stays what it was.
            let (behaviour, weight) = (rest[0].slice::<f64>(), rest[3].slice::<f64>());
            let weighed: Vec<f64> = (0..m).map(|i| weight[i] * (inputs[0][i] - behaviour[i]).exp()).collect();
            let (weighed, without) = (tensor(&[m], &weighed), PpoParams { kl_coefficient: 0.0, ..params });
            let loss = |inputs: &[Vec<f64>]| {
                let kl = run(&params, inputs, &weighed).0.kl;
                vec![run(&without, inputs, &rest[3]).0.loss + f64::from(params.kl_coefficient) * kl]
            };
            let what = format!("ppo_loss {kl_estimator:?} {dual_clip:?}");
            check_gradient(&what, &inputs, &[1.0], loss, &analytic);
        }
    }
}

#[test]
fn value_head() {
    let (oracle, mut rng, m, c) = (Oracle::f64(), Philox::new(0, 10), 5, 7);
    let inputs = [normal(&mut rng, m * c), normal(&mut rng, c), normal(&mut rng, 1)];
    let dvalue = normal(&mut rng, m);
    let tensors =
        |inputs: &[Vec<f64>]| [tensor(&[m, c], &inputs[0]), tensor(&[1, c], &inputs[1]), tensor(&[1], &inputs[2])];
    let forward = |inputs: &[Vec<f64>]| {
        let ([x, w, bias], mut value) = (tensors(inputs), junk(&[m]));
        ops::ValueHead { x: &x, w: &w, bias: &bias, value: &mut value }.run(&oracle).unwrap();
        value.slice::<f64>().to_vec()
    };
    let start = [normal(&mut rng, c), normal(&mut rng, 1)];
    let ([x, w, _], mut dx) = (tensors(&inputs), junk(&[m, c]));
    let (mut dw, mut dbias) = (tensor(&[1, c], &start[0]), tensor(&[1], &start[1]));
    ops::ValueHeadBackward {
        x: &x,
        w: &w,
        dvalue: &tensor(&[m], &dvalue),
        dx: &mut dx,
        dw: &mut dw,
        dbias: &mut dbias,
    }
    .run(&oracle)
    .unwrap();
    let analytic = [dx.slice().to_vec(), added(&dw, &start[0]), added(&dbias, &start[1])];
    check_gradient("value_head", &inputs, &dvalue, forward, &analytic);
}

#[test]
fn value_loss() {
    let oracle = Oracle::f64();
    for clip in [None, Some(0.4)] {
        let (mut rng, m) = (Philox::new(0, 9), 24);
        let inputs = [normal(&mut rng, m)];
        let rest = [0; 3].map(|_| tensor(&[m], &normal(&mut rng, m)));
        let run = |inputs: &[Vec<f64>]| {
            let (value, [old_value, target, weight]) = (tensor(&[m], &inputs[0]), &rest);
            let mut dvalue = junk(&[m]);
            let given = ValueInputs { value: &value, old_value, target, weight };
            let mut loss = 0.0;
            ops::ValueLoss { clip, inputs: &given, dvalue: &mut dvalue, loss: &mut loss }.run(&oracle).unwrap();
            (loss, dvalue)
        };
        let analytic = [run(&inputs).1.slice().to_vec()];
        check_gradient(&format!("value_loss {clip:?}"), &inputs, &[1.0], |inputs| vec![run(inputs).0], &analytic);
    }
}

#[test]
#[should_panic(expected = "is not")]
fn the_check_finds_a_gradient_off_by_a_millionth() {
    let forward = |inputs: &[Vec<f64>]| vec![inputs[0][0].sin()];
    check_gradient("sin", &[vec![0.3]], &[1.0], forward, &[vec![0.3_f64.cos() * (1.0 + 1e-6)]]);
}
