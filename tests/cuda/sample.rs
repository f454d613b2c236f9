//! Drawing tokens.

use crate::simt::Order;
use crate::support::{ORDERS, gpu};
use onestep::backend::Backend;
use onestep::backend::ops::{self, Sampling};
use onestep::backend::oracle::Oracle;
use onestep::rng::{Philox, philox4x32, unit_f32};
use onestep::tensor::{DType, Tensor};

/// One row: its logits and settings.
#[derive(Clone)]
struct Row {
    logits: Vec<f32>,
    temperature: f32,
    top_k: i32,
    top_p: f32,
    seed: [i32; 2],
    counter: i32,
}

fn put(be: &dyn Backend, values: &Tensor, dtype: DType) -> Tensor {
    let mut tensor = be.alloc(values.shape(), dtype).unwrap();
    be.write(&mut tensor, values).unwrap();
    tensor
}

fn sample(be: &dyn Backend, rows: &[Row]) -> (Vec<i32>, Vec<f64>) {
    let (b, v) = (rows.len(), rows[0].logits.len());
    let floats = |of: &dyn Fn(&Row) -> Vec<f32>| rows.iter().flat_map(of).collect::<Vec<f32>>();
    let ints = |of: &dyn Fn(&Row) -> Vec<i32>| rows.iter().flat_map(of).collect::<Vec<i32>>();
    let logits = put(be, &Tensor::from_slice(&[b, v], &floats(&|r| r.logits.clone())), be.accumulator());
    let temperature = put(be, &Tensor::from_slice(&[b], &floats(&|r| vec![r.temperature])), DType::F32);
    let top_p = put(be, &Tensor::from_slice(&[b], &floats(&|r| vec![r.top_p])), DType::F32);
    let top_k = put(be, &Tensor::from_slice(&[b], &ints(&|r| vec![r.top_k])), DType::I32);
    let seed = put(be, &Tensor::from_slice(&[b, 2], &ints(&|r| r.seed.to_vec())), DType::I32);
    let counter = put(be, &Tensor::from_slice(&[b], &ints(&|r| vec![r.counter])), DType::I32);
    let sampling = Sampling { temperature: &temperature, top_p: &top_p, top_k: &top_k, seed: &seed, counter: &counter };
    let (mut ids, mut logp) = (be.alloc(&[b], DType::I32).unwrap(), be.alloc(&[b], be.accumulator()).unwrap());
    ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(be).unwrap();
    let logp = match logp.dtype() {
        DType::F64 => logp.slice::<f64>().to_vec(),
        _ => be.read(&logp).unwrap().into_iter().map(f64::from).collect(),
    };
    (be.read_i32(&ids).unwrap(), logp)
}

/// How far, as a share of the weight, the row's number is from a step between two ids, and the cut of top-p from a step between two
/// ranks; and what f32 may be off by, as a share: in z = (logit - max) / temperature three roundings of |z|, exp two units in the last
/// place, a sum of sixteen in f32 four roundings; in fixed point 2^-41 an id.
fn margin_and_bound(row: &Row) -> (f64, f64) {
    let max = row.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let z: Vec<f64> =
        row.logits.iter().map(|&l| (f64::from(l) - f64::from(max)) / f64::from(row.temperature)).collect();
    let weight: Vec<f64> = z.iter().map(|z| z.exp()).collect();
    let total: f64 = weight.iter().sum();
    let unit = f64::from(f32::EPSILON) / 2.0;
    let off = |(&z, &w): (&f64, &f64)| if w > 0.0 { w / total * (3.0 * z.abs() + 8.0) * unit } else { 0.0 };
    let bound = 2.0 * z.iter().zip(&weight).map(off).sum::<f64>() + z.len() as f64 * 2f64.powi(-41);
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    order.truncate(if row.top_k == 0 { z.len() } else { row.top_k as usize });
    let (held_by_k, mut margin): (f64, f64) = (order.iter().map(|&i| weight[i]).sum(), f64::INFINITY);
    let (enough, mut held) = (f64::from(row.top_p) * held_by_k, 0.0);
    let mut kept = vec![];
    for id in order {
        if row.top_p < 1.0 && held >= enough {
            break;
        }
        kept.push(id);
        held += weight[id];
        if row.top_p < 1.0 {
            margin = margin.min((held - enough).abs() / held_by_k);
        }
    }
    kept.sort();
    let words = philox4x32([row.counter as u32, 0, 0, 0], row.seed.map(|s| s as u32));
    let (target, mut cumulated) = (f64::from(unit_f32(words[0])) * held, 0.0);
    margin = margin.min(target / held);
    for id in kept {
        cumulated += weight[id];
        margin = margin.min((cumulated - target).abs() / held);
    }
    // Shares of the kept weight rather than of the whole.
    (margin, bound * total / held.min(held_by_k))
}

