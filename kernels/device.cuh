// Device primitives for all kernels. Each has two bodies: PTX when compiled for a GPU, and the emulation of tests/simt
// on a CPU. No CUDA header is needed. Code of a single op is in that op's file.
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
#define SHARED(T, name, count) __shared__ __align__(16) T name[count]
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

// The product x y, rounded by itself and never fused with a sum.
DEVICE float rounded_product(float x, float y) {
#ifdef __CUDACC__
  return __fmul_rn(x, y);
#else
  volatile float product = x * y;
  return product;
#endif
}

// 2^x to 2 units in the last place; results below 2^-126 are 0.
DEVICE float exp2_fast(float x) {
#ifdef __CUDACC__
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return exp2f(x);
#endif
}

// Loads and stores eight bf16 in one 16-byte access; p is 16-byte aligned.
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

// Loads and stores eight floats in two 16-byte accesses; p is 16-byte aligned.
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

// Sum and maximum over a block of WARPS warps, known to every thread. Every thread calls. `shared` has WARPS floats and
// may be reused afterwards.
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

// d (16x8, f32) += a (16x16, bf16, row) * b (16x8, bf16, column) by one warp, in the fragment layout of the PTX manual
// (mma.m16n8k16).
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

// Loads four 8x8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8 of matrix l / 8,
// 16-byte aligned. `offset` is in bytes; a constant one costs no register.
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
// As ldmatrix_x4, with each matrix transposed.
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

// Starts copying 16 bytes from global to shared memory, both 16-byte aligned. Writes zeros when not `valid`; `from` is
// then not read.
DEVICE void cp_async16(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  simt::cp_async(to, from, 16, valid);
#endif
}
// As cp_async16, for 4 bytes, 4-byte aligned.
DEVICE void cp_async4(void* to, const void* from, bool valid) {
#ifdef __CUDACC__
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"((u32)__cvta_generic_to_shared(to)), "l"(from), "r"(valid ? 4 : 0)
               : "memory");
#else
  simt::cp_async(to, from, 4, valid);
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
// Waits until at most PENDING of the calling thread's groups are in flight. A barrier must follow before other threads
// read.
template <int PENDING>
DEVICE void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
  simt::cp_async_wait(PENDING);
#endif
}

// Address of chunk `chunk` (8 elements, 16 bytes) of row `row` in a tile of rows of WIDTH bf16 in shared memory. Chunks
// are swizzled: a chunk of eight consecutive rows, which ldmatrix reads at a time, lies in different banks.
template <int WIDTH>
DEVICE bf16* swizzled(bf16* tile, int row, int chunk) {
  static_assert(WIDTH == 32 || WIDTH % 64 == 0, "a row is half a line of banks, or whole lines");
  int turn = WIDTH == 32 ? row >> 1 & 3 : row & 7;
  return tile + row * WIDTH + ((chunk ^ turn) << 3);
}
// Starts copying rows first .. first + ROWS of a matrix into a tile; rows from `end` on become zeros. All THREADS
// threads of the block call.
template <int WIDTH, int ROWS, int THREADS>
DEVICE void load_tile(bf16* tile, const bf16* matrix, int stride, int first, int end) {
  constexpr int CHUNKS = WIDTH / 8;
  static_assert(ROWS * CHUNKS % THREADS == 0, "every thread copies as many chunks");
#pragma unroll
  for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
    int at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
    cp_async16(swizzled<WIDTH>(tile, row, chunk), matrix + (i64)(first + row) * stride + chunk * 8, first + row < end);
  }
}
// Loads the A fragment of mma_m16n8k16 from a tile: rows row .. row + 16, columns 16 k .. 16 k + 16.
template <int WIDTH>
DEVICE void fragment_a(u32 (&a)[4], bf16* tile, int row, int k) {
  int lane = threadIdx.x & 31;
  ldmatrix_x4(a, swizzled<WIDTH>(tile, row + (lane & 15), 2 * k + (lane >> 4)));
}
// Loads the B fragments of two products from a tile that has n as rows and k as columns: n .. n + 8 in b[0], b[1], and
// n + 8 .. n + 16 in b[2], b[3].
template <int WIDTH>
DEVICE void fragment_b(u32 (&b)[4], bf16* tile, int n, int k) {
  int lane = threadIdx.x & 31;
  ldmatrix_x4(b, swizzled<WIDTH>(tile, n + (lane & 7) + (lane >> 4) * 8, 2 * k + (lane >> 3 & 1)));
}
// As fragment_b, from a tile that has k as rows (16 k .. 16 k + 16) and n as columns (16 n .. 16 n + 16).
template <int WIDTH>
DEVICE void fragment_b_transposed(u32 (&b)[4], bf16* tile, int n, int k) {
  int lane = threadIdx.x & 31;
  ldmatrix_x4_transposed(b, swizzled<WIDTH>(tile, 16 * k + (lane & 15), 2 * n + (lane >> 4)));
}
// Packs two neighbouring 16x8 accumulators (16 rows, columns c .. c + 16) into the A fragment of those columns,
// rounded.
DEVICE void accumulators_as_a(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]), a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]), a[3] = pack_bf16(right[2], right[3]);
}

// Sums of f64 over a warp and over a block of WARPS warps, as for f32 above.
DEVICE double warp_sum(double x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
  return x;
}
template <int WARPS>
DEVICE double block_sum(double x, double* shared) {
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  double total = 0.;
#pragma unroll
  for (int w = 0; w < WARPS; w++) total += shared[w];
  __syncthreads();
  return total;
}

// Philox 4x32-10 (src/rng.rs): turns the counter c into four random words under the key (k0, k1).
DEVICE void philox4x32(u32 (&c)[4], u32 k0, u32 k1) {
#pragma unroll
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    u32 a_high = __umulhi(c[0], 0xD2511F53u), a_low = c[0] * 0xD2511F53u;
    u32 b_high = __umulhi(c[2], 0xCD9E8D57u), b_low = c[2] * 0xCD9E8D57u;
    c[0] = b_high ^ c[1] ^ k0, c[1] = b_low, c[2] = a_high ^ c[3] ^ k1, c[3] = a_low;
  }
}
