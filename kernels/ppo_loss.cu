// The clipped policy loss (PPO with dual clip, KL term and entropy bonus): gradients and the five weighted sums in one pass.
// A token's arithmetic is in f64, as in the oracle: M is thousands, so this costs microseconds, and sums of differences keep their
// digits. Block sums go out as partials; the host, which wants the statistics anyway, adds them in order. No more than that here.
#include "device.cuh"

constexpr int THREADS = 256;
enum { POLICY_LOSS, KL, ENTROPY, CLIP_FRACTION, APPROX_KL, SUMS };

struct Clip { float low, high, dual; };

// The objective of one token, its derivative by logp, and whether a clip was in force. clip.dual 0: none.
DEVICE void objective(const Clip& clip, double ratio, double advantage, double* value, double* derivative, bool* is_clipped) {
  double plain = ratio * advantage;
  double clipped = fmin(fmax(ratio, 1. - clip.low), 1. + clip.high) * advantage;
  double floor = clip.dual * advantage;
  if (clip.dual > 0. && advantage < 0. && fmin(plain, clipped) < floor) {
    *value = floor, *derivative = 0., *is_clipped = true;
  } else if (clipped < plain) {
    *value = clipped, *derivative = 0., *is_clipped = true;
  } else {
    *value = plain, *derivative = plain, *is_clipped = false;
  }
}

// The estimate of one token (0: k1, 1: k2, 2: k3) and its derivative by logp, from d = logp - reference and
// inverse = exp(-d).
DEVICE void kl_estimate(int estimator, double d, double inverse, double* value, double* derivative) {
  if (estimator == 0) {
    *value = d, *derivative = 1.;
  } else if (estimator == 1) {
    *value = d * d / 2., *derivative = d;
  } else {
    *value = inverse - 1. + d, *derivative = 1. - inverse;
  }
}

// All (M); partials (blocks, SUMS).
KERNEL(256) ppo_loss(const float* logp, const float* entropy, const float* behaviour, const float* reference, const float* advantage,
                     const float* weight, float* dlogp, float* dentropy, double* partials, i64 m, float clip_low, float clip_high,
                     float dual_clip, int kl_estimator, float kl_coefficient, float entropy_coefficient) {
  SHARED(double, shared, THREADS / 32);
  Clip clip = {clip_low, clip_high, dual_clip};
  double sums[SUMS] = {};
#pragma unroll 1
  for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < m; i += (i64)gridDim.x * THREADS) {
    double w = weight[i], now = logp[i], moved = now - behaviour[i], d = now - reference[i], ratio = 1., inverse = 1.;
#pragma unroll 1
    for (int turn = 0; turn < 2; turn++) ratio = inverse, inverse = exp(turn ? -d : moved);  // one copy of exp: two are a call that spills
    double value, derivative, kl, dkl;
    bool is_clipped;
    objective(clip, ratio, advantage[i], &value, &derivative, &is_clipped);
    kl_estimate(kl_estimator, d, inverse, &kl, &dkl);
    sums[POLICY_LOSS] -= w * value;
    sums[KL] += w * kl;
    sums[ENTROPY] += w * entropy[i];
    sums[CLIP_FRACTION] += is_clipped ? w : 0.;
    sums[APPROX_KL] += w * (ratio - 1. - moved);
    dlogp[i] = (float)(w * ((double)kl_coefficient * dkl - derivative));
    dentropy[i] = (float)(-w * (double)entropy_coefficient);
  }
#pragma unroll
  for (int s = 0; s < SUMS; s++) {
    double total = block_sum<THREADS / 32>(sums[s], shared);
    if (threadIdx.x == 0) partials[(i64)blockIdx.x * SUMS + s] = total;
  }
}
EXPORT(ppo_loss)
