//! The critic's squared error with PPO2's clip around the old value; per token, in f64.

use super::real::Real;
use crate::backend::ops;
use crate::tensor::Tensor;

/// Computes the weighted sum of 0.5 max((v - t)^2, (v' - t)^2), with v' = v clipped to old_value +- clip.
pub(super) fn value_loss<R: Real>(op: ops::ValueLoss) {
    let ops::ValueLoss { clip, inputs, .. } = op;
    let at = |t: &Tensor, i: usize| t.slice::<R>()[i].f64();
    let mut loss = 0.0;
    for (i, dvalue) in op.dvalue.slice_mut::<R>().iter_mut().enumerate() {
        let (value, old, target) = (at(inputs.value, i), at(inputs.old_value, i), at(inputs.target, i));
        let plain = value - target;
        let clipped = clip.map_or(plain, |c| value.clamp(old - f64::from(c), old + f64::from(c)) - target);
        // Where the clipped error is the larger one, the value lies outside the clip range: its gradient is 0.
        let (error, gradient) = if clipped.abs() > plain.abs() { (clipped, 0.0) } else { (plain, plain) };
        loss += at(inputs.weight, i) * 0.5 * error * error;
        *dvalue = R::of(at(inputs.weight, i) * gradient);
    }
    *op.loss = loss;
}