/// Ids must be the oracle's but where rounding may matter; log-probabilities its own within f32's rounding.
fn compare(rows: &[Row]) {
    let (exact, _) = sample(&Oracle::f64(), rows);
    let mut first = None;
    for (order, random) in ORDERS {
        let (ids, logp) = sample(&gpu(order, random, true), rows);
        let mut differing = 0;
        for (i, row) in rows.iter().enumerate() {
            if ids[i] != exact[i] {
                differing += 1;
                let (margin, bound) = margin_and_bound(row);
                let (v, t, k, p) = (row.logits.len(), row.temperature, row.top_k, row.top_p);
                assert!(
                    t > 0.0 && margin <= bound,
                    "V {v} temperature {t} top_k {k} top_p {p}: id {} for {}, {margin:e} from a step, allowed {bound:e}",
                    ids[i],
                    exact[i]
                );
            }
            let max = row.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let divisor = if row.temperature == 0.0 { 1.0 } else { f64::from(row.temperature) };
            let z = |l: f32| (f64::from(l) - f64::from(max)) / divisor;
            let log_sum = row.logits.iter().map(|&l| z(l).exp()).sum::<f64>().ln();
            let expected = z(row.logits[ids[i] as usize]) - log_sum;
            // z in three roundings, the sum a few units in the last place, the result one.
            let bound = (4.0 * expected.abs() + 4.0 * log_sum + 32.0) * f64::from(f32::EPSILON);
            assert!((logp[i] - expected).abs() <= bound, "log-probability {} for {expected}", logp[i]);
        }
        assert!(20 * differing <= rows.len(), "{differing} of {} rows differ", rows.len());
        match &first {
            None => first = Some((ids, logp)),
            Some(first) => assert_eq!(&(ids, logp), first, "the draw depends on the thread order"),
        }
    }
}

/// Rows of random logits of deviation 3, each with the settings of `settings` in turn: (temperature, top_k, top_p).
fn rows(b: usize, v: usize, settings: &[(f32, i32, f32)]) -> Vec<Row> {
    let mut random = Philox::new(v as u64, 0);
    let mut row = |i: usize| {
        let (temperature, top_k, top_p) = settings[i % settings.len()];
        let logits = (0..v).map(|_| random.normal() as f32 * 3.0).collect();
        let seed = [random.bits() as i32, random.bits() as i32];
        Row { logits, temperature, top_k, top_p, seed, counter: i as i32 }
    };
    (0..b).map(&mut row).collect()
}

const PLAIN: (f32, i32, f32) = (1.0, 0, 1.0);

#[test]
fn plain_draws_are_the_oracles() {
    // One span; rows that are not 16-byte aligned; all spans; more than one id a thread in a span.
    for (b, v) in [(12, 5), (12, 1000), (8, 4099), (2, 40_000)] {
        compare(&rows(b, v, &[PLAIN, (0.7, 0, 1.0), (0.0, 0, 1.0), (1.3, 0, 1.0)]));
    }
}

