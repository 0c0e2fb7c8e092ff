// VtxNuwa (docs/ops/nuwa.md): the best patches of every region, of which the weaker gather what is around them.
#include "call.cuh"

namespace vtx {
namespace nuwa_kernels {

constexpr int kThreads = 256;
constexpr int kTokensOfBlock = kThreads / kWarp;
constexpr float kSmall = 1e-8f;
constexpr float kLowest = -3.402823466e38f;

__device__ float without_nan(float value) { return value == value ? value : kLowest; }

// Variant paper: salience = scores |k|, and |k| decides the pillars.
__global__ void __launch_bounds__(kThreads)
    weigh_keys(const float* __restrict__ keys, const float* __restrict__ scores, int tokens, int width,
               float* __restrict__ salience, float* __restrict__ norm) {
  const int token = static_cast<int>(blockIdx.x) * kTokensOfBlock + warp_id();
  if (token >= tokens) return;
  const size_t at = static_cast<size_t>(blockIdx.y) * tokens + token;
  float square = 0.0f;
  for (int d = lane_id(); d < width; d += kWarp) square += keys[at * width + d] * keys[at * width + d];
  square = sqrtf(warp_sum(square));
  if (lane_id() != 0) return;
  norm[at] = square;
  salience[at] = scores[at] * square;
}

// Steps 1 and 2: keys that put the top_n of every region of 2 x 2 before all other patches.
__global__ void __launch_bounds__(kThreads)
    region_keys(const float* __restrict__ salience, int rows, int columns, int top_n, uint64_t* __restrict__ keys) {
  const int token = static_cast<int>(blockIdx.x) * kThreads + thread_id(), tokens = rows * columns;
  if (token >= tokens) return;
  salience += static_cast<size_t>(blockIdx.y) * tokens;
  const int y = token / columns, x = token % columns;
  const uint64_t own = best_first(without_nan(salience[token]), static_cast<unsigned>(token));
  int better = 0;
  for (int dy = 0; dy < 2; ++dy)
    for (int dx = 0; dx < 2; ++dx) {
      const int other_y = y / 2 * 2 + dy, other_x = x / 2 * 2 + dx, other = other_y * columns + other_x;
      if (other == token || other_y >= rows || other_x >= columns) continue;
      better += best_first(without_nan(salience[other]), static_cast<unsigned>(other)) < own;
    }
  const uint64_t last = (static_cast<uint64_t>(0xffffffffu) << 32) | static_cast<unsigned>(token);
  keys[static_cast<size_t>(blockIdx.y) * tokens + token] = better < top_n ? own : last;
}

// Step 3's keys: the kept tokens by descending p.
__global__ void __launch_bounds__(kThreads)
    pillar_keys(const float* __restrict__ pillar_by, const int* __restrict__ kept, int tokens, int keep,
                uint64_t* __restrict__ keys) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (i >= keep) return;
  const size_t image = blockIdx.y;
  keys[image * keep + i] =
      best_first(without_nan(pillar_by[image * tokens + kept[image * keep + i]]), static_cast<unsigned>(i));
}

// The `below` weakest of the kept tokens: collectors [B, below]; and the threshold, the weakest pillar's p.
__global__ void __launch_bounds__(kThreads)
    find_collectors(const float* __restrict__ pillar_by, const int* __restrict__ kept, const int* __restrict__ rank,
                    int tokens, int keep, int below, int* __restrict__ collectors, float* __restrict__ threshold) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (i >= keep) return;
  const size_t image = blockIdx.y;
  const int own = rank[image * keep + i], patch = kept[image * keep + i];
  if (own == keep - 1 - below) threshold[image] = without_nan(pillar_by[image * tokens + patch]);
  if (own >= keep - below) collectors[image * below + own - (keep - below)] = patch;
}

// Step 4: a collector's weights of all patches, from its cosines to them, in place.
__global__ void __launch_bounds__(kThreads)
    weigh(float* __restrict__ cosines, const int* __restrict__ collectors, int below, int rows, int columns,
          float per_distance, bool self_again) {
  VTX_SHARED(shared);
  const size_t image = blockIdx.y, collector = image * below + blockIdx.x;
  const int tokens = rows * columns, own = collectors[collector], y = own / columns, x = own % columns;
  float* row = cosines + collector * tokens;
  float sum = 0.0f;
  for (int j = thread_id(); j < tokens; j += kThreads) {
    const int down = j / columns - y, across = j % columns - x;
    const float proximity = fmaxf(0.0f, 1.0f - sqrtf(static_cast<float>(down * down + across * across) * per_distance));
    const float weight = j == own ? 1.0f : fmaxf(0.0f, row[j]) * proximity;
    row[j] = weight;
    sum += weight;
  }
  const float by = block_sum(sum, reinterpret_cast<float*>(shared)) + kSmall;
  for (int j = thread_id(); j < tokens; j += kThreads) row[j] = self_again && j == own ? 1.0f : row[j] / by;
}

// Which rows are merged, and their gathered features in place of their own.
__global__ void __launch_bounds__(kThreads)
    write_merged(const float* __restrict__ pillar_by, const int* __restrict__ kept, const int* __restrict__ rank,
                 const float* __restrict__ threshold, const float* __restrict__ gathered, int tokens, int keep,
                 int below, int width, vtx_dtype type, void* __restrict__ features, unsigned char* __restrict__ merged,
                 float* __restrict__ threshold_out) {
  const size_t image = blockIdx.y, place = image * keep + blockIdx.x;
  const float value = without_nan(pillar_by[image * tokens + kept[place]]);
  const bool gathers = value < threshold[image];
  if (thread_id() == 0) {
    merged[place] = gathers;
    if (threshold_out && blockIdx.x == 0) threshold_out[image] = threshold[image];
  }
  if (!gathers) return;
  const float* from = gathered + (image * below + rank[place] - (keep - below)) * static_cast<size_t>(width);
  for (int d = thread_id(); d < width; d += kThreads) store(features, place * width + d, type, from[d]);
}

