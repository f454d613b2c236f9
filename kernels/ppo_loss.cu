// The policy loss (PPO's clip with dual clip, or CISPO's; KL term and entropy bonus): gradients, six weighted sums and
// the greatest ratio in one pass. A token's arithmetic is in f64, as in the oracle: M is in the thousands, so this
// costs microseconds, and sums of differences keep their digits. Blocks write their sums as partials; the host, which
// needs the statistics anyway, adds them in order.
#include "device.cuh"

constexpr int THREADS = 256;
enum { POLICY_LOSS, KL_LOSS, KL, ENTROPY, CLIP_FRACTION, APPROX_KL, SUMS };
// Bound on log ratios and differences: they are clamped to it, and have no gradient outside.
constexpr double MOST = 20.;

struct Clip { float low, high, dual; int is_cispo; };
struct Policy { double loss, dlogp; bool is_clipped; };

// Clamps x. A NaN stays NaN; fmin and fmax would drop it.
DEVICE double clamped(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// Computes the policy part of one token; `moves` is the derivative of the log ratio by logp. clip.dual 0 means none.
DEVICE Policy policy(const Clip& clip, double logp, double ratio, double moves, double advantage) {
  double within = clamped(ratio, 1. - clip.low, 1. + clip.high);
  double plain = -advantage * ratio, clipped = -advantage * within;
  if (clip.is_cispo) return {clipped * logp, clipped, within != ratio};
  bool is_clipped = clipped > plain;
  double loss = is_clipped ? clipped : plain, most = -advantage * clip.dual;
  bool is_bounded = clip.dual > 0. && advantage < 0. && loss > most;
  return {is_bounded ? most : loss, is_clipped || is_bounded ? 0. : plain * moves, is_clipped};
}

// Computes the KL estimate of one token (0: k1, 1: k2, 2: k3) and its derivative by logp, from d = logp - reference and
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

// Inputs, dlogp and dentropy (M); partials (blocks, SUMS + 1), with the greatest ratio last.
KERNEL(256) ppo_loss(const float* logp, const float* entropy, const float* behaviour, const float* reference, const float* advantage,
                     const float* weight, float* dlogp, float* dentropy, double* partials, i64 m, int is_cispo, float clip_low,
                     float clip_high, float dual_clip, int kl_estimator, float kl_coefficient, float entropy_coefficient) {
  SHARED(double, shared, THREADS / 32);
  SHARED(float, shared_max, THREADS / 32);
  Clip clip = {clip_low, clip_high, dual_clip, is_cispo};
  double sums[SUMS] = {};
  float ratio_max = 0.f;
#pragma unroll 1
  for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < m; i += (i64)gridDim.x * THREADS) {
    double w = weight[i], now = logp[i], moved = now - behaviour[i], d = now - reference[i], ratio = 1., inverse = 1.;
    double moves = fabs(moved) > MOST ? 0. : 1., kl_moves = fabs(d) > MOST ? 0. : 1.;
    moved = clamped(moved, -MOST, MOST), d = clamped(d, -MOST, MOST);
    // A loop, to keep one copy of exp: two would be a call that spills.
#pragma unroll 1
    for (int turn = 0; turn < 2; turn++) ratio = inverse, inverse = exp(turn ? -d : moved);
    double kl, dkl;
    Policy part = policy(clip, now, ratio, moves, advantage[i]);
    kl_estimate(kl_estimator, d, inverse, &kl, &dkl);
    sums[POLICY_LOSS] += w * part.loss;
    sums[KL_LOSS] += w * ratio * kl;
    sums[KL] += w * kl;
    sums[ENTROPY] += w * entropy[i];
    sums[CLIP_FRACTION] += part.is_clipped ? w : 0.;
    sums[APPROX_KL] += w * (ratio - 1. - moved);
    if (w > 0.) ratio_max = fmaxf(ratio_max, (float)ratio);
    dlogp[i] = (float)(w * (part.dlogp + (double)kl_coefficient * ratio * dkl * kl_moves));
    dentropy[i] = (float)(-w * (double)entropy_coefficient);
  }
  double* out = partials + (i64)blockIdx.x * (SUMS + 1);
#pragma unroll
  for (int s = 0; s < SUMS; s++) {
    double total = block_sum<THREADS / 32>(sums[s], shared);
    if (threadIdx.x == 0) out[s] = total;
  }
  ratio_max = block_max<THREADS / 32>(ratio_max, shared_max);
  if (threadIdx.x == 0) out[SUMS] = ratio_max;
}
EXPORT(ppo_loss)
