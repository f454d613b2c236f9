//! The optimiser's ops: gradient norm, AdamW (arXiv 1711.05101) and merging an adapter into its weight.

use super::{Real, store, widen};
use crate::backend::{AdamW, Lora};
use crate::tensor::Tensor;

/// The sum of squares, added in order in f64.
pub fn squared_norm<R: Real>(values: &[R]) -> f64 {
    values.iter().fold(0.0, |sum, v| sum + v.f64() * v.f64())
}

/// One step on one tensor.
pub fn adamw<R: Real>(step: &AdamW, param: &mut [R], grad: &[R], m: &mut [R], v: &mut [R]) {
    let (beta1, beta2) = (f64::from(step.beta1), f64::from(step.beta2));
    let steps = f64::from(step.step);
    let (correct1, correct2) = (R::of(1.0 - beta1.powf(steps)), R::of(1.0 - beta2.powf(steps)));
    let (keep1, keep2) = (R::of(beta1), R::of(beta2));
    let [lr, eps, decay, grad_scale] = [step.lr, step.eps, step.weight_decay, step.grad_scale].map(|x| R::of(x.into()));
    for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
        let g = g * grad_scale;
        *m = keep1 * *m + (R::one() - keep1) * g;
        *v = keep2 * *v + (R::one() - keep2) * g * g;
        *p -= lr * (*m / correct1 / ((*v / correct2).sqrt() + eps) + decay * *p);
    }
}

/// w (N, K) += scale * B A, computed in `R` and rounded once to w's type.
pub fn merge_lora<R: Real>(w: &mut Tensor, lora: &Lora) {
    let (k, r, scale) = (w.columns(), lora.a.rows(), R::of(lora.scale.into()));
    let (a, b) = (widen::<R>(lora.a), widen::<R>(lora.b));
    let mut merged = widen::<R>(w).into_owned();
    let mut change = vec![R::zero(); k]; // a row of B A
    for (n, row) in merged.chunks_exact_mut(k).enumerate() {
        change.fill(R::zero());
        for j in 0..r {
            change.iter_mut().zip(&a[j * k..]).for_each(|(sum, &a)| *sum += b[n * r + j] * a);
        }
        row.iter_mut().zip(&change).for_each(|(w, &change)| *w += scale * change);
    }
    store(&merged, w);
}
