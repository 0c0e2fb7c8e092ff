#include "kernels.h"
#include "vtx_cpu.h"

namespace vtx {

extern const Kernels kernels_baseline;
#ifdef VTX_HAS_AVX
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

const Kernels& best() {
#ifdef VTX_HAS_AVX
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
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
