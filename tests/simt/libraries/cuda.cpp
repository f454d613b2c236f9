// A driver over the emulation: libcuda.so.1 with the functions that src/backend/cuda/driver.rs calls, so that the whole program runs
// on its "GPU" without one. Device memory is host memory; a module is an ELF library that the stand-in NVRTC made; work is done at
// once, or kept when it is recorded. Time is counted, not measured: a launch takes one unit. SIMT_FAIL_AT=N makes the N-th launch leave the
// error that a wild address leaves. A test may call what begins with simt_.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719,
       CAPTURE_UNSUPPORTED = 900 };
// On a thread that is idle nothing is done and memory has hardly a limit: what is asked of a large GPU can be counted.
thread_local bool is_idle = false;
size_t memory() { return is_idle ? 1ull << 40 : 3ull << 30; }

using Launch = void (*)(const unsigned*, unsigned, size_t, void**, const unsigned*, unsigned, unsigned, uint64_t, char*, size_t);
using Sizes = unsigned (*)(unsigned*);
struct Function { std::string name; Launch launch; std::vector<unsigned> sizes; int most_shared = 48 * 1024; };
struct Module { void* library; std::map<std::string, Function> functions; };
using Work = std::vector<std::function<int()>>;
struct Event { uint64_t at; };

std::mutex guard;
int lost = SUCCESS;  // an error that stays, as on a GPU
long launches = 0, graphs = 0, filled = 0;
uint64_t now = 0;  // units of work done
std::map<uint64_t, size_t> allocations;
Work* recording = nullptr;
thread_local void* context = nullptr;

// Copies from the host read it as late as they may: when the next work begins, or they are waited for.
std::vector<std::function<void()>> late;
void catch_up() {
  for (auto& copy : late) copy();
  late.clear();
}

int doing(std::function<int()> work) {
  std::lock_guard<std::mutex> lock(guard);
  if (!context) return INVALID_CONTEXT;
  if (lost) return lost;
  if (recording) return recording->push_back(std::move(work)), SUCCESS;
  catch_up();
  return is_idle ? SUCCESS : work();
}
}  // namespace

