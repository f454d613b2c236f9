// A GEMM library over the emulation: libcublasLt.so.13, column-major as the real one, with two algorithms to choose from: the first takes
// twice the time, the second an even number of columns of c only. It refuses what the real one would read wrongly: layouts that do not fit
// together, operands less aligned than was promised, an algorithm for a shape that it does not do.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14 };
struct Layout { int type; uint64_t rows, columns; int64_t stride; };
struct Operation { int compute, scale, is_transposed[2]; };
struct Preference { size_t workspace; uint32_t reduction, alignment[4]; };
struct Algorithm { uint64_t data[8]; };
struct Heuristic { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

float value(const void* base, const Layout& l, uint64_t row, uint64_t column) {
  uint64_t i = column * l.stride + row;
  if (l.type == R_32F) return ((const float*)base)[i];
  uint32_t bits = (uint32_t)((const uint16_t*)base)[i] << 16;
  float x;
  return memcpy(&x, &bits, 4), x;
}
void set(void* base, const Layout& l, uint64_t row, uint64_t column, float x) {
  uint64_t i = column * l.stride + row;
  if (l.type == R_32F) { ((float*)base)[i] = x; return; }
  uint32_t u;
  memcpy(&u, &x, 4);
  ((uint16_t*)base)[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
bool fits(const Operation& op, const Layout& a, const Layout& b, const Layout& c) {
  uint64_t m = op.is_transposed[0] ? a.columns : a.rows, k = op.is_transposed[0] ? a.rows : a.columns;
  uint64_t k2 = op.is_transposed[1] ? b.columns : b.rows, n = op.is_transposed[1] ? b.rows : b.columns;
  bool strides = a.stride >= (int64_t)a.rows && b.stride >= (int64_t)b.rows && c.stride >= (int64_t)c.rows;
  return strides && k == k2 && m == c.rows && n == c.columns && op.compute == 68 && op.scale == R_32F && a.type == b.type;
}
// One product, kept when work is recorded.
struct Call { Operation op; Layout a, b, c; float alpha, beta; const void *A, *B; void* C; };
int multiply(void* argument) {
  auto& [op, a, b, c, alpha, beta, A, B, C] = *(Call*)argument;
  uint64_t k = op.is_transposed[0] ? a.rows : a.columns;
  std::vector<float> row(k);
  for (uint64_t i = 0; i < c.rows; i++) {
    for (uint64_t l = 0; l < k; l++) row[l] = op.is_transposed[0] ? value(A, a, l, i) : value(A, a, i, l);
    for (uint64_t j = 0; j < c.columns; j++) {
      float sum = 0;
      for (uint64_t l = 0; l < k; l++) sum += row[l] * (op.is_transposed[1] ? value(B, b, j, l) : value(B, b, l, j));
      set(C, c, i, j, alpha * sum + (beta != 0 ? beta * value(C, c, i, j) : 0));
    }
  }
  return SUCCESS;
}
using Do = int (*)(int (*)(void*), void (*)(void*), void*, unsigned);
bool does(const Algorithm& algorithm, const Layout& c) { return algorithm.data[0] == 1 || (algorithm.data[0] == 2 && c.columns % 2 == 0); }
long asked = 0, products = 0;
}  // namespace

extern "C" {
size_t cublasLtGetVersion() { return 130000; }
int cublasLtCreate(void** handle) { return *handle = (void*)0x3000, SUCCESS; }
int cublasLtDestroy(void*) { return SUCCESS; }
int cublasLtMatrixLayoutCreate(Layout** out, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  return *out = new Layout{type, rows, columns, stride}, SUCCESS;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }
int cublasLtMatmulDescCreate(Operation** out, int compute, int scale) { return *out = new Operation{compute, scale, {0, 0}}, SUCCESS; }
int cublasLtMatmulDescDestroy(Operation* operation) { return delete operation, SUCCESS; }
int cublasLtMatmulDescSetAttribute(Operation* operation, int attribute, const void* value, size_t bytes) {
  if ((attribute != 3 && attribute != 4) || bytes != 4) return INVALID_VALUE;
  return memcpy(&operation->is_transposed[attribute - 3], value, 4), SUCCESS;
}
int cublasLtMatmulPreferenceCreate(Preference** out) { return *out = new Preference{0, 7, {256, 256, 256, 256}}, SUCCESS; }
int cublasLtMatmulPreferenceDestroy(Preference* preference) { return delete preference, SUCCESS; }
int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (attribute == 1 && bytes == sizeof(size_t)) return memcpy(&preference->workspace, value, bytes), SUCCESS;
  if (bytes != 4) return INVALID_VALUE;
  if (attribute == 3) return memcpy(&preference->reduction, value, 4), SUCCESS;
  if (attribute >= 5 && attribute <= 8) return memcpy(&preference->alignment[attribute - 5], value, 4), SUCCESS;
  return INVALID_VALUE;
}
int cublasLtMatmulAlgoGetHeuristic(void*, Operation* operation, Layout* a, Layout* b, Layout* c, Layout*, Preference* preference, int wanted,
                                   Heuristic* results, int* count) {
  *count = 0;
  if (!fits(*operation, *a, *b, *c)) return INVALID_VALUE;
  // In place: bits would depend on timing. In the type of c: partial sums would be rounded to bf16.
  if (preference->reduction & 5) return INVALID_VALUE;
  asked++;
  for (int i = 0; i < 2 && i < wanted; i++) {
    Heuristic h{};
    h.algorithm.data[0] = i + 1;
    for (int side = 0; side < 3; side++) h.algorithm.data[1 + side] = preference->alignment[side];
    if (does(h.algorithm, *c)) results[(*count)++] = h;
  }
  return SUCCESS;
}
int cublasLtMatmulAlgoCheck(void*, Operation* operation, Layout* a, Layout* b, Layout* c, Layout*, const Algorithm* algorithm, Heuristic* result) {
  if (!fits(*operation, *a, *b, *c)) return INVALID_VALUE;
  if (!does(*algorithm, *c)) return NOT_SUPPORTED;
  *result = Heuristic{}, result->algorithm = *algorithm;
  return SUCCESS;
}
// How often algorithms were asked for, and how many products were given to the driver.
long simt_asked() { return asked; }
long simt_products() { return products; }
int cublasLtMatmul(void*, Operation* op, const float* alpha, const void* A, Layout* a, const void* B, Layout* b, const float* beta, const void* C,
                   Layout* c, void* D, Layout* d, const Algorithm* algorithm, void*, size_t, void*) {
  if (!fits(*op, *a, *b, *c) || C != D || memcmp(c, d, sizeof *c) ) return INVALID_VALUE;
  if (!does(*algorithm, *c)) return NOT_SUPPORTED;
  const void* addresses[3] = {A, B, C};
  for (int side = 0; side < 3; side++)
    if ((uint64_t)addresses[side] % algorithm->data[1 + side]) return NOT_SUPPORTED;
  products++;
  static Do run = (Do)dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "simt_do");
  auto* call = new Call{*op, *a, *b, *c, *alpha, *beta, A, B, D};
  return run(multiply, [](void* call) { delete (Call*)call; }, call, algorithm->data[0] == 1 ? 2 : 1);
}
}
