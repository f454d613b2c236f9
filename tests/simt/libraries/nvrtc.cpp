// A run-time compiler over the emulation: libnvrtc.so.13 whose "cubin" is an ELF library made by c++ from the same source.
// SIMT_INCLUDE is the folder of simt.hpp and switch.S.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

struct Program { std::string source, header, cubin, log; };

static void put(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
static std::string get(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

extern "C" {
int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 99, 0; }
const char* nvrtcGetErrorString(int error) { return error == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
int nvrtcCreateProgram(Program** out, const char* source, const char*, int headers, const char* const* texts, const char* const* names) {
  if (headers != 1 || strcmp(names[0], "device.cuh")) return 3;
  return *out = new Program{source, texts[0], "", ""}, 0;
}
int nvrtcDestroyProgram(Program** program) { return delete *program, *program = nullptr, 0; }
int nvrtcCompileProgram(Program* program, int, const char* const*) {
  char folder[] = "/tmp/simt-XXXXXX";
  const char* include = getenv("SIMT_INCLUDE");
  if (!include || !mkdtemp(folder)) return 1;
  std::string at = folder;
  put(at + "/kernel.cu", program->source);
  put(at + "/device.cuh", program->header);
  std::string command = "c++ -std=c++17 -O2 -march=native -fPIC -shared -fno-gnu-unique -Wl,-Bsymbolic -I" + at + " -I" + include +
                        " -x c++ " + at + "/kernel.cu -x assembler " + include + "/switch.S -x none -pthread -o " + at + "/out.so 2> " +
                        at + "/log";
  int status = system(command.c_str());
  program->log = get(at + "/log"), program->cubin = get(at + "/out.so");
  for (const char* name : {"/kernel.cu", "/device.cuh", "/out.so", "/log"}) unlink((at + name).c_str());
  rmdir(folder);
  return status ? 6 : 0;
}
int nvrtcGetCUBINSize(Program* program, size_t* bytes) { return *bytes = program->cubin.size(), 0; }
int nvrtcGetCUBIN(Program* program, char* out) { return memcpy(out, program->cubin.data(), program->cubin.size()), 0; }
int nvrtcGetProgramLogSize(Program* program, size_t* bytes) { return *bytes = program->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program* program, char* out) { return memcpy(out, program->log.c_str(), program->log.size() + 1), 0; }
}