extern "C" {
// For the other stand-ins: work in the driver's order, recorded when work is.
int simt_do(int (*work)(void*), void (*drop)(void*), void* argument, unsigned units) {
  std::shared_ptr<void> shared(argument, drop);
  return doing([=] { return now += units, work(shared.get()); });
}
void simt_idle() { is_idle = true; }
// Executable graphs, and allocations of device memory, that live.
long simt_graphs() { return graphs; }
// Bytes that were asked to be set, done or not.
long simt_filled() { return filled; }
long simt_allocations() { return allocations.size(); }

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : INVALID_VALUE; }
int cuDeviceGetName(char* name, int n, int) { return snprintf(name, n, "SIMT emulation"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = memory(), SUCCESS; }
int cuDeviceGetAttribute(int* value, int which, int) {
  // 75, 76: compute capability; 16: multiprocessors.
  *value = which == 75 ? 8 : which == 76 ? 0 : which == 16 ? 2 : 0;
  return SUCCESS;
}
int cuGetErrorName(int error, const char** text) { return *text = error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR", SUCCESS; }
int cuGetErrorString(int error, const char** text) {
  *text = error == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "see cuda.h";
  return SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** out, int) { return *out = (void*)0x1000, SUCCESS; }
int cuCtxSetCurrent(void* ctx) { return context = ctx, SUCCESS; }
int cuStreamCreate(void** stream, unsigned) { return *stream = (void*)0x2000, SUCCESS; }
int cuStreamSynchronize(void*) {
  std::lock_guard<std::mutex> lock(guard);
  return catch_up(), recording ? CAPTURE_UNSUPPORTED : lost;
}
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = memory(), SUCCESS; }
int cuMemAlloc_v2(uint64_t* out, size_t bytes) {
  if (bytes > memory()) return OUT_OF_MEMORY;
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return OUT_OF_MEMORY;
  std::lock_guard<std::mutex> lock(guard);
  return allocations[*out = (uint64_t)start] = bytes, SUCCESS;
}
int cuMemFree_v2(uint64_t address) {
  std::lock_guard<std::mutex> lock(guard);
  if (!context) return INVALID_CONTEXT;
  auto found = allocations.find(address);
  if (found == allocations.end()) return INVALID_VALUE;
  munmap((void*)address, found->second);
  return allocations.erase(found), SUCCESS;
}
int cuMemHostAlloc(void** out, size_t bytes, unsigned) { return (*out = aligned_alloc(4096, bytes)) ? SUCCESS : OUT_OF_MEMORY; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void*) {
  std::lock_guard<std::mutex> lock(guard);
  if (!context) return INVALID_CONTEXT;
  if (lost) return lost;
  if (recording) return CAPTURE_UNSUPPORTED;
  if (!is_idle) late.push_back([=] { memcpy((void*)to, from, bytes); });
  return SUCCESS;
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void*) {
  return doing([=] { return memcpy(to, (const void*)from, bytes), SUCCESS; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void*) {
  return doing([=] { return memmove((void*)to, (const void*)from, bytes), SUCCESS; });
}
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, void*) {
  filled += bytes;
  return doing([=] { return memset((void*)at, value, bytes), SUCCESS; });
}

int cuModuleLoadData(void** out, const void* image) {
  auto* header = (const Elf64_Ehdr*)image;
  if (memcmp(header->e_ident, ELFMAG, SELFMAG)) return INVALID_IMAGE;
  size_t bytes = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
  int file = memfd_create("kernels", 0);
  if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return INVALID_IMAGE;
  void* library = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), INVALID_IMAGE;
  return *out = new Module{library, {}}, SUCCESS;
}
int cuModuleGetFunction(void** out, void* handle, const char* name) {
  auto* module = (Module*)handle;
  auto launch = (Launch)dlsym(module->library, ("simt_launch_" + std::string(name)).c_str());
  auto count = (Sizes)dlsym(module->library, ("simt_arguments_" + std::string(name)).c_str());
  if (!launch || !count) return NOT_FOUND;
  unsigned sizes[64];
  Function function{name, launch, {}};
  function.sizes.assign(sizes, sizes + count(sizes));
  return *out = &(module->functions[name] = function), SUCCESS;
}
int cuFuncSetAttribute(void* handle, int which, int value) {
  if (which == 8) ((Function*)handle)->most_shared = value;  // MAX_DYNAMIC_SHARED_SIZE_BYTES
  return SUCCESS;
}
int cuLaunchKernel(void* handle, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, void*, void** params,
                   void**) {
  auto* function = (Function*)handle;
  if (by != 1 || bz != 1 || (int)shared > function->most_shared) return INVALID_VALUE;
  std::vector<uint64_t> values(function->sizes.size());
  for (size_t i = 0; i < values.size(); i++) memcpy(&values[i], params[i], function->sizes[i]);
  return doing([=]() mutable -> int {
    now++;
    const char* fail_at = getenv("SIMT_FAIL_AT");
    if (fail_at && ++launches == atol(fail_at)) return lost = ILLEGAL_ADDRESS, SUCCESS;  // seen later, as on a GPU
    std::vector<void*> args;
    for (auto& value : values) args.push_back(&value);
    unsigned grid[3] = {x, y, z};
    char fault[1024] = "";
    function->launch(grid, bx, shared, args.data(), function->sizes.data(), args.size(), 0, 0, fault, sizeof fault);
    if (*fault) return fprintf(stderr, "kernel %s: %s\n", function->name.c_str(), fault), lost = LAUNCH_FAILED;
    return (int)SUCCESS;
  });
}

int cuEventCreate(void** event, unsigned) { return *event = new Event, SUCCESS; }
int cuEventRecord(void* event, void*) { return ((Event*)event)->at = now, SUCCESS; }
int cuEventSynchronize(void*) {
  std::lock_guard<std::mutex> lock(guard);
  return catch_up(), lost;
}
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  return *milliseconds = ((Event*)end)->at - ((Event*)start)->at, SUCCESS;
}
int cuEventDestroy_v2(void* event) { return delete (Event*)event, SUCCESS; }

int cuStreamBeginCapture_v2(void*, int) { std::lock_guard<std::mutex> lock(guard); return recording = new Work, SUCCESS; }
int cuStreamEndCapture(void*, void** graph) {
  std::lock_guard<std::mutex> lock(guard);
  return *graph = recording, recording = nullptr, SUCCESS;
}
int cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) { return graphs++, *out = new Work(*(Work*)graph), SUCCESS; }
int cuGraphDestroy(void* graph) { return delete (Work*)graph, SUCCESS; }
int cuGraphExecDestroy(void* graph) {
  if (!context) return INVALID_CONTEXT;
  return graphs--, delete (Work*)graph, SUCCESS;
}
int cuGraphLaunch(void* graph, void*) {
  return doing([=] {
    for (auto& work : *(Work*)graph)
      if (int error = work()) return error;
    return lost;
  });
}
}
