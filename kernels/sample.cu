// Sampling of tokens: temperature, top-k, top-p, then inverse transform over ids in ascending order with one Philox
// word. A block has a row, and a warp a contiguous span of ids. The plain case reads the row once (online softmax sums
// of all spans) and the span of the drawn id once more. top-k and top-p find their threshold without sorting: by a
// histogram over the distance from the largest logit, then by bisection of the key bits among the members of one bin.
// Weights there are integers (fixed point), so the order of sums does not matter. A row with NaN, +inf or no finite
// logit, or with an invalid temperature, gives id 0 with logp NaN. A row is never split over blocks.
#include "device.cuh"

constexpr int THREADS = 1024, WARPS = THREADS / 32;
constexpr float LOWEST = -3.402823466e38f, LARGEST = 3.402823466e38f;
constexpr int BINS = 2 * THREADS;         // the last bin holds all logits farther than BINS / PER_NAT
constexpr float PER_NAT = 64.f;           // bins per nat: they span 32 nats, beyond which a fixed-point weight is 0
constexpr int GATHERED = 4096;            // members of a bin kept in shared memory; a larger bin is read from the row
constexpr float FIXED = 1099511627776.f;  // 2^40 is the weight of the largest logit: sums of 2^23 ids fit

struct Row {
  const float* logits;  // (V)
  int v, span;
  bool is_wide;
  float inverse, most;  // 1 / temperature; the largest logit
};

DEVICE float weight(const Row& r, float z) { return expf((z - r.most) * r.inverse); }
DEVICE u64 fixed_weight(const Row& r, float z) { return (u64)llrintf(weight(r, z) * FIXED); }
// Returns a logit's bin: a monotonic function of the logit whatever the rounding, so that members of a bin are
// neighbours in the order of logits.
DEVICE int bin_of(const Row& r, float z) { return (int)fminf((r.most - z) * r.inverse * PER_NAT, (float)(BINS - 1)); }
// Maps f32 to integers of the same order; -0 counts as 0.
DEVICE u32 key_of(float z) {
  u32 bits = z == 0.f ? 0 : __float_as_uint(z);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float value_of(u32 key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// Loads logits i .. i + 3; -inf from `end` on.
DEVICE void load4(const Row& r, float (&z)[4], int i, int end) {
  if (r.is_wide && i + 4 <= end) {
    float4 v = *reinterpret_cast<const float4*>(r.logits + i);
    z[0] = v.x, z[1] = v.y, z[2] = v.z, z[3] = v.w;
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) z[j] = i + j < end ? r.logits[i + j] : -__uint_as_float(0x7f800000);
  }
}

// Returns the sum over the block, for integers (any order) and f64 (a fixed order).
template <typename T>
DEVICE T block_total(T x, T* shared) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  T total = shared[threadIdx.x & 31];
#pragma unroll
  for (int o = 16; o; o >>= 1) total += __shfl_xor_sync(ALL, total, o);
  __syncthreads();
  return total;
}
// Returns the sum of x over the threads before this one.
template <typename T>
DEVICE T block_before(T x, T* shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  T sum = x;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    T other = __shfl_up_sync(ALL, sum, o);
    if (lane >= o) sum += other;
  }
  if (lane == 31) shared[warp] = sum;
  T before = __shfl_up_sync(ALL, sum, 1);
  if (lane == 0) before = 0;
  __syncthreads();
  T others = 0;
  for (int w = 0; w < warp; w++) others += shared[w];
  __syncthreads();
  return others + before;
}

// Shared memory of a block.
struct Scratch {
  float span_most[WARPS];
  double span_sum[WARPS];  // weights of the span's ids above the threshold
  int span_ties[WARPS];    // number of the span's ids at the threshold
  int chosen, ties_before;       // the span of the drawn id; the ties in earlier spans
  double target, chosen_before;  // weight that the cumulated weight must pass; weight of earlier spans
  double partial[WARPS];
  int ints[WARPS];
  // The search for the threshold.
  u64 weights[BINS];
  u32 counts[BINS];
  float members[GATHERED];
  u64 sums[WARPS];
  u64 before_count, before_weight;
  int bin, gathered;
};

// Kept ids: those with a key above `key`, and the first `ties` of those with this key.
struct Kept { u32 key; int ties; };

