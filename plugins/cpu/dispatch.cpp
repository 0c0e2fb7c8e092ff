#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "vtx_cpu.h"

namespace vtx {

extern const Kernels kernels_baseline;
#ifdef VTX_HAS_AVX
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

// VTEXPORT_INSTRUCTIONS=baseline or avx2 asks for less than the CPU has, to look into a difference or test the others.
const Kernels& best() {
#ifdef VTX_HAS_AVX
  const char* named = std::getenv("VTEXPORT_INSTRUCTIONS");
  const bool wants_baseline = named && !std::strcmp(named, "baseline");
  const bool wants_avx2 = named && !std::strcmp(named, "avx2");
  if (wants_baseline) return kernels_baseline;
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && !wants_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    return kernels_avx512;
  }
  if (has_avx2) return kernels_avx2;
#endif
  return kernels_baseline;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = best();
  return chosen;
}

}  // namespace vtx

extern "C" const char* vtx_cpu_instructions(void) { return vtx::kernels().name; }
extern "C" int32_t vtx_cpu_abi_version(void) { return VTX_ABI_VERSION; }
