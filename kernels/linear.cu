// Kernels around the matrix products of linear layers: the thin sides of an adapter, each for up to three layers of one
// input in a launch (lora_down: T x R out of a long contraction; lora_up: a rank-R product, with the bias, added in one
// pass over a wide matrix); column sums; and the merge of an adapter into its weight. Adapters are f32 in memory and
// become bf16 in registers. Fragments come straight from global memory: every operand is read once or small, so shared
// memory would only add barriers. The product with W, and the fused product with W and an adapter, are in gemm.cu.
#include "device.cuh"

DEVICE bool is_aligned(const void* at, i64 stride_bytes) { return (((u64)at | (u64)stride_bytes) & 15) == 0; }

// Loads eight bf16 as packed pairs; `count` of them exist, the others become 0.
DEVICE uint4 pairs8(const bf16* p, int count, bool aligned) {
  if (aligned && count >= 8) return *reinterpret_cast<const uint4*>(p);
  u32 w[4];
#pragma unroll
  for (int e = 0; e < 4; e++) w[e] = (2 * e < count ? p[2 * e].bits : 0) | (u32)(2 * e + 1 < count ? p[2 * e + 1].bits : 0) << 16;
  return {w[0], w[1], w[2], w[3]};
}

constexpr int DOWN_ROWS = 32, DOWN_WARPS = 8;

// One layer's s (T, R) = scale * x op(w), with x (T, K) and w (R, K), or w (K, R) when K_ROWS. R is 0 where there is no
// such layer.
struct Down {
  const bf16* x;
  const float* w;
  int k, r;
  float scale;
  bf16* s;
  float* partial;  // (splits, T, R), or null where K is one split
};
// Computes s. A block has 32 rows and 8 * NT ranks; its warps take turns at 32 steps of k, and their sums are added in
// order. Lane c of four holds x[row][8c .. 8c + 7] of those 32, one 16-byte load, and the same of w: the contraction
// may run in any order that both fragments share. Grid: rows, ranks, and for each layer `splits` splits of k_split (a
// function of K alone, so that a row's bits do not depend on the other rows).
template <bool K_ROWS, int NT>
DEVICE void lora_down(const Down& layer, i64 x_stride, int t, int k_split, int split) {
  SHARED(float, sums, DOWN_WARPS * 16 * NT * 8);
  const bf16* x = layer.x;
  const float* w = layer.w;
  int k = layer.k, r = layer.r;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
  int row0 = blockIdx.x * DOWN_ROWS, rank0 = blockIdx.y * NT * 8;
  int end = min(k, (split + 1) * k_split);
  if (rank0 >= r || (split && split * k_split >= k)) return;
  bool aligned_x = is_aligned(x, x_stride * 2), aligned_w = is_aligned(w, (i64)k * 4);
  float d[2][NT][4] = {};
#pragma unroll 2
  for (int k0 = split * k_split + warp * 32; k0 < end; k0 += DOWN_WARPS * 32) {
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
      if (layer.partial) layer.partial[(i64)split * t * r + to] = sum;
      else layer.s[to] = to_bf16(layer.scale * sum);
    }
    __syncthreads();
  }
}
#define DOWN(i) const bf16 *x##i, const float *w##i, int k##i, int r##i, float scale##i, bf16 *s##i, float *partial##i
#define LORA_DOWN(name, K_ROWS, NT)                                                                                              \
  KERNEL(256) name(DOWN(0), DOWN(1), DOWN(2), i64 x_stride, int t, int k_split, int splits) {                                    \
    int i = blockIdx.z / splits;                                                                                                 \
    Down layer = i == 0   ? Down{x0, w0, k0, r0, scale0, s0, partial0}                                                           \
                 : i == 1 ? Down{x1, w1, k1, r1, scale1, s1, partial1}                                                           \
                          : Down{x2, w2, k2, r2, scale2, s2, partial2};                                                          \
    lora_down<K_ROWS, NT>(layer, x_stride, t, k_split, blockIdx.z % splits);                                                     \
  }
LORA_DOWN(lora_down_16, false, 2)
EXPORT(lora_down_16)
LORA_DOWN(lora_down_64, false, 8)
EXPORT(lora_down_64)
LORA_DOWN(lora_down_rows_16, true, 2)
EXPORT(lora_down_rows_16)
LORA_DOWN(lora_down_rows_64, true, 8)
EXPORT(lora_down_rows_64)

