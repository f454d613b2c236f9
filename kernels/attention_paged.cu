// Attention over a paged key/value cache, for any number of queries per sequence: causal, on tensor cores, with
// cp.async; K and V are read once for the query heads that share them. Two kernels have one arithmetic, so a token's
// result is the same to the bit whichever kernel ran and whatever else is in the batch: keys are in tiles of 128 from
// token 0 on, each tile has its own maximum and sum, and tiles are merged in order.
// split, for decoding, which is memory-bound: a block has one query and up to 16 of the heads that share a key head.
// Its tiles go to a workspace, and `merge` adds them up. Its four warps share a tile: by keys for the scores, by
// columns for the output.
// prompt, for prompts: a block has 64 rows (query, head) of one sequence and merges tiles in registers. Two warps share
// 16 rows in the same way, so that scores and outputs fit in registers.
// Head sizes are 32, 64 and 128. The cache is filled by rows.cu.
#include "device.cuh"

constexpr int KEYS = 128;     // keys per tile
constexpr int QUARTER = 32;   // keys that a warp scores in `split`; both kernels sum by quarters
constexpr int SPLIT_THREADS = 128, PROMPT_THREADS = 256;
constexpr int PROMPT_ROWS = 64;

DEVICE float minus_infinity() { return __uint_as_float(0xff800000u); }

struct Cache {
  const bf16 *k, *v;                   // (rows, NKV HS)
  const int *table, *lens, *cu_q;      // (B, pages), (B), (B + 1)
  int sequences, pages, block_size, rows;
};

// Returns the cache row of token t of sequence b, or -1 for a token or row out of range.
DEVICE int row_of(const Cache& c, int b, int t, int tokens) {
  int page = t / c.block_size;
  if (t >= tokens || page >= c.pages) return -1;
  int row = c.table[(i64)b * c.pages + page] * c.block_size + t % c.block_size;
  return row < c.rows ? row : -1;
}

// Returns the sequence of query i. In decoding that is i, which is tried first.
DEVICE int sequence_of(const Cache& c, int i) {
  if (i < c.sequences && c.cu_q[i] <= i && i < c.cu_q[i + 1]) return i;
  int low = 0, high = c.sequences;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (c.cu_q[middle] <= i) low = middle;
    else high = middle;
  }
  return low;
}
DEVICE int position_of(const Cache& c, int b, int i) { return c.lens[b] - (c.cu_q[b + 1] - i); }
DEVICE int tiles_of(int position, int most) { return min((position + KEYS) / KEYS, most); }

// Returns the offset, in elements, of 16-byte unit `unit` of a row of W elements in a tile. Units are permuted so that
// 8 rows lie in different banks.
template <int W>
DEVICE int at(int row, int unit) {
  return row * W + (unit ^ (W == 32 ? row >> 1 & 3 : row & 7)) * 8;
}

// Starts loading one head of the 128 cache rows in `rows`; a row of -1 becomes zeros.
template <int HS, int THREADS>
DEVICE void load_pages(bf16* tile, const bf16* head, i64 stride, const int* rows) {
#pragma unroll 1
  for (int n = threadIdx.x; n < KEYS * HS / 8; n += THREADS) {
    int key = n / (HS / 8), unit = n % (HS / 8), row = rows[key];
    cp_async16(tile + at<HS>(key, unit), head + (row < 0 ? 0 : row * stride) + unit * 8, row >= 0);
  }
}

// Computes s = q k^T for 16 rows of q from `row` on, and 8 N keys from `key` on.
template <int HS, int N>
DEVICE void scores(float (&s)[N][4], const bf16* q, int row, const bf16* k, int key) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < N; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
#pragma unroll
  for (int unit = 0; unit < HS / 8; unit += 4) {
    u32 a[4], b[4];
    // Units from 8 on are permuted like those before: they are a constant offset away, not another address to keep.
    int far = unit / 8 * 128;
    ldmatrix_x4(a, q + at<HS>(row + (lane & 15), unit % 8 + (lane >> 4)), far);
    ldmatrix_x4(b, q + at<HS>(row + (lane & 15), unit % 8 + 2 + (lane >> 4)), far);
#pragma unroll
    for (int n = 0; n < N; n++) {
      u32 keys[4];
      ldmatrix_x4(keys, k + at<HS>(key + (lane & 7), unit % 8 + (lane >> 3)), n * 8 * HS * 2 + far);
      mma_m16n8k16(s[n], a, keys[0], keys[1]);
      mma_m16n8k16(s[n], b, keys[2], keys[3]);
    }
  }
}