#[test]
fn top_k_and_top_p_draws_are_the_oracles() {
    let settings = [
        (1.0, 1, 1.0),
        (1.0, 3, 1.0),
        (0.7, 50, 1.0),
        (1.0, 0, 0.9),
        (1.3, 0, 0.5),
        (1.0, 50, 0.95),
        (0.8, 3, 0.3),
        (1.0, 4000, 0.999),
        (0.0, 3, 0.3),
        (1.0, 0, 1e-6),
    ];
    for (b, v) in [(10, 5), (10, 1000), (10, 4099)] {
        compare(&rows(b, v, &settings));
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    // Logits of a few values, so that a threshold has many ids; more than fit the list of one bin (4096), too.
    for (v, values) in [(700, 7), (5000, 1), (5003, 2)] {
        let mut all = rows(
            6,
            v,
            &[PLAIN, (1.0, 100, 1.0), (1.0, 0, 0.41), (1.0, 333, 0.77), (0.0, 0, 1.0), (1.0, v as i32 - 1, 1.0)],
        );
        let mut random = Philox::new(1, 0);
        for row in &mut all {
            row.logits.iter_mut().for_each(|l| *l = random.below(values) as f32 * 0.5);
        }
        compare(&all);
    }
}

#[test]
fn unusual_logits_and_settings_are_the_oracles() {
    let seed = [1, 2];
    let row = |logits: Vec<f32>, temperature, top_k, top_p| {
        (0..2).map(move |counter| Row { logits: logits.clone(), temperature, top_k, top_p, seed, counter })
    };
    let infinity = f32::NEG_INFINITY;
    let mut all = vec![];
    for (top_k, top_p) in [(0, 1.0), (2, 1.0), (4, 0.9)] {
        for temperature in [0.0, 1.0, 1e-40] {
            all.extend(row(vec![infinity, 3.0, infinity, 2.5, infinity, infinity], temperature, top_k, top_p));
            all.extend(row(vec![-1e30, 1e30, 0.0, -0.0, 5.0, 1e30], temperature, top_k, top_p));
            all.extend(row(vec![-0.0, 0.0, -0.0, 0.0, 1.0, -80.0], temperature, top_k, top_p));
        }
    }
    compare(&all);
}

#[test]
fn a_row_that_has_no_distribution_shows() {
    let be = gpu(Order::Forward, 0, true);
    let good = Row { logits: vec![0.0; 6], temperature: 1.0, top_k: 0, top_p: 0.9, seed: [0, 0], counter: 0 };
    let bad = |at: usize, value: f32| {
        let mut row = good.clone();
        row.logits[at] = value;
        row
    };
    let none = Row { logits: vec![f32::NEG_INFINITY; 6], ..good.clone() };
    let negative = Row { temperature: -1.0, ..good.clone() };
    let (ids, logp) =
        sample(&be, &[bad(2, f32::NAN), bad(5, f32::INFINITY), none, negative, good.clone(), bad(0, f32::NAN)]);
    assert_eq!([ids[0], ids[1], ids[2], ids[3], ids[5]], [0; 5]);
    assert_eq!(logp.iter().map(|p| p.is_nan()).collect::<Vec<_>>(), [true, true, true, true, false, true]);
}

#[test]
fn counters_draw_from_the_distribution() {
    let be = gpu(Order::Forward, 0, true);
    let logits = vec![0.0, 1.0, -1.0, 0.5, 2.0];
    let n = 1000;
    let row = |counter| Row { logits: logits.clone(), temperature: 1.0, top_k: 0, top_p: 1.0, seed: [5, 6], counter };
    let (ids, _) = sample(&be, &(0..n).map(row).collect::<Vec<_>>());
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let mut chi_square = 0.0;
    for (id, &logit) in logits.iter().enumerate() {
        let seen = ids.iter().filter(|&&i| i == id as i32).count() as f64;
        let expected = f64::from(n) * f64::from(logit).exp() / total;
        chi_square += (seen - expected).powi(2) / expected;
    }
    // Four degrees: above 27 for one seed in 50,000.
    assert!(chi_square < 27.0, "{chi_square}");
}