// Finds where a cumulated measure (counts, or weights when WEIGHTS), downwards from the largest logit, reaches `need`.
// Returns the threshold; `above_count` and `above_weight` receive the count and weight of what lies above it, `equal`
// the number of ids with its key. All threads call.
template <bool WEIGHTS>
DEVICE u32 threshold(const Row& r, Scratch* s, double need, u64* above_count, u64* above_weight, int* equal) {
  // Find the bin in which it is reached: two bins per thread.
  int b = 2 * threadIdx.x;
  u64 count[2] = {s->counts[b], s->counts[b + 1]}, mass[2] = {s->weights[b], s->weights[b + 1]};
  u64 before_count = block_before<u64>(count[0] + count[1], s->sums);
  u64 before_mass = block_before<u64>(mass[0] + mass[1], s->sums);
#pragma unroll
  for (int j = 0; j < 2; j++) {
    u64 before = WEIGHTS ? before_mass : before_count, after = before + (WEIGHTS ? mass[j] : count[j]);
    if ((double)before < need && (double)after >= need)
      s->bin = b + j, s->before_count = before_count, s->before_weight = before_mass, s->gathered = 0;
    before_count += count[j], before_mass += mass[j];
  }
  __syncthreads();
  int bin = s->bin;
  bool fits = s->counts[bin] <= GATHERED;
  if (fits) {
    for (int i = threadIdx.x * 4; i < r.v; i += THREADS * 4) {
      float z[4];
      load4(r, z, i, r.v);
      for (int j = 0; j < 4; j++)
        if (i + j < r.v && bin_of(r, z[j]) == bin) s->members[atomicAdd(&s->gathered, 1)] = z[j];
    }
  }
  __syncthreads();
  const float* members = fits ? s->members : r.logits;
  int n = fits ? s->gathered : r.v;
  u64 start = WEIGHTS ? s->before_weight : s->before_count;
  // Find the largest key down to which the measure reaches `need`, bit by bit.
  u32 key = 0;
  for (u32 bit = 0x80000000u; bit; bit >>= 1) {
    u64 sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS) {
      float z = members[i];
      if (key_of(z) >= (key | bit) && bin_of(r, z) == bin) sum += WEIGHTS ? fixed_weight(r, z) : 1;
    }
    sum = block_total(sum, s->sums);
    if ((double)(start + sum) >= need) key |= bit;
  }
  u64 counted = 0, weighed = 0, tied = 0;
  for (int i = threadIdx.x; i < n; i += THREADS) {
    float z = members[i];
    if (bin_of(r, z) != bin) continue;
    if (key_of(z) > key) counted++, weighed += fixed_weight(r, z);
    tied += key_of(z) == key;
  }
  *above_count = s->before_count + block_total(counted, s->sums);
  *above_weight = s->before_weight + block_total(weighed, s->sums);
  *equal = (int)block_total(tied, s->sums);
  return key;
}

// Returns what top-k and top-p leave: the `top_k` most probable ids (0: all), and of these the fewest that hold `top_p`
// of their weight, ties to the lower id.
DEVICE Kept keep(const Row& r, Scratch* s, int top_k, float top_p) {
  for (int b = threadIdx.x; b < BINS; b += THREADS) s->counts[b] = 0, s->weights[b] = 0;
  __syncthreads();
  for (int i = threadIdx.x * 4; i < r.v; i += THREADS * 4) {
    float z[4];
    load4(r, z, i, r.v);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j >= r.v) continue;
      int b = bin_of(r, z[j]);
      atomicAdd(&s->counts[b], 1u);
      u64 w = fixed_weight(r, z[j]);
      if (w) atomicAdd(&s->weights[b], w);
    }
  }
  __syncthreads();
  Kept kept = {0, 0};
  u64 count, above;
  int equal;
  if (top_k > 0 && top_k < r.v) {
    kept.key = threshold<false>(r, s, top_k, &count, &above, &equal);
    kept.ties = top_k - (int)count;
    // Reduce the histogram to what is left, for top-p.
    u64 left = above + (u64)kept.ties * fixed_weight(r, value_of(kept.key)) - s->before_weight;
    int last = s->bin;
    for (int b = threadIdx.x; b < BINS; b += THREADS)
      if (b >= last) s->weights[b] = b == last ? left : 0;
    __syncthreads();
  }
  if (top_p < 1.f) {
    u64 sum = 0;
    for (int b = threadIdx.x; b < BINS; b += THREADS) sum += s->weights[b];
    double enough = (double)top_p * (double)block_total(sum, s->sums);
    u32 key = threshold<true>(r, s, enough, &count, &above, &equal);
    double w = (double)fixed_weight(r, value_of(key));
    // At the key of top-k, this is at most the number of ties that top-k left, because `enough` is at most the weight
    // that it left.
    kept.ties = (int)fmin(fmax(ceil((enough - (double)above) / w), 1.), (double)equal);
    kept.key = key;
  }
  return kept;
}