// Returns a tile's maximum in the units of exponents. It is rounded here, in both kernels, so that no compiler may fuse
// it with a difference that follows.
DEVICE float scaled(float most, float scale) { return rounded_product(most, scale); }

// Masks the scores of keys past the position of their row, and computes the maxima of a lane's two rows, over the lanes
// that share them.
template <int N>
DEVICE void mask_and_max(float (&s)[N][4], int key, const int (&position)[2], float (&most)[2]) {
  int column = key + (threadIdx.x & 3) * 2;
  most[0] = most[1] = minus_infinity();
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (column + n * 8 + (e & 1) > position[e >> 1]) s[n][e] = minus_infinity();
      most[e >> 1] = fmaxf(most[e >> 1], s[n][e]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    most[r] = fmaxf(most[r], __shfl_xor_sync(ALL, most[r], 1));
    most[r] = fmaxf(most[r], __shfl_xor_sync(ALL, most[r], 2));
  }
}

// Sets s = 2^(s scale - m) over a quarter (4 times 8 keys); `sum` receives the sums of the two rows. A row without a
// key gives 0.
DEVICE void exponentials(float (*s)[4], float scale, const float (&m)[2], float (&sum)[2]) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float minus = m[r] == minus_infinity() ? 0.f : -m[r], total = 0.f;
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; e++) {
        s[n][e] = exp2f(fmaf(s[n][e], scale, minus));
        total += s[n][e];
      }
    }
    total += __shfl_xor_sync(ALL, total, 1);
    sum[r] = total + __shfl_xor_sync(ALL, total, 2);
  }
}
// Rounds the weights of a quarter into 16 rows, from `row` on, of the tile p (rows, 128 keys).
DEVICE void store_weights(bf16* p, int row, int quarter, const float (*s)[4]) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < 4; n++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      bf16* to = p + at<KEYS>(row + r * 8 + lane / 4, quarter * 4 + n) + (lane & 3) * 2;
      *reinterpret_cast<u32*>(to) = pack_bf16(s[n][2 * r], s[n][2 * r + 1]);
    }
  }
}
// Loads the same rows as the fragments of 8 steps of 16 keys.
DEVICE void load_weights(u32 (&weights)[8][4], const bf16* p, int row) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int step = 0; step < 8; step++)
    ldmatrix_x4(weights[step], p + at<KEYS>(row + (lane & 15), step % 4 * 2 + (lane >> 4)), step / 4 * 128);
}

// Computes o (16 rows, 8 columns from 16-byte unit `unit` on) = p v over the tile, with p as the fragments of 8 steps
// of 16 keys.
template <int HS>
DEVICE void output(float (&o)[4], const u32 (&p)[8][4], const bf16* v, int unit) {
  int lane = threadIdx.x & 31;
  o[0] = o[1] = o[2] = o[3] = 0.f;
#pragma unroll
  for (int step = 0; step < 8; step += 2) {
    u32 values[4];
    ldmatrix_x4_transposed(values, v + at<HS>(lane, unit % 8), step * 16 * HS * 2 + unit / 8 * 128);
    mma_m16n8k16(o, p[step], values[0], values[1]);
    mma_m16n8k16(o, p[step + 1], values[2], values[3]);
  }
}

// Merges a tile's maximum and sum into the running ones; `old` and `fresh` are the factors of the outputs so far and of
// the tile's. fmaf is explicit here and in `blend`, like the rounding in `scaled`, so that no compiler may round
// differently in one of the kernels. A tile without a key changes nothing.
DEVICE void merge_weights(float& m, float& l, float tile_m, float tile_l, float& old, float& fresh) {
  float most = fmaxf(m, tile_m);
  old = exp2f(m - most), fresh = exp2f(tile_m - most);
  m = most;
  l = fmaf(l, old, tile_l * fresh);
}
DEVICE float blend(float o, float old, float tile_o, float fresh) { return fmaf(o, old, tile_o * fresh); }

