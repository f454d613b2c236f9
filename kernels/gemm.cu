// Matrix products: c (M, N) = alpha * (op(a) op(b) + scale2 * a2 op(b2)) + beta * c + bias, bf16 in, f32 accumulation,
// bf16 or f32 out; and the same product with a low-rank adapter, whose s = x A^T is computed in the same pass over x.
// The method: cp.async in 4 stages, swizzled shared memory, ldmatrix, mma.m16n8k16. Tiles are 128x128x32 (8 warps)
// where they fill the GPU, else 64x64x64 (4 warps); for decoding 16x32x128 (2 warps) and 64x32x64 (4 warps), many
// blocks that stream the weight. Every element is one f32 chain over ascending k, by 16, in all tiles, and x W^T is
// never split over k: the bits of a row depend neither on the tile nor on the other rows. Products over tokens may be
// split over k; the partial sums are added in order. There is no product with both operands transposed, and no wgmma or
// TMA.
#include "device.cuh"

constexpr int STAGES = 4;

// A bf16 matrix in global memory; it reads as 0 outside rows x columns.
struct View {
  const bf16* at;
  i64 stride;
  int rows, columns;
};
DEVICE View choose(bool first, const View& a, const View& b) {  // field by field, so that the views stay in registers
  return {first ? a.at : b.at, first ? a.stride : b.stride, first ? a.rows : b.rows, first ? a.columns : b.columns};
}
DEVICE bool is_aligned(const bf16* at, i64 stride) { return (((u64)at | (u64)stride * 2) & 15) == 0; }

// Returns the element offset of a 16-byte chunk in a tile of rows of CHUNKS chunks. Eight rows of one chunk column fall
// into different banks.
template <int CHUNKS>
DEVICE int swizzled(int row, int chunk) {
  static_assert(CHUNKS >= 4, "a row has at least 32 elements");
  return (row * CHUNKS + (CHUNKS == 4 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7))) * 8;
}

// Starts loading the ROWS x COLUMNS tile at (row0, column0). A tile at an edge is loaded chunk by chunk, and a chunk
// that is not whole or not aligned element by element. That loop is not unrolled, for code size.
template <int ROWS, int COLUMNS, int THREADS>
DEVICE void load_tile(bf16* tile, const View& v, bool aligned, int row0, int column0) {
  constexpr int CHUNKS = COLUMNS / 8;
  const bf16* origin = v.at + (i64)row0 * v.stride + column0;
  if (aligned && row0 + ROWS <= v.rows && column0 + COLUMNS <= v.columns) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
      int r = i / CHUNKS, chunk = i % CHUNKS;
      cp_async16(tile + swizzled<CHUNKS>(r, chunk), origin + r * v.stride + chunk * 8, true);
    }
    return;
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
    int r = i / CHUNKS, left = row0 + r < v.rows ? v.columns - column0 - i % CHUNKS * 8 : 0;
    bf16* to = tile + swizzled<CHUNKS>(r, i % CHUNKS);
    const bf16* from = origin + r * v.stride + i % CHUNKS * 8;
    if (left <= 0 || (aligned && left >= 8)) {
      cp_async16(to, from, left > 0);
    } else {
      u32 w[4];
#pragma unroll
      for (int e = 0; e < 4; e++) w[e] = (2 * e < left ? from[2 * e].bits : 0) | (u32)(2 * e + 1 < left ? from[2 * e + 1].bits : 0) << 16;
      *reinterpret_cast<uint4*>(to) = {w[0], w[1], w[2], w[3]};
    }
  }
}

// Loads the 16x16 fragment of op(a) at (m, k). The tile is stored as [m][k] or, with K_ROWS, as [k][m].
template <bool K_ROWS, int CHUNKS>
DEVICE void fragment_a(u32 (&r)[4], const bf16* tile, int m, int k) {
  int lane = threadIdx.x & 31;
  if constexpr (K_ROWS) ldmatrix_x4_transposed(r, tile + swizzled<CHUNKS>(k + (lane >> 4) * 8 + (lane & 7), m / 8 + (lane >> 3 & 1)));
  else ldmatrix_x4(r, tile + swizzled<CHUNKS>(m + (lane & 15), k / 8 + (lane >> 4)));
}
// Loads two 16x8 fragments of op(b), at (k, n) in r[0], r[1] and at (k, n + 8) in r[2], r[3]. The tile is stored as
// [n][k] or, with K_ROWS, as [k][n].
template <bool K_ROWS, int CHUNKS>
DEVICE void fragment_b(u32 (&r)[4], const bf16* tile, int k, int n) {
  int lane = threadIdx.x & 31;
  if constexpr (K_ROWS) ldmatrix_x4_transposed(r, tile + swizzled<CHUNKS>(k + (lane >> 3 & 1) * 8 + (lane & 7), n / 8 + (lane >> 4)));
  else ldmatrix_x4(r, tile + swizzled<CHUNKS>(n + (lane >> 4) * 8 + (lane & 7), k / 8 + (lane >> 3 & 1)));
}

