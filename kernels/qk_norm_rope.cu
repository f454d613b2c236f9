// Per-head RMSNorm of q and k (Qwen3), then rotary embedding, in place, forward and backward. Memory-bound. A block has
// a token. For head sizes 16, 32, ... 512, HS/16 neighbouring lanes have a head, each with 8 elements of the first half
// and their partners in the second, 16 bytes per access; cosines and sines stay in registers over the token's heads.
// Other head sizes have one warp per head. Weight gradients: a fixed number of blocks keep partial sums over their
// tokens, and `add_partials` (rows.cu) adds those.
#include "device.cuh"

// Whether the vector path supports HS; qk_norm_rope.rs chooses the geometry by the same rule.
DEVICE bool has_vectors(int hs) { return hs % 16 == 0 && (hs / 16 & (hs / 16 - 1)) == 0 && hs <= 512; }

// Returns the sum over the `lanes` (a power of two) neighbours that share a head.
DEVICE float head_sum(float x, int lanes) {
  for (int o = lanes / 2; o; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
  return x;
}

// Returns element i of the token's row of the table (P, HS); NaN for a position outside.
DEVICE float turn(const float* table, int position, int p, int hs, int i) {
  return position >= 0 && position < p ? table[(i64)position * hs + i] : __uint_as_float(0x7fc00000u);
}
DEVICE void turns(float (&cos)[8], float (&sin)[8], const float* table, int position, int p, int hs, int i) {
  if (position >= 0 && position < p) {
    load8(cos, table + (i64)position * hs + i);
    load8(sin, table + (i64)position * hs + hs / 2 + i);
  } else {
#pragma unroll
    for (int k = 0; k < 8; k++) cos[k] = sin[k] = __uint_as_float(0x7fc00000u);
  }
}

template <typename W>
DEVICE void forward(bf16* __restrict__ qkv, const W* __restrict__ wq, const W* __restrict__ wk, float eps,
                    const int* __restrict__ positions, const float* __restrict__ table, bf16* __restrict__ raw, int p, int nh, int nkv,
                    int hs) {
  int lanes = hs / 16, groups = blockDim.x / lanes, heads = nh + nkv, half = hs / 2, i = threadIdx.x % lanes * 8;
  bf16* row = qkv + (i64)blockIdx.x * (heads + nkv) * hs + i;
  bf16* raw_row = raw + (i64)blockIdx.x * heads * hs + i;
  float cos[8], sin[8];
  turns(cos, sin, table, positions[blockIdx.x], p, hs, i);
  for (int first = 0; first < heads; first += groups) {
    int h = first + threadIdx.x / lanes;
    bool has_head = h < heads;
    float a[8] = {}, b[8] = {};
    if (has_head) load8(a, row + h * hs), load8(b, row + h * hs + half);
    if (wq) {
      float squares = 0.f;
#pragma unroll
      for (int k = 0; k < 8; k++) squares += a[k] * a[k] + b[k] * b[k];
      float rstd = rsqrtf(head_sum(squares, lanes) / hs + eps);
      if (has_head) {
        store8(raw_row + h * hs, a), store8(raw_row + h * hs + half, b);
        const W* w = h < nh ? wq : wk;
        float wa[8], wb[8];
        load8(wa, w + i), load8(wb, w + half + i);
#pragma unroll
        for (int k = 0; k < 8; k++) a[k] *= rstd * wa[k], b[k] *= rstd * wb[k];
      }
    }
    if (has_head) {
#pragma unroll
      for (int k = 0; k < 8; k++) {
        float x = a[k];
        a[k] = x * cos[k] - b[k] * sin[k];
        b[k] = b[k] * cos[k] + x * sin[k];
      }
      store8(row + h * hs, a), store8(row + h * hs + half, b);
    }
  }
}

template <typename W>
DEVICE void forward_single(bf16* qkv, const W* wq, const W* wk, float eps, const int* positions, const float* table, bf16* raw, int p,
                           int nh, int nkv, int hs) {
  int heads = nh + nkv, half = hs / 2, lane = threadIdx.x & 31, position = positions[blockIdx.x];
  for (int h = threadIdx.x >> 5; h < heads; h += blockDim.x >> 5) {
    bf16* head = qkv + ((i64)blockIdx.x * (heads + nkv) + h) * hs;
    bf16* saved = raw + ((i64)blockIdx.x * heads + h) * hs;
    const W* w = h < nh ? wq : wk;
    float squares = 0.f, rstd = 1.f;
    if (w) {
      for (int i = lane; i < half; i += 32) {
        saved[i] = head[i], saved[half + i] = head[half + i];
        float a = to_float(head[i]), b = to_float(head[half + i]);
        squares += a * a + b * b;
      }
      rstd = rsqrtf(warp_sum(squares) / hs + eps);
    }
    for (int i = lane; i < half; i += 32) {
      float cos = turn(table, position, p, hs, i), sin = turn(table, position, p, hs, half + i);
      float a = to_float(head[i]), b = to_float(head[half + i]);
      if (w) a *= rstd * to_float(w[i]), b *= rstd * to_float(w[half + i]);
      head[i] = to_bf16(a * cos - b * sin);
      head[half + i] = to_bf16(b * cos + a * sin);
    }
  }
}

// qkv (T, D), wq, wk (HS) or null, positions (T), table (P, HS), raw (T, (NH + NKV) HS) with weights only. One block
// per token.
#define FORWARD(name, W)                                                                                                          \
  KERNEL(128)                                                                                                                     \
  name(bf16* qkv, const W* wq, const W* wk, float eps, const int* positions, const float* table, bf16* raw, int p, int nh,        \
       int nkv, int hs) {                                                                                                         \
    if (has_vectors(hs)) forward(qkv, wq, wk, eps, positions, table, raw, p, nh, nkv, hs);                                        \
    else forward_single(qkv, wq, wk, eps, positions, table, raw, p, nh, nkv, hs);                                                 \
  }
FORWARD(qk_norm_rope_bf16, bf16)
EXPORT(qk_norm_rope_bf16)
FORWARD(qk_norm_rope_f32, float)
EXPORT(qk_norm_rope_f32)

// Applies the transposed rotation, then the norm's gradient: dx = rstd (g - n mean(g n)) and dw = dy n, with n = raw
// rstd and g = dy w. `sums` (groups, 2, HS) receives the block's sums of dw, for q and for k, with one row per group of
// lanes.
template <bool DW, typename W>
DEVICE void backward(bf16* __restrict__ dqkv, const W* __restrict__ wq, const W* __restrict__ wk, float eps,
                     const int* __restrict__ positions, const float* __restrict__ table, const bf16* __restrict__ raw, int t, int p,
                     int nh, int nkv, int hs, float* sums) {
  int lanes = hs / 16, groups = blockDim.x / lanes, heads = nh + nkv, half = hs / 2, i = threadIdx.x % lanes * 8;
  float dw[DW ? 4 : 1][8] = {};  // q's halves, k's halves
  for (int token = blockIdx.x; token < t; token += gridDim.x) {
    bf16* row = dqkv + (i64)token * (heads + nkv) * hs + i;
    const bf16* raw_row = raw + (i64)token * heads * hs + i;
    float cos[8], sin[8];
    turns(cos, sin, table, positions[token], p, hs, i);
    for (int first = 0; first < heads; first += groups) {
      int h = first + threadIdx.x / lanes;
      bool has_head = h < heads;
      float a[8] = {}, b[8] = {};
      if (has_head) load8(a, row + h * hs), load8(b, row + h * hs + half);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        float y = a[k];
        a[k] = y * cos[k] + b[k] * sin[k];
        b[k] = b[k] * cos[k] - y * sin[k];
      }
      if (wq) {
        float xa[8] = {}, xb[8] = {}, squares = 0.f, dot = 0.f;
        const W* w = h < nh ? wq : wk;
        if (has_head) load8(xa, raw_row + h * hs), load8(xb, raw_row + h * hs + half);
        {
          float wa[8], wb[8];
          load8(wa, w + i), load8(wb, w + half + i);
#pragma unroll
          for (int k = 0; k < 8; k++) {
            float ga = a[k] * wa[k], gb = b[k] * wb[k];
            squares += xa[k] * xa[k] + xb[k] * xb[k];
            dot += has_head ? ga * xa[k] + gb * xb[k] : 0.f;
            if (!DW) a[k] = ga, b[k] = gb;
          }
        }
        float rstd = rsqrtf(head_sum(squares, lanes) / hs + eps), mean = head_sum(dot, lanes) * rstd / hs;
        if constexpr (DW) {  // dy is needed until here; loading the weights again saves registers
          float wa[8], wb[8];
          load8(wa, w + i), load8(wb, w + half + i);
#pragma unroll
          for (int k = 0; k < 8; k++) {
            float na = a[k] * xa[k] * rstd, nb = b[k] * xb[k] * rstd;
            if (has_head && h < nh) dw[0][k] += na, dw[1][k] += nb;
            if (has_head && h >= nh) dw[2][k] += na, dw[3][k] += nb;
            a[k] *= wa[k], b[k] *= wb[k];
          }
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
          a[k] = rstd * (a[k] - xa[k] * rstd * mean);
          b[k] = rstd * (b[k] - xb[k] * rstd * mean);
        }
      }
      if (has_head) store8(row + h * hs, a), store8(row + h * hs + half, b);
    }
  }
  if constexpr (DW) {
    float* mine = sums + threadIdx.x / lanes * 2 * hs + i;
    store8(mine, dw[0]), store8(mine + half, dw[1]), store8(mine + hs, dw[2]), store8(mine + hs + half, dw[3]);
  }
}

