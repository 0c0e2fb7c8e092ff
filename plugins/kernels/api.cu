// What the C API answers about itself.
#include "call.cuh"

namespace vtx {
namespace {

thread_local const char* last_error = "";

}  // namespace

void remember_error(const char* text) { last_error = text; }

vtx_status check_workspace(const void* workspace, size_t given, size_t needed) {
  if (!workspace) return VTX_NULL_POINTER;
  if (reinterpret_cast<uintptr_t>(workspace) % 256) return VTX_MISALIGNED;
  return given < needed ? VTX_SMALL_WORKSPACE : VTX_OK;
}

}  // namespace vtx

extern "C" int32_t vtx_cuda_abi_version(void) { return VTX_ABI_VERSION; }
extern "C" const char* vtx_cuda_last_error(void) { return vtx::last_error; }
