//! Row loops compiled for each instruction set and chosen when the program runs; the exponential they share.
//!
//! Only plain sums and products in a fixed order of sixteen lanes, never fused: the bits are the same on every instruction set.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::borrow::Cow;

use crate::tensor::{DType, Tensor};

/// The instruction set in force.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// AVX-512F with AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the target has by definition.
    Portable,
}

/// The best instruction set of this processor.
pub(super) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if avx2 && is_x86_feature_detected!("avx512f") {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Elements of a float tensor of any storage type.
#[derive(Clone, Copy)]
pub(super) enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    F64(&'a [f64]),
}

impl<'a> Floats<'a> {
    /// The elements of a float tensor.
    pub fn of(tensor: &'a Tensor) -> Self {
        match tensor.dtype() {
            DType::F16 => Self::F16(tensor.slice()),
            DType::BF16 => Self::BF16(tensor.slice()),
            DType::F64 => Self::F64(tensor.slice()),
            _ => Self::F32(tensor.slice()),
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F16(x) => x.len(),
            Self::BF16(x) => x.len(),
            Self::F64(x) => x.len(),
        }
    }

    /// Without the first `start` elements.
    pub fn from(self, start: usize) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[start..]),
            Self::F16(x) => Self::F16(&x[start..]),
            Self::BF16(x) => Self::BF16(&x[start..]),
            Self::F64(x) => Self::F64(&x[start..]),
        }
    }

    /// `out.len()` elements from `start`, as f32.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::F32(x) => out.copy_from_slice(&x[start..start + out.len()]),
            Self::F16(x) => x[start..start + out.len()].convert_to_f32_slice(out),
            Self::BF16(x) => widen_bf16(&x[start..start + out.len()], out),
            Self::F64(x) => out.iter_mut().zip(&x[start..]).for_each(|(o, x)| *o = *x as f32),
        }
    }

    /// A small tensor as f32: a norm's weight, a bias.
    pub fn small(tensor: &'a Tensor) -> Cow<'a, [f32]> {
        match Self::of(tensor) {
            Self::F32(x) => Cow::Borrowed(x),
            floats => {
                let mut wide = vec![0.0; tensor.len()];
                floats.widen(0, &mut wide);
                Cow::Owned(wide)
            }
        }
    }
}

/// Compiles a function for each instruction set and calls the best one.
macro_rules! for_each_level {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx2")]
                fn avx512($($arg: $type),*) $(-> $out)? { plain($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $out)? { plain($($arg),*) }
                match level() {
                    // SAFETY: the processor has the features of its level.
                    Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: the processor has the features of its level.
                    Level::Avx2 => return unsafe { avx2($($arg),*) },
                    Level::Portable => {}
                }
            }
            plain($($arg),*)
        }
    )*};
}

/// e^x with a relative error below 2.5 ulp (measured over all arguments: see the test); 0 below -87.33, at most e^88.37.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOW: f32 = -87.33;
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let y = if x > 88.37 { 88.37 } else { x };
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts (Cody and Waite): the first has few enough bits that n times it is exact.
    let r = (y - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // The polynomial of Cephes' expf on [-ln 2 / 2, ln 2 / 2].
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = (p * (r * r) + r) + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LOW { 0.0 } else { value * scale }
}

/// Lanes of every reduction.
const LANES: usize = 16;

/// The sum of `f` over pairs, in sixteen lanes that are then added in a fixed tree.
#[inline(always)]
fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (i, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes[i] += f(*x, *y);
    }
    tree(lanes)
}

#[inline(always)]
fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