// As `backward`, by single elements; adds to `sums` (warps, 2, HS).
template <bool DW, typename W>
DEVICE void backward_single(bf16* dqkv, const W* wq, const W* wk, float eps, const int* positions, const float* table,
                            const bf16* raw, int t, int p, int nh, int nkv, int hs, float* sums) {
  int heads = nh + nkv, half = hs / 2, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int token = blockIdx.x; token < t; token += gridDim.x) {
    int position = positions[token];
    for (int h = warp; h < heads; h += blockDim.x >> 5) {
      bf16* head = dqkv + ((i64)token * (heads + nkv) + h) * hs;
      const bf16* x = raw + ((i64)token * heads + h) * hs;
      const W* w = h < nh ? wq : wk;
      float squares = 0.f, dot = 0.f, rstd = 1.f, mean = 0.f;
      for (int pass = w ? 0 : 1; pass < 2; pass++) {
        for (int i = lane; i < half; i += 32) {
          float cos = turn(table, position, p, hs, i), sin = turn(table, position, p, hs, half + i);
          float ya = to_float(head[i]), yb = to_float(head[half + i]);
          float a = ya * cos + yb * sin, b = yb * cos - ya * sin;
          if (w) {
            float wa = to_float(w[i]), wb = to_float(w[half + i]), xa = to_float(x[i]), xb = to_float(x[half + i]);
            if (pass == 0) squares += xa * xa + xb * xb, dot += a * wa * xa + b * wb * xb;
            if (DW && pass == 1) {
              float* mine = sums + (warp * 2 + (h >= nh)) * hs;
              mine[i] += a * xa * rstd, mine[half + i] += b * xb * rstd;
            }
            a = rstd * (a * wa - xa * rstd * mean), b = rstd * (b * wb - xb * rstd * mean);
          }
          if (pass == 1) head[i] = to_bf16(a), head[half + i] = to_bf16(b);
        }
        if (pass == 0) {
          rstd = rsqrtf(warp_sum(squares) / hs + eps);
          mean = warp_sum(dot) * rstd / hs;
        }
      }
    }
  }
}

