// Gradients of packed attention, by FlashAttention-2 (arXiv 2307.08691), without atomics, so deterministic. One kernel
// computes dk and dv of 64 keys, walking the queries that see them; another computes dq of 64 queries, walking the keys
// that they see. Both recompute p from lse. Each of 4 warps has 16 of the block's own rows, whose scores and gradients
// stay in registers. The other side's tiles (64 rows, or 32 for a head size of 128) are double-buffered in shared
// memory: 768 HS bytes, or 512 HS for 128. A list (attention_tiles.cu) says which rows a block has.
#include "device.cuh"

constexpr int WARPS = 4, THREADS = WARPS * 32;
constexpr int ROWS = 64;  // the block's own rows
constexpr float LOG2E = 1.44269504f;

template <int HS>
constexpr int STEP = HS == 128 ? 32 : 64;  // rows of the other side at a time

// As in attention_tiles.cu.
struct QueryTile { int count_or_first, end, start, prefix, prefix_end, unused[3]; };
struct KeyTile { int count_or_first, end, segment, family_end, part, parts, slot, unused; };

// Computes the statistics of a query that both sides need: statistics (2, NH, T) = lse in units of log 2, and delta,
// the sum over the head of o * dout. o, dout (T, NH HS), lse (NH, T). A thread has 8 elements; HS / 8 neighbouring
// threads have a head.
template <int HS>
DEVICE void attention_statistics(const bf16* o, const bf16* dout, const float* lse, int rows, int nh, float* statistics) {
  i64 at = (i64)blockIdx.x * THREADS + threadIdx.x;
  bool is_inside = at < (i64)rows * nh * (HS / 8);
  float sum = 0.f;
  if (is_inside) {
    float a[8], b[8];
    load8(a, o + at * 8);
    load8(b, dout + at * 8);
#pragma unroll
    for (int i = 0; i < 8; i++) sum += a[i] * b[i];
  }
#pragma unroll
  for (int i = HS / 16; i; i >>= 1) sum += __shfl_xor_sync(ALL, sum, i);
  i64 row = at / (HS / 8) / nh, head = at / (HS / 8) % nh;
  if (is_inside && at % (HS / 8) == 0) {
    statistics[head * rows + row] = lse[head * rows + row] * LOG2E;
    statistics[(nh + head) * rows + row] = sum;
  }
}

// Writes a warp's 16 rows (from `row` on) of accumulators times `factor` as bf16. They go through the warp's own rows
// of a tile in shared memory, so that they are written 16 bytes at a time.
template <int HS>
DEVICE void store_rows(const float (&acc)[HS / 8][4], float factor, bf16* shared, int row, bf16* matrix, int stride, int first, int end) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < HS / 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++)
      *reinterpret_cast<u32*>(swizzled<HS>(shared, row + (lane >> 2) + r * 8, n) + (lane & 3) * 2) =
          pack_bf16(acc[n][2 * r] * factor, acc[n][2 * r + 1] * factor);
  __syncwarp(ALL);
#pragma unroll
  for (int i = 0; i < 16 * (HS / 8) / 32; i++) {
    int at = i * 32 + lane, own = row + at / (HS / 8), chunk = at % (HS / 8);
    if (first + own < end)
      *reinterpret_cast<uint4*>(matrix + (i64)(first + own) * stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(swizzled<HS>(shared, own, chunk));
  }
}

// As store_rows, in f32, to a whole tile (ROWS, HS) in device memory.
template <int HS>
DEVICE void store_part(const float (&acc)[HS / 8][4], float factor, float* sums, int row) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < HS / 8; n++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float2 pair = {acc[n][2 * r] * factor, acc[n][2 * r + 1] * factor};
      *reinterpret_cast<float2*>(sums + (row + (lane >> 2) + r * 8) * HS + n * 8 + (lane & 3) * 2) = pair;
    }
}

