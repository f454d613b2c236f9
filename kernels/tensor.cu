// Whole tensors: fill, and conversion between element types. 16-byte accesses are left to the memory system's coalescing: these ops
// run outside the steps that count.
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
