// Whether a call of an op can be carried out: what every native form asks before it touches a tensor.
#ifndef VTX_COMMON_CHECK_H
#define VTX_COMMON_CHECK_H

#include "vtx_ops.h"

namespace vtx {

// One function an op. They return the first thing that is wrong: VTX_NULL_POINTER for missing structures, then
// VTX_BAD_SIZE, VTX_BAD_PARAMETER, VTX_NULL_POINTER and VTX_MISALIGNED of the tensors that the op reads and writes.
// With `tensors` NULL only sizes and parameters are looked at. No value of any argument is out of bounds for them, and
// what passes cannot overflow: every tensor has fewer than 2^43 elements.
vtx_status check_prunesid(const vtx_sizes* sizes, const vtx_prunesid* parameters, const vtx_tensors* tensors);
vtx_status check_svdprune(const vtx_sizes* sizes, const vtx_svdprune* parameters, const vtx_tensors* tensors);
vtx_status check_vitcop(const vtx_sizes* sizes, const vtx_vitcop* parameters, const vtx_tensors* tensors);
vtx_status check_nuwa(const vtx_sizes* sizes, const vtx_nuwa* parameters, const vtx_tensors* tensors);
vtx_status check_divprune(const vtx_sizes* sizes, const vtx_tensors* tensors);
vtx_status check_cdpruner(const vtx_sizes* sizes, const vtx_cdpruner* parameters, const vtx_tensors* tensors);

vtx_status check_cluster_merge(const vtx_step_sizes* sizes, const vtx_cluster_merge* parameters,
                               const vtx_step_tensors* tensors);
vtx_status check_key_norm_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors);
vtx_status check_attention_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors);
vtx_status check_text_similarity_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors);

}  // namespace vtx

#endif
