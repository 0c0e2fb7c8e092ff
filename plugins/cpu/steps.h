// What the ops inside the language model have in common; see docs/ops/llm.md.
#ifndef VTX_CPU_STEPS_H
#define VTX_CPU_STEPS_H

#include <algorithm>
#include <cmath>

#include "rows.h"
#include "select.h"

namespace vtx {

constexpr double kLongestKey = 1e30;  // longer mean keys count as this long

// The row of the first visual token.
inline size_t first_visual(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors) {
  const int64_t last = sizes.rows - sizes.visual_count;
  return static_cast<size_t>(std::clamp<int64_t>(*tensors.visual_start, 0, last));
}

inline Rows hidden_rows(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors) {
  return {tensors.hidden_states, sizes.dtype, static_cast<size_t>(sizes.width)};
}

// hidden_states_out and out_rows from the kept visual tokens [n'], ascending: text and kept rows as they are.
void splice(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, const int64_t* kept);

// l [n]: the length of the mean over the heads of every visual token's keys.
void key_norms(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, double* norms, Memory& memory);

}  // namespace vtx

#endif