struct Output {
  void* at;
  i64 stride;
  int is_f32;
  float alpha, beta;
  const void* bias;  // (N) or null
  int bias_is_f32;
};
DEVICE float bias_at(const Output& c, int column) {
  if (!c.bias) return 0.f;
  return c.bias_is_f32 ? static_cast<const float*>(c.bias)[column] : to_float(static_cast<const bf16*>(c.bias)[column]);
}

// Writes out a block's sums in chunks of eight columns. They are f32 in shared memory, BM rows of BN + 8, so that pairs
// of a fragment fall into different banks.
template <int BM, int BN, int THREADS>
DEVICE void store_tile(const Output& c, const float* tile, int m, int n, int row0, int column0) {
  bf16* narrow = static_cast<bf16*>(c.at);
  float* wide = static_cast<float*>(c.at);
  bool aligned = (((u64)c.at | (u64)c.stride * (c.is_f32 ? 4 : 2)) & 15) == 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < BM * BN / 8; i += THREADS) {
    int r = i / (BN / 8), column = column0 + i % (BN / 8) * 8, count = min(8, n - column);
    if (row0 + r >= m || count <= 0) continue;
    i64 at = (row0 + r) * c.stride + column;
    bool whole = aligned && count == 8;
    float x[8], old[8];
#pragma unroll
    for (int e = 0; e < 8; e++) x[e] = c.alpha * tile[r * (BN + 8) + column - column0 + e] + (e < count ? bias_at(c, column + e) : 0.f);
    if (c.beta != 0.f) {
      if (whole && !c.is_f32) load8(old, narrow + at);
      else
        for (int e = 0; e < 8; e++) old[e] = e >= count ? 0.f : c.is_f32 ? wide[at + e] : to_float(narrow[at + e]);
#pragma unroll
      for (int e = 0; e < 8; e++) x[e] += c.beta * old[e];
    }
    if (whole && c.is_f32) {
      *reinterpret_cast<float4*>(wide + at) = {x[0], x[1], x[2], x[3]};
      *reinterpret_cast<float4*>(wide + at + 4) = {x[4], x[5], x[6], x[7]};
    } else if (whole) {
      store8(narrow + at, x);
    } else {
#pragma unroll
      for (int e = 0; e < 8; e++) {
        if (e >= count) break;
        if (c.is_f32) wide[at + e] = x[e];
        else store(narrow + at + e, x[e]);
      }
    }
  }
}

// Chooses the block's tile. Blocks walk the tiles in groups of 8 tile rows, so that blocks that run at the same time
// share tiles of both operands in L2.
DEVICE void tile_of(int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
  int group = blockIdx.x / (8 * tiles_n), in_group = blockIdx.x % (8 * tiles_n), rows = min(8, tiles_m - group * 8);
  tile_m = group * 8 + in_group % rows, tile_n = in_group / rows;
}

// The adapter of a product x W^T: y += scale * s B^T with s = x A^T. Its rank is at most 8 * RT.
struct Adapter {
  View a;          // (R, K)
  const float* b;  // (N, R)
  float scale;
  bf16* s;  // (M, R)
};

