// The work of attention, listed on the device: segments are device tensors, so the host knows only how many tiles there can be.
// One block. Its warps take 32 segments at a time and lay out each one's tiles together; a counting sort by the number of tiles on the
// other side puts heavy tiles first. The order among equally heavy tiles is left open: no result depends on it.
#include "device.cuh"

constexpr int THREADS = 1024, ROWS = 64;  // rows of a tile
constexpr int BUCKETS = THREADS;          // weights; heavier ones share the heaviest bucket

// Row 0 of a list holds the number of tiles; the kernels that read it have the same layout.
struct Tile {
  int first, end;           // rows first .. min(first + 64, end) of a segment that ends at `end`
  int start;                // of the segment
  int prefix, prefix_end;   // the parent's rows; as queries' tiles need them
  int segment, family_end;  // children of the segment lie before segment `family_end`; as keys' tiles need them
  int unused;
};
struct Segment { int start, end, prefix, prefix_end; };

DEVICE int tiles_of(int rows) { return (rows + ROWS - 1) / ROWS; }

// Offsets from outside 0..rows are brought in, a parent that is none is ignored: wrong values must not lead outside the tensors.
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

// Turns bucket counts into where each bucket begins, the heaviest first; the total goes to tiles[0].
DEVICE void begin_buckets(int* buckets, int* totals, Tile* tiles) {
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
  if (threadIdx.x == THREADS - 1) tiles[0].first = sum;
  __syncthreads();
}

// Lists every tile under its weight(segment, index, tile), as make(segment, index, tile). `tiles` has 1 + capacity rows.
template <class Weight, class Make>
DEVICE void list_tiles(const int* cu_seqlens, const int* parent, int segments, int rows, Tile* tiles, int capacity, Weight weight,
                       Make make) {
  SHARED(int, buckets, BUCKETS);
  SHARED(int, totals, THREADS / 32);
  buckets[threadIdx.x] = 0;
  __syncthreads();
  auto bucket = [&](const Segment& x, int s, int tile) { return buckets + min(weight(x, s, tile), BUCKETS - 1); };
  for_each_tile(cu_seqlens, parent, segments, rows, [&](const Segment& x, int s, int tile) { atomicAdd(bucket(x, s, tile), 1); });
  __syncthreads();
  begin_buckets(buckets, totals, tiles);
  for_each_tile(cu_seqlens, parent, segments, rows, [&](const Segment& x, int s, int tile) {
    int at = atomicAdd(bucket(x, s, tile), 1);
    if (at < capacity) tiles[1 + at] = make(x, s, tile);
  });
}

// Tiles of queries, by the keys they see.
KERNEL(THREADS) attention_query_tiles(const int* cu_seqlens, const int* parent, int segments, int rows, Tile* tiles, int capacity) {
  list_tiles(
      cu_seqlens, parent, segments, rows, tiles, capacity,
      [](const Segment& x, int, int tile) { return tiles_of(x.prefix_end - x.prefix) + tile; },
      [](const Segment& x, int s, int tile) {
        return Tile{x.start + tile * ROWS, x.end, x.start, x.prefix, x.prefix_end, s, 0, 0};
      });
}
EXPORT(attention_query_tiles)

// Tiles of keys, by the queries that see them: those of the own segment from the tile on, and all of its children. family (S, 2), zeros
// before: receives how many rows a segment's children have, and the segment one past its last child.
KERNEL(THREADS) attention_key_tiles(const int* cu_seqlens, const int* parent, int segments, int rows, Tile* tiles, int capacity, int* family) {
  for (int s = threadIdx.x; s < segments; s += THREADS) {
    int p = parent[s];
    if (p < 0 || p >= s) continue;
    Segment child = segment(cu_seqlens, parent, s, rows);
    atomicAdd(family + 2 * p, child.end - child.start);
    atomicMax(family + 2 * p + 1, s + 1);
  }
  __syncthreads();
  list_tiles(
      cu_seqlens, parent, segments, rows, tiles, capacity,
      [=](const Segment& x, int s, int tile) { return tiles_of(x.end - x.start) - 1 - tile + tiles_of(family[2 * s]); },
      [=](const Segment& x, int s, int tile) {
        return Tile{x.start + tile * ROWS, x.end, x.start, x.prefix, x.prefix_end, s, family[2 * s + 1], 0};
      });
}
EXPORT(attention_key_tiles)