for_each_level! {
    fn widen_bf16(x: &[bf16], out: &mut [f32]) {
        for (o, x) in out.iter_mut().zip(x) {
            *o = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }

    /// The inner product.
    pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum2(x, y, |x, y| x * y)
    }

    /// y += x.
    pub(super) fn add(x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }

    /// x *= factor.
    pub(super) fn scale(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }

    /// One block of an online softmax: the scores become exp(score - new maximum); `state` is (maximum, sum) so far.
    /// Returns what earlier sums are multiplied by.
    pub(super) fn softmax_block(scores: &mut [f32], state: &mut (f32, f32)) -> f32 {
        let block = maximum(scores);
        let top = if block > state.0 { block } else { state.0 };
        if top == f32::NEG_INFINITY {
            return 1.0;
        }
        scores.iter_mut().for_each(|s| *s = exp(*s - top));
        let factor = exp(state.0 - top);
        *state = (top, state.1 * factor + sum2(scores, scores, |x, _| x));
        factor
    }

    /// x = exp(x - shift), then ds = x * (dp - delta) in place of dp.
    pub(super) fn softmax_gradient(x: &mut [f32], shift: f32, dp: &mut [f32], delta: f32) {
        for (x, dp) in x.iter_mut().zip(dp) {
            *x = exp(*x - shift);
            *dp = *x * (*dp - delta);
        }
    }

    /// y = silu(gate) * up.
    pub(super) fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + exp(-g)) * u;
        }
    }

    /// dgate and dup from dy.
    pub(super) fn swiglu_backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((dg, du), g), u), dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
            let sigmoid = 1.0 / (1.0 + exp(-g));
            *du = dy * (g * sigmoid);
            *dg = dy * u * (sigmoid * (1.0 + g * (1.0 - sigmoid)));
        }
    }

    /// y = x * factor * w.
    pub(super) fn scale_by(x: &[f32], factor: f32, w: &[f32], y: &mut [f32]) {
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * factor * w;
        }
    }

    /// dx += of y = x * rstd * w for one row of RMSNorm.
    pub(super) fn rmsnorm_backward(x: &[f32], rstd: f32, w: &[f32], dy: &[f32], dx: &mut [f32]) {
        let mut lanes = [0.0f32; LANES];
        for ((x, w), dy) in x.chunks(LANES).zip(w.chunks(LANES)).zip(dy.chunks(LANES)) {
            for (lane, ((x, w), dy)) in lanes.iter_mut().zip(x.iter().zip(w).zip(dy)) {
                *lane += dy * w * x;
            }
        }
        let mean = tree(lanes) * rstd * rstd / x.len() as f32;
        for (((dx, x), w), dy) in dx.iter_mut().zip(x).zip(w).zip(dy) {
            *dx += rstd * (dy * w - x * mean);
        }
    }

    /// dw += dy * x * rstd.
    pub(super) fn rmsnorm_weight(x: &[f32], rstd: f32, dy: &[f32], dw: &mut [f32]) {
        for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
            *dw += dy * (x * rstd);
        }
    }

    /// Rotates the two halves of each head; `table` holds HS/2 cosines and HS/2 sines, which are multiplied by `sign`.
    pub(super) fn rotate(heads: &mut [f32], table: &[f32], sign: f32) {
        let half = table.len() / 2;
        let (cos, sin) = table.split_at(half);
        for head in heads.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (x, y, s) = (*a, *b, s * sign);
                *a = x * c - y * s;
                *b = y * c + x * s;
            }
        }
    }

    /// One block of logits into the running (maximum, sum of exp, sum of exp times logit - maximum) of a row.
    pub(super) fn entropy_block(logits: &[f32], state: &mut (f32, f32, f32)) {
        let block = maximum(logits);
        let top = if block > state.0 { block } else { state.0 };
        if top == f32::NEG_INFINITY {
            return;
        }
        let (mut sums, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
        let chunks = logits.chunks_exact(LANES);
        let rest = chunks.remainder();
        for x in chunks {
            for i in 0..LANES {
                let e = exp(x[i] - top);
                sums[i] += e;
                products[i] += if e > 0.0 { e * (x[i] - top) } else { 0.0 };
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let e = exp(x - top);
            sums[i] += e;
            products[i] += if e > 0.0 { e * (x - top) } else { 0.0 };
        }
        let (sum, product) = (tree(sums), tree(products));
        // Earlier blocks were relative to the earlier maximum.
        let (factor, shift) = if state.1 > 0.0 { (exp(state.0 - top), state.0 - top) } else { (0.0, 0.0) };
        *state = (top, state.1 * factor + sum, (state.2 + state.1 * shift) * factor + product);
    }

    /// Logits become gradients: x = p * (-dlogp - dentropy * (log p + entropy)) * scale; the target's share is added apart.
    pub(super) fn logit_gradient(x: &mut [f32], lse: f32, dlogp: f32, dentropy: f32, entropy: f32, scale: f32) {
        for x in x {
            let log_p = *x - lse;
            *x = exp(log_p) * (-dlogp - dentropy * (log_p + entropy)) * scale;
        }
    }

    /// One AdamW step: decay factor, betas, gradient factor, and the bias corrections folded into `rate` and `root`.
    pub(super) fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamFactors) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * c.grad;
            *m = c.beta1 * *m + c.rest1 * g;
            *v = c.beta2 * *v + c.rest2 * g * g;
            *p = *p * c.decay - c.rate * *m / ((*v * c.root).sqrt() + c.eps);
        }
    }
}

/// What one AdamW step multiplies by: see `adamw`.
pub(super) struct AdamFactors {
    /// Of the gradient.
    pub grad: f32,
    /// Of the moments, and of what is new in them.
    pub beta1: f32,
    pub rest1: f32,
    pub beta2: f32,
    pub rest2: f32,
    /// 1 - lr * weight decay.
    pub decay: f32,
    /// lr / (1 - beta1^step).
    pub rate: f32,
    /// 1 / (1 - beta2^step).
    pub root: f32,
    pub eps: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_and_a_half_ulp() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -87.3 + 175.6 * (step as f32 / 2_000_000.0);
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        }
        assert!(worst < 2.5, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
