/* The pruning ops on the CPU. Structures, shapes and limits: vtx_ops.h.
 *
 * A call returns when everything is written. Its answer is the same to the last bit whatever the executor and its
 * number of threads. Calls may run side by side. Outputs may not overlap inputs.
 */
#ifndef VTX_CPU_H
#define VTX_CPU_H

#include "vtx_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Threads of the caller's own. NULL in place of this structure: everything runs on the calling thread. */
typedef struct vtx_parallel {
  /* Calls task(argument, index) once for every index below count, in any order, on any threads; returns when all have
   * returned. Tasks do not wait for each other. */
  void (*run)(void* context, size_t count, void (*task)(void* argument, size_t index), void* argument);
  void* context;
  int32_t threads; /* about how many tasks run at once, from 1; decides how finely work is cut, not what comes out */
} vtx_parallel;

int32_t vtx_cpu_abi_version(void);

/* The instruction set that the matrix products use here, such as "avx512"; never NULL. */
const char* vtx_cpu_instructions(void);

vtx_status vtx_cpu_prunesid(const vtx_sizes* sizes, const vtx_prunesid* parameters, const vtx_tensors* tensors,
                            const vtx_parallel* executor);
vtx_status vtx_cpu_svdprune(const vtx_sizes* sizes, const vtx_svdprune* parameters, const vtx_tensors* tensors,
                            const vtx_parallel* executor);
vtx_status vtx_cpu_vitcop(const vtx_sizes* sizes, const vtx_vitcop* parameters, const vtx_tensors* tensors,
                          const vtx_parallel* executor);
vtx_status vtx_cpu_nuwa(const vtx_sizes* sizes, const vtx_nuwa* parameters, const vtx_tensors* tensors,
                        const vtx_parallel* executor);
vtx_status vtx_cpu_divprune(const vtx_sizes* sizes, const vtx_tensors* tensors, const vtx_parallel* executor);
vtx_status vtx_cpu_cdpruner(const vtx_sizes* sizes, const vtx_cdpruner* parameters, const vtx_tensors* tensors,
                            const vtx_parallel* executor);
vtx_status vtx_cpu_cluster_merge(const vtx_step_sizes* sizes, const vtx_cluster_merge* parameters,
                                 const vtx_step_tensors* tensors, const vtx_parallel* executor);
vtx_status vtx_cpu_key_norm_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                                 const vtx_parallel* executor);
vtx_status vtx_cpu_attention_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                                  const vtx_parallel* executor);
vtx_status vtx_cpu_text_similarity_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                                        const vtx_parallel* executor);

#ifdef __cplusplus
}
#endif
#endif
