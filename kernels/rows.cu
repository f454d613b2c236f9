// Gathers rows of matrices (also for embedding), adds rows back, appends them to the key/value cache, and adds up
// partial sums. One block per row, 16 bytes per thread where the width is a multiple of 8, else one element.
// Adding back is deterministic: the block of the index that names a row first adds all rows for it, in order. Integer
// atomics, whose result does not depend on the order, tell a block whether its index is the first and how many follow;
// only then does it scan the indices after its own. There is no sort and no float atomic.
#include "device.cuh"

constexpr int SCAN = 8;  // indices per thread and round

DEVICE void copy8(bf16* to, const bf16* from) { *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from); }
DEVICE void copy8(bf16* to, const float* from) {
  float x[8];
  load8(x, from);
  store8(to, x);
}

// y (M, C) = rows of x (T, C); NaN for a row outside x
template <typename From>
DEVICE void gather(const From* __restrict__ x, const int* __restrict__ rows, bf16* __restrict__ y, int t, int c) {
  int row = rows[blockIdx.x];
  bool inside = row >= 0 && row < t;
  const From* from = x + (i64)(inside ? row : 0) * c;
  bf16* to = y + (i64)blockIdx.x * c;
  if (inside && c % 8 == 0) {
    for (int i = threadIdx.x * 8; i < c; i += blockDim.x * 8) copy8(to + i, from + i);
  } else {
    for (int i = threadIdx.x; i < c; i += blockDim.x) store(to + i, inside ? to_float(from[i]) : __uint_as_float(0x7fc00000u));
  }
}
KERNEL(256) gather_rows_bf16(const bf16* x, const int* rows, bf16* y, int t, int c) { gather(x, rows, y, t, c); }
EXPORT(gather_rows_bf16)
KERNEL(256) gather_rows_f32(const float* x, const int* rows, bf16* y, int t, int c) { gather(x, rows, y, t, c); }
EXPORT(gather_rows_f32)

// Copies the k and v parts (N columns each, from column `from` on) of qkv (T, D) to rows slots[t] of the caches (rows,
// N); skips slots outside.
KERNEL(256)
kv_append(const bf16* __restrict__ qkv, const int* __restrict__ slots, bf16* __restrict__ k_cache, bf16* __restrict__ v_cache, int d,
          int from, int n, int rows) {
  int slot = slots[blockIdx.x];
  const bf16* row = qkv + (i64)blockIdx.x * d + from;
  i64 at = (i64)slot * n;
  if (slot < 0 || slot >= rows) {
  } else if ((d | from | n) % 8 == 0) {
    for (int i = threadIdx.x * 8; i < 2 * n; i += blockDim.x * 8) copy8(i < n ? k_cache + at + i : v_cache + at + i - n, row + i);
  } else {
    for (int i = threadIdx.x; i < 2 * n; i += blockDim.x) *(i < n ? k_cache + at + i : v_cache + at + i - n) = row[i];
  }
}
EXPORT(kv_append)

// Counts the indices that name each row r of T: count[r] of the M indices do. The first of them is M - first[r]. Both
// must be zero before.
KERNEL(256) name_rows(const int* __restrict__ rows, int* first, int* count, int m, int t) {
  int i = blockIdx.x * 256 + threadIdx.x;
  int row = i < m ? rows[i] : -1;
  if (row >= 0 && row < t) {
    atomicMax(first + row, m - i);
    atomicAdd(count + row, 1);
  }
}
EXPORT(name_rows)

// Adds N columns of one row in f32.
template <int N, typename T>
DEVICE void add(float (&sum)[N], const T* p) {
  if constexpr (N == 8) {
    float x[8];
    load8(x, p);
#pragma unroll
    for (int k = 0; k < 8; k++) sum[k] += x[k];
  } else {
    sum[0] += to_float(*p);
  }
}

// dx (T, C) += dy (M, C) in row order. Block (i, j) does columns [j, j + 1) blockDim N of the row that index i is the
// first to name.
template <int N, typename To>
DEVICE void scatter(const bf16* __restrict__ dy, const int* __restrict__ rows, const int* __restrict__ first,
                    const int* __restrict__ count, To* __restrict__ dx, int m, int t, int c, int* list, int* found) {
  int i = blockIdx.x, row = rows[i], lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  bool is_first = row >= 0 && row < t && first[row] == m - i;
  int column = (blockIdx.y * blockDim.x + threadIdx.x) * N;
  if (is_first) {
    float sum[N] = {};
    if (column < c) {
      add<N>(sum, dx + (i64)row * c + column);
      add<N>(sum, dy + (i64)i * c + column);
    }
    int left = count[row] - 1;
    for (int from = i + 1; left > 0 && from < m; from += SCAN * blockDim.x) {
      bool any = false;
#pragma unroll
      for (int s = 0; s < SCAN; s++) {
        int at = from + s * blockDim.x + threadIdx.x;
        any |= at < m && rows[at] == row;
      }
      if (!__syncthreads_or(any)) continue;
      for (int s = 0; s < SCAN; s++) {
        int at = from + s * blockDim.x + threadIdx.x;
        bool is_named = at < m && rows[at] == row;
        u32 named = __ballot_sync(ALL, is_named);
        if (lane == 0) found[warp] = __popc(named);
        __syncthreads();
        int before = 0, total = 0;
        for (int w = 0; w < (int)blockDim.x >> 5; w++) before += w < warp ? found[w] : 0, total += found[w];
        if (is_named) list[before + __popc(named & ((1u << lane) - 1))] = at;
        __syncthreads();
        if (column < c) {
#pragma unroll 4
          for (int k = 0; k < total; k++) add<N>(sum, dy + (i64)list[k] * c + column);
        }
        left -= total;
        __syncthreads();
      }
    }
    if (column < c) {
      if constexpr (N == 8) store8(dx + (i64)row * c + column, sum);
      else store(dx + (i64)row * c + column, sum[0]);
    }
  }
}
#define SCATTER(name, T)                                                                                                          \
  KERNEL(128) name(const bf16* dy, const int* rows, const int* first, const int* count, T* dx, int m, int t, int c) {             \
    SHARED(int, list, 128);                                                                                                       \
    SHARED(int, found, 4);                                                                                                        \
    if (c % 8 == 0) scatter<8>(dy, rows, first, count, dx, m, t, c, list, found);                                                 \
    else scatter<1>(dy, rows, first, count, dx, m, t, c, list, found);                                                            \
  }
SCATTER(scatter_add_rows_bf16, bf16)
EXPORT(scatter_add_rows_bf16)
SCATTER(scatter_add_rows_f32, float)
EXPORT(scatter_add_rows_f32)

// to (C) += the sum of partials (P, C), which start at `from`. A block has 32 columns; each of its 8 warps adds every
// eighth row, then the warps' sums are added in order.
KERNEL(256) add_partials(const float* __restrict__ partials, i64 from, float* __restrict__ to, int p, int c) {
  SHARED(float, sums, 256);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = blockIdx.x * 32 + lane;
  float sum = 0.f;
  if (column < c) {
#pragma unroll 8
    for (int row = warp; row < p; row += 8) sum += partials[from + (i64)row * c + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (warp == 0 && column < c) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += sums[w * 32 + lane];
    to[column] += total;
  }
}
EXPORT(add_partials)
