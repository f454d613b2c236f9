// The critic's squared error with PPO2's clip around the old value: gradient and loss in one pass. Arithmetic is in
// f64, and block sums are partials that the host adds in order, as in ppo_loss.cu and for the same reasons.
#include "device.cuh"

constexpr int THREADS = 256;

// Inputs and dvalue (M); partials (blocks).
KERNEL(256) value_loss(const float* value, const float* old_value, const float* target, const float* weight, float* dvalue,
                       double* partials, i64 m, int has_clip, float clip) {
  SHARED(double, shared, THREADS / 32);
  double loss = 0.;
  for (i64 i = (i64)blockIdx.x * THREADS + threadIdx.x; i < m; i += (i64)gridDim.x * THREADS) {
    double w = weight[i], now = value[i], old = old_value[i], plain = now - target[i];
    double within = has_clip ? fmin(fmax(now, old - clip), old + clip) : now;
    double clipped = within - target[i];
    // Where the clipped error is the larger one, the value lies outside the clip range: its gradient is 0.
    bool is_clipped = fabs(clipped) > fabs(plain);
    double error = is_clipped ? clipped : plain;
    loss += w * 0.5 * error * error;
    dvalue[i] = (float)(is_clipped ? 0. : w * plain);
  }
  loss = block_sum<THREADS / 32>(loss, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = loss;
}
EXPORT(value_loss)
