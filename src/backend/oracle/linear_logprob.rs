//! The head and its log-softmax in one op, one row of logits in memory at a time.

use super::{Real, dot};

/// logits (V) of one row x (C) over w (V, C), divided by the temperature.
fn scaled_logits<R: Real>(x: &[R], w: &[R], temperature: R, logits: &mut [R]) {
    for (logit, w) in logits.iter_mut().zip(w.chunks_exact(x.len())) {
        *logit = dot(x, w) / temperature;
    }
}

/// x (M, C), w (V, C), targets (M) -> log-probability of the target, entropy and log-sum-exp of the distribution, each (M).
#[allow(clippy::too_many_arguments)]
pub fn linear_logprob<R: Real>(
    x: &[R],
    w: &[R],
    c: usize,
    targets: &[i32],
    temperature: f32,
    logp: &mut [R],
    entropy: &mut [R],
    lse: &mut [R],
) {
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

/// Writes dx (M, C) whole and accumulates dw (V, C) when wanted:
/// dlogit_j = (dlogp (1[j = target] - p_j) - dentropy p_j (log p_j + H)) / temperature.
#[allow(clippy::too_many_arguments)]
pub fn linear_logprob_backward<R: Real>(
    x: &[R],
    w: &[R],
    c: usize,
    targets: &[i32],
    temperature: f32,
    entropy: &[R],
    lse: &[R],
    dlogp: &[R],
    dentropy: Option<&[R]>,
    dx: &mut [R],
    mut dw: Option<&mut [R]>,
) {
    let temperature = R::of(temperature.into());
    let mut logits = vec![R::zero(); w.len() / c];
    dx.fill(R::zero());
    for (m, (x, dx)) in x.chunks_exact(c).zip(dx.chunks_exact_mut(c)).enumerate() {
        scaled_logits(x, w, temperature, &mut logits);
        for (j, &logit) in logits.iter().enumerate() {
            let (logp, w) = (logit - lse[m], &w[j * c..][..c]);
            let p = logp.exp();
            let hit = if j == targets[m] as usize { R::one() } else { R::zero() };
            // p log p tends to 0, also where log p is -inf.
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