// One layer's y (T, N) += scale * s op(w) + bias, with s (T, R), w (N, R), or w (R, N) when R_ROWS, and bias (N) or
// null. R is 0 without an adapter.
struct Up {
  const bf16* s;
  const float* w;
  int r;
  float scale;
  const void* bias;
  bf16* y;
  int n;
};
DEVICE Up choose(int i, const Up& first, const Up& second, const Up& third) { return i == 0 ? first : i == 1 ? second : third; }

// Adds one product to the accumulators. A warp has 64 rows and 32 columns, a block 256 columns. Column i of fragment j
// of four stands for column 8 (i / 2) + 2 j + i % 2 of those 32, so that lane c of four has columns 8c .. 8c + 7 of a
// row, one 16-byte access.
template <bool R_ROWS>
DEVICE void add_product(float (&d)[4][4][4], const Up& p, int t, int n, int row0, int column0) {
  int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3, r = p.r;
#pragma unroll 1
  for (int r0 = 0; r0 < r; r0 += 16) {
    u32 fb[4][2];
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        int column = column0 + g / 2 * 8 + j * 2 + g % 2, rank = r0 + h * 8 + c * 2;
        auto at = [&](int rank) { return column < n && rank < r ? p.w[R_ROWS ? (i64)rank * n + column : (i64)column * r + rank] : 0.f; };
        fb[j][h] = pack_bf16(at(rank), at(rank + 1));
      }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 fa[4];
#pragma unroll
      for (int h = 0; h < 4; h++) {
        int row = row0 + i * 16 + h % 2 * 8 + g, rank = r0 + h / 2 * 8 + c * 2;
        const bf16* from = p.s + (i64)row * r + rank;
        if (row >= t || rank >= r) fa[h] = 0;
        else if (r % 2 == 0) fa[h] = *reinterpret_cast<const u32*>(from);
        else fa[h] = from[0].bits | (u32)(rank + 1 < r ? from[1].bits : 0) << 16;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) mma_m16n8k16(d[i][j], fa, fb[j][0], fb[j][1]);
    }
  }
}

// Adds the products to y. Grid: columns, rows, layers. When R_ROWS, the layers share one y, the scales are 1, and a
// block adds all their products before it touches y.
template <bool R_ROWS>
DEVICE void lora_up(const Up& first, const Up& second, const Up& third, int t, int bias_is_f32, i64 y_stride) {
  const Up own = choose(R_ROWS ? 0 : blockIdx.z, first, second, third);
  const void* bias = own.bias;
  bf16* y = own.y;
  int n = own.n;
  float scale = own.scale;
  int lane = threadIdx.x & 31, g = lane >> 2, c = lane & 3;
  int row0 = blockIdx.y * 64, column0 = blockIdx.x * 256 + (threadIdx.x >> 5) * 32;
  if ((int)blockIdx.x * 256 >= n) return;
  float d[4][4][4] = {};
  if constexpr (R_ROWS) {
#pragma unroll 1
    for (int i = 0; i < 3; i++) add_product<true>(d, choose(i, first, second, third), t, n, row0, column0);
  } else {
    add_product<false>(d, own, t, n, row0, column0);
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
#define UP(i) const bf16 *s##i, const float *w##i, int r##i, float scale##i, const void *bias##i, bf16 *y##i, int n##i
#define LORA_UP(name, R_ROWS)                                                                                  \
  KERNEL(256) name(UP(0), UP(1), UP(2), int t, int bias_is_f32, i64 y_stride) {                                \
    lora_up<R_ROWS>({s0, w0, r0, scale0, bias0, y0, n0}, {s1, w1, r1, scale1, bias1, y1, n1},                  \
                    {s2, w2, r2, scale2, bias2, y2, n2}, t, bias_is_f32, y_stride);                            \
  }
LORA_UP(lora_up_nt, false)
EXPORT(lora_up_nt)
LORA_UP(lora_up_nn, true)
EXPORT(lora_up_nn)

// partial (splits, N): the sums of the columns of x (T, N) over `rows` rows each. A lane has 8 columns and a warp 256.
// The 8 warps take turns at the rows, and their sums are added in order. Grid: columns, splits.
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
  for (int e = 0; e < 8; e++) sums[warp * 256 + e * 32 + lane] = sum[e];  // by lane, so no bank conflicts
  __syncthreads();
  int mine = blockIdx.x * 256 + threadIdx.x, at = threadIdx.x % 8 * 32 + threadIdx.x / 8;
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) total += sums[w * 256 + at];
  if (mine < n) partial[(i64)blockIdx.y * n + mine] = total;
}
EXPORT(column_sums)

// w (N, K) += scale * b a with b (N, R) and a (R, K), all in f32 before w is rounded. A thread has one column and 32
// rows. Grid: columns, rows.
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
