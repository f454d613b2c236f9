// The language-model head's softmax over a chunk of f32 logits (rows, V) that a GEMM left in memory: log-probability,
// entropy and log-sum-exp in one read; in the backward, the gradient of the logits in one read and one write. One block
// per row, with 16-byte accesses where V allows; 512 threads, so that a multiprocessor has four rows in flight.
// Memory-bound. The matrix products are in gemm.cu or the vendor's library.
#include "device.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr float LOWEST = -3.402823466e38f;

// A running softmax: the largest logit so far, and the sums over the logits z of e = exp(z - most) and of e (z - most).
struct Softmax { float most, sum, moment; };

// Changes the reference of s to `most`, which is at least s.most.
DEVICE void rebase(Softmax& s, float most) {
  float shift = s.most - most, factor = expf(shift);
  // Before the first logit, shift may be infinite; the moment is then 0.
  s.moment = s.sum > 0.f ? factor * (s.moment + s.sum * shift) : 0.f;
  s.sum *= factor, s.most = most;
}
// Adds N logits, with at most one rebase.
template <int N>
DEVICE void add(Softmax& s, const float (&z)[N]) {
  float most = s.most;
#pragma unroll
  for (int j = 0; j < N; j++) most = fmaxf(most, z[j]);
  if (most > s.most) rebase(s, most);
#pragma unroll
  for (int j = 0; j < N; j++) {
    float d = z[j] - s.most, e = expf(d);
    s.sum += e;
    s.moment += e > 0.f ? e * d : 0.f;  // e d tends to 0, even where d is -inf
  }
}

DEVICE bool is_wide(const void* a, int v, int width) { return v % width == 0 && ((u64)a & 15) == 0; }

// logits (rows, V), targets (rows) -> logp, entropy, lse (rows) of logits * inverse. A target outside 0..V has logp
// NaN.
KERNEL(512) logprob(const float* logits, const int* targets, float inverse, float* logp, float* entropy, float* lse, int v) {
  SHARED(float, shared, WARPS);
  i64 row = blockIdx.x;
  const float* z = logits + row * v;
  Softmax s = {LOWEST, 0.f, 0.f};
  int wide = is_wide(logits, v, 4) ? v : 0, i = threadIdx.x * 4;
  // Four loads in flight per thread.
  for (; i + 3 * THREADS * 4 < wide; i += 4 * THREADS * 4) {
    float4 a[4];
#pragma unroll
    for (int u = 0; u < 4; u++) a[u] = *reinterpret_cast<const float4*>(z + i + u * THREADS * 4);
#pragma unroll
    for (int u = 0; u < 4; u++) {
      float x[4] = {a[u].x * inverse, a[u].y * inverse, a[u].z * inverse, a[u].w * inverse};
      add(s, x);
    }
  }
  for (; i < wide; i += THREADS * 4) {
    float4 a = *reinterpret_cast<const float4*>(z + i);
    float x[4] = {a.x * inverse, a.y * inverse, a.z * inverse, a.w * inverse};
    add(s, x);
  }
  for (int j = wide + threadIdx.x; j < v; j += THREADS) {
    float x[1] = {z[j] * inverse};
    add(s, x);
  }
  rebase(s, block_max<WARPS>(s.most, shared));
  float sum = block_sum<WARPS>(s.sum, shared), moment = block_sum<WARPS>(s.moment, shared);
  if (threadIdx.x == 0) {
    int target = targets[row];
    float log_sum = logf(sum);
    bool is_inside = target >= 0 && target < v;
    lse[row] = s.most + log_sum;
    // Subtract most from z first: both are large compared with the rest.
    logp[row] = is_inside ? z[target] * inverse - s.most - log_sum : __uint_as_float(0x7fc00000);
    entropy[row] = log_sum - moment / sum;
  }
}
EXPORT(logprob)

// Values that determine a row's gradient: dlogit_j = (dlogp (1[j = target] - p_j) - dentropy p_j (log p_j + H)) /
// temperature.
struct RowGradient { float inverse, lse, entropy, dlogp, dentropy; int target; };
DEVICE float gradient(const RowGradient& r, float logit, int j) {
  float logp = logit * r.inverse - r.lse, p = expf(logp), hit = j == r.target ? 1.f : 0.f;
  float dh = p > 0.f ? r.dentropy * p * (logp + r.entropy) : 0.f;
  return (r.dlogp * (hit - p) - dh) * r.inverse;
}

// logits (rows, V) -> dlogits (rows, V); entropy, lse, dlogp, dentropy (rows), dentropy may be null.
KERNEL(512) logprob_backward(const float* logits, const int* targets, float inverse, const float* entropy, const float* lse,
                             const float* dlogp, const float* dentropy, bf16* dlogits, int v) {
  i64 row = blockIdx.x;
  const float* z = logits + row * v;
  bf16* dz = dlogits + row * v;
  RowGradient r = {inverse, lse[row], entropy[row], dlogp[row], dentropy ? dentropy[row] : 0.f, targets[row]};
  int wide = is_wide(logits, v, 8) && is_wide(dlogits, v, 8) ? v : 0;
#pragma unroll 2
  for (int i = threadIdx.x * 8; i < wide; i += THREADS * 8) {
    float4 a = *reinterpret_cast<const float4*>(z + i), b = *reinterpret_cast<const float4*>(z + i + 4);
    float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = gradient(r, x[j], i + j);
    store8(dz + i, x);
  }
  for (int i = wide + threadIdx.x; i < v; i += THREADS) store(dz + i, gradient(r, z[i], i));
}
EXPORT(logprob_backward)
