// VtxCDPruner; steps as in docs/ops/cdpruner.md.
#include <cmath>

#include "call.h"
#include "greedy.h"
#include "ties.h"

namespace vtx {
namespace {

constexpr double kOffset = 1e-6;      // keeps the least relevant token's relevance above 0
constexpr double kSpanned = 0x1p-14;  // a token with less than this share left lies in the span of those picked
constexpr double kEqual = 0x1p-14;    // tokens whose mean cosines to the text span less are all as relevant
constexpr double kCoarse = 0x1p-13;   // r² is told apart from here on where it decides alone
constexpr double kNothingLeft = 1e-20;
constexpr size_t kTokens = 128;  // of one task

// 2. r [T] of the rows of `images` to the text [M][E]. All in double: what is compared is a mean of many cosines.
void find_relevance(const Executor& executor, Memory& memory, const Rows& images, size_t tokens, const float* text,
                    size_t text_tokens, const vtx_cdpruner& p, double* relevance) {
  const size_t width = images.width;
  // Norms below 1e-15 count as zero, of rows in range.
  const double text_floor = 1e-15 / static_cast<double>(range_scale({text, VTX_FLOAT32, width}, text_tokens));
  const double floor = 1e-15 / static_cast<double>(range_scale(images, tokens));
  double* direction = memory.zeros<double>(width);  // the mean of the text's unit rows
  for (size_t row = 0; row < text_tokens; ++row) {
    const float* x = text + row * width;
    double square = 0;
    for (size_t k = 0; k < width; ++k) square += static_cast<double>(x[k]) * static_cast<double>(x[k]);
    const double scale = 1 / (std::max(std::sqrt(square), text_floor) * static_cast<double>(text_tokens));
    for (size_t k = 0; k < width; ++k) direction[k] += scale * static_cast<double>(x[k]);
  }
  const size_t tasks = (tokens + kTokens - 1) / kTokens;
  float* converted = memory.take<float>(tasks * width);
  executor.each(tasks, [&](size_t task) {
    for (size_t token = task * kTokens; token < std::min(tokens, (task + 1) * kTokens); ++token) {
      const float* x = as_float(images, token, converted + task * width);
      double square = 0, product = 0;
      kernels().along(x, direction, width, &square, &product);
      relevance[token] = std::nearbyint(product / std::max(std::sqrt(square), floor) / kRounding) * kRounding;
    }
  });
  double lowest = INFINITY, highest = -INFINITY;
  for (size_t token = 0; token < tokens; ++token) {
    if (p.negate) relevance[token] = -relevance[token];
    lowest = std::min(lowest, relevance[token]);
    highest = std::max(highest, relevance[token]);
  }
  const bool do_differ = highest - lowest >= kEqual;
  const double span = do_differ ? highest - lowest : kOffset;
  const double theta = static_cast<double>(p.theta), exponent = theta / (2 * (1 - theta));
  for (size_t token = 0; token < tokens; ++token) {
    relevance[token] = ((do_differ ? relevance[token] - lowest : 0) + kOffset) / span;
    if (theta > 0) relevance[token] = std::exp(exponent * (relevance[token] - 1));
  }
}

void select_cdpruner(const Executor& executor, const vtx_sizes& sizes, const vtx_cdpruner& p, const vtx_tensors& out,
                     size_t index) {
  Memory memory;
  const size_t tokens = tokens_of(sizes), keep = sizes.keep;
  const Rows rows = rows_of(sizes, out, index);
  const Panels<float> panels(memory, tokens, sizes.width);
  prepare(executor, memory, rows, tokens, Use::kUnit, Center::kNone, panels);
  float* cosine = memory.take<float>(tokens * tokens);
  gram(executor, panels, cosine);

  double* relevance = memory.take<double>(tokens);
  std::fill_n(relevance, tokens, 1.0);
  if (p.relevance_of != VTX_RELEVANCE_NONE) {
    const size_t width = sizes.embedding_width, text = sizes.text_tokens;
    const Rows joint = {image_of(out.image_embeds, index, tokens * width), VTX_FLOAT32, width};
    find_relevance(executor, memory, p.relevance_of == VTX_RELEVANCE_CLIP ? joint : rows, tokens,
                   out.text_embeds + index * text * width, text, p, relevance);
  }

  // 3 and 4. Relevance stays outside the recursion; `cholesky` has a row for every pick.
  double* share = memory.take<double>(tokens);
  double* gain = memory.take<double>(tokens);
  double* cholesky = memory.take<double>(keep * tokens);
  double* weight = memory.take<double>(tokens);
  double* coarse = memory.take<double>(tokens);
  for (size_t token = 0; token < tokens; ++token) {
    weight[token] = relevance[token] * relevance[token];
    coarse[token] = std::nearbyint(weight[token] / kCoarse) * kCoarse;
    share[token] = cosine[token * (tokens + 1)] > 0.5f ? 1.0 : 0.0;
    gain[token] = coarse[token] * share[token];
  }
  int64_t* order = memory.take<int64_t>(keep);
  pick_greedily(gain, tokens, keep, order, memory, [&](size_t round, size_t picked) {
    double* row = cholesky + round * tokens;
    const double scale = 1 / std::sqrt(std::max(share[picked], kSpanned));
    for (size_t token = 0; token < tokens; ++token) row[token] = static_cast<double>(cosine[picked * tokens + token]);
    kernels().eliminate(cholesky, round, tokens, picked, row);
    for (size_t token = 0; token < tokens; ++token) {
      row[token] *= scale;
      share[token] -= row[token] * row[token];
      gain[token] = share[token] > kSpanned ? weight[token] * share[token] : coarse[token] * kNothingLeft;
    }
  });
  write_picks(sizes, out, index, order);
  if (out.relevance) {
    for (size_t token = 0; token < tokens; ++token) {
      out.relevance[index * tokens + token] = static_cast<float>(relevance[token]);
    }
  }
}

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_cdpruner(const vtx_sizes* sizes, const vtx_cdpruner* parameters,
                                       const vtx_tensors* tensors, const vtx_parallel* executor) {
  return vtx::call_images(vtx::ops::cdpruner, sizes, parameters, tensors, executor,
                          [&](const vtx::Executor& threads, size_t index) {
                            vtx::select_cdpruner(threads, *sizes, *parameters, *tensors, index);
                          });
}