template <int HS>
DEVICE void split(const bf16* __restrict__ qkv, const Cache& c, bf16* shared, float* __restrict__ o_tiles, float* __restrict__ ml_tiles,
                  int nh, int nkv, int most_tiles, float scale) {
  bf16 *k = shared, *v = k + KEYS * HS, *q = v + KEYS * HS, *p = q + 16 * HS;
  int* rows = reinterpret_cast<int*>(p + 16 * KEYS);             // [2][KEYS]
  float* maxima = reinterpret_cast<float*>(rows + 2 * KEYS);     // [4][16]
  float* sums = maxima + 4 * 16;                                 // [4][16]
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = nh / nkv, i = blockIdx.x;
  int kv = blockIdx.y % nkv, skipped = blockIdx.y / nkv * 16, heads = min(16, group - skipped), first_head = kv * group + skipped;
  int b = sequence_of(c, i), position = position_of(c, b, i), tiles = tiles_of(position, most_tiles);
  i64 stride = nkv * HS;
  if ((int)blockIdx.z < tiles) {
    const bf16* query = qkv + ((i64)i * (nh + 2 * nkv) + first_head) * HS;
    for (int n = threadIdx.x; n < 16 * HS / 8; n += SPLIT_THREADS) {
      int row = n / (HS / 8), unit = n % (HS / 8);
      cp_async16(q + at<HS>(row, unit), query + (row < heads ? n * 8 : 0), row < heads);
    }
    rows[threadIdx.x] = row_of(c, b, blockIdx.z * KEYS + threadIdx.x, position + 1);
    __syncthreads();
    load_pages<HS, SPLIT_THREADS>(k, c.k + kv * HS, stride, rows);
    cp_async_commit();
    load_pages<HS, SPLIT_THREADS>(v, c.v + kv * HS, stride, rows);
    cp_async_commit();
    int next_rows = KEYS;
    for (int tile = blockIdx.z; tile < tiles; tile += gridDim.z, next_rows ^= KEYS) {
      int next = tile + gridDim.z;
      if (next < tiles) rows[next_rows + threadIdx.x] = row_of(c, b, next * KEYS + threadIdx.x, position + 1);
      cp_async_wait<1>();  // all but v: q and k are there
      __syncthreads();
      float s[4][4], m[2], sum[2];
      int positions[2] = {position, position};
      scores<HS, 4>(s, q, 0, k, warp * QUARTER);
      mask_and_max(s, tile * KEYS + warp * QUARTER, positions, m);
      if ((lane & 3) == 0) maxima[warp * 16 + lane / 4] = m[0], maxima[warp * 16 + 8 + lane / 4] = m[1];
      __syncthreads();
      if (next < tiles) load_pages<HS, SPLIT_THREADS>(k, c.k + kv * HS, stride, rows + next_rows);
      cp_async_commit();
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float* row = maxima + r * 8 + lane / 4;
        m[r] = scaled(fmaxf(fmaxf(row[0], row[16]), fmaxf(row[32], row[48])), scale);
      }
      exponentials(s, scale, m, sum);
      if ((lane & 3) == 0) sums[warp * 16 + lane / 4] = sum[0], sums[warp * 16 + 8 + lane / 4] = sum[1];
      store_weights(p, 0, warp, s);
      cp_async_wait<1>();  // all but the next k: v is there
      __syncthreads();
      u32 weights[8][4];
      load_weights(weights, p, 0);
      i64 place = ((i64)i * nh + first_head + lane / 4) * most_tiles + tile;  // for row lane / 4; the other is 8 on
#pragma unroll
      for (int n = 0; n < HS / 32; n++) {
        float o[4];
        int unit = warp * (HS / 32) + n;
        output<HS>(o, weights, v, unit);
#pragma unroll
        for (int r = 0; r < 2; r++)
          if (r * 8 + lane / 4 < heads)
            *reinterpret_cast<float2*>(o_tiles + (place + r * 8 * most_tiles) * HS + unit * 8 + (lane & 3) * 2) = float2{o[2 * r], o[2 * r + 1]};
      }
      if ((int)threadIdx.x < heads) {
        const float *row_m = maxima + threadIdx.x, *row_l = sums + threadIdx.x;
        float2 ml = {scaled(fmaxf(fmaxf(row_m[0], row_m[16]), fmaxf(row_m[32], row_m[48])), scale),
                     ((row_l[0] + row_l[16]) + row_l[32]) + row_l[48]};
        i64 head = (i64)i * nh + first_head + threadIdx.x;
        *reinterpret_cast<float2*>(ml_tiles + (head * most_tiles + tile) * 2) = ml;
      }
      __syncthreads();
      if (next < tiles) load_pages<HS, SPLIT_THREADS>(v, c.v + kv * HS, stride, rows + next_rows);
      cp_async_commit();
    }
    cp_async_wait<0>();
  }
}

