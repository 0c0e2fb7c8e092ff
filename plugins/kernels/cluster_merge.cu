// VtxClusterMerge (docs/ops/llm.md): one merged row for each cluster, its most important tokens beside it.
#include "call.cuh"
#include "steps.cuh"

namespace vtx {
namespace cluster_merge_kernels {

constexpr int kThreads = 1024;
constexpr int kMergeThreads = 256;

struct Arrays {
  float* saliency;                      // [n]
  int* slot;                            // [n]: cluster + 1, 0 for -1
  unsigned char* single;                // [n]
  unsigned char* middle;                // [n]
  int* kept;                            // [n']
  int *sizes, *shares, *given, *group;  // [slots]
  double* totals;                       // [slots]
};

// Sizes and totals of the slots; the sums run in the order of the tokens.
__device__ void count_slots(const Arrays& a, int tokens, int slots) {
  for (int c = thread_id(); c < slots; c += kThreads) {
    int size = 0;
    double total = 0.0;
    for (int i = 0; i < tokens; ++i) {
      if (a.slot[i] != c) continue;
      ++size;
      total += a.saliency[i];
    }
    a.sizes[c] = size;
    a.totals[c] = total;
  }
  __syncthreads();
}

// Steps 1 to 4: which tokens stay, alone or as the middle of a merged row.
__global__ void __launch_bounds__(kThreads) choose(Arrays a, const int64_t* __restrict__ labels, int tokens, int keep,
                                                   int clusters, int64_t* __restrict__ quotas) {
  VTX_SHARED(shared);
  int* sums = reinterpret_cast<int*>(shared);
  const int slots = clusters + 1;
  for (int i = thread_id(); i < tokens; i += kThreads)
    a.slot[i] = static_cast<int>(larger<int64_t>(-1, smaller<int64_t>(clusters - 1, labels[i]))) + 1;
  __syncthreads();
  count_slots(a, tokens, slots);
  int present = 0;
  for (int c = thread_id(); c < slots; c += kThreads) present += a.sizes[c] > 0;
  present = block_sum(present, sums);

  if (present > keep) {  // more clusters than rows: groups of clusters take their place
    for (int c = thread_id(); c < slots; c += kThreads) {
      int ahead = 0;
      for (int o = 0; o < slots; ++o)
        ahead += a.sizes[o] > 0 && (a.totals[o] < a.totals[c] || (a.totals[o] == a.totals[c] && o < c));
      a.group[c] = smaller(ahead, keep - 1);
      a.shares[c] = 0;
    }
    __syncthreads();
    for (int i = thread_id(); i < tokens; i += kThreads) a.slot[i] = a.group[a.slot[i]];
    __syncthreads();
    count_slots(a, tokens, slots);
  } else {
    int given = 0;
    for (int c = thread_id(); c < slots; c += kThreads) {
      const int64_t spare = larger(0, a.sizes[c] - 1);
      a.given[c] = rounded_quotient(spare * (keep - present), larger(1, tokens - present));
      given += a.given[c];
    }
    given = block_sum(given, sums);
    const int difference = keep - present - given;
    for (int c = thread_id(); c < slots; c += kThreads) {
      int ahead = 0;
      const bool adds = difference > 0;
      for (int o = 0; o < slots; ++o) {
        const bool among = a.sizes[o] > 0 && (adds ? a.given[o] < a.sizes[o] - 1 : a.given[o] > 0);
        const bool first = adds ? a.totals[o] < a.totals[c] || (a.totals[o] == a.totals[c] && o < c)
                                : a.totals[o] > a.totals[c] || (a.totals[o] == a.totals[c] && o > c);
        ahead += among && first;
      }
      int share = a.given[c];
      if (difference > 0 && a.sizes[c] > 0 && share < a.sizes[c] - 1 && ahead < difference) ++share;
      if (difference < 0 && share > 0 && ahead < -difference) --share;
      a.shares[c] = share;
    }
    __syncthreads();
  }
  if (quotas)
    for (int c = thread_id(); c < slots; c += kThreads) quotas[c] = a.shares[c];

  for (int i = thread_id(); i < tokens; i += kThreads) {
    int better = 0;
    const float own = a.saliency[i];
    for (int j = 0; j < tokens; ++j)
      better += a.slot[j] == a.slot[i] && (a.saliency[j] < own || (a.saliency[j] == own && j < i));
    a.single[i] = better < a.shares[a.slot[i]];
  }
  __syncthreads();
  for (int i = thread_id(); i < tokens; i += kThreads) {
    int place = 0;
    for (int j = 0; j < i; ++j) place += a.slot[j] == a.slot[i] && !a.single[j];
    const int rest = a.sizes[a.slot[i]] - a.shares[a.slot[i]];
    a.middle[i] = !a.single[i] && place == rest / 2;
  }
  __syncthreads();
  int before = 0;
  for (int from = 0; from < tokens; from += kThreads) {
    const int i = from + thread_id();
    const bool stays = i < tokens && (a.single[i] || a.middle[i]);
    const int earlier = before;
    const int place = earlier + place_among(stays, sums, &before);
    if (stays && place < keep) a.kept[place] = i;
  }
}

// The merged rows: the mean of the tokens that they stand for, with the middle one's own row where `adds`.
__global__ void __launch_bounds__(kMergeThreads)
    merge(Arrays a, vtx_step_sizes sizes, const int64_t* __restrict__ start, const void* __restrict__ hidden, bool adds,
          void* __restrict__ out) {
  VTX_SHARED(shared);
  int* sums = reinterpret_cast<int*>(shared);
  int* members = sums + kMergeThreads / kWarp;  // [n]
  const int place = static_cast<int>(blockIdx.x), own = a.kept[place];
  if (!a.middle[own]) return;
  const int slot = a.slot[own];
  int count = 0;
  for (int from = 0; from < sizes.visual_count; from += kMergeThreads) {
    const int i = from + thread_id();
    const bool in = i < sizes.visual_count && a.slot[i] == slot && !a.single[i];
    const int earlier = count;
    const int at = earlier + place_among(in, sums, &count);
    if (in) members[at] = i;
  }
  __syncthreads();
  const size_t first = visual_start_of(sizes, start), width = sizes.width;
  for (int d = thread_id(); d < sizes.width; d += kMergeThreads) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += load(hidden, (first + members[i]) * width + d, sizes.dtype);
    float value = sum / static_cast<float>(count);
    if (adds) value += load(hidden, (first + own) * width + d, sizes.dtype);
    store(out, (first + place) * width + d, sizes.dtype, value);
  }
}

struct Plan {
  Arrays arrays;
  size_t bytes;
};

Plan plan_of(const vtx_step_sizes& sizes, const vtx_cluster_merge& parameters, void* base) {
  Workspace space(base);
  Plan p = {};
  const size_t tokens = sizes.visual_count, slots = static_cast<size_t>(parameters.clusters) + 1;
  p.arrays.saliency = space.take<float>(tokens);
  p.arrays.slot = space.take<int>(tokens);
  p.arrays.single = space.take<unsigned char>(tokens);
  p.arrays.middle = space.take<unsigned char>(tokens);
  p.arrays.kept = space.take<int>(sizes.keep);
  p.arrays.sizes = space.take<int>(slots);
  p.arrays.shares = space.take<int>(slots);
  p.arrays.given = space.take<int>(slots);
  p.arrays.group = space.take<int>(slots);
  p.arrays.totals = space.take<double>(slots);
  p.bytes = space.used();
  return p;
}

vtx_status enqueue(const Plan& p, const vtx_step_sizes& sizes, const vtx_cluster_merge& parameters,
                   const vtx_step_tensors& tensors, vtx_stream stream) {
  VTX_TRY(key_norms(sizes, tensors, p.arrays.saliency, stream));
  VTX_TRY(launch(choose, Grid{1, 1}, kThreads, kThreads / kWarp * sizeof(int), stream, false, p.arrays, tensors.labels,
                 sizes.visual_count, sizes.keep, parameters.clusters, tensors.quotas));
  VTX_TRY(splice(sizes, tensors, p.arrays.kept, stream));
  const size_t shared = (kMergeThreads / kWarp + static_cast<size_t>(sizes.visual_count)) * sizeof(int);
  VTX_TRY(launch(merge, Grid{sizes.keep, 1}, kMergeThreads, shared, stream, false, p.arrays, sizes,
                 tensors.visual_start, tensors.hidden_states, parameters.mean == 0, tensors.hidden_states_out));
  return report(p.arrays.saliency, sizes.visual_count, tensors.saliency, stream);
}

}  // namespace cluster_merge_kernels
}  // namespace vtx

using vtx::cluster_merge_kernels::enqueue;
using vtx::cluster_merge_kernels::plan_of;

VTX_CUDA_OP(cluster_merge, vtx_step_sizes, vtx_step_tensors)
