// The functions of vtx_cuda.h without a device: they answer what a test wants and keep what they were called with.
#include "recording_kernels.h"

#include "check.h"

namespace recording {

Call& last() {
  static Call call;
  return call;
}

namespace {

template <class Sizes>
vtx_status sized(const char* op, vtx_status checked, const Sizes* sizes, const void* parameters, size_t length,
                 size_t* bytes) {
  last().op = op;
  last().set(*sizes);
  const char* first = static_cast<const char*>(parameters);
  last().parameters.assign(first, first + length);
  *bytes = kWorkspace;
  return checked == VTX_OK ? last().answer : checked;
}

template <class Sizes, class Tensors>
vtx_status ran(const char* op, vtx_status checked, const Sizes* sizes, const void* parameters, size_t length,
               const Tensors* tensors, void* scratch, size_t scratch_bytes, vtx_stream stream) {
  size_t bytes = 0;
  const vtx_status status = sized(op, checked, sizes, parameters, length, &bytes);
  last().set(*tensors);
  last().workspace = scratch;
  last().workspace_bytes = scratch_bytes;
  last().stream = stream;
  ++last().runs;
  return status;
}

}  // namespace
}  // namespace recording

// Ops with parameters of their own, and ops without.
#define WITH(op, sizes_of, tensors_of)                                                                           \
  vtx_status vtx_cuda_##op##_workspace(const sizes_of* sizes, const vtx_##op* parameters, size_t* bytes) {       \
    const vtx_status checked = vtx::check(vtx::ops::op, sizes, parameters, nullptr);                             \
    return recording::sized(#op, checked, sizes, parameters, sizeof *parameters, bytes);                         \
  }                                                                                                              \
  vtx_status vtx_cuda_##op(const sizes_of* sizes, const vtx_##op* parameters, const tensors_of* tensors,         \
                           void* scratch, size_t bytes, vtx_stream stream) {                                     \
    const vtx_status checked = vtx::check(vtx::ops::op, sizes, parameters, tensors);                             \
    return recording::ran(#op, checked, sizes, parameters, sizeof *parameters, tensors, scratch, bytes, stream); \
  }
#define WITHOUT(op, sizes_of, tensors_of)                                                                      \
  vtx_status vtx_cuda_##op##_workspace(const sizes_of* sizes, size_t* bytes) {                                 \
    return recording::sized(#op, vtx::check(vtx::ops::op, sizes, nullptr, nullptr), sizes, nullptr, 0, bytes); \
  }                                                                                                            \
  vtx_status vtx_cuda_##op(const sizes_of* sizes, const tensors_of* tensors, void* scratch, size_t bytes,      \
                           vtx_stream stream) {                                                                \
    const vtx_status checked = vtx::check(vtx::ops::op, sizes, nullptr, tensors);                              \
    return recording::ran(#op, checked, sizes, nullptr, 0, tensors, scratch, bytes, stream);                   \
  }

extern "C" {

VTX_EACH_OP(WITH, WITHOUT)

int32_t vtx_cuda_abi_version(void) { return VTX_ABI_VERSION; }
const char* vtx_cuda_last_error(void) { return "out of luck"; }
}
