// Residual addition with RMSNorm, forward and backward. Both are memory-bound, so one block reads a row once into
// registers, 16 bytes per thread and access. The sum of squares is that of the sum as rounded to bf16, which is what
// the backward pass reads. dw is added up without atomics: a fixed number of blocks each keep partial sums over their
// rows, and `add_partials` (rows.cu) adds those. Widths that are no multiple of 8, or above WIDEST, take a path by
// single elements that reads the row twice.
#include "device.cuh"

constexpr int THREADS = 512;
constexpr int WIDEST = THREADS * 4 * 8;  // columns: at most 4 vectors of 8 per thread

// As block_sum of device.cuh, for a number of warps known only at run time.
DEVICE float row_sum(float x, float* sums) {
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = x;
  __syncthreads();
  float total = 0.f;
  for (int w = 0; w < (int)blockDim.x >> 5; w++) total += sums[w];
  __syncthreads();
  return total;
}

DEVICE uint4 load16(const bf16* p) { return *reinterpret_cast<const uint4*>(p); }
DEVICE void unpack(float (&x)[8], uint4 v) {
  x[0] = low_bf16(v.x), x[1] = high_bf16(v.x), x[2] = low_bf16(v.y), x[3] = high_bf16(v.y);
  x[4] = low_bf16(v.z), x[5] = high_bf16(v.z), x[6] = low_bf16(v.w), x[7] = high_bf16(v.w);
}

// The first column of the thread's vector `j`.
DEVICE int column_of(int j) { return (j * blockDim.x + threadIdx.x) * 8; }

template <int VECTORS, typename W>
DEVICE void forward(const bf16* __restrict__ residual, const bf16* __restrict__ x, const W* __restrict__ w, float eps,
                    bf16* __restrict__ sum, bf16* __restrict__ y, float* rstd, int c, float* sums) {
  i64 row = (i64)blockIdx.x * c;
  float v[VECTORS][8] = {};
  float squares = 0.f;
#pragma unroll
  for (int j = 0; j < VECTORS; j++)
    if (column_of(j) < c) load8(v[j], residual + row + column_of(j));
  if (x) {
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      if (column_of(j) < c) {
        float a[8];
        load8(a, x + row + column_of(j));
#pragma unroll
        for (int k = 0; k < 8; k++) v[j][k] = to_float(to_bf16(v[j][k] + a[k]));
      }
    }
  }
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    if (column_of(j) < c) {
      if (x) store8(sum + row + column_of(j), v[j]);
#pragma unroll
      for (int k = 0; k < 8; k++) squares += v[j][k] * v[j][k];
    }
  }
  float scale = rsqrtf(row_sum(squares, sums) / c + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
#pragma unroll
  for (int j = 0; j < VECTORS; j++) {
    if (column_of(j) < c) {
      float a[8];
      load8(a, w + column_of(j));
#pragma unroll
      for (int k = 0; k < 8; k++) a[k] *= v[j][k] * scale;
      store8(y + row + column_of(j), a);
    }
  }
}

template <typename W>
DEVICE void forward_single(const bf16* residual, const bf16* x, const W* w, float eps, bf16* sum, bf16* y, float* rstd, int c,
                           float* sums) {
  i64 row = (i64)blockIdx.x * c;
  const bf16* normed = x ? sum : residual;  // a thread reads again only what it wrote itself
  float squares = 0.f;
  for (int i = threadIdx.x; i < c; i += blockDim.x) {
    if (x) sum[row + i] = to_bf16(to_float(residual[row + i]) + to_float(x[row + i]));
    float v = to_float(normed[row + i]);
    squares += v * v;
  }
  float scale = rsqrtf(row_sum(squares, sums) / c + eps);
  if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
  for (int i = threadIdx.x; i < c; i += blockDim.x) y[row + i] = to_bf16(to_float(normed[row + i]) * scale * to_float(w[i]));
}

// residual, x, sum, y (T, C), w (C), rstd (T); without x (null), residual is normalised and sum is not written. One
// block per row.
#define FORWARD(name, W)                                                                                                     \
  KERNEL(THREADS) name(const bf16* residual, const bf16* x, const W* w, float eps, bf16* sum, bf16* y, float* rstd, int c) { \
    SHARED(float, sums, THREADS / 32);                                                                                       \
    int vectors = (c + 8 * (int)blockDim.x - 1) / (8 * (int)blockDim.x);                                                     \
    if (c % 8 != 0 || c > WIDEST) forward_single(residual, x, w, eps, sum, y, rstd, c, sums);                                \
    else if (vectors == 1) forward<1>(residual, x, w, eps, sum, y, rstd, c, sums);                                           \
    else if (vectors == 2) forward<2>(residual, x, w, eps, sum, y, rstd, c, sums);                                           \
    else forward<4>(residual, x, w, eps, sum, y, rstd, c, sums);                                                             \
  }