// Computes the softmax sums span_most and span_sum, and sets r.most. Returns the row's sum of weights; it is NaN or 0
// when a logit is NaN or +inf or none is finite. All threads call and get the result.
DEVICE double softmax(Row& r, Scratch* s) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, begin = min(warp * r.span, r.v), end = min(begin + r.span, r.v);
  // Online softmax, in f32 within sixteen logits and in f64 beyond.
  float most = LOWEST;
  double sum = 0.;
  for (int i = begin + lane * 4; i < end; i += 512) {
    float z[4][4];
#pragma unroll
    for (int u = 0; u < 4; u++) load4(r, z[u], i + u * 128, end);
    float now = most;
#pragma unroll
    for (int j = 0; j < 16; j++) now = fmaxf(now, z[j / 4][j % 4]);
    if (now > most) sum *= expf((most - now) * r.inverse), most = now;
    float part[4];
#pragma unroll
    for (int u = 0; u < 4; u++) {
      part[u] = (expf((z[u][0] - most) * r.inverse) + expf((z[u][1] - most) * r.inverse)) +
                (expf((z[u][2] - most) * r.inverse) + expf((z[u][3] - most) * r.inverse));
    }
    sum += (part[0] + part[1]) + (part[2] + part[3]);
  }
  r.most = warp_max(most);
  sum = warp_sum(sum * expf((most - r.most) * r.inverse));
  if (lane == 0) s->span_most[warp] = r.most, s->span_sum[warp] = sum, s->span_ties[warp] = 0;
  __syncthreads();
  r.most = warp_max(s->span_most[lane]);
  double mine = s->span_sum[lane] * expf((s->span_most[lane] - r.most) * r.inverse);
  double total = warp_sum(mine);
  __syncthreads();
  if (warp == 0) s->span_sum[lane] = mine;
  return total;
}

// Returns which ids may be drawn, and computes span_sum and span_ties for them. All threads call.
DEVICE Kept restrict_to(const Row& r, Scratch* s, bool is_greedy, int top_k, float top_p) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, begin = min(warp * r.span, r.v), end = min(begin + r.span, r.v);
  // Greedy: no id is above the threshold, and the first id with the largest logit is the one tie that is kept.
  Kept kept = {0, 0};
  if (is_greedy) {
    kept.key = 0xffffffffu, kept.ties = 1;
    if (warp == 0) s->span_sum[lane] = 0., s->span_ties[lane] = s->span_most[lane] == r.most;
  } else if (top_p < 1.f || (top_k > 0 && top_k < r.v)) {
    kept = keep(r, s, top_k, top_p);
    double above = 0.;
    int ties = 0;
    for (int i = begin + lane * 4; i < end; i += 128) {
      float z[4];
      load4(r, z, i, end);
      float part = 0.f;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 key = key_of(z[j]);
        part += key > kept.key ? weight(r, z[j]) : 0.f;
        ties += i + j < end && key == kept.key;
      }
      above += part;
    }
    above = warp_sum(above);
#pragma unroll
    for (int o = 16; o; o >>= 1) ties += __shfl_xor_sync(ALL, ties, o);
    if (lane == 0) s->span_sum[warp] = above, s->span_ties[warp] = ties;
  }
  __syncthreads();
  return kept;
}