// Computes one tile of the product. A_ROWS: a is stored as (K, M). B_ROWS: b is stored as (K, N). WM x WN is the part
// of a warp. RT is the number of 8-column fragments of s, 0 without an adapter. The products of the second pair, if
// any, come first and are scaled by scale2; a2 is (M, K2), b2 is stored like b.
template <bool A_ROWS, bool B_ROWS, int BM, int BN, int BK, int WM, int WN, int RT>
DEVICE void product(const View& a, const View& b, const View& a2, const View& b2, float scale2, int k2, int m, int n, int k, int k_split,
                    Output c, const Adapter& adapter) {
  constexpr int WARPS_N = BN / WN, WARPS = BM / WM * WARPS_N, THREADS = WARPS * 32, MT = WM / 16, NT = WN / 8;
  constexpr int CHUNKS_A = (A_ROWS ? BM : BK) / 8, CHUNKS_B = (B_ROWS ? BN : BK) / 8;
  constexpr int SIZE_A = BM * BK, SIZE_B = BN * BK, SIZE_R = RT * 8 * BK, STAGE = SIZE_A + SIZE_B + SIZE_R;
  // s: a warp has one 16-row fragment of all ranks or, in a tile of fewer fragments than warps, 16 ranks.
  constexpr int S_ROWS = BM / 16, S_PAIRS = S_ROWS >= WARPS ? RT / 2 : 1, S_GROUPS = RT / 2 / (S_PAIRS ? S_PAIRS : 1);
  static_assert(RT == 0 || S_ROWS == WARPS || (S_ROWS == 1 && S_GROUPS <= 4), "who computes which part of s");
  DYNAMIC_SHARED(bf16, shared);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = warp / WARPS_N * WM, warp_n = warp % WARPS_N * WN;
  int tile_m, tile_n;
  tile_of((m + BM - 1) / BM, (n + BN - 1) / BN, tile_m, tile_n);
  int row0 = tile_m * BM, column0 = tile_n * BN;
  int k_begin = blockIdx.z * k_split, k_end = min(k, k_begin + k_split);
  int tiles2 = (k2 + BK - 1) / BK, tiles = tiles2 + (k_end - k_begin + BK - 1) / BK;
  bool aligned_a = is_aligned(a.at, a.stride), aligned_b = is_aligned(b.at, b.stride);
  bool aligned_a2 = k2 && is_aligned(a2.at, a2.stride), aligned_b2 = k2 && is_aligned(b2.at, b2.stride);
  bool aligned_r = RT && is_aligned(adapter.a.at, adapter.a.stride);

  auto load = [&](int t) {
    if (t < tiles) {
      bf16* stage = shared + t % STAGES * STAGE;
      bool second = t < tiles2;
      View x = choose(second, a2, a), w = choose(second, b2, b);
      bool fast_x = second ? aligned_a2 : aligned_a, fast_w = second ? aligned_b2 : aligned_b;
      int at = second ? t * BK : k_begin + (t - tiles2) * BK;
      if constexpr (A_ROWS) load_tile<BK, BM, THREADS>(stage, x, fast_x, at, row0);
      else load_tile<BM, BK, THREADS>(stage, x, fast_x, row0, at);
      if constexpr (B_ROWS) load_tile<BK, BN, THREADS>(stage + SIZE_A, w, fast_w, at, column0);
      else load_tile<BN, BK, THREADS>(stage + SIZE_A, w, fast_w, column0, at);
      if constexpr (RT > 0) load_tile<RT * 8, BK, THREADS>(stage + SIZE_A + SIZE_B, adapter.a, aligned_r, 0, at);
    }
    cp_async_commit();
  };

  float d[MT][NT][4] = {};
  float s[RT ? S_PAIRS * 2 : 1][4] = {};
  int s_row = S_ROWS >= WARPS ? warp * 16 : 0, s_group = S_ROWS >= WARPS ? 0 : warp;
#pragma unroll 1
  for (int t = 1 - STAGES; t < tiles; t++) {  // the first iterations only load
    if (t >= 0) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // tile t has arrived, and all threads have left the stage that is loaded next
    }
    load(t + STAGES - 1);
    if (t < 0) continue;
    const bf16* stage = shared + t % STAGES * STAGE;
    if (tiles2 && t == tiles2) {
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) d[i][j][e] *= scale2;
    }