FORWARD(add_rmsnorm_bf16, bf16)
EXPORT(add_rmsnorm_bf16)
FORWARD(add_rmsnorm_f32, float)
EXPORT(add_rmsnorm_f32)

// With n = sum rstd and g = dy w: dsum += rstd (g - n mean(g n)), dw += dy n. A block's rows are its own index and
// every gridDim-th one after it.
template <int VECTORS, bool DW, typename W>
DEVICE void backward(const bf16* __restrict__ sum, const W* __restrict__ w, const float* __restrict__ rstd,
                     const bf16* __restrict__ dy, bf16* __restrict__ dsum, float* __restrict__ partials, int t, int c, float* sums) {
  float dw[DW ? VECTORS : 1][8] = {};
  for (int r = blockIdx.x; r < t; r += gridDim.x) {
    i64 row = (i64)r * c;
    uint4 packed_sum[VECTORS] = {}, packed_dy[VECTORS] = {}, packed_dsum[VECTORS] = {};
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      if (column_of(j) < c) {
        packed_sum[j] = load16(sum + row + column_of(j));
        packed_dy[j] = load16(dy + row + column_of(j));
        packed_dsum[j] = load16(dsum + row + column_of(j));
      }
    }
    float scale = rstd[r], dot = 0.f;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      if (column_of(j) < c) {
        float x[8], g[8], a[8];
        unpack(x, packed_sum[j]), unpack(g, packed_dy[j]);
        load8(a, w + column_of(j));
#pragma unroll
        for (int k = 0; k < 8; k++) {
          dot += g[k] * a[k] * x[k];
          if constexpr (DW) dw[j][k] += g[k] * (x[k] * scale);
        }
      }
    }
    float mean = row_sum(dot, sums) * scale / c;
#pragma unroll
    for (int j = 0; j < VECTORS; j++) {
      if (column_of(j) < c) {
        float x[8], g[8], a[8], d[8];
        unpack(x, packed_sum[j]), unpack(g, packed_dy[j]), unpack(d, packed_dsum[j]);
        load8(a, w + column_of(j));
#pragma unroll
        for (int k = 0; k < 8; k++) d[k] += scale * (g[k] * a[k] - x[k] * scale * mean);
        store8(dsum + row + column_of(j), d);
      }
    }
  }
  if constexpr (DW) {
#pragma unroll
    for (int j = 0; j < VECTORS; j++)
      if (column_of(j) < c) store8(partials + (i64)blockIdx.x * c + column_of(j), dw[j]);
  }
}

template <bool DW, typename W>
DEVICE void backward_single(const bf16* sum, const W* w, const float* rstd, const bf16* dy, bf16* dsum, float* partials, int t, int c,
                            float* sums) {
  for (int r = blockIdx.x; r < t; r += gridDim.x) {
    i64 row = (i64)r * c;
    float scale = rstd[r], dot = 0.f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) dot += to_float(dy[row + i]) * to_float(w[i]) * to_float(sum[row + i]);
    float mean = row_sum(dot, sums) * scale / c;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
      float g = to_float(dy[row + i]), n = to_float(sum[row + i]) * scale;
      dsum[row + i] = to_bf16(to_float(dsum[row + i]) + scale * (g * to_float(w[i]) - n * mean));
      if (DW) partials[(i64)blockIdx.x * c + i] += g * n;
    }
  }
}

// sum, dy, dsum (T, C), w (C), rstd (T); partials (gridDim, C) zeroed, with DW only
#define BACKWARD(name, DW, W)                                                                                                    \
  KERNEL(THREADS)                                                                                                                \
  name(const bf16* sum, const W* w, const float* rstd, const bf16* dy, bf16* dsum, float* partials, int t, int c) {              \
    SHARED(float, sums, THREADS / 32);                                                                                           \
    int vectors = (c + 8 * (int)blockDim.x - 1) / (8 * (int)blockDim.x);                                                         \
    if (c % 8 != 0 || c > WIDEST) backward_single<DW>(sum, w, rstd, dy, dsum, partials, t, c, sums);                             \
    else if (vectors == 1) backward<1, DW>(sum, w, rstd, dy, dsum, partials, t, c, sums);                                        \
    else if (vectors == 2) backward<2, DW>(sum, w, rstd, dy, dsum, partials, t, c, sums);                                        \
    else backward<4, DW>(sum, w, rstd, dy, dsum, partials, t, c, sums);                                                          \
  }
BACKWARD(add_rmsnorm_backward_bf16, false, bf16)
EXPORT(add_rmsnorm_backward_bf16)
BACKWARD(add_rmsnorm_backward_f32, false, float)
EXPORT(add_rmsnorm_backward_f32)
BACKWARD(add_rmsnorm_backward_dw_bf16, true, bf16)
EXPORT(add_rmsnorm_backward_dw_bf16)
BACKWARD(add_rmsnorm_backward_dw_f32, true, float)
EXPORT(add_rmsnorm_backward_dw_f32)
