// Causal softmax attention inside packed segments, by FlashAttention-2 (arXiv 2307.08691). A block has 64 queries of
// one head, listed by attention_tiles.cu, and walks the keys that they see, 64 at a time, with an online softmax: first
// all keys of the parent, then those of its own segment, causally. Each of 4 warps has 16 queries, whose q, scores and
// output stay in registers. K and V tiles are double-buffered in shared memory, 512 HS bytes. The backward, and
// attention over a cache, have their own files.
#include "device.cuh"

constexpr int WARPS = 4, THREADS = WARPS * 32;
constexpr int ROWS = 64;  // queries, and keys, of a tile
constexpr float MASKED = -1e30f, LOG2E = 1.44269504f;

// As in attention_tiles.cu.
struct QueryTile { int count_or_first, end, start, prefix, prefix_end, unused[3]; };

// qkv (T, D) -> o (T, NH HS), lse (NH, T). Grid: list capacity x NH, heads fastest, so that heads that share keys run
// together.
template <int HS>
DEVICE void attention(const bf16* qkv, const QueryTile* tiles, int rows, int nh, int nkv, float scale, bf16* o, float* lse) {
  DYNAMIC_SHARED(bf16, shared);
  auto k_tile = [=](int step) { return shared + (step & 1) * ROWS * HS; };
  auto v_tile = [=](int step) { return shared + (2 + (step & 1)) * ROWS * HS; };
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int head = blockIdx.x % nh, stride = (nh + 2 * nkv) * HS;
  QueryTile tile = tiles[1 + blockIdx.x / nh];
  int first = tile.count_or_first;
  const bf16* q = qkv + head * HS;
  const bf16* k = qkv + (nh + head / (nh / nkv)) * HS;
  const bf16* v = k + nkv * HS;

  int prefix_steps = (tile.prefix_end - tile.prefix + ROWS - 1) / ROWS;
  int steps = prefix_steps + (first - tile.start) / ROWS + 1;
  auto first_key = [&](int step) {
    return step < prefix_steps ? tile.prefix + step * ROWS : tile.start + (step - prefix_steps) * ROWS;
  };
  auto load_keys = [&](int step) {
    int end = step < prefix_steps ? tile.prefix_end : tile.end;
    load_tile<HS, ROWS, THREADS>(k_tile(step), k, stride, first_key(step), end);
    load_tile<HS, ROWS, THREADS>(v_tile(step), v, stride, first_key(step), end);
    cp_async_commit();
  };

  // q is loaded through the buffer that is not needed yet.
  load_tile<HS, ROWS, THREADS>(k_tile(1), q, stride, first, tile.end);
  cp_async_commit();
  load_keys(0);
  cp_async_wait<1>();
  __syncthreads();
  u32 q_fragments[HS / 16][4];
#pragma unroll
  for (int kk = 0; kk < HS / 16; kk++) fragment_a<HS>(q_fragments[kk], k_tile(1), warp * 16, kk);

  // A lane has rows lane / 4 and lane / 4 + 8 of its warp's 16: index 0 and 1 below.
  float scale_log2 = scale * LOG2E;
  float largest[2] = {MASKED, MASKED}, sum[2] = {0.f, 0.f};
  float acc[HS / 8][4] = {};
  for (int step = 0; step < steps; step++) {
    cp_async_wait<0>();
    __syncthreads();  // this step's tiles have arrived, and all threads have left the last step's
    if (step + 1 < steps) load_keys(step + 1);

    float p[ROWS / 8][4] = {};  // scores, then probabilities
#pragma unroll
    for (int kk = 0; kk < HS / 16; kk++) {
#pragma unroll
      for (int n = 0; n < ROWS / 16; n++) {
        u32 b[4];
        fragment_b<HS>(b, k_tile(step), n * 16, kk);
        mma_m16n8k16(p[2 * n], q_fragments[kk], b[0], b[1]);
        mma_m16n8k16(p[2 * n + 1], q_fragments[kk], b[2], b[3]);
      }
    }
    if (step == prefix_steps - 1 || step == steps - 1) {  // the ragged end of the parent; the diagonal
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int query = first + warp * 16 + (lane >> 2) + (e >> 1) * 8;
          int key = first_key(step) + n * 8 + (lane & 3) * 2 + (e & 1);
          bool visible = step < prefix_steps ? key < tile.prefix_end : key <= query;
          if (!visible) p[n][e] = MASKED;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float most = largest[r];
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++) most = fmaxf(most, fmaxf(p[n][2 * r], p[n][2 * r + 1]));
      most = fmaxf(most, __shfl_xor_sync(ALL, most, 1));
      most = fmaxf(most, __shfl_xor_sync(ALL, most, 2));
      float shrink = exp2_fast((largest[r] - most) * scale_log2), shift = most * scale_log2, total = 0.f;
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++) {
          p[n][e] = exp2_fast(p[n][e] * scale_log2 - shift);
          total += p[n][e];
        }
      largest[r] = most;
      sum[r] = sum[r] * shrink + total;
#pragma unroll
      for (int n = 0; n < HS / 8; n++) acc[n][2 * r] *= shrink, acc[n][2 * r + 1] *= shrink;
    }
#pragma unroll
    for (int kk = 0; kk < ROWS / 16; kk++) {
      u32 a[4];
      accumulators_as_a(a, p[2 * kk], p[2 * kk + 1]);
#pragma unroll
      for (int n = 0; n < HS / 16; n++) {
        u32 b[4];
        fragment_b_transposed<HS>(b, v_tile(step), n, kk);
        mma_m16n8k16(acc[2 * n], a, b[0], b[1]);
        mma_m16n8k16(acc[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // o goes through shared memory, so that it is written 16 bytes at a time; each warp uses only its own 16 rows.
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(ALL, sum[r], 1);
    sum[r] += __shfl_xor_sync(ALL, sum[r], 2);
    int row = warp * 16 + (lane >> 2) + r * 8;
    if ((lane & 3) == 0 && first + row < tile.end)
      lse[(i64)head * rows + first + row] = largest[r] * scale + logf(sum[r]);
    float inverse = 1.f / sum[r];
#pragma unroll
    for (int n = 0; n < HS / 8; n++)
      *reinterpret_cast<u32*>(swizzled<HS>(shared, row, n) + (lane & 3) * 2) =
          pack_bf16(acc[n][2 * r] * inverse, acc[n][2 * r + 1] * inverse);
  }
  __syncwarp(ALL);
#pragma unroll
  for (int i = 0; i < 16 * (HS / 8) / 32; i++) {
    int at = i * 32 + lane, row = warp * 16 + at / (HS / 8), chunk = at % (HS / 8);
    if (first + row < tile.end)
      *reinterpret_cast<uint4*>(o + ((i64)(first + row) * nh + head) * HS + chunk * 8) =
          *reinterpret_cast<const uint4*>(swizzled<HS>(shared, row, chunk));
  }
}

#define ATTENTION(HS)                                                                                                               \
  KERNEL(THREADS) attention_##HS(const bf16* qkv, const QueryTile* tiles, int rows, int nh, int nkv, float scale, bf16* o, float* lse) { \
    if ((int)(blockIdx.x / nh) < tiles[0].count_or_first) attention<HS>(qkv, tiles, rows, nh, nkv, scale, o, lse);                  \
  }
ATTENTION(32)
EXPORT(attention_32)
ATTENTION(64)
EXPORT(attention_64)
ATTENTION(128)
EXPORT(attention_128)
