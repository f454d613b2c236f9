// The critic's head on hidden states, value = x w^T + bias, and its gradients: weights and values are f32, hidden
// states bf16. A warp sums over columns. Sums over rows are written as partials of pieces of rows, which rows.cu adds
// in order.
#include "device.cuh"

// x (M, C), w (C), bias (1) -> value (M), with one warp per row.
KERNEL(256) value_head(const bf16* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias, float* __restrict__ value,
                       int m, int c) {
  int row = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (row >= m) return;
  float sum = 0.f;
#pragma unroll 4
  for (int i = lane; i < c; i += 32) sum += to_float(x[(i64)row * c + i]) * w[i];
  sum = warp_sum(sum);
  if (lane == 0) value[row] = sum + bias[0];
}
EXPORT(value_head)

// dx (M, C) = dvalue (M) w (C); partials (pieces, C) and bias_partials (pieces) are the sums of dvalue x and of dvalue
// over a piece of `rows` rows. Block (i, j) has the columns from 256 i on of piece j, one per thread.
KERNEL(256) value_head_backward(const bf16* __restrict__ x, const float* __restrict__ w, const float* __restrict__ dvalue,
                                bf16* __restrict__ dx, float* __restrict__ partials, float* __restrict__ bias_partials, int m, int c,
                                int rows) {
  int column = blockIdx.x * 256 + threadIdx.x, first = blockIdx.y * rows, end = min(first + rows, m);
  if (column >= c) return;
  float weight = w[column], sum = 0.f, total = 0.f;
#pragma unroll 4
  for (int row = first; row < end; row++) {
    float d = dvalue[row];
    i64 at = (i64)row * c + column;
    sum += d * to_float(x[at]);
    total += d;
    store(dx + at, d * weight);
  }
  partials[(i64)blockIdx.y * c + column] = sum;
  if (column == 0) bias_partials[blockIdx.y] = total;
}
EXPORT(value_head_backward)
