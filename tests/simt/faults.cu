// Kernels with one planted fault each, and two that look like one and are right: what the emulation must tell apart.
// x and y have 128 floats, a block has 128 threads, dynamic shared memory 512 bytes.
#include "device.cuh"

// y = x reversed; right.
KERNEL(128) reversed(const float* x, float* y) {
  SHARED(float, tile, 128);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[127 - threadIdx.x];
}
EXPORT(reversed)

// The same, with the rest of the block gone before the barrier; right from sm_70 on.
KERNEL(128) leaves_early(const float* x, float* y) {
  if (threadIdx.x >= 64) return;
  SHARED(float, tile, 64);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}
EXPORT(leaves_early)

KERNEL(128) missing_barrier(const float* x, float* y) {
  SHARED(float, tile, 128);
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = tile[127 - threadIdx.x];
}
EXPORT(missing_barrier)

// Right when threads run from the last to the first.
KERNEL(128) hidden_missing_barrier(const float* x, float* y) {
  SHARED(float, tile, 128);
  tile[threadIdx.x] = x[threadIdx.x];
  y[threadIdx.x] = threadIdx.x < 127 ? tile[threadIdx.x + 1] : 128.f;
}
EXPORT(hidden_missing_barrier)

// The slot is written again before all have read it.
KERNEL(128) missing_second_barrier(const float* x, float* y) {
  SHARED(float, slot, 1);
  float sum = 0.f;
  for (int i = 0; i < 4; i++) {
    if (threadIdx.x == 127) slot[0] = x[i];
    __syncthreads();
    sum += slot[0];
  }
  y[threadIdx.x] = sum;
}
EXPORT(missing_second_barrier)

KERNEL(128) missing_wait(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  if (threadIdx.x < 32) cp_async16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}
EXPORT(missing_wait)

// One group too many may be under way.
KERNEL(128) waits_for_too_few(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  if (threadIdx.x < 16) cp_async16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  if (threadIdx.x < 16) cp_async16(tile + 64 + 4 * threadIdx.x, x + 64 + 4 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}
EXPORT(waits_for_too_few)

KERNEL(128) divergent_shuffle(const float* x, float* y) {
  float v = x[threadIdx.x];
  if ((threadIdx.x & 31) < 16) v += __shfl_xor_sync(ALL, v, 8);
  y[threadIdx.x] = v;
}
EXPORT(divergent_shuffle)

KERNEL(128) different_collectives(const float* x, float* y) {
  float v = x[threadIdx.x];
  if (threadIdx.x & 1) v += __shfl_xor_sync(ALL, v, 2);
  else v += __ballot_sync(ALL, v > 0.f);
  y[threadIdx.x] = v;
}
EXPORT(different_collectives)

KERNEL(128) different_masks(const float* x, float* y) {
  u32 mask = threadIdx.x & 1 ? ALL : 0x55555555u;
  y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 2);
}
EXPORT(different_masks)

KERNEL(128) outside_its_mask(const float* x, float* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, x[threadIdx.x], 1); }
EXPORT(outside_its_mask)

// Lane 8 is read but gives nothing.
KERNEL(128) shuffle_from_outside(const float* x, float* y) {
  float v = x[threadIdx.x];
  if ((threadIdx.x & 31) < 8) v = __shfl_xor_sync(0xffu, v, 8);
  y[threadIdx.x] = v;
}
EXPORT(shuffle_from_outside)

KERNEL(128) barrier_deadlock(const float* x, float* y) {
  if (threadIdx.x == 32) __syncwarp(ALL);
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}
EXPORT(barrier_deadlock)

KERNEL(128) writes_past_the_end(const float* x, float* y) { y[threadIdx.x + 1] = x[threadIdx.x]; }
EXPORT(writes_past_the_end)

KERNEL(128) writes_before_the_start(const float* x, float* y) { y[(int)threadIdx.x - 1] = x[threadIdx.x]; }
EXPORT(writes_before_the_start)

KERNEL(128) reads_past_the_end(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
EXPORT(reads_past_the_end)

KERNEL(128) unset_shared(const float* x, float* y) {
  SHARED(float, tile, 128);
  if (threadIdx.x < 127) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}
EXPORT(unset_shared)

KERNEL(128) unset_dynamic(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  if (threadIdx.x < 127) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}
EXPORT(unset_dynamic)

KERNEL(128) writes_past_shared(const float* x, float* y) {
  SHARED(float, tile, 128);
  tile[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}
EXPORT(writes_past_shared)

KERNEL(128) writes_past_dynamic(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}
EXPORT(writes_past_dynamic)

KERNEL(128) unaligned_matrix(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  u32 r[4];
  ldmatrix_x4(r, tile + (threadIdx.x & 15) + 1);
  y[threadIdx.x] = x[threadIdx.x] + r[0];
}
EXPORT(unaligned_matrix)

KERNEL(128) unaligned_copy(const float* x, float* y) {
  DYNAMIC_SHARED(float, tile);
  if (threadIdx.x < 16) cp_async16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x + 1, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = x[threadIdx.x];
}
EXPORT(unaligned_copy)

KERNEL(128) copy_to_global(const float* x, float* y) {
  SHARED(float, tile, 4);
  tile[0] = x[0];
  if (threadIdx.x < 32) cp_async16(y + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
  cp_async_commit();
  cp_async_wait<0>();
}
EXPORT(copy_to_global)

KERNEL(128) unaligned_load(const float* x, float* y) {
  float v[8];
  load8(v, reinterpret_cast<const bf16*>(x) + (threadIdx.x & 63) + 1);
  y[threadIdx.x] = v[threadIdx.x & 7];
}
EXPORT(unaligned_load)
