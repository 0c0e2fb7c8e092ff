// VtxViTCoP (docs/ops/vitcop.md): the patches of largest scores, and their density-peak clusters.
#include <numeric>

#include "call.cuh"

namespace vtx {
namespace vitcop_kernels {

constexpr int kThreads = 256;  // a warp a token
constexpr int kTokensOfBlock = kThreads / kWarp;
constexpr float kSmallestSquare = 1e-8f;

struct Clustering {
  int tokens, centers, rows, columns;  // `tokens` kept ones; rows and columns of the grid
  float decay;                         // 1 / d_c²
  int64_t down, across, reach;         // (down Δy)² + (across Δx)² up to reach is near
  bool strict, counts_itself;
};

// Step 2 from the Gram matrix of the centred keys; for i != j.
__device__ float squared_distance(const float* gram, int tokens, int i, int j) {
  const float own = gram[static_cast<size_t>(i) * tokens + i], other = gram[static_cast<size_t>(j) * tokens + j];
  const float product = gram[static_cast<size_t>(i) * tokens + j];
  return fmaxf(0.0f, (own + other) - (product + product)) + kSmallestSquare;
}

// Step 3. A token's own term is added last, so that the sum is rounded once at its size.
__global__ void __launch_bounds__(kThreads)
    densities(const float* __restrict__ gram, Clustering by, float* __restrict__ density) {
  const int i = static_cast<int>(blockIdx.x) * kTokensOfBlock + warp_id();
  if (i >= by.tokens) return;
  const size_t image = blockIdx.y;
  const float* own = gram + image * by.tokens * static_cast<size_t>(by.tokens);
  double sum = 0.0;
  for (int j = lane_id(); j < by.tokens; j += kWarp)
    if (j != i) sum += expf(-squared_distance(own, by.tokens, i, j) * by.decay);
  sum = warp_sum(sum);
  if (lane_id() == 0) density[image * by.tokens + i] = static_cast<float>(sum + (by.counts_itself ? 1.0 : 0.0));
}

// Step 4: the nearest denser token within the radius.
__global__ void __launch_bounds__(kThreads)
    find_parents(const float* __restrict__ gram, const float* __restrict__ density, const int* __restrict__ patches,
                 Clustering by, float* __restrict__ delta, int* __restrict__ parent) {
  const int i = static_cast<int>(blockIdx.x) * kTokensOfBlock + warp_id();
  if (i >= by.tokens) return;
  const size_t image = blockIdx.y;
  const float* own = gram + image * by.tokens * static_cast<size_t>(by.tokens);
  density += image * by.tokens;
  patches += image * by.tokens;
  const int row = patches[i] / by.columns, column = patches[i] % by.columns;
  const float mine = density[i];
  uint64_t best = ~uint64_t{0};
  float farthest = 0.0f;
  bool has_denser = false;
  for (int j = lane_id(); j < by.tokens; j += kWarp) {
    if (j == i) continue;
    const float distance = sqrtf(squared_distance(own, by.tokens, i, j));
    farthest = fmaxf(farthest, distance);
    const bool denser = by.strict ? density[j] > mine || (density[j] == mine && j < i) : density[j] >= mine;
    has_denser = has_denser || denser;
    const int64_t down = static_cast<int64_t>(patches[j] / by.columns - row) * by.down;
    const int64_t across = static_cast<int64_t>(patches[j] % by.columns - column) * by.across;
    if (denser && down * down + across * across <= by.reach)
      best = smaller(best, best_first(-distance, static_cast<unsigned>(j)));
  }
  best = warp_least(best);
  for (int step = kWarp / 2; step; step /= 2) farthest = fmaxf(farthest, __shfl_xor_sync(kAllLanes, farthest, step));
  const bool is_densest = !__any_sync(kAllLanes, has_denser);
  if (lane_id() != 0) return;
  const bool found = best != ~uint64_t{0};
  const int by_parent = found ? static_cast<int>(best & 0xffffffffu) : 0;
  float d = found ? sqrtf(squared_distance(own, by.tokens, i, by_parent)) : INFINITY;
  if (by.strict && is_densest) d = farthest;
  delta[image * by.tokens + i] = d;
  parent[image * by.tokens + i] = found ? by_parent : -1;
}

constexpr int kLabelThreads = 1024;

// Step 5's keys: the ranking of the centres.
__global__ void __launch_bounds__(kThreads)
    rank_centers(const float* __restrict__ delta, const float* __restrict__ density, int tokens,
                 uint64_t* __restrict__ keys) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (i >= tokens) return;
  const size_t at = static_cast<size_t>(blockIdx.y) * tokens + i;
  const float gamma = delta[at] == INFINITY ? INFINITY : delta[at] * density[at];
  keys[at] = best_first(gamma, static_cast<unsigned>(i));
}

// Where tokens without a parent belong in the strict clustering: to the nearest centre.
__global__ void __launch_bounds__(kThreads)
    nearest_centers(const float* __restrict__ gram, const int* __restrict__ rank, int tokens, int centers,
                    int* __restrict__ parent) {
  const int i = static_cast<int>(blockIdx.x) * kTokensOfBlock + warp_id();
  const size_t image = blockIdx.y;
  if (i >= tokens || parent[image * tokens + i] >= 0 || rank[image * tokens + i] < centers) return;
  const float* own = gram + image * tokens * static_cast<size_t>(tokens);
  uint64_t best = ~uint64_t{0};
  for (int j = lane_id(); j < tokens; j += kWarp)
    if (j != i && rank[image * tokens + j] < centers)
      best = smaller(best, best_first(-sqrtf(squared_distance(own, tokens, i, j)), static_cast<unsigned>(j)));
  best = warp_least(best);
  if (lane_id() == 0) parent[image * tokens + i] = -2 - static_cast<int>(best & 0xffffffffu);
}

// Step 6: every token's way along its parents to a centre, by doubling. A `parent` of -2 - c is the nearest centre c of
// a token that has no parent; -1 there is none, and the way leads to token 0.
__global__ void __launch_bounds__(kLabelThreads)
    propagate(const int* __restrict__ rank, const int* __restrict__ parent, int tokens, int centers,
              int64_t* __restrict__ labels, int64_t* __restrict__ center_out, int64_t* __restrict__ parent_out) {
  VTX_SHARED(shared);
  int* target = reinterpret_cast<int*>(shared);  // [2, tokens]
  int* next = target + tokens;
  const size_t image = blockIdx.x;
  rank += image * tokens;
  parent += image * tokens;
  for (int i = thread_id(); i < tokens; i += kLabelThreads) {
    const int by = parent[i], own = by >= 0 ? by : by == -1 ? 0 : -2 - by;
    target[i] = rank[i] < centers ? i : own;
    if (parent_out) parent_out[image * tokens + i] = by >= 0 ? by : 0;
    if (center_out && rank[i] < centers) center_out[image * centers + rank[i]] = i;
  }
  __syncthreads();
  for (int reached = 1; reached < tokens || reached == 1; reached *= 2) {
    for (int i = thread_id(); i < tokens; i += kLabelThreads) next[i] = target[target[i]];
    __syncthreads();
    int* const swap = target;
    target = next;
    next = swap;
  }
  for (int i = thread_id(); i < tokens; i += kLabelThreads) {
    const int end = rank[target[i]];
    labels[image * tokens + i] = end < centers ? end : -1;
  }
}

struct Plan {
  int batch, tokens, keep, key_width;
  int *rank, *chosen, *center_rank, *parent;
  uint64_t *keys, *center_keys;
  float *points, *means, *partial, *gram, *density, *delta;
  size_t bytes;
};

Plan plan_of(const vtx_sizes& sizes, const vtx_vitcop& parameters, void* base) {
  Workspace space(base);
  Plan p = {};
  p.batch = sizes.batch;
  p.tokens = sizes.grid_rows * sizes.grid_columns;
  p.keep = sizes.keep;
  const size_t batch = p.batch, all = batch * p.tokens, kept = batch * p.keep;
  p.rank = space.take<int>(all);
  p.keys = space.take<uint64_t>(all);
  p.chosen = space.take<int>(kept);
  if (parameters.clusters) {
    p.key_width = sizes.heads * sizes.head_dim;
    p.points = space.take<float>(kept * p.key_width);
    p.means = space.take<float>(batch * p.key_width);
    p.partial = space.take<float>(gram_partial_count(p.batch, p.keep, p.key_width));
    p.gram = space.take<float>(kept * p.keep);
    p.density = space.take<float>(kept);
    p.delta = space.take<float>(kept);
    p.parent = space.take<int>(kept);
    p.center_rank = space.take<int>(kept);
    p.center_keys = space.take<uint64_t>(kept);
  }
  p.bytes = space.used();
  return p;
}

// Steps down and across are counted in whole parts of the image's side, so that the very radius is in it.
void set_reach(Clustering& by, float radius) {
  const int common = std::gcd(by.rows, by.columns);
  const double side = smaller<double>(radius, 2.0) * (static_cast<double>(by.rows) * by.columns / common);
  by.down = by.columns / common;
  by.across = by.rows / common;
  // The radius has been through float32, which moves a square by up to 1.2e-7 of itself.
  by.reach = static_cast<int64_t>(floor(side * side * (1 + 1.5e-7)));
}

vtx_status enqueue(const Plan& p, const vtx_sizes& sizes, const vtx_vitcop& parameters, const vtx_tensors& tensors,
                   vtx_stream stream) {
  VTX_TRY(best_first_keys(tensors.scores, p.batch, p.tokens, p.keys, stream));
  VTX_TRY(ranks(p.keys, p.batch, p.tokens, p.rank, stream));
  VTX_TRY(chosen_ascending(p.rank, p.batch, p.tokens, p.keep, p.chosen, stream));
  VTX_TRY(gather_rows(tensors.features, sizes.dtype, p.batch, p.tokens, sizes.width, p.chosen, p.keep, 0,
                      tensors.kept_features, tensors.keep_indices, stream));
  if (!parameters.clusters) return VTX_OK;
  Clustering by = {};
  by.tokens = p.keep;
  by.centers = parameters.cluster_count;
  by.rows = sizes.grid_rows;
  by.columns = sizes.grid_columns;
  by.decay = (1.0f / parameters.cutoff) * (1.0f / parameters.cutoff);
  by.strict = parameters.clustering == VTX_CLUSTERING_FIXED;
  by.counts_itself = parameters.counts_itself != 0;
  set_reach(by, parameters.radius);
  // Keys moved to their mean: errors of their lengths would go straight into small distances.
  const Rows keys = {tensors.keys, VTX_FLOAT32, p.batch, 0, p.keep, p.key_width};
  VTX_TRY(float_rows(keys, p.chosen, p.tokens, p.points, stream));
  VTX_TRY(center_columns(p.points, p.batch, p.keep, p.key_width, p.means, stream));
  VTX_TRY(gram(p.points, p.batch, p.keep, p.key_width, p.partial, p.gram, nullptr, stream));
  const Grid warps = {divide_up(p.keep, kTokensOfBlock), p.batch};
  VTX_TRY(launch(densities, warps, kThreads, 0, stream, false, p.gram, by, p.density));
  VTX_TRY(launch(find_parents, warps, kThreads, 0, stream, false, p.gram, p.density, p.chosen, by, p.delta, p.parent));
  VTX_TRY(launch(rank_centers, Grid{divide_up(p.keep, kThreads), p.batch}, kThreads, 0, stream, false, p.delta,
                 p.density, p.keep, p.center_keys));
  VTX_TRY(ranks(p.center_keys, p.batch, p.keep, p.center_rank, stream));
  if (by.strict)
    VTX_TRY(launch(nearest_centers, warps, kThreads, 0, stream, false, p.gram, p.center_rank, p.keep, by.centers,
                   p.parent));
  VTX_TRY(launch(propagate, Grid{p.batch, 1}, kLabelThreads, 2 * p.keep * sizeof(int), stream, false, p.center_rank,
                 p.parent, p.keep, by.centers, tensors.labels, tensors.centers, tensors.parent));
  VTX_TRY(report(p.density, p.batch * p.keep, tensors.density, stream));
  return report(p.delta, p.batch * p.keep, tensors.delta, stream);
}

}  // namespace vitcop_kernels
}  // namespace vtx

using vtx::vitcop_kernels::enqueue;
using vtx::vitcop_kernels::plan_of;

VTX_CUDA_OP(vitcop, vtx_sizes, vtx_tensors)
