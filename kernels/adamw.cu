// The optimiser's ops over a whole list of f32 tensors in ONE launch: AdamW, and the sum of squares for clipping. A
// block takes CHUNK elements of one tensor; a table in device memory says which. Memory-bound: AdamW moves 28 bytes per
// element, in 16-byte accesses. Blocks write their sums of squares as f64 partials, which the host adds in order. There
// are no bf16 copies of parameters.
#include "device.cuh"

constexpr int THREADS = 256;
constexpr i64 CHUNK = 32768;  // elements per block: 1 MB of traffic, so the search costs little; CHUNK in adamw.rs

// Returns the index of this block's tensor to every thread. The table holds first (n + 1), which is the first block of
// every tensor and the number of all blocks, then a row (length, addresses) per tensor. Each thread searches a part of
// the list, and the one that finds the tensor writes the index.
DEVICE int find_tensor(const i64* first, int n, int* shared) {
  for (int i = threadIdx.x; i < n; i += THREADS)
    if (first[i] <= (i64)blockIdx.x && (i64)blockIdx.x < first[i + 1]) *shared = i;
  __syncthreads();
  return *shared;
}

DEVICE bool is_aligned(const void* p) { return ((u64)p & 15) == 0; }

// partials (blocks) = sum of squares of the block's elements
KERNEL(256) squared_norm(const i64* table, int n, double* partials) {
  SHARED(int, found, 1);
  SHARED(double, shared, THREADS / 32);
  int tensor = find_tensor(table, n, found);
  const i64* row = table + n + 1 + 2 * (i64)tensor;
  i64 start = ((i64)blockIdx.x - table[tensor]) * CHUNK;
  const float* x = reinterpret_cast<const float*>(row[1]) + start;
  int count = (int)min(CHUNK, row[0] - start);
  int wide = is_aligned(x) ? count / 4 * 4 : 0;
  double sum = 0.;
#pragma unroll 4
  for (int i = threadIdx.x * 4; i < wide; i += THREADS * 4) {
    float4 v = *reinterpret_cast<const float4*>(x + i);
    sum += (double)v.x * v.x + (double)v.y * v.y + ((double)v.z * v.z + (double)v.w * v.w);
  }
  for (int i = wide + threadIdx.x; i < count; i += THREADS) sum += (double)x[i] * x[i];
  sum = block_sum<THREADS / 32>(sum, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
EXPORT(squared_norm)

struct Step { float lr, beta1, beta2, eps, decay, grad_scale, correct1, correct2; };

DEVICE void update(const Step& s, float& p, float g, float& m, float& v) {
  g *= s.grad_scale;
  m = s.beta1 * m + (1.f - s.beta1) * g;
  v = s.beta2 * v + (1.f - s.beta2) * g * g;
  p -= s.lr * (m / s.correct1 / (sqrtf(v / s.correct2) + s.eps) + s.decay * p);
}

// Rows of the table: length, param, grad, m, v. correct1, correct2: 1 - beta^step.
KERNEL(256) adamw(const i64* table, int n, float lr, float beta1, float beta2, float eps, float decay, float grad_scale,
                  float correct1, float correct2) {
  SHARED(int, found, 1);
  Step s = {lr, beta1, beta2, eps, decay, grad_scale, correct1, correct2};
  int tensor = find_tensor(table, n, found);
  const i64* row = table + n + 1 + 5 * (i64)tensor;
  i64 start = ((i64)blockIdx.x - table[tensor]) * CHUNK;
  float* param = reinterpret_cast<float*>(row[1]) + start;
  const float* grad = reinterpret_cast<const float*>(row[2]) + start;
  float* first = reinterpret_cast<float*>(row[3]) + start;
  float* second = reinterpret_cast<float*>(row[4]) + start;
  int count = (int)min(CHUNK, row[0] - start);
  bool aligned = is_aligned(param) && is_aligned(grad) && is_aligned(first) && is_aligned(second);
  int wide = aligned ? count / 4 * 4 : 0;
  for (int i = threadIdx.x * 4; i < wide; i += THREADS * 4) {
    float4 p = *reinterpret_cast<float4*>(param + i), g = *reinterpret_cast<const float4*>(grad + i);
    float4 m = *reinterpret_cast<float4*>(first + i), v = *reinterpret_cast<float4*>(second + i);
    update(s, p.x, g.x, m.x, v.x), update(s, p.y, g.y, m.y, v.y);
    update(s, p.z, g.z, m.z, v.z), update(s, p.w, g.w, m.w, v.w);
    *reinterpret_cast<float4*>(param + i) = p;
    *reinterpret_cast<float4*>(first + i) = m;
    *reinterpret_cast<float4*>(second + i) = v;
  }
  for (int i = wide + threadIdx.x; i < count; i += THREADS) update(s, param[i], grad[i], first[i], second[i]);
}
EXPORT(adamw)