#pragma unroll
    for (int kk = 0; kk < BK; kk += 16) {
      u32 fa[MT][4];
#pragma unroll
      for (int i = 0; i < MT; i++) fragment_a<A_ROWS, CHUNKS_A>(fa[i], stage, warp_m + i * 16, kk);
#pragma unroll
      for (int j = 0; j < NT; j += 2) {
        u32 fb[4];
        fragment_b<B_ROWS, CHUNKS_B>(fb, stage + SIZE_A, kk, warp_n + j * 8);
#pragma unroll
        for (int i = 0; i < MT; i++) {
          mma_m16n8k16(d[i][j], fa[i], fb[0], fb[1]);
          mma_m16n8k16(d[i][j + 1], fa[i], fb[2], fb[3]);
        }
      }
      if constexpr (RT > 0) {
        if (s_group < S_GROUPS) {
          u32 fx[4], fb[4];
          fragment_a<false, BK / 8>(fx, stage, s_row, kk);
#pragma unroll
          for (int p = 0; p < S_PAIRS; p++) {
            fragment_b<false, BK / 8>(fb, stage + SIZE_A + SIZE_B, kk, (s_group + p) * 16);
            mma_m16n8k16(s[2 * p], fx, fb[0], fb[1]);
            mma_m16n8k16(s[2 * p + 1], fx, fb[2], fb[3]);
          }
        }
      }
    }
  }
  cp_async_wait<0>();

  if constexpr (RT > 0) {
    // Store s as bf16 in shared memory, with rows padded by 16 bytes against bank conflicts; then add its product with
    // B.
    constexpr int STRIDE = RT * 8 + 8;
    int g = lane >> 2, quad = lane & 3, ranks = adapter.a.rows;
    __syncthreads();
    if (s_group < S_GROUPS) {
#pragma unroll
      for (int j = 0; j < S_PAIRS * 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int i = s_row + g + e / 2 * 8, rank = s_group * 16 + j * 8 + quad * 2 + e % 2;
          bf16 x = to_bf16(s[j][e]);
          shared[i * STRIDE + rank] = x;
          if (tile_n == 0 && row0 + i < m && rank < ranks) adapter.s[(i64)(row0 + i) * ranks + rank] = x;
        }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < NT; j++) {
      int column = column0 + warp_n + j * 8 + g;
      u32 fb[RT / 2][2];
#pragma unroll
      for (int p = 0; p < RT; p++) {
        int rank = p * 8 + quad * 2;
        const float* from = adapter.b + (i64)column * ranks + rank;
        fb[p / 2][p % 2] = pack_bf16(column < n && rank < ranks ? from[0] : 0.f, column < n && rank + 1 < ranks ? from[1] : 0.f);
      }
#pragma unroll
      for (int i = 0; i < MT; i++) {
        float up[4] = {};
#pragma unroll
        for (int p = 0; p < RT / 2; p++) {
          u32 fs[4];
          ldmatrix_x4(fs, shared + (warp_m + i * 16 + (lane & 15)) * STRIDE + p * 16 + (lane >> 4) * 8);
          mma_m16n8k16(up, fs, fb[p][0], fb[p][1]);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) d[i][j][e] += adapter.scale * up[e];
      }
    }
  }
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float* to = sums + (warp_m + i * 16 + half * 8 + (lane >> 2)) * (BN + 8) + warp_n + j * 8 + (lane & 3) * 2;
        *reinterpret_cast<float2*>(to) = {d[i][j][2 * half], d[i][j][2 * half + 1]};
      }
  __syncthreads();
  if (gridDim.z > 1) c.at = static_cast<float*>(c.at) + (i64)blockIdx.z * m * n;
  store_tile<BM, BN, THREADS>(c, sums, m, n, row0, column0);
}

// Grid: tiles, 1, splits of k_split. With more than one split, c is (splits, M, N) f32.
#define GEMM(name, A_ROWS, B_ROWS, BM, BN, BK, WM, WN)                                                                              \
  KERNEL(BM / WM * (BN / WN) * 32)                                                                                                  \
  name(const bf16* a, i64 a_stride, const bf16* b, i64 b_stride, void* c, i64 c_stride, int c_is_f32, int m, int n, int k,          \
       int k_split, float alpha, float beta, const void* bias, int bias_is_f32, const bf16* a2, i64 a2_stride, const bf16* b2,      \
       i64 b2_stride, int k2, float scale2) {                                                                                      \
    View x = {a, a_stride, A_ROWS ? k : m, A_ROWS ? m : k}, w = {b, b_stride, B_ROWS ? k : n, B_ROWS ? n : k};                     \
    View x2 = {a2, a2_stride, m, k2}, w2 = {b2, b2_stride, B_ROWS ? k2 : n, B_ROWS ? n : k2};                                      \
    product<A_ROWS, B_ROWS, BM, BN, BK, WM, WN, 0>(x, w, x2, w2, scale2, k2, m, n, k, k_split,                                     \
                                                   {c, c_stride, c_is_f32, alpha, beta, bias, bias_is_f32}, Adapter());            \
  }
