// What the ops inside the language model (docs/ops/llm.md) share. Batch 1; where the visual rows start is known on the
// device only.
#pragma once

#include "parts.cuh"

namespace vtx {

// The first visual row, moved into the sequence.
__device__ inline int64_t visual_start_of(const vtx_step_sizes& sizes, const int64_t* start) {
  return larger<int64_t>(0, smaller<int64_t>(*start, sizes.rows - sizes.visual_count));
}

// saliency [n]: |mean over heads of k| of the visual rows; NaN and what is above 1e30 count as 1e30.
vtx_status key_norms(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, float* saliency, vtx_stream stream);

// The op's outputs from `kept` [n'], ascending among the visual rows: their rows, and the text rows as they are.
vtx_status splice(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, const int* kept, vtx_stream stream);

}  // namespace vtx
