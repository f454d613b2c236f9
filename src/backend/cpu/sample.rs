//! Sampling, rows in parallel, in f32. The exponential and the sums are those of `linear_logprob`, so the
//! log-probability of a drawn token has the bits that training computes for it.

use super::tasks::{chunk_rows, run};
use super::{linear_logprob, simd};
use crate::backend::ops::{self, no_distribution};
use crate::error::Result;
use crate::rng::{philox4x32, unit_f32};

/// Draws one id per row. Error: a row without a finite logit, or with one that is NaN or +inf.
pub(super) fn sample(op: ops::Sample) -> Result<()> {
    let (logits, v, sampling) = (op.logits.slice::<f32>(), op.logits.columns(), op.sampling);
    let (ids, logp) = (op.ids.slice_mut::<i32>(), op.logp.slice_mut::<f32>());
    let (temperature, top_p) = (sampling.temperature.slice::<f32>(), sampling.top_p.slice::<f32>());
    let (top_k, seed) = (sampling.top_k.slice::<i32>(), sampling.seed.slice::<i32>());
    let counter = sampling.counter.slice::<i32>();
    let rows = chunk_rows(v);
    let mut bad = vec![false; ids.len()];
    let outputs = ids.chunks_mut(rows).zip(logp.chunks_mut(rows)).zip(bad.chunks_mut(rows));
    run(logits.chunks(rows * v).zip(outputs).enumerate().collect(), |(chunk, (logits, ((ids, logp), bad)))| {
        let (mut z, mut order) = (vec![0.0f32; v], Vec::new());
        for (i, row) in logits.chunks_exact(v).enumerate() {
            let b = chunk * rows + i;
            z.copy_from_slice(row);
            let greedy = temperature[b] == 0.0;
            if !greedy {
                simd::scale(&mut z, temperature[b].recip());
            }
            let (top, log_sum) = linear_logprob::statistics(&z);
            bad[i] = !(top.is_finite() && log_sum.is_finite());
            if bad[i] {
                continue;
            }
            let id = if greedy {
                z.iter().position(|&z| z == top).unwrap_or(0)
            } else {
                let random = philox4x32([counter[b] as u32, 0, 0, 0], [seed[2 * b] as u32, seed[2 * b + 1] as u32])[0];
                let log_p = z.clone();
                simd::exponentials(&mut z, top);
                keep_most_probable(&log_p, &mut z, top_k[b] as usize, top_p[b].into(), &mut order);
                let id = draw(&z, unit_f32(random).into());
                z[id] = log_p[id];
                id
            };
            ids[i] = id as i32;
            logp[i] = z[id] - top - log_sum;
        }
    });
    match bad.iter().position(|&bad| bad) {
        None => Ok(()),
        Some(b) => Err(no_distribution(b)),
    }
}

/// Keeps the fewest of the `top_k` most probable ids (0: all) that hold `top_p` of their weight, ties to the lower id;
/// sets the weights of the others to 0.
fn keep_most_probable(logits: &[f32], weights: &mut [f32], top_k: usize, top_p: f64, order: &mut Vec<usize>) {
    let mut kept = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
    if kept == logits.len() && top_p >= 1.0 {
        return;
    }
    let before = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    order.clear();
    order.extend(0..logits.len());
    if kept < order.len() {
        order.select_nth_unstable_by(kept, before);
    }
    if top_p < 1.0 {
        order[..kept].sort_unstable_by(before);
        let enough = top_p * order[..kept].iter().map(|&id| f64::from(weights[id])).sum::<f64>();
        let mut held = 0.0;
        let short = order[..kept - 1].iter().take_while(|&&id| {
            held += f64::from(weights[id]);
            held < enough
        });
        kept = 1 + short.count();
    }
    order[kept..].iter().for_each(|&id| weights[id] = 0.0);
}

/// Returns the first id, in ascending order, at which the cumulated weight passes `u` times the total.
fn draw(weights: &[f32], u: f64) -> usize {
    let threshold = u * weights.iter().map(|&w| f64::from(w)).sum::<f64>();
    let (mut cumulated, mut last) = (0.0, 0);
    for (id, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        cumulated += f64::from(weight);
        last = id;
        if cumulated > threshold {
            return id;
        }
    }
    last // u is below 1, but rounding may leave the threshold at the total
}
