/* The pruning ops as CUDA kernels. Structures, shapes and limits: vtx_ops.h.
 *
 * A call enqueues on `stream` and returns: it allocates nothing, never waits for the device, reads no device memory on
 * the host, and can be captured in a CUDA graph. Every pointer in the tensors and the workspace is device memory. The
 * workspace belongs to the call until the stream has passed it; two calls in flight need two. The answer is the same to
 * the last bit from run to run on one device, and every element of every output is written.
 *
 * Statuses come before anything is enqueued, but for VTX_DEVICE_ERROR.
 */
#ifndef VTX_CUDA_H
#define VTX_CUDA_H

#include "vtx_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef void* vtx_stream; /* a cudaStream_t; NULL is the default stream */

int32_t vtx_cuda_abi_version(void);

/* What the last VTX_DEVICE_ERROR on this thread was, as CUDA names it; "" if there was none. */
const char* vtx_cuda_last_error(void);

/* Bytes of workspace for a call of these sizes; the status is that of the call itself. They depend on sizes and
 * parameters alone, so ask once. */
vtx_status vtx_cuda_prunesid_workspace(const vtx_sizes* sizes, const vtx_prunesid* parameters, size_t* bytes);
vtx_status vtx_cuda_svdprune_workspace(const vtx_sizes* sizes, const vtx_svdprune* parameters, size_t* bytes);
vtx_status vtx_cuda_vitcop_workspace(const vtx_sizes* sizes, const vtx_vitcop* parameters, size_t* bytes);
vtx_status vtx_cuda_nuwa_workspace(const vtx_sizes* sizes, const vtx_nuwa* parameters, size_t* bytes);
vtx_status vtx_cuda_divprune_workspace(const vtx_sizes* sizes, size_t* bytes);
vtx_status vtx_cuda_cdpruner_workspace(const vtx_sizes* sizes, const vtx_cdpruner* parameters, size_t* bytes);
vtx_status vtx_cuda_cluster_merge_workspace(const vtx_step_sizes* sizes, const vtx_cluster_merge* parameters,
                                            size_t* bytes);
vtx_status vtx_cuda_key_norm_topk_workspace(const vtx_step_sizes* sizes, size_t* bytes);
vtx_status vtx_cuda_attention_topk_workspace(const vtx_step_sizes* sizes, size_t* bytes);
vtx_status vtx_cuda_text_similarity_topk_workspace(const vtx_step_sizes* sizes, size_t* bytes);

vtx_status vtx_cuda_prunesid(const vtx_sizes* sizes, const vtx_prunesid* parameters, const vtx_tensors* tensors,
                             void* workspace, size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_svdprune(const vtx_sizes* sizes, const vtx_svdprune* parameters, const vtx_tensors* tensors,
                             void* workspace, size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_vitcop(const vtx_sizes* sizes, const vtx_vitcop* parameters, const vtx_tensors* tensors,
                           void* workspace, size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_nuwa(const vtx_sizes* sizes, const vtx_nuwa* parameters, const vtx_tensors* tensors,
                         void* workspace, size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_divprune(const vtx_sizes* sizes, const vtx_tensors* tensors, void* workspace,
                             size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_cdpruner(const vtx_sizes* sizes, const vtx_cdpruner* parameters, const vtx_tensors* tensors,
                             void* workspace, size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_cluster_merge(const vtx_step_sizes* sizes, const vtx_cluster_merge* parameters,
                                  const vtx_step_tensors* tensors, void* workspace, size_t workspace_bytes,
                                  vtx_stream stream);
vtx_status vtx_cuda_key_norm_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors, void* workspace,
                                  size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_attention_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors, void* workspace,
                                   size_t workspace_bytes, vtx_stream stream);
vtx_status vtx_cuda_text_similarity_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors, void* workspace,
                                         size_t workspace_bytes, vtx_stream stream);

#ifdef __cplusplus
}
#endif
#endif