// Computes o (Q, NH HS) from o_tiles (Q, NH, most_tiles, HS) and ml_tiles (Q, NH, most_tiles, 2), with one warp per
// query and head.
template <int HS>
DEVICE void merge(const float* __restrict__ o_tiles, const float* __restrict__ ml_tiles, const Cache& c, bf16* __restrict__ out, int q,
                  int nh, int most_tiles) {
  constexpr int N = HS / 32;
  int lane = threadIdx.x & 31;
  i64 place = (i64)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
  if (place < (i64)q * nh) {
    int i = place / nh, tiles = tiles_of(position_of(c, sequence_of(c, i), i), most_tiles);
    const float* tile_o = o_tiles + place * most_tiles * HS + lane * N;
    const float* tile_ml = ml_tiles + place * most_tiles * 2;
    float o[N] = {}, m = minus_infinity(), l = 0.f;
#pragma unroll 4
    for (int tile = 0; tile < tiles; tile++) {
      float2 ml = *reinterpret_cast<const float2*>(tile_ml + tile * 2);
      float fresh_o[N], old, fresh;
      const float* from = tile_o + (i64)tile * HS;
      if constexpr (N == 4) {
        float4 x = *reinterpret_cast<const float4*>(from);
        fresh_o[0] = x.x, fresh_o[1] = x.y, fresh_o[2] = x.z, fresh_o[3] = x.w;
      } else {
#pragma unroll
        for (int n = 0; n < N; n++) fresh_o[n] = from[n];
      }
      merge_weights(m, l, ml.x, ml.y, old, fresh);
#pragma unroll
      for (int n = 0; n < N; n++) o[n] = blend(o[n], old, fresh_o[n], fresh);
    }
    float inverse = 1.f / l;
    bf16* to = out + place * HS + lane * N;
    if constexpr (N == 1) {
      *to = to_bf16(o[0] * inverse);
    } else {
#pragma unroll
      for (int n = 0; n < N; n += 2) *reinterpret_cast<u32*>(to + n) = pack_bf16(o[n] * inverse, o[n + 1] * inverse);
    }
  }
}

// Returns the sequence of tile `tile` of rows, and in `first` the tile's first row; -1 when there is no such tile.
// Tiles are numbered through the sequences. Every warp gets the result.
DEVICE int find_rows(const Cache& c, int group, int tile, int& first) {
  int lane = threadIdx.x & 31, before = 0;
  for (int base = 0; base < c.sequences; base += 32) {
    int b = base + lane;
    int count = b < c.sequences ? ((c.cu_q[b + 1] - c.cu_q[b]) * group + PROMPT_ROWS - 1) / PROMPT_ROWS : 0, end = count;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      int other = __shfl_up_sync(ALL, end, o);
      if (lane >= o) end += other;
    }
    u32 later = __ballot_sync(ALL, before + end > tile);
    if (later) {
      int found = __ffs(later) - 1;
      first = (tile - before - __shfl_sync(ALL, end - count, found)) * PROMPT_ROWS;
      return base + found;
    }
    before += __shfl_sync(ALL, end, 31);
  }
  return -1;
}

