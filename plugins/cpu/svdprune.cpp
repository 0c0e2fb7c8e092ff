// VtxSVDPrune; steps as in docs/ops/svdprune.md.
#include <algorithm>
#include <cmath>
#include <vector>

#include "call.h"
#include "eigen.h"
#include "image.h"
#include "select.h"
#include "ties.h"

namespace vtx {
namespace {

constexpr size_t kSmallestSet = 4;  // of mode leverage

void select_svdprune(const Executor& executor, const vtx_sizes& sizes, const vtx_svdprune& p, const vtx_tensors& out,
                     size_t index) {
  Memory memory;
  const size_t tokens = tokens_of(sizes), keep = sizes.keep, bound = p.rank_bound;

  // 1. The Gram matrix over its trace.
  const Panels<float> panels(memory, tokens, sizes.width);
  const Center center = p.center == VTX_CENTER_FEATURE ? Center::kFeature : Center::kNone;
  const Patches patches = prepare(executor, memory, rows_of(sizes, out, index), tokens, Use::kPlain, center, panels);
  float* gram = memory.take<float>(tokens * tokens);
  double whole = 0;  // the energy before the centring
  for (size_t token = 0; token < tokens; ++token) whole += static_cast<double>(patches.squares[token]);
  double trace = center == Center::kNone ? whole : 0;
  const float scale = center == Center::kNone ? static_cast<float>(1 / std::max(trace, 1e-30)) : 1.0f;
  executor.each(gram_blocks(panels), [&](size_t block) { gram_block(panels, block, scale, gram); });
  if (center != Center::kNone) {
    for (size_t token = 0; token < tokens; ++token) trace += static_cast<double>(gram[token * (tokens + 1)]);
    const float inverse = static_cast<float>(1 / std::max(trace, 1e-30));
    for (size_t i = 0; i < tokens * tokens; ++i) gram[i] *= inverse;
  }
  const Leading leading = leading_eigenvectors(executor, memory, gram, tokens, bound);
  const double before = center == Center::kNone ? 0 : whole / std::max(trace, 1e-30);
  const double weakest = std::max(kWeakest * leading.values[0], kCentred * before);

  // 2. The rank: of directions that are there.
  std::vector<double> reached(bound);
  double sum = 0;
  size_t there = 0;
  for (size_t j = 0; j < bound; ++j) {
    reached[j] = sum += std::max(leading.values[j], 0.0);
    there += leading.values[j] > weakest;
  }
  size_t rank = p.rank;
  if (rank == 0) {
    while (rank < bound && reached[rank] < static_cast<double>(p.energy) - kShare) ++rank;
    rank = std::min(rank + 1, bound);
  }
  const size_t counted = std::min(rank, there);
  rank = std::max<size_t>(counted, 1);

  // 3. Leverages.
  double* leverages = memory.take<double>(tokens);
  double* ranked = memory.take<double>(tokens);
  for (size_t token = 0; token < tokens; ++token) {
    const float* u = leading.vectors + token * leading.ld;
    double mass = 0;
    for (size_t j = 0; j < counted; ++j) mass += static_cast<double>(u[j]) * static_cast<double>(u[j]);
    leverages[token] = mass >= 0 ? mass / static_cast<double>(rank) : 0;
    ranked[token] = mass >= 0 ? std::nearbyint(mass / kLeverage) : 0;
  }

  // 4. The largest leverages, in raster order; in mode leverage those that complete the set come first.
  int64_t* kept = out.keep_indices + index * keep;
  best_first(ranked, tokens, keep, kept, memory);
  size_t count = keep;
  if (p.mode == VTX_MODE_LEVERAGE) {
    double summed = 0;
    for (count = 0; count < keep && (summed < static_cast<double>(p.leverage) - kShare || count < kSmallestSet);
         ++count) {
      summed += leverages[kept[count]];
    }
    out.count[index] = static_cast<int64_t>(count);
    out.leverage[index] = static_cast<float>(summed);
  }
  std::sort(kept, kept + count);
  std::sort(kept + count, kept + keep);
  write_kept_rows(sizes, out, index);

  out.rank[index] = static_cast<int64_t>(rank);
  out.energy[index] = counted ? static_cast<float>(reached[counted - 1]) : 0.0f;
  if (out.leverages) std::copy_n(leverages, tokens, out.leverages + index * tokens);
  if (out.residual) out.residual[index] = worst_residual(executor, memory, gram, tokens, leading, bound);
}

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_svdprune(const vtx_sizes* sizes, const vtx_svdprune* parameters,
                                       const vtx_tensors* tensors, const vtx_parallel* executor) {
  return vtx::call_images(vtx::ops::svdprune, sizes, parameters, tensors, executor,
                          [&](const vtx::Executor& threads, size_t index) {
                            vtx::select_svdprune(threads, *sizes, *parameters, *tensors, index);
                          });
}
