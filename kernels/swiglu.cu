// SwiGLU, forward and backward. Memory-bound, so each element is read and written once, 16 bytes per thread and tensor
// where F is a multiple of 8, else one element. A block has a stretch of one row.
#include "device.cuh"

DEVICE float sigmoid(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }

template <int N>
DEVICE void load(float (&x)[N], const bf16* p) {
  if constexpr (N == 8) load8(x, p);
  else x[0] = to_float(*p);
}
template <int N>
DEVICE void put(bf16* p, const float (&x)[N]) {
  if constexpr (N == 8) store8(p, x);
  else *p = to_bf16(x[0]);
}

// Returns the first of the thread's N elements in its row, and the row in `row`; a row has `blocks` blocks.
template <int N>
DEVICE int place(int blocks, i64& row) {
  row = blockIdx.x / blocks;
  return (blockIdx.x % blocks * blockDim.x + threadIdx.x) * N;
}

// gate_up (T, 2F) -> y (T, F)
template <int N>
DEVICE void forward(const bf16* gate_up, bf16* y, int f, int blocks) {
  i64 row;
  int i = place<N>(blocks, row);
  if (i < f) {
    float gate[N], up[N];
    load<N>(gate, gate_up + row * 2 * f + i);
    load<N>(up, gate_up + row * 2 * f + f + i);
#pragma unroll
    for (int k = 0; k < N; k++) up[k] *= gate[k] * sigmoid(gate[k]);
    put<N>(y + row * f + i, up);
  }
}
KERNEL(256) swiglu(const bf16* __restrict__ gate_up, bf16* __restrict__ y, int f, int blocks) {
  if (f % 8 == 0) forward<8>(gate_up, y, f, blocks);
  else forward<1>(gate_up, y, f, blocks);
}
EXPORT(swiglu)

// gate_up (T, 2F), dy (T, F) -> dgate_up (T, 2F); silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g)
template <int N>
DEVICE void backward(const bf16* gate_up, const bf16* dy, bf16* dgate_up, int f, int blocks) {
  i64 row;
  int i = place<N>(blocks, row);
  if (i < f) {
    float gate[N], up[N], d[N];
    load<N>(gate, gate_up + row * 2 * f + i);
    load<N>(up, gate_up + row * 2 * f + f + i);
    load<N>(d, dy + row * f + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
      float s = sigmoid(gate[k]), ds = d[k] * s;
      up[k] *= ds * (1.f + gate[k] * (1.f - s));
      d[k] = ds * gate[k];
    }
    put<N>(dgate_up + row * 2 * f + i, up);
    put<N>(dgate_up + row * 2 * f + f + i, d);
  }
}
KERNEL(256)
swiglu_backward(const bf16* __restrict__ gate_up, const bf16* __restrict__ dy, bf16* __restrict__ dgate_up, int f, int blocks) {
  if (f % 8 == 0) backward<8>(gate_up, dy, dgate_up, f, blocks);
  else backward<1>(gate_up, dy, dgate_up, f, blocks);
}
EXPORT(swiglu_backward)
