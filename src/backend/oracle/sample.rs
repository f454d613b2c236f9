//! Sampling of tokens: temperature, top-k, top-p, then inverse transform with one Philox number. All arithmetic in f64.

use super::real::Real;
use crate::backend::ops::{self, no_distribution};
use crate::error::Result;
use crate::rng::{philox4x32, unit_f32};

/// Draws row by row. Error: a row without a finite logit, or with one that is NaN or +inf.
pub(super) fn sample<R: Real>(op: ops::Sample) -> Result<()> {
    let (logits, v, sampling) = (op.logits.slice::<R>(), op.logits.columns(), op.sampling);
    let (ids, logp) = (op.ids.slice_mut::<i32>(), op.logp.slice_mut::<R>());
    let (temperature, top_p) = (sampling.temperature.slice::<f32>(), sampling.top_p.slice::<f32>());
    let (top_k, seed) = (sampling.top_k.slice::<i32>(), sampling.seed.slice::<i32>());
    let counter = sampling.counter.slice::<i32>();
    let mut row = vec![0.0; v];
    for b in 0..ids.len() {
        for (z, &logit) in row.iter_mut().zip(&logits[b * v..][..v]) {
            *z = logit.f64();
        }
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !max.is_finite() || row.iter().any(|z| z.is_nan()) {
            return Err(no_distribution(b));
        }
        let greedy = temperature[b] == 0.0;
        let divisor = if greedy { 1.0 } else { f64::from(temperature[b]) };
        for z in &mut row {
            *z = (*z - max) / divisor;
        }
        let random = philox4x32([counter[b] as u32, 0, 0, 0], [seed[2 * b] as u32, seed[2 * b + 1] as u32])[0];
        let id = if greedy {
            row.iter().position(|&z| z == 0.0).unwrap_or(0)
        } else {
            draw(&row, top_k[b] as usize, top_p[b].into(), unit_f32(random).into())
        };
        ids[b] = id as i32;
        logp[b] = R::of(row[id] - row.iter().map(|z| z.exp()).sum::<f64>().ln());
    }
    Ok(())
}

/// Draws one id from logits whose largest is 0. Keeps the `top_k` most probable ids (0: all), and of these the fewest
/// that hold `top_p` of their probability, ties to the lower id. Returns the first of the kept ids, in ascending order,
/// at which the cumulated probability passes `u`.
fn draw(logits: &[f64], top_k: usize, top_p: f64, u: f64) -> usize {
    let mut weights: Vec<f64> = logits.iter().map(|z| z.exp()).collect();
    if top_k > 0 || top_p < 1.0 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let mut kept = if top_k == 0 { order.len() } else { top_k.min(order.len()) };
        if top_p < 1.0 {
            let enough = top_p * order[..kept].iter().map(|&id| weights[id]).sum::<f64>();
            let mut held = 0.0;
            kept = 1 + order[..kept - 1]
                .iter()
                .take_while(|&&id| {
                    held += weights[id];
                    held < enough
                })
                .count();
        }
        order[kept..].iter().for_each(|&id| weights[id] = 0.0);
    }
    let total: f64 = weights.iter().sum();
    let mut cumulated = 0.0;
    let mut last = 0;
    for (id, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        cumulated += weight;
        last = id;
        if cumulated > u * total {
            return id;
        }
    }
    last // rounding left the total above the cumulated sum
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn a_draw_beyond_the_total_is_the_last_possible_id() {
        assert_eq!(draw(&[0.0, -1.0, f64::NEG_INFINITY], 0, 1.0, 1.0), 1);
        assert_eq!(draw(&[-1.0, 0.0, -0.5], 2, 1.0, 1.0), 2);
        assert_eq!(draw(&[-1.0, 0.0, -0.5], 1, 1.0, 1.0), 1);
    }
}
