// VtxSVDPrune (docs/ops/svdprune.md): the tokens of largest leverage on the leading singular directions.
#include "call.cuh"
#include "ties.h"

namespace vtx {
namespace svdprune_kernels {

constexpr int kThreads = 1024;
constexpr int kSmallestSet = 4;  // in mode leverage

struct Rule {
  float energy, leverage;
  int rank, bound;
  const float* means;  // [B, width] that were taken off; null where nothing was
  int width;
};

constexpr int kMeasureThreads = 256;  // a warp a token
constexpr int kTokensOfBlock = kMeasureThreads / kWarp;

// Steps 2 and 3: the rank, of directions that are there, what it holds, and every token's leverage with its key. Every
// block finds the rank for itself.
__global__ void __launch_bounds__(kMeasureThreads)
    measure(Eigen eigen, Rule rule, float* __restrict__ leverages, uint64_t* __restrict__ keys,
            int64_t* __restrict__ rank_out, float* __restrict__ energy_out) {
  VTX_SHARED(shared);
  int* rank = reinterpret_cast<int*>(shared);
  float* sums = reinterpret_cast<float*>(rank + 1);  // [warps]
  float* values = sums + kTokensOfBlock;             // [bound]
  const size_t image = blockIdx.y;
  for (int i = thread_id(); i < rule.bound; i += kMeasureThreads) values[i] = eigen.values[image * eigen.block + i];
  // The energy before the centring: what is left, and that of the means.
  float of_means = 0.0f;
  if (rule.means) {
    for (int d = thread_id(); d < rule.width; d += kMeasureThreads) {
      const float mean = rule.means[image * rule.width + d];
      of_means += mean * mean;
    }
    of_means = block_sum(of_means, sums);
  }
  __syncthreads();
  if (thread_id() == 0) {
    const float before = rule.means ? 1.0f + eigen.tokens * of_means / fmaxf(eigen.trace[image], kTiny) : 0.0f;
    const float weakest = fmaxf(static_cast<float>(kWeakest) * values[0], static_cast<float>(kCentred) * before);
    const float energy = rule.energy - static_cast<float>(kShare);
    float held = 0.0f;
    int count = 0;
    for (int i = 0; i < rule.bound; ++i) {
      const bool counts = (rule.rank ? i < rule.rank : i == 0 || held < energy) && values[i] > weakest;
      if (!counts) break;
      held += fmaxf(0.0f, values[i]);
      ++count;
    }
    *rank = count;
    if (blockIdx.x == 0) {
      rank_out[image] = larger(1, count);
      energy_out[image] = held;
    }
  }
  __syncthreads();
  const int token = static_cast<int>(blockIdx.x) * kTokensOfBlock + warp_id();
  if (token >= eigen.tokens) return;
  const float by = 1.0f / static_cast<float>(larger(1, *rank));
  const float* row = eigen.vectors + (image * eigen.tokens + token) * eigen.block;
  float mass = 0.0f;
  for (int c = lane_id(); c < *rank; c += kWarp) mass += row[c] * row[c];
  mass = warp_sum(mass);
  if (!(mass >= 0.0f)) mass = 0.0f;
  if (lane_id() == 0) {
    leverages[image * eigen.tokens + token] = mass * by;
    keys[image * eigen.tokens + token] =
        best_first(rintf(mass / static_cast<float>(kLeverage)), static_cast<unsigned>(token));
  }
}

// Step 4: the chosen tokens in raster order; in mode leverage those of the set first.
__global__ void __launch_bounds__(kThreads)
    choose(const int* __restrict__ rank, const float* __restrict__ leverages, int tokens, int keep, bool by_leverage,
           float wanted, int* __restrict__ rows, int64_t* __restrict__ count_out, float* __restrict__ leverage_out) {
  VTX_SHARED(shared);
  int* sums = reinterpret_cast<int*>(shared);       // [32]
  int* set = sums + kThreads / kWarp;               // how many tokens are the set
  float* best = reinterpret_cast<float*>(set + 1);  // [keep]: leverages, descending
  const size_t image = blockIdx.x;
  rank += image * tokens;
  leverages += image * tokens;
  if (by_leverage) {
    for (int i = thread_id(); i < tokens; i += kThreads)
      if (rank[i] < keep) best[rank[i]] = leverages[i];
    __syncthreads();
    if (thread_id() == 0) {
      float sum = 0.0f;
      int count = 0;
      while (count < keep && (count < kSmallestSet || sum < wanted - static_cast<float>(kShare))) sum += best[count++];
      *set = count;
      count_out[image] = count;
      leverage_out[image] = sum;
    }
  } else if (thread_id() == 0) {
    *set = keep;
  }
  __syncthreads();
  const int first = *set;
  int before = 0, before_rest = 0;
  for (int from = 0; from < tokens; from += kThreads) {
    const int i = from + thread_id(), own = i < tokens ? rank[i] : keep;
    const int earlier = before, earlier_rest = before_rest;
    const int place = earlier + place_among(own < first, sums, &before);
    const int place_rest = earlier_rest + place_among(own >= first && own < keep, sums, &before_rest);
    if (own < first)
      rows[image * keep + place] = i;
    else if (own < keep)
      rows[image * keep + first + place_rest] = i;
  }
}

struct Plan {
  int batch, tokens, width, keep;
  float *y, *means, *partial, *gram, *leverages;
  Eigen eigen;
  int *rank, *rows;
  uint64_t* keys;
  size_t bytes;
};

Plan plan_of(const vtx_sizes& sizes, const vtx_svdprune& parameters, void* base) {
  Workspace space(base);
  Plan p = {};
  p.batch = sizes.batch;
  p.tokens = sizes.grid_rows * sizes.grid_columns;
  p.width = sizes.width;
  p.keep = sizes.keep;
  const size_t batch = p.batch, all = batch * p.tokens;
  p.y = space.take<float>(all * p.width);
  p.means = space.take<float>(batch * p.width);
  p.partial = space.take<float>(gram_partial_count(p.batch, p.tokens, p.width));
  p.gram = space.take<float>(all * p.tokens);
  p.leverages = space.take<float>(all);
  p.eigen = plan_eigen(space, p.batch, p.tokens, parameters.rank_bound);
  p.rank = space.take<int>(all);
  p.rows = space.take<int>(batch * p.keep);
  p.keys = space.take<uint64_t>(all);
  p.bytes = space.used();
  return p;
}

vtx_status enqueue(const Plan& p, const vtx_sizes& sizes, const vtx_svdprune& by, const vtx_tensors& tensors,
                   vtx_stream stream) {
  const Rows patches = {tensors.features, sizes.dtype, p.batch, 0, p.tokens, p.width};
  VTX_TRY(float_rows(patches, nullptr, p.tokens, p.y, stream));
  if (by.center == VTX_CENTER_FEATURE) VTX_TRY(center_columns(p.y, p.batch, p.tokens, p.width, p.means, stream));
  VTX_TRY(gram(p.y, p.batch, p.tokens, p.width, p.partial, p.gram, nullptr, stream));
  VTX_TRY(leading_eigenvectors(p.eigen, p.gram, stream));
  const float* means = by.center == VTX_CENTER_FEATURE ? p.means : nullptr;
  const Rule rule = {by.energy, by.leverage, by.rank, by.rank_bound, means, p.width};
  const size_t measured = (1 + kTokensOfBlock + static_cast<size_t>(by.rank_bound)) * sizeof(float);
  VTX_TRY(launch(measure, Grid{divide_up(p.tokens, kTokensOfBlock), p.batch}, kMeasureThreads, measured, stream, false,
                 p.eigen, rule, p.leverages, p.keys, tensors.rank, tensors.energy));
  VTX_TRY(ranks(p.keys, p.batch, p.tokens, p.rank, stream));
  const size_t shared = (kThreads / kWarp + 1 + static_cast<size_t>(p.keep)) * sizeof(int);
  VTX_TRY(launch(choose, Grid{p.batch, 1}, kThreads, shared, stream, false, p.rank, p.leverages, p.tokens, p.keep,
                 by.mode == VTX_MODE_LEVERAGE, by.leverage, p.rows, tensors.count, tensors.leverage));
  VTX_TRY(gather_rows(tensors.features, sizes.dtype, p.batch, p.tokens, p.width, p.rows, p.keep, 0,
                      tensors.kept_features, tensors.keep_indices, stream));
  VTX_TRY(report(p.leverages, p.batch * p.tokens, tensors.leverages, stream));
  return report(p.eigen.residual, p.batch, tensors.residual, stream);
}

}  // namespace svdprune_kernels
}  // namespace vtx

using vtx::svdprune_kernels::enqueue;
using vtx::svdprune_kernels::plan_of;

VTX_CUDA_OP(svdprune, vtx_sizes, vtx_tensors)