struct Plan {
  int batch, tokens, width, keep, below;
  uint64_t *keys, *kept_keys;
  int *rank, *kept, *kept_rank, *collectors;
  float *salience, *norm, *threshold, *unit, *weights, *gathered, *partial;
  size_t bytes;
};

Plan plan_of(const vtx_sizes& sizes, const vtx_nuwa& parameters, void* base) {
  Workspace space(base);
  Plan p = {};
  p.batch = sizes.batch;
  p.tokens = sizes.grid_rows * sizes.grid_columns;
  p.width = sizes.width;
  p.keep = sizes.keep;
  // As vtexport.pruning.methods.nuwa.collectors: the thousandth takes up what a quantile loses as float32.
  p.below = larger(0, static_cast<int>(ceil(static_cast<double>(parameters.pillar_quantile) * (p.keep - 1) - 1e-3)));
  p.below = smaller(p.below, p.keep - 1);
  const size_t batch = p.batch, all = batch * p.tokens, kept = batch * p.keep, gathering = batch * p.below;
  p.keys = space.take<uint64_t>(all);
  p.kept_keys = space.take<uint64_t>(kept);
  p.rank = space.take<int>(all);
  p.kept = space.take<int>(kept);
  p.kept_rank = space.take<int>(kept);
  p.collectors = space.take<int>(gathering);
  p.threshold = space.take<float>(batch);
  if (parameters.paper) {
    p.salience = space.take<float>(all);
    p.norm = space.take<float>(all);
  }
  if (p.below) {
    p.unit = space.take<float>(all * p.width);
    p.weights = space.take<float>(gathering * p.tokens);
    p.gathered = space.take<float>(gathering * p.width);
    p.partial = space.take<float>(larger(product_partial_count(p.batch, p.below, p.tokens, p.width),
                                         product_partial_count(p.batch, p.below, p.width, p.tokens)));
  }
  p.bytes = space.used();
  return p;
}

vtx_status enqueue(const Plan& p, const vtx_sizes& sizes, const vtx_nuwa& parameters, const vtx_tensors& tensors,
                   vtx_stream stream) {
  const int rows = sizes.grid_rows, columns = sizes.grid_columns;
  const Grid tokens = {divide_up(p.tokens, kThreads), p.batch}, kept = {divide_up(p.keep, kThreads), p.batch};
  const float *salience = tensors.scores, *pillar_by = tensors.scores;
  if (parameters.paper) {
    VTX_TRY(launch(weigh_keys, Grid{divide_up(p.tokens, kTokensOfBlock), p.batch}, kThreads, 0, stream, false,
                   tensors.keys, tensors.scores, p.tokens, sizes.heads * sizes.head_dim, p.salience, p.norm));
    salience = p.salience;
    pillar_by = p.norm;
  }
  VTX_TRY(launch(region_keys, tokens, kThreads, 0, stream, false, salience, rows, columns, parameters.top_n, p.keys));
  VTX_TRY(ranks(p.keys, p.batch, p.tokens, p.rank, stream));
  VTX_TRY(chosen_ascending(p.rank, p.batch, p.tokens, p.keep, p.kept, stream));
  VTX_TRY(gather_rows(tensors.features, sizes.dtype, p.batch, p.tokens, p.width, p.kept, p.keep, 0,
                      tensors.kept_features, tensors.keep_indices, stream));
  VTX_TRY(launch(pillar_keys, kept, kThreads, 0, stream, false, pillar_by, p.kept, p.tokens, p.keep, p.kept_keys));
  VTX_TRY(ranks(p.kept_keys, p.batch, p.keep, p.kept_rank, stream));
  VTX_TRY(launch(find_collectors, kept, kThreads, 0, stream, false, pillar_by, p.kept, p.kept_rank, p.tokens, p.keep,
                 p.below, p.collectors, p.threshold));
  if (p.below) {
    const Rows similar = {tensors.similarity_features, VTX_FLOAT32, p.batch, 0, p.tokens, p.width};
    VTX_TRY(unit_rows(similar, p.unit, stream));
    VTX_TRY(product_of_rows(p.unit, p.collectors, p.batch, p.below, p.tokens, p.width, p.partial, p.weights, stream));
    VTX_TRY(launch(weigh, Grid{p.below, p.batch}, kThreads, kTokensOfBlock * sizeof(float), stream, false, p.weights,
                   p.collectors, p.below, rows, columns, 1.0f / parameters.distance, !parameters.paper));
    const Rows features = {tensors.features, sizes.dtype, p.batch, 0, p.tokens, p.width};
    VTX_TRY(product_with_rows(p.weights, features, p.below, p.partial, p.gathered, stream));
  }
  return launch(write_merged, Grid{p.keep, p.batch}, kThreads, 0, stream, false, pillar_by, p.kept, p.kept_rank,
                p.threshold, p.gathered, p.tokens, p.keep, p.below, p.width, sizes.dtype, tensors.kept_features,
                tensors.merged, tensors.pillar_threshold);
}

}  // namespace nuwa_kernels
}  // namespace vtx

using vtx::nuwa_kernels::enqueue;
using vtx::nuwa_kernels::plan_of;

VTX_CUDA_OP(nuwa, vtx_sizes, vtx_tensors)
