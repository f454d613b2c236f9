// Around the matrix products of linear layers: the thin sides of an adapter (lora_down: T x R out of a long contraction; lora_up: a rank-R
// product, with the bias, added in one pass over a wide matrix), column sums, and the merge of an adapter into its weight.
// Adapters are f32 in memory and become bf16 in registers. Fragments come straight from global memory: every operand is read once or
// small, so shared memory would only add barriers. Not here: the product with W, and that of an adapter in the same pass (gemm.cu).
#include "device.cuh"

DEVICE bool is_aligned(const void* at, i64 stride_bytes) { return (((u64)at | (u64)stride_bytes) & 15) == 0; }

// Eight bf16 as packed pairs; `count` of them exist.
DEVICE uint4 pairs8(const bf16* p, int count, bool aligned) {
  if (aligned && count >= 8) return *reinterpret_cast<const uint4*>(p);
  u32 w[4];
#pragma unroll
  for (int e = 0; e < 4; e++) w[e] = (2 * e < count ? p[2 * e].bits : 0) | (u32)(2 * e + 1 < count ? p[2 * e + 1].bits : 0) << 16;
  return {w[0], w[1], w[2], w[3]};
}

constexpr int DOWN_ROWS = 32, DOWN_WARPS = 8;

// s (T, R) = scale * x op(w): x (T, K); w (R, K), or (K, R) when K_ROWS. A block has 32 rows and 8 * NT ranks, and its warps take turns
// at 32 of k; their sums are added in order. Lane c of four holds x[row][8c .. 8c + 7] of those 32, one 16-byte load, and the same of w:
// the contraction may run in any order that both fragments share. Grid: rows, ranks, splits of k_split (a function of K alone, so
// that a row's bits do not depend on the other rows); with more than one split the sums go to partial (splits, T, R).
template <bool K_ROWS, int NT>
DEVICE void lora_down(const bf16* x, i64 x_stride, const float* w, int t, int r, int k, int k_split, float scale, bf16* s, float* partial) {
  SHARED(float, sums, DOWN_WARPS * 16 * NT * 8);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
  int row0 = blockIdx.x * DOWN_ROWS, rank0 = blockIdx.y * NT * 8;
  int end = min(k, (int)(blockIdx.z + 1) * k_split);
  bool aligned_x = is_aligned(x, x_stride * 2), aligned_w = is_aligned(w, (i64)k * 4);
  float d[2][NT][4] = {};
#pragma unroll 2
  for (int k0 = blockIdx.z * k_split + warp * 32; k0 < end; k0 += DOWN_WARPS * 32) {
    int kk = k0 + c * 8, count = end - kk;
    uint4 v[2][2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int row = row0 + i * 8 + g;
      v[i / 2][i % 2] = pairs8(x + (i64)row * x_stride + kk, row < t ? count : 0, aligned_x);
    }
#pragma unroll
    for (int j = 0; j < NT; j++) {
      int rank = rank0 + j * 8 + g;
      float f[8];
      if (!K_ROWS && aligned_w && rank < r && count >= 8) {
        const float4* from = reinterpret_cast<const float4*>(w + (i64)rank * k + kk);
        float4 low = from[0], high = from[1];
        f[0] = low.x, f[1] = low.y, f[2] = low.z, f[3] = low.w, f[4] = high.x, f[5] = high.y, f[6] = high.z, f[7] = high.w;
      } else {
#pragma unroll
        for (int e = 0; e < 8; e++) f[e] = rank < r && e < count ? w[K_ROWS ? (i64)(kk + e) * r + rank : (i64)rank * k + kk + e] : 0.f;
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        u32 first[4] = {v[i][0].x, v[i][1].x, v[i][0].y, v[i][1].y}, second[4] = {v[i][0].z, v[i][1].z, v[i][0].w, v[i][1].w};
        mma_m16n8k16(d[i][j], first, pack_bf16(f[0], f[1]), pack_bf16(f[2], f[3]));
        mma_m16n8k16(d[i][j], second, pack_bf16(f[4], f[5]), pack_bf16(f[6], f[7]));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sums[(warp * 16 + g + e / 2 * 8) * NT * 8 + j * 8 + c * 2 + e % 2] = d[i][j][e];
    __syncthreads();
    for (int at = threadIdx.x; at < 16 * NT * 8; at += DOWN_WARPS * 32) {
      float sum = 0.f;
#pragma unroll
      for (int from = 0; from < DOWN_WARPS; from++) sum += sums[from * 16 * NT * 8 + at];
      int row = row0 + i * 16 + at / (NT * 8), rank = rank0 + at % (NT * 8);
      if (row >= t || rank >= r) continue;
      i64 to = (i64)row * r + rank;
      if (gridDim.z > 1) partial[(i64)blockIdx.z * t * r + to] = sum;
      else s[to] = to_bf16(scale * sum);
    }
    __syncthreads();
  }
}
#define LORA_DOWN(name, K_ROWS, NT)                                                                                              \
  KERNEL(256)                                                                                                                    \
  name(const bf16* x, i64 x_stride, const float* w, int t, int r, int k, int k_split, float scale, bf16* s, float* partial) {    \
    lora_down<K_ROWS, NT>(x, x_stride, w, t, r, k, k_split, scale, s, partial);                                                  \
  }
LORA_DOWN(lora_down_16, false, 2)
EXPORT(lora_down_16)
LORA_DOWN(lora_down_64, false, 8)
EXPORT(lora_down_64)
LORA_DOWN(lora_down_rows_16, true, 2)
EXPORT(lora_down_rows_16)
LORA_DOWN(lora_down_rows_64, true, 8)
EXPORT(lora_down_rows_64)

// y (T, N) += scale * s op(w) + bias: s (T, R); w (N, R), or (R, N) when R_ROWS; bias (N) or null. A warp has 64 rows and 32 columns,
// a block 256 columns. Column i of fragment j of four stands for column 8 (i / 2) + 2 j + i % 2 of those 32: lane c of four then has
// columns 8c .. 8c + 7 of a row, one 16-byte access. Grid: columns, rows.
template <bool R_ROWS>
DEVICE void lora_up(const bf16* s, const float* w, int t, int n, int r, float scale, const void* bias, int bias_is_f32, bf16* y,
                    i64 y_stride) {
  int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
  int row0 = blockIdx.y * 64, column0 = blockIdx.x * 256 + (threadIdx.x >> 5) * 32;
  float d[4][4][4] = {};
#pragma unroll 1
  for (int r0 = 0; r0 < r; r0 += 16) {
    u32 fb[4][2];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int column = column0 + g / 2 * 8 + j * 2 + g % 2, rank = r0 + h * 8 + c * 2;
        auto at = [&](int rank) { return column < n && rank < r ? w[R_ROWS ? (i64)rank * n + column : (i64)column * r + rank] : 0.f; };
        fb[j][h] = pack_bf16(at(rank), at(rank + 1));
      }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 fa[4];
#pragma unroll
      for (int h = 0; h < 4; h++) {
        int row = row0 + i * 16 + h % 2 * 8 + g, rank = r0 + h / 2 * 8 + c * 2;
        const bf16* from = s + (i64)row * r + rank;
        if (row >= t || rank >= r) fa[h] = 0;
        else if (r % 2 == 0) fa[h] = *reinterpret_cast<const u32*>(from);
        else fa[h] = from[0].bits | (u32)(rank + 1 < r ? from[1].bits : 0) << 16;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) mma_m16n8k16(d[i][j], fa, fb[j][0], fb[j][1]);
    }
  }
  int column = column0 + c * 8, count = min(8, n - column);
  float b[8];
#pragma unroll
  for (int e = 0; e < 8; e++) {
    if (!bias || e >= count) b[e] = 0.f;
    else b[e] = bias_is_f32 ? static_cast<const float*>(bias)[column + e] : to_float(static_cast<const bf16*>(bias)[column + e]);
  }
  bool whole = is_aligned(y, y_stride * 2) && count == 8;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int row = row0 + i * 16 + half * 8 + g;
      bf16* to = y + (i64)row * y_stride + column;
      if (row < t && whole) {
        float x[8];
        load8(x, to);
#pragma unroll
        for (int e = 0; e < 8; e++) x[e] += scale * d[i][e / 2][half * 2 + e % 2] + b[e];
        store8(to, x);
      } else if (row < t) {
#pragma unroll
        for (int e = 0; e < 8; e++)
          if (e < count) store(to + e, to_float(to[e]) + (scale * d[i][e / 2][half * 2 + e % 2] + b[e]));
      }
    }
}
KERNEL(256)
lora_up_nt(const bf16* s, const float* w, int t, int n, int r, float scale, const void* bias, int bias_is_f32, bf16* y, i64 y_stride) {
  lora_up<false>(s, w, t, n, r, scale, bias, bias_is_f32, y, y_stride);
}
EXPORT(lora_up_nt)
KERNEL(256)
lora_up_nn(const bf16* s, const float* w, int t, int n, int r, float scale, const void* bias, int bias_is_f32, bf16* y, i64 y_stride) {
  lora_up<true>(s, w, t, n, r, scale, bias, bias_is_f32, y, y_stride);
}
EXPORT(lora_up_nn)

