// The ops inside the language model that keep the best n' visual tokens. Everything is summed in double.
#include "steps.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "call.h"
#include "image.h"
#include "kernels.h"
#include "ties.h"

namespace vtx {

void splice(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, const int64_t* kept) {
  const Rows hidden = hidden_rows(sizes, tensors);
  const size_t start = first_visual(sizes, tensors), bytes = hidden.row_bytes();
  const size_t count = sizes.visual_count, keep = sizes.keep, rest = sizes.rows - start - count;
  char* out = static_cast<char*>(tensors.hidden_states_out);
  std::memcpy(out, hidden.data, start * bytes);
  gather(hidden, kept, keep, start, out + start * bytes);
  std::memcpy(out + (start + keep) * bytes, hidden.row(start + count), rest * bytes);
  int64_t* rows = tensors.out_rows;
  for (size_t i = 0; i < start; ++i) rows[i] = static_cast<int64_t>(i);
  for (size_t i = 0; i < keep; ++i) rows[start + i] = static_cast<int64_t>(start) + kept[i];
  for (size_t i = 0; i < rest; ++i) rows[start + keep + i] = static_cast<int64_t>(start + count + i);
}

void key_norms(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, double* norms, Memory& memory) {
  const size_t heads = sizes.key_heads, width = sizes.head_dim;
  const Rows keys = {tensors.keys, sizes.dtype, heads * width};
  float* buffer = memory.take<float>(heads * width);
  double* mean = memory.take<double>(width);
  const size_t start = first_visual(sizes, tensors);
  for (size_t i = 0; i < static_cast<size_t>(sizes.visual_count); ++i) {
    const float* key = as_float(keys, start + i, buffer);
    std::fill_n(mean, width, 0.0);
    for (size_t head = 0; head < heads; ++head) kernels().accumulate(mean, 1.0f, key + head * width, width);
    double square = 0;
    for (size_t k = 0; k < width; ++k) square += mean[k] * mean[k];
    const double length = std::sqrt(square) / static_cast<double>(heads);
    norms[i] = length < kLongestKey ? length : kLongestKey;
  }
}

namespace {

double settled(double value, double step) { return std::nearbyint(value / step) * step; }

// Keeps the n' tokens of largest score [n], where NaN counts as the lowest; reports `saliency`, sign times the score.
void keep_best(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, double* scores, double sign,
               Memory& memory) {
  const size_t count = sizes.visual_count, keep = sizes.keep;
  for (size_t i = 0; i < count; ++i) {
    if (tensors.saliency) tensors.saliency[i] = static_cast<float>(sign * scores[i]);
    scores[i] = without_nan(scores[i]);
  }
  int64_t* kept = memory.take<int64_t>(keep);
  best_first(scores, count, keep, kept, memory);
  std::sort(kept, kept + keep);
  splice(sizes, tensors, kept);
}

// The mean over the heads of the last row's attention to every visual token, as scores [n].
void attention(const Executor& executor, const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, double* scores,
               Memory& memory) {
  const size_t rows = sizes.rows, heads = sizes.query_heads, width = sizes.head_dim;
  const size_t groups = heads / sizes.key_heads, visual = sizes.visual_count;
  const Rows keys = {tensors.keys, sizes.dtype, sizes.key_heads * width};
  const Rows queries = {tensors.query, sizes.dtype, width};
  double* weights = memory.take<double>(heads * rows);
  double* query = memory.take<double>(heads * width);
  float* buffer = memory.take<float>(width);
  for (size_t head = 0; head < heads; ++head) {
    const float* q = as_float(queries, head, buffer);
    for (size_t k = 0; k < width; ++k) query[head * width + k] = static_cast<double>(q[k]);
  }
  constexpr size_t chunk = 64;
  const size_t chunks = (rows + chunk - 1) / chunk;
  float* converted = memory.take<float>(chunks * keys.width);
  const double scale = 1 / std::sqrt(static_cast<double>(width));
  executor.each(chunks, [&](size_t task) {
    for (size_t row = task * chunk; row < std::min(rows, (task + 1) * chunk); ++row) {
      const float* key = as_float(keys, row, converted + task * keys.width);
      for (size_t head = 0; head < heads; ++head) {
        double unused, product;
        kernels().along(key + head / groups * width, query + head * width, width, &unused, &product);
        weights[head * rows + row] = product * scale;
      }
    }
  });
  executor.each(heads, [&](size_t head) {
    double* own = weights + head * rows;
    double largest = own[0], sum = 0;
    for (size_t row = 1; row < rows; ++row) largest = std::max(largest, own[row]);
    for (size_t row = 0; row < rows; ++row) sum += own[row] = std::exp(own[row] - largest);
    for (size_t row = 0; row < rows; ++row) own[row] /= sum;
  });
  const size_t start = first_visual(sizes, tensors);
  for (size_t i = 0; i < visual; ++i) {
    scores[i] = 0;
    for (size_t head = 0; head < heads; ++head) scores[i] += weights[head * rows + start + i];
    scores[i] /= static_cast<double>(heads);
  }
}

// The cosines of the visual tokens to the mean of the text rows, as scores [n].
void text_similarity(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, double* scores, Memory& memory) {
  const Rows hidden = hidden_rows(sizes, tensors);
  const size_t start = first_visual(sizes, tensors), count = sizes.visual_count, width = hidden.width;
  float* buffer = memory.take<float>(width);
  double* mean = memory.zeros<double>(width);
  for (size_t row = 0; row < static_cast<size_t>(sizes.rows); ++row) {
    if (row >= start && row < start + count) continue;
    kernels().accumulate(mean, 1.0f, as_float(hidden, row, buffer), width);
  }
  double length = 0;
  const double text_rows = std::max<double>(1, sizes.rows - sizes.visual_count);
  for (size_t k = 0; k < width; ++k) {
    mean[k] /= text_rows;
    length += mean[k] * mean[k];
  }
  length = std::max(std::sqrt(length), std::numeric_limits<double>::min());
  double longest = 0;
  double* squares = memory.take<double>(count);
  for (size_t i = 0; i < count; ++i) {
    kernels().along(as_float(hidden, start + i, buffer), mean, width, squares + i, scores + i);
    longest = std::max(longest, squares[i]);
  }
  const bool is_in_range = longest > static_cast<double>(kShortest) && longest < static_cast<double>(kLongest);
  const double least = 1e-15 / static_cast<double>(is_in_range ? 1.0f : range_scale(hidden.from(start), count));
  for (size_t i = 0; i < count; ++i) {
    const double cosine = scores[i] / length / std::max(std::sqrt(squares[i]), least);
    scores[i] = cosine > static_cast<double>(kParallel) ? 1 : settled(cosine, kStep);
  }
}

// The frame of the three ops: `score` gives the tokens' scores [n], of which the largest stay.
template <typename Score>
vtx_status call_topk(const OpSchema& op, const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                     const vtx_parallel* executor, double sign, const Score& score) {
  return call(op, sizes, nullptr, tensors, executor, [&](const Executor& threads) {
    Memory memory;
    double* scores = memory.take<double>(sizes->visual_count);
    score(threads, scores, memory);
    keep_best(*sizes, *tensors, scores, sign, memory);
  });
}

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_key_norm_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                                            const vtx_parallel* executor) {
  return vtx::call_topk(vtx::ops::key_norm_topk, sizes, tensors, executor, -1,
                        [&](const vtx::Executor&, double* scores, vtx::Memory& memory) {
                          vtx::key_norms(*sizes, *tensors, scores, memory);
                          for (int32_t i = 0; i < sizes->visual_count; ++i) scores[i] = -scores[i];
                        });
}

extern "C" vtx_status vtx_cpu_attention_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                                             const vtx_parallel* executor) {
  return vtx::call_topk(vtx::ops::attention_topk, sizes, tensors, executor, 1,
                        [&](const vtx::Executor& threads, double* scores, vtx::Memory& memory) {
                          vtx::attention(threads, *sizes, *tensors, scores, memory);
                        });
}

extern "C" vtx_status vtx_cpu_text_similarity_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors,
                                                   const vtx_parallel* executor) {
  return vtx::call_topk(vtx::ops::text_similarity_topk, sizes, tensors, executor, 1,
                        [&](const vtx::Executor&, double* scores, vtx::Memory& memory) {
                          vtx::text_similarity(*sizes, *tensors, scores, memory);
                        });
}
