// Whole-tensor kernels: fill, conversion between element types, normal random numbers. They make no 16-byte accesses
// and leave coalescing to the memory system, because they run outside the steps that count.
#include "device.cuh"

// x (n) = value
template <typename T>
DEVICE void fill(T* x, float value, i64 n) {
  i64 stride = (i64)gridDim.x * blockDim.x;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) store(x + i, value);
}
KERNEL(256) fill_f32(float* x, float value, i64 n) { fill(x, value, n); }
EXPORT(fill_f32)
KERNEL(256) fill_bf16(bf16* x, float value, i64 n) { fill(x, value, n); }
EXPORT(fill_bf16)

// to (n) = from (n), rounded to the type of `to`
template <typename From, typename To>
DEVICE void cast(const From* from, To* to, i64 n) {
  i64 stride = (i64)gridDim.x * blockDim.x;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) store(to + i, to_float(from[i]));
}
KERNEL(256) cast_f32_bf16(const float* from, bf16* to, i64 n) { cast(from, to, n); }
EXPORT(cast_f32_bf16)
KERNEL(256) cast_bf16_f32(const bf16* from, float* to, i64 n) { cast(from, to, n); }
EXPORT(cast_bf16_f32)

// x (n) = normal numbers of this standard deviation. Elements 4 i .. 4 i + 3 come from the four words of Philox at
// counter (i, 1) by Box-Muller. The second half of the counter (1) keeps the stream apart from that of `sample`.
template <typename T>
DEVICE void random_normal(T* x, i64 n, float deviation, u32 seed_low, u32 seed_high) {
  i64 stride = (i64)gridDim.x * blockDim.x;
  for (i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x; 4 * i < n; i += stride) {
    u32 words[4] = {(u32)i, (u32)((u64)i >> 32), 1, 0};
    philox4x32(words, seed_low, seed_high);
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
      // u is in (0, 1], at least half a step above 0, so that the logarithm is finite.
      float u = fmaf((float)words[2 * pair], 0x1p-32f, 0x1p-33f), angle = (float)words[2 * pair + 1] * 0x1p-31f, s, c;
      float radius = deviation * sqrtf(-2.f * logf(u));
      sincospif(angle, &s, &c);
      i64 at = 4 * i + 2 * pair;
      if (at < n) store(x + at, radius * c);
      if (at + 1 < n) store(x + at + 1, radius * s);
    }
  }
}
KERNEL(256) random_normal_f32(float* x, i64 n, float deviation, int seed_low, int seed_high) {
  random_normal(x, n, deviation, (u32)seed_low, (u32)seed_high);
}
EXPORT(random_normal_f32)
KERNEL(256) random_normal_bf16(bf16* x, i64 n, float deviation, int seed_low, int seed_high) {
  random_normal(x, n, deviation, (u32)seed_low, (u32)seed_high);
}
EXPORT(random_normal_bf16)
