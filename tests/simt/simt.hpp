// Runs CUDA kernels on the CPU, for tests. A block's threads are fibers on one OS thread; barriers and warp collectives switch
// between them; blocks run one after another. What is wrong in a kernel is a fault with a place, not a crash.
// Emulated: shuffles, ballots, mma.m16n8k16, ldmatrix, cp.async (deferred to its wait, its target poisoned until then), poisoned
// shared memory, atomics. Not emulated: weak memory order, bank conflicts, registers, timing.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict
// One array a block, and a redzone behind it. `static thread_local` is right because a block lives on one OS thread and each launch
// has a fresh one.
#define SHARED(T, name, count)                                               \
  static thread_local simt::SharedArray<T, count> name##_and_redzone;        \
  simt::poison_shared(&name##_and_redzone, sizeof(T[count]), sizeof name##_and_redzone); \
  T(&name)[count] = name##_and_redzone.array
#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(simt::current->block->dynamic)

struct uint3 { unsigned x, y, z; };
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace simt {
constexpr int WARP = 32;
constexpr size_t PAYLOAD = 64;       // bytes a lane can give and get in a warp collective
constexpr size_t STACK = 256 * 1024;  // of a fiber; touched pages only are taken
constexpr size_t MOST_SHARED = 227 * 1024;
constexpr size_t REDZONE = 256;  // bytes behind shared memory that no kernel may change

template <class T, size_t COUNT>
struct SharedArray {
  alignas(16) T array[COUNT];
  char redzone[REDZONE];
};

enum class Order : unsigned { Forward, Reverse, Random };
enum class State : uint8_t { Runnable, AtBlockBarrier, AtWarpCollective, Done };

struct Copy { void* to; const void* from; int bytes; bool valid; };
struct SharedBytes { size_t array, with_redzone; };
struct Block;
struct Warp {
  alignas(16) char in[WARP][PAYLOAD], out[WARP][PAYLOAD];
  uint32_t arrived, mask;
  int op;
};
struct Fiber {
  uint3 thread;
  int lane;
  State state;
  Block* block;
  Warp* warp;
  void* stack_pointer;
  const char* where;
  uint32_t mask;
  char* stack;
  std::vector<std::vector<Copy>> copies;  // cp.async groups; the last one is open
};
struct Block {
  uint3 index, grid, size;
  unsigned threads;
  char* dynamic;
  size_t dynamic_bytes;
  unsigned arrived, live;
  int any, all, count, result_any, result_all, result_count;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::map<char*, SharedBytes> arrays;  // SHARED arrays that the block has reached, by address
  void* scheduler;  // its stack pointer while a fiber runs
  void (*entry)(void*);
  void* argument;
  std::string fault;
};
inline thread_local Fiber* current = nullptr;

extern "C" void simt_switch(void** save, void* load);
inline void yield() { simt_switch(&current->stack_pointer, current->block->scheduler); }

// The kernel is wrong: remembers why and never returns to the fiber.
[[noreturn]] inline void fault(const char* format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  Block* block = current->block;
  char place[128];
  snprintf(place, sizeof place, " (thread %u of block %u,%u,%u)", current->thread.x, block->index.x, block->index.y, block->index.z);
  block->fault = std::string(text) + place;
  for (;;) yield();
}

// NaN in f32 and bf16, once a block.
inline void poison_shared(void* array, size_t bytes, size_t with_redzone) {
  if (current->block->arrays.insert({(char*)array, {bytes, with_redzone}}).second) memset(array, 0xFF, with_redzone);
}
inline bool is_shared(const void* at, size_t bytes) {
  Block* block = current->block;
  const char* first = (const char*)at;
  if (first >= block->dynamic && first + bytes <= block->dynamic + block->dynamic_bytes) return true;
  for (auto& [start, size] : block->arrays)
    if (first >= start && first + bytes <= start + size.array) return true;
  return false;
}
inline bool is_intact(const char* from, const char* to) {
  for (; from < to; from++)
    if (*from != (char)0xFF) return false;
  return true;
}
// What a block wrote behind its shared memory, or nothing.
inline std::string written_outside(Block& block) {
  if (!is_intact(block.dynamic + block.dynamic_bytes, block.dynamic + block.dynamic_bytes + REDZONE))
    return "a write past its " + std::to_string(block.dynamic_bytes) + " bytes of dynamic shared memory";
  for (auto& [start, size] : block.arrays)
    if (!is_intact(start + size.array, start + size.with_redzone))
      return "a write past a shared array of " + std::to_string(size.array) + " bytes";
  return "";
}

// ---- barriers and collectives ----
inline void release(Block* block) {
  block->arrived = 0;
  block->result_any = block->any, block->result_all = block->all, block->result_count = block->count;
  block->any = 0, block->all = 1, block->count = 0;
  for (Fiber& fiber : block->fibers)
    if (fiber.state == State::AtBlockBarrier) fiber.state = State::Runnable;
}
inline void block_barrier(const char* where, int predicate = 0) {
  Fiber* me = current;
  Block* block = me->block;
  me->where = where;
  block->any |= !!predicate, block->all &= !!predicate, block->count += !!predicate;
  if (++block->arrived == block->live) return release(block);
  me->state = State::AtBlockBarrier;
  yield();
}
// Every lane of `mask` gives `given`; the last to arrive runs `combine(warp)`; every lane gets its `out`.
template <class Given, class Got, class F>
inline Got collective(uint32_t mask, int op, const Given& given, F combine, const char* where) {
  static_assert(sizeof(Given) <= PAYLOAD && sizeof(Got) <= PAYLOAD, "a larger PAYLOAD is needed");
  Fiber* me = current;
  Warp* warp = me->warp;
  me->where = where, me->mask = mask;
  if (!(mask >> me->lane & 1)) fault("lane %d calls %s with a mask %08x that leaves it out", me->lane, where, mask);
  if (warp->arrived && warp->op != op) fault("lanes of a warp are at different collectives: lane %d at %s", me->lane, where);
  if (warp->arrived && warp->mask != mask) fault("lanes of a warp give masks %08x and %08x at %s", mask, warp->mask, where);
  warp->op = op, warp->mask = mask, warp->arrived |= 1u << me->lane;
  memcpy(warp->in[me->lane], &given, sizeof given);
  if ((warp->arrived & mask) == mask) {
    combine(*warp);
    warp->arrived = 0;
    size_t first = me - me->block->fibers.data() - me->lane;
    for (size_t lane = 0; lane < WARP && first + lane < me->block->threads; lane++) {
      Fiber& fiber = me->block->fibers[first + lane];
      if (fiber.state == State::AtWarpCollective && (mask >> lane & 1)) fiber.state = State::Runnable;
    }
  } else {
    me->state = State::AtWarpCollective;
    yield();
  }
  Got got;
  memcpy(&got, warp->out[me->lane], sizeof got);
  return got;
}
template <class T>
inline T shuffle(uint32_t mask, T value, int source, const char* where) {
  struct Given { T value; int source; };
  auto combine = [mask](Warp& warp) {
    for (int lane = 0; lane < WARP; lane++) {
      if (!(mask >> lane & 1)) continue;
      Given mine, theirs;
      memcpy(&mine, warp.in[lane], sizeof mine);
      int source = mine.source & 31;
      if (!(mask >> source & 1)) { memset(warp.out[lane], 0xFF, sizeof(T)); continue; }  // undefined on a GPU
      memcpy(&theirs, warp.in[source], sizeof theirs);
      memcpy(warp.out[lane], &theirs.value, sizeof(T));
    }
  };
  return collective<Given, T>(mask, 2, Given{value, source}, combine, where);
}
inline unsigned ballot(uint32_t mask, int predicate, const char* where) {
  auto combine = [mask](Warp& warp) {
    unsigned result = 0;
    for (int lane = 0; lane < WARP; lane++) {
      int given = 0;
      if (mask >> lane & 1) memcpy(&given, warp.in[lane], sizeof given);
      result |= given ? 1u << lane : 0;
    }
    for (int lane = 0; lane < WARP; lane++)
      if (mask >> lane & 1) memcpy(warp.out[lane], &result, sizeof result);
  };
  return collective<int, unsigned>(mask, 3, predicate ? 1 : 0, combine, where);
}
inline void sync_warp(const char* where, uint32_t mask = ~0u) {
  collective<char, char>(mask, 1, 0, [](Warp&) {}, where);
}

// ---- tensor cores and copies ----
inline float bf16_value(uint32_t bits) {
  bits <<= 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Given { float d[4]; uint32_t a[4], b[2]; };
  struct Got { float d[4]; };
  Given given;
  memcpy(given.d, d, sizeof d), memcpy(given.a, a, sizeof a), given.b[0] = b0, given.b[1] = b1;
  auto combine = [](Warp& warp) {
    float A[16][16], B[16][8], D[16][8];
    for (int lane = 0; lane < WARP; lane++) {
      Given g;
      memcpy(&g, warp.in[lane], sizeof g);
      int row = lane >> 2, column = (lane & 3) * 2;
      for (int e = 0; e < 2; e++) {
        auto half = [e](uint32_t pair) { return bf16_value(pair >> (16 * e) & 0xffff); };
        A[row][column + e] = half(g.a[0]), A[row + 8][column + e] = half(g.a[1]);
        A[row][column + 8 + e] = half(g.a[2]), A[row + 8][column + 8 + e] = half(g.a[3]);
        B[column + e][row] = half(g.b[0]), B[column + 8 + e][row] = half(g.b[1]);
        D[row][column + e] = g.d[e], D[row + 8][column + e] = g.d[2 + e];
      }
    }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < 16; k++)
        for (int j = 0; j < 8; j++) D[i][j] += A[i][k] * B[k][j];
    for (int lane = 0; lane < WARP; lane++) {
      int row = lane >> 2, column = (lane & 3) * 2;
      Got got = {{D[row][column], D[row][column + 1], D[row + 8][column], D[row + 8][column + 1]}};
      memcpy(warp.out[lane], &got, sizeof got);
    }
  };
  Got got = collective<Given, Got>(~0u, 4, given, combine, "mma_m16n8k16");
  memcpy(d, got.d, sizeof d);
}
template <bool TRANSPOSED>
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  struct Got { uint32_t r[4]; };
  if ((uintptr_t)row & 15) fault("ldmatrix: a row address that is not 16-byte aligned");
  auto combine = [](Warp& warp) {
    const uint16_t* rows[WARP];
    for (int lane = 0; lane < WARP; lane++) memcpy(&rows[lane], warp.in[lane], sizeof(void*));
    for (int lane = 0; lane < WARP; lane++) {
      Got got;
      int i = lane >> 2, j = (lane & 3) * 2;
      for (int m = 0; m < 4; m++) {
        uint32_t low = TRANSPOSED ? rows[m * 8 + j][i] : rows[m * 8 + i][j];
        uint32_t high = TRANSPOSED ? rows[m * 8 + j + 1][i] : rows[m * 8 + i][j + 1];
        got.r[m] = low | high << 16;
      }
      memcpy(warp.out[lane], &got, sizeof got);
    }
  };
  Got got = collective<const void*, Got>(~0u, TRANSPOSED ? 6 : 5, row, combine, "ldmatrix_x4");
  memcpy(r, got.r, sizeof r);
}
inline void cp_async(void* to, const void* from, int bytes, bool valid) {
  if (((uintptr_t)to | (valid ? (uintptr_t)from : 0)) % bytes) fault("cp_async: an address that is not %d-byte aligned", bytes);
  if (!is_shared(to, bytes)) fault("cp_async: the target is not in shared memory");
  if (current->copies.empty()) current->copies.emplace_back();
  current->copies.back().push_back({to, from, bytes, valid});
  memset(to, 0xFF, bytes);
}
inline void cp_async_commit() {
  if (current->copies.empty()) current->copies.emplace_back();
  current->copies.emplace_back();
}
inline void cp_async_wait(int pending) {
  auto& groups = current->copies;
  while ((int)groups.size() - 1 > pending) {
    for (Copy& copy : groups.front()) {
      if (copy.valid) memcpy(copy.to, copy.from, copy.bytes);
      else memset(copy.to, 0, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

// ---- scheduling ----
inline void fiber_main() {
  Fiber* me = current;
  Block* block = me->block;
  block->entry(block->argument);
  me->state = State::Done;
  block->live--;
  if (block->live && block->arrived == block->live) release(block);  // threads that left do not hold a barrier (sm_70 and later)
  for (;;) yield();
}
inline std::string deadlock(Block& block) {
  std::string text = "deadlock:";
  std::set<std::string> seen;
  for (Fiber& fiber : block.fibers) {
    if (fiber.state == State::Done) continue;
    const char* what = fiber.state == State::AtBlockBarrier ? "the block barrier at " : "a warp collective at ";
    std::string place = std::string(what) + fiber.where;
    if (seen.insert(place).second) text += " thread " + std::to_string(fiber.thread.x) + " waits in " + place + ";";
  }
  return text;
}
inline void run_block(Block& block, Order order, uint64_t seed) {
  block.arrived = 0, block.live = block.threads, block.any = 0, block.all = 1, block.count = 0;
  block.arrays.clear();
  memset(block.dynamic, 0xFF, block.dynamic_bytes + REDZONE);  // NaN in f32 and bf16
  for (Warp& warp : block.warps) warp.arrived = 0;
  std::vector<unsigned> turn(block.threads);
  for (unsigned i = 0; i < block.threads; i++) {
    Fiber& fiber = block.fibers[i];
    fiber.thread = {i, 0, 0}, fiber.lane = i % WARP, fiber.state = State::Runnable, fiber.block = &block;
    fiber.warp = &block.warps[i / WARP], fiber.where = "", fiber.copies.clear();
    void** top = (void**)((uintptr_t)(fiber.stack + STACK) & ~uintptr_t(15));
    *--top = nullptr, *--top = (void*)&fiber_main;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    fiber.stack_pointer = top;
    turn[i] = order == Order::Reverse ? block.threads - 1 - i : i;
  }
  uint64_t random = seed * 0x9E3779B97F4A7C15ull + block.index.x + 977 * block.index.y + 1;
  while (block.live) {
    bool progress = false;
    if (order == Order::Random)
      for (unsigned i = block.threads; i > 1; i--) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        std::swap(turn[i - 1], turn[random % i]);
      }
    for (unsigned first = 0; first < block.threads; first += WARP) {  // stay in a warp while it makes progress
      unsigned end = std::min(first + WARP, block.threads);
      for (bool again = true; again;) {
        again = false;
        for (unsigned i = first; i < end; i++) {
          Fiber& fiber = block.fibers[turn[i]];
          if (fiber.state != State::Runnable) continue;
          current = &fiber;
          simt_switch(&block.scheduler, fiber.stack_pointer);
          if (!block.fault.empty()) return;
          again = progress = true;
        }
        if (order == Order::Random) break;
      }
    }
    if (!progress && block.live) {
      block.fault = deadlock(block);
      return;
    }
  }
  block.fault = written_outside(block);
}
template <class K>
inline std::string run_grid(const unsigned* grid, unsigned threads, size_t shared, Order order, uint64_t seed, K&& kernel) {
  std::string fault;
  auto work = [&] {
    Block block;
    block.grid = {grid[0], grid[1], grid[2]}, block.size = {threads, 1, 1}, block.threads = threads;
    block.fibers.resize(threads), block.warps.resize((threads + WARP - 1) / WARP);
    block.dynamic_bytes = shared;
    block.dynamic = (char*)aligned_alloc(1024, (shared + REDZONE + 1023) / 1024 * 1024);
    char* stacks = (char*)mmap(nullptr, STACK * threads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (unsigned i = 0; i < threads; i++) block.fibers[i].stack = stacks + STACK * i;
    block.entry = [](void* argument) { (*(std::remove_reference_t<K>*)argument)(); };
    block.argument = &kernel;
    for (unsigned z = 0; z < grid[2]; z++)
      for (unsigned y = 0; y < grid[1]; y++)
        for (unsigned x = 0; x < grid[0] && block.fault.empty(); x++) {
          // Blocks have no order on a GPU: in reverse they run from the last.
          bool reverse = order == Order::Reverse;
          block.index = {reverse ? grid[0] - 1 - x : x, reverse ? grid[1] - 1 - y : y, reverse ? grid[2] - 1 - z : z};
          run_block(block, order, seed);
        }
    fault = block.fault;
    munmap(stacks, STACK * threads);
    free(block.dynamic);
  };
  std::thread(work).join();  // a fresh OS thread: SHARED arrays never leak from launch to launch
  return fault;
}
template <class... A, size_t... I>
inline std::string call(void (*kernel)(A...), const unsigned* grid, unsigned threads, size_t shared, Order order, uint64_t seed,
                        void** args, std::index_sequence<I...>) {
  return run_grid(grid, threads, shared, order, seed, [=] { kernel(*(std::remove_reference_t<A>*)args[I]...); });
}
// Like cuLaunchKernel: `args` points to each argument, `sizes` says its bytes. Writes why it failed into `fault`, empty when it did not.
template <class... A>
inline void launch(void (*kernel)(A...), const unsigned* grid, unsigned threads, size_t shared, void** args, const unsigned* sizes,
                   unsigned count, unsigned order, uint64_t seed, char* text, size_t capacity) {
  constexpr unsigned expected[] = {sizeof(A)..., 0};
  std::string fault;
  if (count != sizeof...(A)) fault = std::to_string(count) + " arguments given, the kernel has " + std::to_string(sizeof...(A));
  for (unsigned i = 0; fault.empty() && i < count; i++)
    if (sizes[i] != expected[i])
      fault = "argument " + std::to_string(i) + " has " + std::to_string(sizes[i]) + " bytes, the kernel expects " + std::to_string(expected[i]);
  if (threads == 0 || threads > 1024 || threads % WARP) fault = "a block of " + std::to_string(threads) + " threads";
  if (shared > MOST_SHARED) fault = std::to_string(shared) + " bytes of shared memory";
  for (int i = 0; i < 3; i++)
    if (grid[i] == 0 || (i > 0 && grid[i] > 65535)) fault = "a grid extent of " + std::to_string(grid[i]);
  if (fault.empty()) fault = call(kernel, grid, threads, shared, (Order)order, seed, args, std::index_sequence_for<A...>{});
  snprintf(text, capacity, "%s", fault.c_str());
}
// The bytes of each argument; returns how many there are.
template <class... A>
inline unsigned arguments(void (*)(A...), unsigned* sizes) {
  unsigned expected[] = {sizeof(A)..., 0};
  std::copy(expected, expected + sizeof...(A), sizes);
  return sizeof...(A);
}
}  // namespace simt

// Where -fsanitize=alignment finds an access that a GPU would refuse. The first argument's layout is that of GCC's and Clang's libubsan:
// file, line and column, type, log2 of the alignment.
struct SimtMismatch { const char* file; unsigned line, column; const void* type; unsigned char log_alignment, kind; };
extern "C" inline void __attribute__((used)) __ubsan_handle_type_mismatch_v1_abort(SimtMismatch* what, void*) {
  if (!simt::current) abort();
  simt::fault("an access that is not aligned to %u bytes at %s:%u", 1u << what->log_alignment, what->file, what->line);
}

#define SIMT_TEXT2(x) #x
#define SIMT_TEXT(x) SIMT_TEXT2(x)
#define SIMT_HERE __FILE__ ":" SIMT_TEXT(__LINE__)
#define threadIdx (simt::current->thread)
#define blockIdx (simt::current->block->index)
#define blockDim (simt::current->block->size)
#define gridDim (simt::current->block->grid)
#define __syncthreads() simt::block_barrier(SIMT_HERE)
#define __syncthreads_or(p) (simt::block_barrier(SIMT_HERE, p), simt::current->block->result_any)
#define __syncthreads_and(p) (simt::block_barrier(SIMT_HERE, p), simt::current->block->result_all)
#define __syncthreads_count(p) (simt::block_barrier(SIMT_HERE, p), simt::current->block->result_count)
#define __syncwarp(...) simt::sync_warp(SIMT_HERE, ##__VA_ARGS__)
#define __shfl_sync(m, v, source) simt::shuffle(m, v, (int)(source) & 31, SIMT_HERE)
#define __shfl_xor_sync(m, v, x) simt::shuffle(m, v, simt::current->lane ^ (int)(x), SIMT_HERE)
#define __shfl_down_sync(m, v, d) \
  simt::shuffle(m, v, simt::current->lane + (int)(d) > 31 ? simt::current->lane : simt::current->lane + (int)(d), SIMT_HERE)
#define __shfl_up_sync(m, v, d) \
  simt::shuffle(m, v, simt::current->lane - (int)(d) < 0 ? simt::current->lane : simt::current->lane - (int)(d), SIMT_HERE)
#define __ballot_sync(m, p) simt::ballot(m, p, SIMT_HERE)
#define __any_sync(m, p) (simt::ballot(m, p, SIMT_HERE) != 0)
#define __all_sync(m, p) (simt::ballot(m, p, SIMT_HERE) == (unsigned)(m))

template <class T, class U>
inline T atomicAdd(T* p, U value) { T old = *p; *p = old + (T)value; return old; }
template <class T, class U>
inline T atomicMax(T* p, U value) { T old = *p; *p = std::max(old, (T)value); return old; }
template <class T>
inline T atomicCAS(T* p, T expected, T value) { T old = *p; if (old == expected) *p = value; return old; }
inline void __threadfence() {}
using std::max;
using std::min;
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline void sincospif(float x, float* s, float* c) { *s = (float)sin(M_PI * x), *c = (float)cos(M_PI * x); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) { unsigned u; memcpy(&u, &x, 4); return u; }
inline float __uint_as_float(unsigned u) { float x; memcpy(&x, &u, 4); return x; }
inline int __float_as_int(float x) { int u; memcpy(&u, &x, 4); return u; }
inline float __int_as_float(int u) { float x; memcpy(&x, &u, 4); return x; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class T>
inline T __ldg(const T* p) { return *p; }

#define EXPORT(kernel)                                                                                                             \
  extern "C" unsigned simt_arguments_##kernel(unsigned* sizes) { return simt::arguments(kernel, sizes); }                          \
  extern "C" void simt_launch_##kernel(const unsigned* grid, unsigned threads, size_t shared, void** args, const unsigned* sizes, \
                                       unsigned count, unsigned order, uint64_t seed, char* fault, size_t capacity) {             \
    simt::launch(kernel, grid, threads, shared, args, sizes, count, order, seed, fault, capacity);                                \
  }
