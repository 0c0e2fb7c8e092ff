// VtxDivPrune; steps as in docs/ops/divprune.md. A distance is 1 - cosine, so cosines are compared instead.
#include <limits>

#include "call.h"
#include "greedy.h"
#include "ties.h"

namespace vtx {
namespace {

constexpr size_t kRows = 64;  // rows of one task

void select_divprune(const Executor& executor, const vtx_sizes& sizes, const vtx_tensors& out, size_t index) {
  Memory memory;
  const size_t tokens = tokens_of(sizes);
  const Panels<float> panels(memory, tokens, sizes.width);
  prepare(executor, memory, rows_of(sizes, out, index), tokens, Use::kUnit, Center::kNone, panels);
  float* cosine = memory.take<float>(tokens * tokens);
  gram(executor, panels, cosine);

  // 2. At first the nearest neighbour of a token counts, itself aside. Cosines are rounded, and stay kShift larger.
  float* gain = memory.take<float>(tokens);
  executor.each((tokens + kRows - 1) / kRows, [&](size_t task) {
    for (size_t token = task * kRows; token < std::min(tokens, (task + 1) * kRows); ++token) {
      float* row = cosine + token * tokens;
      for (size_t other = 0; other < tokens; ++other) row[other] = (row[other] > kParallel ? 1 : row[other]) + kShift;
      const float own = row[token];
      row[token] = -std::numeric_limits<float>::infinity();
      gain[token] = -kernels().largest(row, tokens);
      row[token] = own;
    }
  });

  // 3. Then the nearest token picked.
  float* nearest = memory.take<float>(tokens);
  std::fill_n(nearest, tokens, -std::numeric_limits<float>::infinity());
  int64_t* order = memory.take<int64_t>(sizes.keep);
  pick_greedily(gain, tokens, sizes.keep, order, memory,
                [&](size_t, size_t picked) { kernels().maximum(nearest, cosine + picked * tokens, gain, tokens); });
  write_picks(sizes, out, index, order);
}

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_divprune(const vtx_sizes* sizes, const vtx_tensors* tensors,
                                       const vtx_parallel* executor) {
  return vtx::call_images(
      vtx::ops::divprune, sizes, nullptr, tensors, executor,
      [&](const vtx::Executor& threads, size_t index) { vtx::select_divprune(threads, *sizes, *tensors, index); });
}
