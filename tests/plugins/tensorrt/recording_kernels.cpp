// The functions of vtx_cuda.h without a device: they answer what a test wants and keep what they were called with.
#include "recording_kernels.h"

namespace recording {

Call& last() {
  static Call call;
  return call;
}

namespace {

template <class Sizes>
vtx_status workspace(const char* op, const Sizes* sizes, const void* parameters, size_t parameter_bytes,
                     size_t* bytes) {
  last().op = op;
  last().set(*sizes);
  last().parameters.assign(static_cast<const char*>(parameters),
                           static_cast<const char*>(parameters) + parameter_bytes);
  *bytes = kWorkspace;
  return last().answer;
}

template <class Sizes, class Tensors>
vtx_status run(const char* op, const Sizes* sizes, const void* parameters, size_t parameter_bytes,
               const Tensors* tensors, void* scratch, size_t scratch_bytes, vtx_stream stream) {
  size_t bytes = 0;
  const vtx_status status = workspace(op, sizes, parameters, parameter_bytes, &bytes);
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
#define WITH(op, sizes_of, tensors_of)                                                                            \
  vtx_status vtx_cuda_##op##_workspace(const sizes_of* sizes, const vtx_##op* parameters, size_t* bytes) {        \
    return recording::workspace(#op, sizes, parameters, sizeof *parameters, bytes);                               \
  }                                                                                                               \
  vtx_status vtx_cuda_##op(const sizes_of* sizes, const vtx_##op* parameters, const tensors_of* tensors,          \
                           void* workspace, size_t workspace_bytes, vtx_stream stream) {                          \
    return recording::run(#op, sizes, parameters, sizeof *parameters, tensors, workspace, workspace_bytes, stream); \
  }
#define WITHOUT(op, sizes_of, tensors_of)                                                                          \
  vtx_status vtx_cuda_##op##_workspace(const sizes_of* sizes, size_t* bytes) {                                     \
    return recording::workspace(#op, sizes, nullptr, 0, bytes);                                                    \
  }                                                                                                                \
  vtx_status vtx_cuda_##op(const sizes_of* sizes, const tensors_of* tensors, void* workspace, size_t workspace_bytes, \
                           vtx_stream stream) {                                                                    \
    return recording::run(#op, sizes, nullptr, 0, tensors, workspace, workspace_bytes, stream);                    \
  }

extern "C" {

WITH(prunesid, vtx_sizes, vtx_tensors)
WITH(svdprune, vtx_sizes, vtx_tensors)
WITH(vitcop, vtx_sizes, vtx_tensors)
WITH(nuwa, vtx_sizes, vtx_tensors)
WITH(cdpruner, vtx_sizes, vtx_tensors)
WITH(cluster_merge, vtx_step_sizes, vtx_step_tensors)
WITHOUT(divprune, vtx_sizes, vtx_tensors)
WITHOUT(key_norm_topk, vtx_step_sizes, vtx_step_tensors)
WITHOUT(attention_topk, vtx_step_sizes, vtx_step_tensors)
WITHOUT(text_similarity_topk, vtx_step_sizes, vtx_step_tensors)

int32_t vtx_cuda_abi_version(void) { return VTX_ABI_VERSION; }
const char* vtx_cuda_last_error(void) { return "out of luck"; }
const char* vtx_status_text(vtx_status status) {
  return status == VTX_OK ? "done" : status == VTX_DEVICE_ERROR ? "a CUDA call failed" : "the kernel refuses";
}
}
