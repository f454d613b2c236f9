// Device primitives for all kernels. Each has two bodies: PTX when compiled for a GPU, and the emulation of tests/simt on a CPU.
// No CUDA header is needed. Not here: anything that belongs to one op.
#pragma once
#ifndef __CUDACC__
#include "simt.hpp"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// A bf16 in memory. Arithmetic is done in float.
struct bf16 { u16 bits; };

#ifdef __CUDACC__
#define EXPORT(kernel)
#define SHARED(T, name, count) __shared__ T name[count]
#define DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(1024) unsigned char name##_bytes[]; \
  T* name = reinterpret_cast<T*>(name##_bytes)
#endif
#define DEVICE __device__ __forceinline__
// A kernel: KERNEL(threads) name(...) { ... } followed by a line EXPORT(name).
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)

constexpr u32 ALL = 0xffffffffu;  // all lanes of a warp

DEVICE float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
DEVICE float to_float(float x) { return x; }

// Rounds to nearest even.
DEVICE bf16 to_bf16(float x) {
  bf16 r;
#ifdef __CUDACC__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
#else
  u32 u = __float_as_uint(x);
  r.bits = (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u16)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
#endif
  return r;
}
DEVICE void store(float* p, float x) { *p = x; }
DEVICE void store(bf16* p, float x) { *p = to_bf16(x); }

// Two bf16 in a word, `low` in the lower half: consecutive elements in memory.
DEVICE u32 pack_bf16(float low, float high) {
#ifdef __CUDACC__
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return (u32)to_bf16(low).bits | (u32)to_bf16(high).bits << 16;
#endif
}
DEVICE float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Eight bf16 as one 16-byte access; p is 16-byte aligned.
DEVICE void load8(float (&x)[8], const bf16* p) {
  uint4 v = *reinterpret_cast<const uint4*>(p);
  x[0] = low_bf16(v.x), x[1] = high_bf16(v.x), x[2] = low_bf16(v.y), x[3] = high_bf16(v.y);
  x[4] = low_bf16(v.z), x[5] = high_bf16(v.z), x[6] = low_bf16(v.w), x[7] = high_bf16(v.w);
}
DEVICE void store8(bf16* p, const float (&x)[8]) {
  uint4 v;
  v.x = pack_bf16(x[0], x[1]), v.y = pack_bf16(x[2], x[3]), v.z = pack_bf16(x[4], x[5]), v.w = pack_bf16(x[6], x[7]);
  *reinterpret_cast<uint4*>(p) = v;
}

// Eight floats as two 16-byte accesses; p is 16-byte aligned.
DEVICE void load8(float (&x)[8], const float* p) {
  float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
DEVICE void store8(float* p, const float (&x)[8]) {
  reinterpret_cast<float4*>(p)[0] = float4{x[0], x[1], x[2], x[3]};
  reinterpret_cast<float4*>(p)[1] = float4{x[4], x[5], x[6], x[7]};
}

// Sum and maximum over a warp, known to every lane. All 32 lanes call.
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
  return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL, x, o));
  return x;
}

// The same over a block of WARPS warps; every thread calls and knows the result. `shared` has WARPS floats and may be reused after.
template <int WARPS>
DEVICE float block_sum(float x, float* shared) {
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) total += shared[w];
  __syncthreads();
  return total;
}
template <int WARPS>
DEVICE float block_max(float x, float* shared) {
  x = warp_max(x);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  float most = shared[0];
#pragma unroll
  for (int w = 1; w < WARPS; w++) most = fmaxf(most, shared[w]);
  __syncthreads();
  return most;
}

// d (16x8, f32) += a (16x16, bf16, row) * b (16x8, bf16, column): one warp, in the fragment layout of the PTX manual (mma.m16n8k16).
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  simt::mma_m16n8k16(d, a, b0, b1);
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane l gives the address of row l % 8 of matrix l / 8, 16-byte aligned.
// `offset` in bytes: where it is a constant, it costs no register.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row, int offset = 0) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((u32)__cvta_generic_to_shared(row) + offset)
               : "memory");
#else
  simt::ldmatrix_x4<false>(r, (const char*)row + offset);
#endif
}
// The same, each matrix transposed.
DEVICE void ldmatrix_x4_transposed(u32 (&r)[4], const void* row, int offset = 0) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"((u32)__cvta_generic_to_shared(row) + offset)
               : "memory");
#else
  simt::ldmatrix_x4<true>(r, (const char*)row + offset);
#endif
}

// Starts copying 16 bytes from global to shared memory, both 16-byte aligned; zeros when not `valid` (then `from` is not read).
DEVICE void cp_async16(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  simt::cp_async(to, from, 16, valid);
#endif
}
// Ends a group of copies; all threads that copied call it.
DEVICE void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  simt::cp_async_commit();
#endif
}
// Waits until at most PENDING of the calling thread's groups are under way. A barrier must follow before other threads read.
template <int PENDING>
DEVICE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
  simt::cp_async_wait(PENDING);
#endif
}
