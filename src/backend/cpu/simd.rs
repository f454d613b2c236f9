//! Row loops compiled for each instruction set and chosen when the program runs, and the exponential they share.
//!
//! They use only plain sums and products in a fixed order of sixteen lanes, never fused, so the bits are the same on
//! every instruction set.

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
    /// The instructions every processor of the target has.
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
    /// Borrows the elements of a float tensor.
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

    /// Drops the first `start` elements.
    pub fn from(self, start: usize) -> Self {
        match self {
            Self::F32(x) => Self::F32(&x[start..]),
            Self::F16(x) => Self::F16(&x[start..]),
            Self::BF16(x) => Self::BF16(&x[start..]),
            Self::F64(x) => Self::F64(&x[start..]),
        }
    }

    /// Copies `out.len()` elements from `start` on, as f32.
    pub fn widen(&self, start: usize, out: &mut [f32]) {
        match self {
            Self::F32(x) => out.copy_from_slice(&x[start..start + out.len()]),
            Self::F16(x) => x[start..start + out.len()].convert_to_f32_slice(out),
            Self::BF16(x) => widen_bf16(&x[start..start + out.len()], out),
            Self::F64(x) => out.iter_mut().zip(&x[start..]).for_each(|(o, x)| *o = *x as f32),
        }
    }

    /// Returns a small tensor, such as a norm's weight or a bias, as f32.
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

/// Keys per block of attention.
pub(super) const KEYS: usize = 64;

/// The number of keys of a block that each row sees: `first` for the first `group` rows, one more for each next group,
/// up to `count`.
pub(super) struct Seen {
    pub first: usize,
    pub group: usize,
    pub count: usize,
}

impl Seen {
    #[inline(always)]
    fn by_row(&self, row: usize) -> usize {
        self.count.min(self.first + row / self.group)
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

/// Computes e^x with an error below 1 ulp (measured: see the test); 0 below -87.33, at most e^88.37.
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

/// Lanes per reduction.
const LANES: usize = 16;

/// Sums `f` over pairs in sixteen lanes, which are then added in a fixed tree.
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
fn tree(lanes: [f32; LANES]) -> f32 {
    fold(lanes, |a, b| a + b)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Returns the largest element. A NaN is either skipped or returned.
#[inline(always)]
fn maximum(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = larger(x[i], lanes[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*x, *lane);
    }
    fold(lanes, larger)
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

    /// x = exp(x - top).
    pub(super) fn exponentials(x: &mut [f32], top: f32) {
        x.iter_mut().for_each(|x| *x = exp(*x - top));
    }

    /// Takes one block of an online softmax over rows of `KEYS` scores. Scores become exp(score - maximum so far),
    /// hidden ones 0; the running maxima and sums are updated, and the rows of `o` (M, width) are scaled to the new
    /// maxima.
    pub(super) fn softmax_rows(
        scores: &mut [f32],
        seen: &Seen,
        tops: &mut [f32],
        sums: &mut [f32],
        o: &mut [f32],
        width: usize,
    ) {
        for (i, (scores, o)) in scores.chunks_exact_mut(KEYS).zip(o.chunks_exact_mut(width)).enumerate() {
            let (seen, hidden) = scores.split_at_mut(seen.by_row(i));
            let top = larger(maximum(seen), tops[i]);
            let shift = if top > f32::NEG_INFINITY { top } else { 0.0 };
            seen.iter_mut().for_each(|s| *s = exp(*s - shift));
            let factor = exp(tops[i] - shift);
            sums[i] = sums[i] * factor + sum2(seen, seen, |x, _| x);
            tops[i] = top;
            hidden.fill(0.0);
            o.iter_mut().for_each(|o| *o *= factor);
        }
    }

    /// Computes p = exp(score - lse), in place of the scores, and ds = p * (dp - delta), in place of dp, over rows of
    /// `KEYS` scores; hidden ones become 0.
    pub(super) fn softmax_gradient_rows(p: &mut [f32], dp: &mut [f32], seen: &Seen, lse: &[f32], delta: &[f32]) {
        for (i, (p, dp)) in p.chunks_exact_mut(KEYS).zip(dp.chunks_exact_mut(KEYS)).enumerate() {
            let visible = seen.by_row(i);
            for (p, dp) in p[..visible].iter_mut().zip(&mut dp[..visible]) {
                *p = exp(*p - lse[i]);
                *dp = *p * (*dp - delta[i]);
            }
            p[visible..].fill(0.0);
            dp[visible..].fill(0.0);
        }
    }

    /// y = silu(gate) * up.
    pub(super) fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g / (1.0 + exp(-g)) * u;
        }
    }

    /// Computes dgate and dup from dy.
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

    /// Adds to dx the gradient of y = x * rstd * w for one row of RMSNorm.
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

    /// Rotates the two halves of each head; `table` holds HS/2 cosines, then HS/2 sines, which are multiplied by
    /// `sign`.
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

    /// Adds one block of logits to a row's running (maximum, sum of exp, sum of exp times (logit - maximum)).
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
        // The sums of earlier blocks are relative to the earlier maximum.
        let (factor, shift) = if state.1 > 0.0 { (exp(state.0 - top), state.0 - top) } else { (0.0, 0.0) };
        *state = (top, state.1 * factor + sum, (state.2 + state.1 * shift) * factor + product);
    }

    /// Turns logits into gradients: x = p * (-dlogp - dentropy * (log p + entropy)) * scale. The target's share is
    /// added separately.
    pub(super) fn logit_gradient(x: &mut [f32], lse: f32, dlogp: f32, dentropy: f32, entropy: f32, scale: f32) {
        for x in x {
            let log_p = *x - lse;
            *x = exp(log_p) * (-dlogp - dentropy * (log_p + entropy)) * scale;
        }
    }

    /// Takes one AdamW step; the bias corrections are folded into `rate` and `root`.
    pub(super) fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: &AdamFactors) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * c.grad;
            *m = c.beta1 * *m + c.rest1 * g;
            *v = c.beta2 * *v + c.rest2 * g * g;
            *p = *p * c.decay - c.rate * *m / ((*v * c.root).sqrt() + c.eps);
        }
    }
}

/// Factors of one AdamW step; see `adamw`.
pub(super) struct AdamFactors {
    /// Factor of the gradient.
    pub grad: f32,
    /// Factors of the moments (`beta1`, `beta2`) and of what is added to them (`rest1`, `rest2`).
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
    fn exp_is_within_one_ulp() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -87.3 + 175.6 * (step as f32 / 2_000_000.0);
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
        }
        assert!(worst < 1.0, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