GEMM(gemm_nt_128, false, false, 128, 128, 32, 64, 32)
EXPORT(gemm_nt_128)
GEMM(gemm_nt_64, false, false, 64, 64, 64, 32, 32)
EXPORT(gemm_nt_64)
GEMM(gemm_nt_64x32, false, false, 64, 32, 64, 16, 32)
EXPORT(gemm_nt_64x32)
GEMM(gemm_nt_16, false, false, 16, 32, 128, 16, 16)
EXPORT(gemm_nt_16)
GEMM(gemm_nn_128, false, true, 128, 128, 32, 64, 32)
EXPORT(gemm_nn_128)
GEMM(gemm_nn_64, false, true, 64, 64, 64, 32, 32)
EXPORT(gemm_nn_64)
GEMM(gemm_tn_128, true, true, 128, 128, 32, 64, 32)
EXPORT(gemm_tn_128)
GEMM(gemm_tn_64, true, true, 64, 64, 64, 32, 32)
EXPORT(gemm_tn_64)

// y (M, N) = x W^T + bias + scale s B^T, s (M, R) = x A^T. Grid: tiles.
#define LINEAR_LORA(name, BM, BN, BK, WM, WN, RT)                                                                                   \
  KERNEL(BM / WM * (BN / WN) * 32)                                                                                                  \
  name(const bf16* x, i64 x_stride, const bf16* w, i64 w_stride, bf16* y, i64 y_stride, int m, int n, int k, const void* bias,      \
       int bias_is_f32, const bf16* a, const float* b, int r, float scale, bf16* s) {                                              \
    product<false, false, BM, BN, BK, WM, WN, RT>({x, x_stride, m, k}, {w, w_stride, n, k}, View(), View(), 1.f, 0, m, n, k, k,     \
                                                  {y, y_stride, 0, 1.f, 0.f, bias, bias_is_f32}, {{a, k, r, k}, b, scale, s});     \
  }
LINEAR_LORA(linear_lora_128_r16, 128, 128, 32, 64, 32, 2)
EXPORT(linear_lora_128_r16)
LINEAR_LORA(linear_lora_128_r64, 128, 128, 32, 64, 32, 8)
EXPORT(linear_lora_128_r64)
LINEAR_LORA(linear_lora_64_r16, 64, 64, 64, 32, 32, 2)
EXPORT(linear_lora_64_r16)
LINEAR_LORA(linear_lora_64_r64, 64, 64, 64, 32, 32, 8)
EXPORT(linear_lora_64_r64)
LINEAR_LORA(linear_lora_16_r16, 16, 64, 64, 16, 16, 2)
EXPORT(linear_lora_16_r16)
LINEAR_LORA(linear_lora_16_r64, 16, 64, 64, 16, 16, 8)
EXPORT(linear_lora_16_r64)

// c (M, N) = alpha * the sum of partial (splits, M, N) over its splits in order + beta * c
template <typename T>
DEVICE void add_splits(const float* partial, int splits, T* c, i64 stride, int m, int n, float alpha, float beta) {
  i64 size = (i64)m * n;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += (i64)gridDim.x * blockDim.x) {
    float sum = 0.f;
    for (int split = 0; split < splits; split++) sum += partial[split * size + i];
    T* to = c + i / n * stride + i % n;
    store(to, alpha * sum + (beta != 0.f ? beta * to_float(*to) : 0.f));
  }
}
KERNEL(256) sum_splits_f32(const float* partial, int splits, float* c, i64 stride, int m, int n, float alpha, float beta) {
  add_splits(partial, splits, c, stride, m, n, alpha, beta);
}
EXPORT(sum_splits_f32)
KERNEL(256) sum_splits_bf16(const float* partial, int splits, bf16* c, i64 stride, int m, int n, float alpha, float beta) {
  add_splits(partial, splits, c, stride, m, n, alpha, beta);
}
EXPORT(sum_splits_bf16)
