// Carries out one call of a library's C API on arrays from a file: run_call LIBRARY CALL RESULT.
//
// For libraries of another architecture than Python's, under an emulator. The structures of vtx_ops.h have the same
// layout on every 64-bit system, so the caller's bytes serve here; only the pointers are put in. CALL holds uint64
// numbers in the order they are read below, each text and array behind its length; RESULT gets the status as a uint64,
// and the bytes of every array after the call, inputs too.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

constexpr size_t kAlignment = 256;

struct Array {
  uint64_t offset;  // of its pointer in the structure of tensors
  uint64_t bytes;
  void* memory;
};

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "run_call: %s\n", what);
  std::exit(1);
}

uint64_t number(std::istream& from) {
  uint64_t value = 0;
  if (!from.read(reinterpret_cast<char*>(&value), sizeof value)) fail("the call ends early");
  return value;
}

std::string text(std::istream& from) {
  std::string value(number(from), '\0');
  if (!from.read(value.data(), static_cast<std::streamsize>(value.size()))) fail("the call ends early");
  return value;
}

void* aligned(uint64_t bytes) {
  void* memory = std::aligned_alloc(kAlignment, (bytes / kAlignment + 1) * kAlignment);
  if (!memory) fail("there is no memory");
  return memory;
}

// Structures lie where their types may.
void* aligned_copy(const std::string& bytes) { return std::memcpy(aligned(bytes.size()), bytes.data(), bytes.size()); }

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) fail("it takes LIBRARY CALL RESULT");
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(dlerror());
  std::ifstream call(arguments[2], std::ios::binary);
  const std::string function = text(call), sizes = text(call), parameters = text(call);
  std::string tensors(number(call), '\0');
  std::vector<Array> arrays(number(call));
  for (Array& array : arrays) {
    array.offset = number(call);
    const std::string bytes = text(call);
    array.bytes = bytes.size();
    array.memory = aligned_copy(bytes);
    std::memcpy(&tensors[array.offset], &array.memory, sizeof array.memory);
  }
  void* found = dlsym(library, function.c_str());
  if (!found) fail(dlerror());
  // An op without parameters has no argument for them.
  int status = 0;
  if (parameters.empty()) {
    using Function = int (*)(const void*, const void*, const void*);
    status = reinterpret_cast<Function>(found)(aligned_copy(sizes), aligned_copy(tensors), nullptr);
  } else {
    using Function = int (*)(const void*, const void*, const void*, const void*);
    status = reinterpret_cast<Function>(found)(aligned_copy(sizes), aligned_copy(parameters), aligned_copy(tensors),
                                               nullptr);
  }
  std::ofstream result(arguments[3], std::ios::binary);
  const uint64_t told = static_cast<uint64_t>(status);
  result.write(reinterpret_cast<const char*>(&told), sizeof told);
  for (const Array& array : arrays) {
    result.write(static_cast<const char*>(array.memory), static_cast<std::streamsize>(array.bytes));
  }
  return result.flush() ? 0 : 1;
}