// partial (splits, N): the sums of the columns of x (T, N) over `rows` rows each. A lane has 8 columns, a warp 256, and the 8 warps take
// turns at the rows; their sums are added in order. Grid: columns, splits.
KERNEL(256) column_sums(const bf16* x, i64 stride, int t, int n, int rows, float* partial) {
  SHARED(float, sums, 8 * 256);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = blockIdx.x * 256 + lane * 8, count = min(8, n - column);
  int end = min(t, (int)(blockIdx.y + 1) * rows);
  bool aligned = is_aligned(x, stride * 2);
  float sum[8] = {};
#pragma unroll 4
  for (int row = blockIdx.y * rows + warp; row < end; row += 8) {
    uint4 v = pairs8(x + (i64)row * stride + column, count, aligned);
    u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 4; e++) sum[2 * e] += low_bf16(w[e]), sum[2 * e + 1] += high_bf16(w[e]);
  }
#pragma unroll
  for (int e = 0; e < 8; e++) sums[warp * 256 + e * 32 + lane] = sum[e];  // by lane: no bank conflicts
  __syncthreads();
  int mine = blockIdx.x * 256 + threadIdx.x, at = threadIdx.x % 8 * 32 + threadIdx.x / 8;
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) total += sums[w * 256 + at];
  if (mine < n) partial[(i64)blockIdx.y * n + mine] = total;
}
EXPORT(column_sums)