template <int HS>
DEVICE void prompt(const bf16* __restrict__ qkv, const Cache& c, bf16* shared, bf16* __restrict__ out, int nh, int nkv, int most_tiles,
                   float scale) {
  bf16 *k = shared, *v = k + KEYS * HS, *q = v + KEYS * HS, *p = q + PROMPT_ROWS * HS;
  int* rows = reinterpret_cast<int*>(p + PROMPT_ROWS * KEYS);  // [2][KEYS]
  float* maxima = reinterpret_cast<float*>(rows + 2 * KEYS);   // [2][PROMPT_ROWS]
  float* sums = maxima + 2 * PROMPT_ROWS;                      // [4][PROMPT_ROWS]
  // A warp has half of the keys and columns, and 16 rows from `row` on.
  int lane = threadIdx.x & 31, half = threadIdx.x >> 5 & 1, row = threadIdx.x / 64 * 16;
  int group = nh / nkv, kv = blockIdx.y, first;
  int b = find_rows(c, group, gridDim.x - 1 - blockIdx.x, first);  // the last rows see most keys, so they run first
  i64 stride = nkv * HS;
  if (b >= 0) {
    int from = c.cu_q[b], count = (c.cu_q[b + 1] - from) * group, before = c.lens[b] - (c.cu_q[b + 1] - from);
    int last = before + (min(first + PROMPT_ROWS, count) - 1) / group, tiles = tiles_of(last, most_tiles);
    for (int n = threadIdx.x; n < PROMPT_ROWS * HS / 8; n += PROMPT_THREADS) {
      int at_row = first + n / (HS / 8), unit = n % (HS / 8), r = at_row < count ? at_row : 0;
      const bf16* head = qkv + ((i64)(from + r / group) * (nh + 2 * nkv) + kv * group + r % group) * HS;
      cp_async16(q + at<HS>(n / (HS / 8), unit), head + unit * 8, at_row < count);
    }
    if (threadIdx.x < KEYS) rows[threadIdx.x] = row_of(c, b, threadIdx.x, last + 1);
    __syncthreads();
    load_pages<HS, PROMPT_THREADS>(k, c.k + kv * HS, stride, rows);
    cp_async_commit();
    load_pages<HS, PROMPT_THREADS>(v, c.v + kv * HS, stride, rows);
    cp_async_commit();
    int mine = first + row + lane / 4;  // the other row is 8 further
    int positions[2] = {before + min(mine, count - 1) / group, before + min(mine + 8, count - 1) / group};
    float o[HS / 16][4] = {}, m[2] = {minus_infinity(), minus_infinity()}, l[2] = {};
    int next_rows = KEYS;
    for (int tile = 0; tile < tiles; tile++, next_rows ^= KEYS) {
      bool has_next = tile + 1 < tiles;
      if (has_next && threadIdx.x < KEYS)
        rows[next_rows + threadIdx.x] = row_of(c, b, (tile + 1) * KEYS + threadIdx.x, last + 1);
      cp_async_wait<1>();  // all but v: q and k are there
      __syncthreads();
      float s[8][4], tile_m[2], sum[2], old[2], fresh[2];
      scores<HS, 8>(s, q, row, k, half * 64);
      mask_and_max(s, tile * KEYS + half * 64, positions, tile_m);
      float *row_m = maxima + row + lane / 4, *row_l = sums + row + lane / 4;
      if ((lane & 3) == 0) row_m[half * PROMPT_ROWS] = tile_m[0], row_m[half * PROMPT_ROWS + 8] = tile_m[1];
      __syncthreads();
      if (has_next) load_pages<HS, PROMPT_THREADS>(k, c.k + kv * HS, stride, rows + next_rows);
      cp_async_commit();
#pragma unroll
      for (int r = 0; r < 2; r++) tile_m[r] = scaled(fmaxf(row_m[r * 8], row_m[PROMPT_ROWS + r * 8]), scale);
#pragma unroll
      for (int two = 0; two < 2; two++) {
        int quarter = half * 2 + two;
        exponentials(s + two * 4, scale, tile_m, sum);
        if ((lane & 3) == 0) row_l[quarter * PROMPT_ROWS] = sum[0], row_l[quarter * PROMPT_ROWS + 8] = sum[1];
        store_weights(p, row, quarter, s + two * 4);
      }
      cp_async_wait<1>();  // all but the next k: v is there
      __syncthreads();
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const float* part = row_l + r * 8;
        float tile_l = ((part[0] + part[PROMPT_ROWS]) + part[2 * PROMPT_ROWS]) + part[3 * PROMPT_ROWS];
        merge_weights(m[r], l[r], tile_m[r], tile_l, old[r], fresh[r]);
      }
      u32 weights[8][4];
      load_weights(weights, p, row);
#pragma unroll
      for (int n = 0; n < HS / 16; n++) {
        float tile_o[4];
        output<HS>(tile_o, weights, v, half * (HS / 16) + n);
#pragma unroll
        for (int e = 0; e < 4; e++) o[n][e] = blend(o[n][e], old[e >> 1], tile_o[e], fresh[e >> 1]);
      }
      __syncthreads();
      if (has_next) load_pages<HS, PROMPT_THREADS>(v, c.v + kv * HS, stride, rows + next_rows);
      cp_async_commit();
    }
    cp_async_wait<0>();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float inverse = 1.f / l[r];
      int at_row = mine + r * 8;
      bf16* to = out + ((i64)(from + at_row / group) * nh + kv * group + at_row % group) * HS + half * (HS / 2) + (lane & 3) * 2;
#pragma unroll
      for (int n = 0; n < HS / 16; n++)
        if (at_row < count) *reinterpret_cast<u32*>(to + n * 8) = pack_bf16(o[n][2 * r] * inverse, o[n][2 * r + 1] * inverse);
    }
  }
}

