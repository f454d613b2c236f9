//! The optimiser's ops: gradient norm and AdamW (arXiv 1711.05101).

use super::real::Real;
use crate::backend::ops::{self, AdamW};

/// Adds the squares of each tensor in order, then the tensors' sums.
pub(super) fn squared_norm<R: Real>(op: ops::SquaredNorm) {
    let squares = |values: &[R]| values.iter().fold(0.0, |sum, v| sum + v.f64() * v.f64());
    *op.sum = op.tensors.iter().fold(0.0, |sum, t| sum + squares(t.slice()));
}

/// Updates tensor by tensor.
pub(super) fn adamw<R: Real>(op: ops::AdamWStep) {
    for t in op.tensors {
        update::<R>(&op.settings, t.param.slice_mut(), t.grad.slice(), t.m.slice_mut(), t.v.slice_mut());
    }
}

/// Takes one step on one tensor.
fn update<R: Real>(step: &AdamW, param: &mut [R], grad: &[R], m: &mut [R], v: &mut [R]) {
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