template <bool DW, typename W>
DEVICE void backward_any(bf16* dqkv, const W* wq, const W* wk, float eps, const int* positions, const float* table, const bf16* raw,
                         float* partials, int t, int p, int nh, int nkv, int hs, float* sums) {
  int rows = has_vectors(hs) ? blockDim.x / (hs / 16) : blockDim.x / 32;
  if (has_vectors(hs)) {
    backward<DW>(dqkv, wq, wk, eps, positions, table, raw, t, p, nh, nkv, hs, sums);
  } else {
    if (DW)
      for (int i = threadIdx.x; i < rows * 2 * hs; i += blockDim.x) sums[i] = 0.f;
    __syncthreads();
    backward_single<DW>(dqkv, wq, wk, eps, positions, table, raw, t, p, nh, nkv, hs, sums);
  }
  if (DW) {
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * hs; i += blockDim.x) {
      float total = 0.f;
      for (int row = 0; row < rows; row++) total += sums[row * 2 * hs + i];
      partials[((i64)(i / hs) * gridDim.x + blockIdx.x) * hs + i % hs] = total;
    }
  }
}

// dqkv (T, D), raw (T, (NH + NKV) HS) with weights; partials (2, gridDim, HS) with DW. Shared memory with DW: `sums`.
#define BACKWARD(name, DW, W)                                                                                                      \
  KERNEL(128)                                                                                                                      \
  name(bf16* dqkv, const W* wq, const W* wk, float eps, const int* positions, const float* table, const bf16* raw,                 \
       float* partials, int t, int p, int nh, int nkv, int hs) {                                                                   \
    DYNAMIC_SHARED(float, sums);                                                                                                   \
    backward_any<DW>(dqkv, wq, wk, eps, positions, table, raw, partials, t, p, nh, nkv, hs, sums);                                 \
  }
BACKWARD(qk_norm_rope_backward_bf16, false, bf16)
EXPORT(qk_norm_rope_backward_bf16)
BACKWARD(qk_norm_rope_backward_f32, false, float)
EXPORT(qk_norm_rope_backward_f32)
BACKWARD(qk_norm_rope_backward_dw_bf16, true, bf16)
EXPORT(qk_norm_rope_backward_dw_bf16)
BACKWARD(qk_norm_rope_backward_dw_f32, true, float)
EXPORT(qk_norm_rope_backward_dw_f32)