// Grids: split (Q, NKV times the groups of 16 heads that share a key head, any), merge (Q NH / 4), prompt (an upper
// bound of the tiles of rows, NKV). `scale` is log2(e) / sqrt(HS). attention_paged.rs computes the size of `shared`.
#define CACHE {k_cache, v_cache, table, lens, cu_q, sequences, pages, block_size, rows}
#define KERNELS(HS)                                                                                                               \
  KERNEL(SPLIT_THREADS)                                                                                                                 \
  split_##HS(const bf16* qkv, const bf16* k_cache, const bf16* v_cache, const int* table, const int* lens, const int* cu_q,       \
             float* o_tiles, float* ml_tiles, int sequences, int pages, int block_size, int rows, int nh, int nkv,                \
             int most_tiles, float scale) {                                                                                       \
    DYNAMIC_SHARED(bf16, shared);                                                                                                 \
    split<HS>(qkv, CACHE, shared, o_tiles, ml_tiles, nh, nkv, most_tiles, scale);                                                 \
  }                                                                                                                               \
  KERNEL(SPLIT_THREADS)                                                                                                                 \
  merge_##HS(const float* o_tiles, const float* ml_tiles, const int* lens, const int* cu_q, bf16* out, int sequences, int q,      \
             int nh, int most_tiles) {                                                                                            \
    merge<HS>(o_tiles, ml_tiles, {nullptr, nullptr, nullptr, lens, cu_q, sequences, 0, 0, 0}, out, q, nh, most_tiles);            \
  }                                                                                                                               \
  KERNEL(PROMPT_THREADS)                                                                                                                \
  prompt_##HS(const bf16* qkv, const bf16* k_cache, const bf16* v_cache, const int* table, const int* lens, const int* cu_q,      \
              bf16* out, int sequences, int pages, int block_size, int rows, int nh, int nkv, int most_tiles, float scale) {      \
    DYNAMIC_SHARED(bf16, shared);                                                                                                 \
    prompt<HS>(qkv, CACHE, shared, out, nh, nkv, most_tiles, scale);                                                              \
  }
KERNELS(32)
EXPORT(split_32)
EXPORT(merge_32)
EXPORT(prompt_32)
KERNELS(64)
EXPORT(split_64)
EXPORT(merge_64)
EXPORT(prompt_64)
KERNELS(128)
EXPORT(split_128)
EXPORT(merge_128)
EXPORT(prompt_128)
