// Lists the tiles of attention on the device: segments are device tensors, so the host knows only how many tiles there
// can be. One block runs. Its warps take 32 segments at a time and lay out each segment's tiles together. A counting
// sort by the number of tiles on the other side puts heavy tiles first. Equally heavy tiles have no fixed order; no
// result depends on it.
#include "device.cuh"

constexpr int THREADS = 1024, ROWS = 64;  // rows of a tile
constexpr int BUCKETS = THREADS;          // one per weight; heavier tiles share the heaviest bucket
constexpr int LEAST_PART = 4;             // fewest tiles of queries worth a block of their own

// Entries of the lists. Row 0 of a list holds the number of entries. The kernels that read a list have the same
// layouts.
struct QueryTile {
  int count_or_first, end;  // rows first .. min(first + 64, end) of a segment that ends at `end`
  int start;                // of the segment
  int prefix, prefix_end;   // the parent's rows
  int unused[3];
};
struct KeyTile {
  int count_or_first, end;
  int segment, family_end;  // children of the segment lie before segment `family_end`
  int part, parts;          // a block has every parts-th 64 of the queries that see the tile, from the part-th on
  int slot;                 // with several parts, the place for the sums of the first one
  int unused;
};
struct Segment { int start, end, prefix, prefix_end; };

DEVICE int tiles_of(int rows) { return (rows + ROWS - 1) / ROWS; }

// Clamps offsets to 0..rows and ignores an invalid parent, so that wrong values cannot lead outside the tensors.
DEVICE int offset(const int* cu_seqlens, int s, int rows) { return max(0, min(cu_seqlens[s], rows)); }
DEVICE Segment segment(const int* cu_seqlens, const int* parent, int s, int rows) {
  Segment x = {offset(cu_seqlens, s, rows), offset(cu_seqlens, s + 1, rows), 0, 0};
  int p = parent[s];
  if (p >= 0 && p < s) x.prefix = offset(cu_seqlens, p, rows), x.prefix_end = offset(cu_seqlens, p + 1, rows);
  return x;
}

// Calls each(segment, its index, tile) for every tile of every segment.
template <class Each>
DEVICE void for_each_tile(const int* cu_seqlens, const int* parent, int segments, int rows, Each each) {
  int lane = threadIdx.x & 31;
  for (int base = (threadIdx.x >> 5) * 32; base < segments; base += THREADS) {
    Segment mine = {0, 0, 0, 0};
    if (base + lane < segments) mine = segment(cu_seqlens, parent, base + lane, rows);
    for (int j = 0; j < min(32, segments - base); j++) {
      Segment x = {__shfl_sync(ALL, mine.start, j), __shfl_sync(ALL, mine.end, j), __shfl_sync(ALL, mine.prefix, j),
                   __shfl_sync(ALL, mine.prefix_end, j)};
      for (int tile = lane; tile < tiles_of(x.end - x.start); tile += 32) each(x, base + j, tile);
    }
  }
}

// Turns bucket counts into the start of each bucket, heaviest first; writes the total to list[0].
template <class Entry>
DEVICE void begin_buckets(int* buckets, int* totals, Entry* list) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int own = buckets[BUCKETS - 1 - threadIdx.x], sum = own;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    int other = __shfl_up_sync(ALL, sum, o);
    if (lane >= o) sum += other;
  }
  if (lane == 31) totals[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; w++) sum += totals[w];
  buckets[BUCKETS - 1 - threadIdx.x] = sum - own;
  if (threadIdx.x == THREADS - 1) list[0].count_or_first = sum;
  __syncthreads();
}

// Lists every tile in parts(weight) entries. Entry `part` is make(segment, index, tile, part, parts, slot); only tiles
// of several parts get slots. `list` has 1 + capacity rows.
template <class Entry, class Weight, class Parts, class Make>
DEVICE void list_tiles(const int* cu_seqlens, const int* parent, int segments, int rows, Entry* list, int capacity, Weight weight,
                       Parts parts, Make make) {
  SHARED(int, buckets, BUCKETS);
  SHARED(int, totals, THREADS / 32);
  SHARED(int, slots, 1);
  buckets[threadIdx.x] = 0;
  if (threadIdx.x == 0) slots[0] = 0;
  __syncthreads();
  auto take = [&](int w, int n) { return atomicAdd(buckets + min(w / n, BUCKETS - 1), n); };
  for_each_tile(cu_seqlens, parent, segments, rows, [&](const Segment& x, int s, int tile) {
    int w = weight(x, s, tile);
    take(w, parts(w));
  });
  __syncthreads();
  begin_buckets(buckets, totals, list);
  for_each_tile(cu_seqlens, parent, segments, rows, [&](const Segment& x, int s, int tile) {
    int w = weight(x, s, tile), n = parts(w), at = take(w, n);
    int slot = n > 1 ? atomicAdd(slots, n) : 0;
    for (int part = 0; part < n && at + part < capacity; part++) list[1 + at + part] = make(x, s, tile, part, n, slot);
  });
}

// Lists tiles of queries, weighted by the keys they see.
KERNEL(THREADS) attention_query_tiles(const int* cu_seqlens, const int* parent, int segments, int rows, QueryTile* list, int capacity) {
  list_tiles(
      cu_seqlens, parent, segments, rows, list, capacity,
      [](const Segment& x, int, int tile) { return 1 + tiles_of(x.prefix_end - x.prefix) + tile; }, [](int) { return 1; },
      [](const Segment& x, int, int tile, int, int, int) {
        return QueryTile{x.start + tile * ROWS, x.end, x.start, x.prefix, x.prefix_end, {}};
      });
}
EXPORT(attention_query_tiles)

// Lists tiles of keys, weighted by the queries that see them: those of the own segment from the tile on, and all of its
// children. A prompt's tile is seen by all its replies and would run long after the others, so such tiles are split
// into at most `most_parts` parts altogether. family (S, 2), zeros before, receives the number of rows of a segment's
// children, and the segment one past its last child.
KERNEL(THREADS) attention_key_tiles(const int* cu_seqlens, const int* parent, int segments, int rows, KeyTile* list, int capacity,
                                    int* family, int most_parts) {
  SHARED(int, all, 1);
  if (threadIdx.x == 0) all[0] = 0;
  for (int s = threadIdx.x; s < segments; s += THREADS) {
    int p = parent[s];
    if (p < 0 || p >= s) continue;
    Segment child = segment(cu_seqlens, parent, s, rows);
    atomicAdd(family + 2 * p, child.end - child.start);
    atomicMax(family + 2 * p + 1, s + 1);
  }
  __syncthreads();
  auto weight = [=](const Segment& x, int s, int tile) {
    return tiles_of(x.end - x.start) - tile + tiles_of(family[2 * s]);
  };
  for_each_tile(cu_seqlens, parent, segments, rows, [&](const Segment& x, int s, int tile) { atomicAdd(all, weight(x, s, tile)); });
  __syncthreads();
  // The parts of split tiles have at least this weight, so there are at most most_parts of them.
  int least = max(LEAST_PART, (all[0] + most_parts - 1) / most_parts);
  list_tiles(
      cu_seqlens, parent, segments, rows, list, capacity, weight, [=](int w) { return max(1, w / least); },
      [=](const Segment& x, int s, int tile, int part, int parts, int slot) {
        return KeyTile{x.start + tile * ROWS, x.end, s, family[2 * s + 1], part, parts, slot, 0};
      });
}
EXPORT(attention_key_tiles)