// d (16 x N, in N / 8 accumulators) = a b^T, with a the rows from `row` on of a tile, and b the N rows of another tile.
template <int HS, int N>
DEVICE void products(float (&d)[N / 8][4], bf16* a_tile, int row, bf16* b_tile) {
#pragma unroll
  for (int n = 0; n < N / 8; n++) d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.f;
#pragma unroll 2  // fully unrolled, the addresses of all fragments stay in registers and spill
  for (int k = 0; k < HS / 16; k++) {
    u32 a[4];
    fragment_a<HS>(a, a_tile, row, k);
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
      u32 b[4];
      fragment_b<HS>(b, b_tile, n * 16, k);
      mma_m16n8k16(d[2 * n], a, b[0], b[1]);
      mma_m16n8k16(d[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// acc (16 x HS) += x (16 x N, rounded to bf16) times the N rows of a tile.
template <int HS, int N>
DEVICE void accumulate(float (&acc)[HS / 8][4], const float (&x)[N / 8][4], bf16* tile) {
#pragma unroll
  for (int k = 0; k < N / 16; k++) {
    u32 a[4];
    accumulators_as_a(a, x[2 * k], x[2 * k + 1]);
#pragma unroll
    for (int n = 0; n < HS / 16; n++) {
      u32 b[4];
      fragment_b_transposed<HS>(b, tile, n, k);
      mma_m16n8k16(acc[2 * n], a, b[0], b[1]);
      mma_m16n8k16(acc[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Computes the q part of dqkv (T, D); the grid is that of the forward. dq = scale * sum of ds k, ds = p (dout v -
// delta).
template <int HS>
DEVICE void attention_dq(const bf16* qkv, const bf16* dout, const float* statistics, const QueryTile* tiles, int rows, int nh,
                         int nkv, float scale, bf16* dqkv) {
  constexpr int N = STEP<HS>;
  DYNAMIC_SHARED(bf16, shared);
  bf16 *q_tile = shared, *dout_tile = shared + ROWS * HS;
  auto k_tile = [=](int step) { return shared + (2 * ROWS + (step & 1) * N) * HS; };
  auto v_tile = [=](int step) { return shared + (2 * ROWS + (2 + (step & 1)) * N) * HS; };
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int head = blockIdx.x % nh, stride = (nh + 2 * nkv) * HS;
  QueryTile tile = tiles[1 + blockIdx.x / nh];
  int first = tile.count_or_first;
  const bf16* k = qkv + (nh + head / (nh / nkv)) * HS;
  const bf16* v = k + nkv * HS;

  int prefix_steps = (tile.prefix_end - tile.prefix + N - 1) / N;
  int steps = prefix_steps + (min(first + ROWS, tile.end) - tile.start + N - 1) / N;
  auto first_key = [&](int step) { return step < prefix_steps ? tile.prefix + step * N : tile.start + (step - prefix_steps) * N; };
  auto load_keys = [&](int step) {
    int end = step < prefix_steps ? tile.prefix_end : tile.end;
    load_tile<HS, N, THREADS>(k_tile(step), k, stride, first_key(step), end);
    load_tile<HS, N, THREADS>(v_tile(step), v, stride, first_key(step), end);
    cp_async_commit();
  };
  load_tile<HS, ROWS, THREADS>(q_tile, qkv + head * HS, stride, first, tile.end);
  load_tile<HS, ROWS, THREADS>(dout_tile, dout + head * HS, nh * HS, first, tile.end);
  load_keys(0);

  float shift[2], d[2];  // for a lane's rows lane / 4 and lane / 4 + 8 of its warp's 16
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = first + warp * 16 + (lane >> 2) + r * 8;
    bool is_query = row < tile.end;  // rows past the end give finite values that are not stored
    shift[r] = is_query ? statistics[(i64)head * rows + row] : 0.f;
    d[r] = is_query ? statistics[(i64)(nh + head) * rows + row] : 0.f;
  }
  float scale_log2 = scale * LOG2E;
  float acc[HS / 8][4] = {};
  for (int step = 0; step < steps; step++) {
    cp_async_wait<0>();
    __syncthreads();  // this step's tiles have arrived, and all threads have left the last step's
    if (step + 1 < steps) load_keys(step + 1);
    float p[N / 8][4], ds[N / 8][4];
    products<HS, N>(p, q_tile, warp * 16, k_tile(step));
    products<HS, N>(ds, dout_tile, warp * 16, v_tile(step));
    int key0 = first_key(step);
    bool is_ragged = step < prefix_steps ? key0 + N > tile.prefix_end : key0 + N > first;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float x = exp2_fast(p[n][e] * scale_log2 - shift[e >> 1]);
        if (is_ragged) {
          int query = first + warp * 16 + (lane >> 2) + (e >> 1) * 8, key = key0 + n * 8 + (lane & 3) * 2 + (e & 1);
          if (step < prefix_steps ? key >= tile.prefix_end : key > query) x = 0.f;
        }
        ds[n][e] = x * (ds[n][e] - d[e >> 1]);
      }
    accumulate<HS, N>(acc, ds, k_tile(step));
  }
  // A warp reads only its own rows of q_tile, so it may write over them.
  store_rows<HS>(acc, scale, q_tile, warp * 16, dqkv + head * HS, stride, first, tile.end);
}

// Returns the first segment in from .. end that has rows and is a child of `segment`, or `end`. The whole warp calls.
DEVICE int next_child(const int* cu_seqlens, const int* parent, int segment, int from, int end) {
  for (; from < end; from += 32) {
    int s = from + (threadIdx.x & 31);
    u32 found = __ballot_sync(ALL, s < end && parent[s] == segment && cu_seqlens[s + 1] > cu_seqlens[s]);
    if (found) return from + __ffs(found) - 1;
  }
  return end;
}

// A walk over the queries that see a tile of keys, N at a time, and at each step over the heads of the group.
struct Walk { int head, query, end, segment; };

// Computes the k and v parts of dqkv (T, D); grid: list capacity x NKV. dv = sum of p dout, dk = scale * sum of ds q,
// both also over the group's heads. Scores are transposed, with keys as rows, so that p and ds need not go through
// shared memory. The sums of a tile of several parts go to `parts` (slots, NKV, 2, ROWS, HS), dk then dv, for
// attention_dkv_sum.
template <int HS>
DEVICE void attention_dkv(const bf16* qkv, const bf16* dout, const float* statistics, const int* cu_seqlens,
                          const int* parent, const KeyTile* tiles, int rows, int nh, int nkv, float scale, bf16* dqkv,
                          float* parts) {
  constexpr int N = STEP<HS>;
  DYNAMIC_SHARED(bf16, shared);
  bf16 *k_tile = shared, *v_tile = shared + ROWS * HS;
  // Two buffers of N of each statistic.
  auto step_statistics = [=](int step) { return reinterpret_cast<float*>(shared + (2 * ROWS + 4 * N) * HS) + (step & 1) * 2 * N; };
  auto q_tile = [=](int step) { return shared + (2 * ROWS + (step & 1) * N) * HS; };
  auto dout_tile = [=](int step) { return shared + (2 * ROWS + (2 + (step & 1)) * N) * HS; };
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int shared_head = blockIdx.x % nkv, group = nh / nkv, stride = (nh + 2 * nkv) * HS;
  const KeyTile& tile = tiles[1 + blockIdx.x / nkv];  // read when needed, because this kernel is short of registers
  int first = tile.count_or_first;
  int k_column = (nh + shared_head) * HS, v_column = k_column + nkv * HS;

  auto next_queries = [&](Walk& walk, int times) {
    for (; times && walk.query < walk.end; times--) {
      walk.query += N;
      if (walk.query < walk.end) continue;
      walk.segment = next_child(cu_seqlens, parent, tile.segment, walk.segment + 1, tile.family_end);
      if (walk.segment >= tile.family_end) return;
      walk.query = max(cu_seqlens[walk.segment], 0), walk.end = min(cu_seqlens[walk.segment + 1], rows);
    }
  };
  auto advance = [&](Walk& walk) {
    if (++walk.head < (shared_head + 1) * group) return;
    walk.head = shared_head * group;
    next_queries(walk, tile.parts);
  };
  auto load_queries = [&](const Walk& walk, int step) {
    load_tile<HS, N, THREADS>(q_tile(step), qkv + walk.head * HS, stride, walk.query, walk.end);
    load_tile<HS, N, THREADS>(dout_tile(step), dout + walk.head * HS, nh * HS, walk.query, walk.end);
    if (threadIdx.x < 2 * N) {
      int which = threadIdx.x / N, row = walk.query + threadIdx.x % N;
      cp_async4(step_statistics(step) + threadIdx.x, statistics + (i64)(which * nh + walk.head) * rows + row, row < walk.end);
    }
    cp_async_commit();
  };

  Walk walk = {shared_head * group, first, tile.end, tile.segment};
  load_tile<HS, ROWS, THREADS>(k_tile, qkv + k_column, stride, first, tile.end);
  load_tile<HS, ROWS, THREADS>(v_tile, qkv + v_column, stride, first, tile.end);
  next_queries(walk, tile.part);
  bool is_over = walk.query >= walk.end;
  if (!is_over) load_queries(walk, 0);
  float scale_log2 = scale * LOG2E;
  float dk[HS / 8][4] = {}, dv[HS / 8][4] = {};
  for (int step = 0; !is_over; step++) {
    cp_async_wait<0>();
    __syncthreads();  // this step's tiles have arrived, and all threads have left the last step's
    int query0 = walk.query;
    bool is_diagonal = query0 < first + ROWS;  // some queries come before some keys; a child's queries never do
    advance(walk);
    is_over = walk.query >= walk.end;
    if (!is_over) load_queries(walk, step + 1);
    float p[N / 8][4], ds[N / 8][4];
    products<HS, N>(p, k_tile, warp * 16, q_tile(step));
    products<HS, N>(ds, v_tile, warp * 16, dout_tile(step));
    const float *shift = step_statistics(step), *d = shift + N;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int column = n * 8 + (lane & 3) * 2 + (e & 1), key = first + warp * 16 + (lane >> 2) + (e >> 1) * 8;
        float x = exp2_fast(p[n][e] * scale_log2 - shift[column]);
        if (is_diagonal && query0 + column < key) x = 0.f;
        p[n][e] = x;
        ds[n][e] = x * (ds[n][e] - d[column]);
      }
    accumulate<HS, N>(dv, p, dout_tile(step));
    accumulate<HS, N>(dk, ds, q_tile(step));
  }
  if (tile.parts > 1) {
    float* sums = parts + ((i64)(tile.slot + tile.part) * nkv + shared_head) * 2 * ROWS * HS;
    store_part<HS>(dk, scale, sums, warp * 16);
    store_part<HS>(dv, 1.f, sums + ROWS * HS, warp * 16);
    return;
  }
  // A warp reads only its own rows of the tiles of keys, so it may write over them.
  store_rows<HS>(dk, scale, k_tile, warp * 16, dqkv + k_column, stride, first, tile.end);
  store_rows<HS>(dv, 1.f, v_tile, warp * 16, dqkv + v_column, stride, first, tile.end);
}

// Adds up the parts of every tile that has several, in order, and stores the sums in dqkv (T, D); the grid is that of
// attention_dkv.
template <int HS>
DEVICE void attention_dkv_sum(const KeyTile* tiles, const float* parts, int nh, int nkv, bf16* dqkv) {
  KeyTile tile = tiles[1 + blockIdx.x / nkv];
  if (tile.parts == 1 || tile.part > 0) return;
  int shared_head = blockIdx.x % nkv;
  for (int i = threadIdx.x; i < 2 * ROWS * HS / 8; i += THREADS) {
    int half = i / (ROWS * HS / 8), row = i / (HS / 8) % ROWS, chunk = i % (HS / 8);
    if (tile.count_or_first + row >= tile.end) continue;
    float sum[8] = {};
    for (int part = 0; part < tile.parts; part++) {
      const float* from = parts + (((i64)(tile.slot + part) * nkv + shared_head) * 2 * ROWS * HS + i * 8);
      float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
      sum[0] += a.x, sum[1] += a.y, sum[2] += a.z, sum[3] += a.w, sum[4] += b.x, sum[5] += b.y, sum[6] += b.z, sum[7] += b.w;
    }
    int column = (nh + half * nkv + shared_head) * HS + chunk * 8;
    store8(dqkv + (i64)(tile.count_or_first + row) * (nh + 2 * nkv) * HS + column, sum);
  }
}

#define ATTENTION_BACKWARD(HS)                                                                                                   \
  KERNEL(THREADS) attention_statistics_##HS(const bf16* o, const bf16* dout, const float* lse, int rows, int nh, float* statistics) {                        \
    attention_statistics<HS>(o, dout, lse, rows, nh, statistics);                                                                               \
  }                                                                                                                              \
  KERNEL(THREADS) attention_dq_##HS(const bf16* qkv, const bf16* dout, const float* statistics, const QueryTile* tiles, \
                                    int rows, int nh, int nkv, float scale, bf16* dqkv) {                                        \
    if ((int)(blockIdx.x / nh) < tiles[0].count_or_first)                                                                        \
      attention_dq<HS>(qkv, dout, statistics, tiles, rows, nh, nkv, scale, dqkv);                                                \
  }                                                                                                                              \
  KERNEL(THREADS) attention_dkv_##HS(const bf16* qkv, const bf16* dout, const float* statistics,                    \
                                     const int* cu_seqlens, const int* parent, const KeyTile* tiles, int rows, int nh, int nkv,  \
                                     float scale, bf16* dqkv, float* parts) {                                                    \
    if ((int)(blockIdx.x / nkv) < tiles[0].count_or_first)                                                                       \
      attention_dkv<HS>(qkv, dout, statistics, cu_seqlens, parent, tiles, rows, nh, nkv, scale, dqkv, parts);                    \
  }                                                                                                                              \
  KERNEL(THREADS) attention_dkv_sum_##HS(const KeyTile* tiles, const float* parts, int nh, int nkv, bf16* dqkv) {                \
    if ((int)(blockIdx.x / nkv) < tiles[0].count_or_first) attention_dkv_sum<HS>(tiles, parts, nh, nkv, dqkv);                   \
  }
ATTENTION_BACKWARD(32)
EXPORT(attention_statistics_32)
EXPORT(attention_dq_32)
EXPORT(attention_dkv_32)
EXPORT(attention_dkv_sum_32)
ATTENTION_BACKWARD(64)
EXPORT(attention_statistics_64)
EXPORT(attention_dq_64)
EXPORT(attention_dkv_64)
EXPORT(attention_dkv_sum_64)
ATTENTION_BACKWARD(128)
EXPORT(attention_statistics_128)
EXPORT(attention_dq_128)
EXPORT(attention_dkv_128)
EXPORT(attention_dkv_sum_128)