// w (N, K) += scale * b a, b (N, R), a (R, K), all in f32 before w is rounded. A thread has one column and 32 rows. Grid: columns, rows.
template <typename T>
DEVICE void merge(T* w, const float* a, const float* b, int n, int k, int r, float scale) {
  SHARED(float, rows, 32 * 32);  // [rank][row]
  int column = blockIdx.x * 256 + threadIdx.x, row0 = blockIdx.y * 32;
  float sum[32] = {};
  for (int r0 = 0; r0 < r; r0 += 32) {
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * 32; i += 256) {
      int row = row0 + i % 32, rank = r0 + i / 32;
      rows[i] = row < n && rank < r ? b[(i64)row * r + rank] : 0.f;
    }
    __syncthreads();
    for (int rank = 0; rank < min(32, r - r0) && column < k; rank++) {
      float x = a[(i64)(r0 + rank) * k + column];
#pragma unroll
      for (int i = 0; i < 32; i++) sum[i] += rows[rank * 32 + i] * x;
    }
  }
#pragma unroll
  for (int i = 0; i < 32; i++) {
    if (row0 + i >= n || column >= k) continue;
    T* to = w + (i64)(row0 + i) * k + column;
    store(to, to_float(*to) + scale * sum[i]);
  }
}
KERNEL(256) merge_lora_bf16(bf16* w, const float* a, const float* b, int n, int k, int r, float scale) { merge(w, a, b, n, k, r, scale); }
EXPORT(merge_lora_bf16)
KERNEL(256) merge_lora_f32(float* w, const float* a, const float* b, int n, int k, int r, float scale) { merge(w, a, b, n, k, r, scale); }
EXPORT(merge_lora_f32)