// Draws the first id, in ascending order, at which the cumulated weight passes `unit` of the whole; one thread writes
// it. All threads call.
DEVICE void draw(const Row& r, Scratch* s, bool is_greedy, Kept kept, double unit, double log_total, int* id_out, float* logp) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  // Find the span in which the cumulated weight passes the target, or the last one with any weight if rounding leaves
  // none.
  float tie_weight = is_greedy ? 1.f : kept.ties > 0 ? weight(r, value_of(kept.key)) : 0.f;
  if (threadIdx.x == 0) {
    double all = 0.;
    for (int w = 0, left = kept.ties; w < WARPS; w++) {
      int ties = min(left, s->span_ties[w]);
      all += s->span_sum[w] + ties * (double)tie_weight, left -= ties;
    }
    double target = unit * all, before = 0.;
    int left = kept.ties;
    bool is_found = false;
    for (int w = 0; w < WARPS && !is_found; w++) {
      int ties = min(left, s->span_ties[w]);
      double part = s->span_sum[w] + ties * (double)tie_weight;
      if (part > 0.) s->chosen = w, s->ties_before = kept.ties - left, s->target = target, s->chosen_before = before;
      is_found = before + part > target;
      before += part, left -= ties;
    }
  }
  __syncthreads();

  // Find the id within the span: a few consecutive ids per thread.
  int each = (r.span + THREADS - 1) / THREADS, span_end = min((s->chosen + 1) * r.span, r.v);
  int begin = min(s->chosen * r.span + (int)threadIdx.x * each, span_end), end = min(begin + each, span_end);
  double target = s->target;
  auto is_tie = [&](float z) { return is_greedy ? z == r.most : key_of(z) == kept.key; };
  int ties = 0;
  for (int i = begin; i < end; i++) ties += is_tie(r.logits[i]);
  int ties_before = s->ties_before + block_before(ties, s->ints);
  // Returns the weight of id i and counts on its rank among the ties.
  auto weight_of = [&](int i, int& rank) {
    float z = r.logits[i];
    if (is_tie(z)) return rank++ < kept.ties ? tie_weight : 0.f;
    return key_of(z) > kept.key ? weight(r, z) : 0.f;
  };
  double held = 0.;
  for (int i = begin, rank = ties_before; i < end; i++) held += weight_of(i, rank);
  double before = s->chosen_before + block_before(held, s->partial);
  u32 passes = __ballot_sync(ALL, held > 0. && before + held > target), weighs = __ballot_sync(ALL, held > 0.);
  if (lane == 0) s->ints[warp] = passes ? warp * 32 + __ffs(passes) - 1 : weighs ? THREADS + warp * 32 + 31 - __clz(weighs) : -1;
  __syncthreads();
  // The owner is the first thread that passes the target, else the last one with any weight.
  int owner = -1;
  for (int w = WARPS - 1; w >= 0; w--) {
    int candidate = s->ints[w];
    if (candidate >= 0 && (candidate < THREADS || owner < 0)) owner = candidate;
  }
  if ((int)threadIdx.x == owner % THREADS && owner >= 0) {
    int id = begin;
    double cumulated = before;
    for (int i = begin, rank = ties_before; i < end; i++) {
      float w = weight_of(i, rank);
      if (w > 0.f) id = i, cumulated += w;
      if (w > 0.f && cumulated > target) break;
    }
    *id_out = id;
    *logp = (float)((double)((r.logits[id] - r.most) * r.inverse) - log_total);
  }
}

// logits (B, V), temperature, top_p, top_k, counter (B), seed (B, 2) -> ids, logp (B). Grid: B.
KERNEL(1024) sample(const float* logits, const float* temperature, const float* top_p, const int* top_k, const int* seed,
                    const int* counter, int* ids, float* logp, int v) {
  SHARED(Scratch, scratch, 1);
  i64 b = blockIdx.x;
  bool is_greedy = temperature[b] == 0.f;
  Row r;
  r.logits = logits + b * v, r.v = v, r.is_wide = v % 4 == 0 && ((u64)logits & 15) == 0;
  r.span = ((v + WARPS - 1) / WARPS + 127) / 128 * 128;
  r.inverse = is_greedy ? 1.f : fminf(1.f / temperature[b], LARGEST);
  double total = softmax(r, scratch);
  if (total > 0. && temperature[b] >= 0.f) {  // taken by the whole block or by none of it
    Kept kept = restrict_to(r, scratch, is_greedy, top_k[b], top_p[b]);
    u32 words[4] = {(u32)counter[b], 0, 0, 0};
    philox4x32(words, (u32)seed[2 * b], (u32)seed[2 * b + 1]);
    double unit = (double)(words[0] >> 8) * (1. / 16777216.);
    draw(r, scratch, is_greedy, kept, unit, log(total), ids + b, logp + b);
  } else if (threadIdx.x == 0) {
    ids[b] = 0, logp[b] = __uint_as_float(0x7fc00000);
  }
}
EXPORT(sample)
