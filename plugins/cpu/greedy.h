// Greedy selection.
#ifndef VTX_CPU_GREEDY_H
#define VTX_CPU_GREEDY_H

#include <algorithm>
#include <vector>

#include "image.h"

namespace vtx {

// `count` times the token of largest gain among those left, lower index on ties; a NaN gain loses to every other.
// step(round, picked) updates gain [tokens] and need not care for tokens already picked.
template <typename Number, typename Step>
void pick_greedily(const Number* gain, size_t tokens, size_t count, int64_t* order, Memory& memory, const Step& step) {
  uint8_t* is_left = memory.take<uint8_t>(tokens);
  std::fill_n(is_left, tokens, uint8_t(1));
  for (size_t round = 0; round < count; ++round) {
    size_t best = tokens;
    for (size_t token = 0; token < tokens; ++token) {
      if (!is_left[token]) continue;
      const bool is_number = gain[token] == gain[token];
      if (best == tokens || gain[token] > gain[best] || (is_number && gain[best] != gain[best])) best = token;
    }
    is_left[best] = 0;
    order[round] = static_cast<int64_t>(best);
    step(round, best);
  }
}

// keep_indices and kept_features of image `index` from the picks [N]; and `order`, if wanted.
inline void write_picks(const vtx_sizes& sizes, const vtx_tensors& out, size_t index, const int64_t* order) {
  const size_t keep = sizes.keep;
  int64_t* kept = out.keep_indices + index * keep;
  std::copy_n(order, keep, kept);
  std::sort(kept, kept + keep);
  write_kept_rows(sizes, out, index);
  if (out.order) std::copy_n(order, keep, out.order + index * keep);
}

}  // namespace vtx

#endif
