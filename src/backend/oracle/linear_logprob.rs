//! The language-model head and its log-softmax in one op, with one row of logits in memory at a time.

use super::linear::matmul_nt;
use super::real::{Real, dot, widen};
use crate::backend::ops;

/// Computes the logits (V) of one row x (C) over w (V, C), divided by the temperature.
fn scaled_logits<R: Real>(x: &[R], w: &[R], temperature: R, logits: &mut [R]) {
    for (logit, w) in logits.iter_mut().zip(w.chunks_exact(x.len())) {
        *logit = dot(x, w) / temperature;
    }
}

/// Computes `LinearLogprob` row by row.
pub(super) fn linear_logprob<R: Real>(op: ops::LinearLogprob) {
    let (x, w, c, temperature) = (op.x.slice::<R>(), widen::<R>(op.w), op.w.columns(), op.temperature);
    let (w, targets) = (&*w, op.targets.slice::<i32>());
    let (logp, entropy, lse) = (op.logp.slice_mut::<R>(), op.entropy.slice_mut::<R>(), op.lse.slice_mut::<R>());
    let mut logits = vec![R::zero(); w.len() / c];
    for (m, x) in x.chunks_exact(c).enumerate() {
        scaled_logits(x, w, R::of(temperature.into()), &mut logits);
        let max = logits.iter().copied().fold(R::neg_infinity(), R::max);
        let sum = logits.iter().fold(R::zero(), |sum, &z| sum + (z - max).exp());
        lse[m] = max + sum.ln();
        logp[m] = logits[targets[m] as usize] - lse[m];
        // H = -sum p log p = log(sum) - sum p (z - max), the shifted form of lse - E[z].
        entropy[m] = sum.ln() - logits.iter().fold(R::zero(), |e, &z| e + (z - max).exp() / sum * (z - max));
    }
}

/// Computes the gradients through dlogit_j = (dlogp (1[j = target] - p_j) - dentropy p_j (log p_j + H)) / temperature.
pub(super) fn linear_logprob_backward<R: Real>(op: ops::LinearLogprobBackward) {
    let (x, w, c, temperature) = (op.x.slice::<R>(), widen::<R>(op.w), op.w.columns(), op.temperature);
    let (w, targets) = (&*w, op.targets.slice::<i32>());
    let (entropy, lse, dlogp) = (op.entropy.slice::<R>(), op.lse.slice::<R>(), op.dlogp.slice::<R>());
    let dentropy = op.dentropy.map(|t| t.slice::<R>());
    let (dx, mut dw) = (op.dx.slice_mut::<R>(), op.dw.map(|t| t.slice_mut::<R>()));
    let temperature = R::of(temperature.into());
    let mut logits = vec![R::zero(); w.len() / c];
    dx.fill(R::zero());
    for (m, (x, dx)) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)).enumerate() {
        scaled_logits(x, w, temperature, &mut logits);
        for (j, &logit) in logits.iter().enumerate() {
            let (logp, w) = (logit - lse[m], &w[j * c..][..c]);
            let p = logp.exp();
            let hit = if j == targets[m] as usize { R::one() } else { R::zero() };
            // p log p tends to 0, even where log p is -inf.
            let dh =
                if p > R::zero() { dentropy.map_or(R::zero(), |d| d[m]) * p * (logp + entropy[m]) } else { R::zero() };
            let dlogit = (dlogp[m] * (hit - p) - dh) / temperature;
            for i in 0..c {
                dx[i] += dlogit * w[i];
            }
            if let Some(dw) = dw.as_deref_mut() {
                for i in 0..c {
                    dw[j * c + i] += dlogit * x[i];
                }
            }
        }
    }
}

/// Computes `Logits`.
pub(super) fn logits<R: Real>(op: ops::Logits) {
    let (v, c) = (op.w.rows(), op.w.columns());
    matmul_nt::<R>(op.x.slice(), &widen(op.w), c, op.out.slice_mut(), v, 0);
}
