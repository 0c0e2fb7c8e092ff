// VtxPruneSID (docs/ops/prunesid.md): group by principal components, suppress within groups, share the budget.
#include "call.cuh"
#include "ties.h"

namespace vtx {
namespace prunesid_kernels {

constexpr int kThreads = 256;
constexpr int kWarpsOfBlock = kThreads / kWarp;
constexpr unsigned kIndexBits = 12;  // of a token, and of a group; T is at most 3840

// Step 1's end and step 2: a token's group, its score, the key that sorts tokens by group, then score; tau, and what a
// cosine has to exceed to be above it. `least` is the smallest eigenvalue of a direction, beside its share of the
// largest.
__global__ void __launch_bounds__(kThreads)
    assign_groups(Eigen eigen, const float* __restrict__ given, const double* __restrict__ tile_sums,
                  const float* __restrict__ cosine, int tiles, float threshold_scale, bool triangle, float least,
                  int* __restrict__ group, float* __restrict__ score, uint64_t* __restrict__ keys,
                  float* __restrict__ rho_out, float* __restrict__ tau_out, float* __restrict__ limit_out) {
  VTX_SHARED(shared);
  const int tokens = eigen.tokens, token = static_cast<int>(blockIdx.x) * kWarpsOfBlock + warp_id();
  const size_t image = blockIdx.y;
  if (token < tokens) {
    const float* row = eigen.vectors + (image * tokens + token) * eigen.block;
    const float* values = eigen.values + image * eigen.block;
    const float weakest =
        fmaxf(static_cast<float>(kWeakestGroup) * values[0], least / fmaxf(eigen.trace[image], kTiny));
    const auto loading = [&](int c) { return values[c] > weakest ? rintf(fabsf(row[c]) / kStep) : 0.0f; };
    uint64_t best = ~uint64_t{0};
    for (int c = lane_id(); c < eigen.count; c += kWarp)
      best = smaller(best, best_first(loading(c), static_cast<unsigned>(c)));
    best = warp_least(best);
    if (lane_id() == 0) {
      const int own = static_cast<int>(best & 0xffffffffu);
      const float z = given ? given[image * tokens + token] : loading(own);
      group[image * tokens + token] = own;
      score[image * tokens + token] = z;
      keys[image * tokens + token] = (static_cast<uint64_t>(own) << (32 + kIndexBits)) |
                                     (static_cast<uint64_t>(~order_of(z)) << kIndexBits) | static_cast<unsigned>(token);
    }
  }
  if (blockIdx.x != 0) return;
  double* scratch = reinterpret_cast<double*>(shared);
  double pairs = 0.0, diagonal = 0.0;
  for (int i = thread_id(); i < tiles; i += kThreads) pairs += tile_sums[image * tiles + i];
  for (int i = thread_id(); i < tokens; i += kThreads)
    diagonal += cosine[(image * tokens + i) * static_cast<size_t>(tokens) + i];
  pairs = block_sum(pairs, scratch);
  diagonal = block_sum(diagonal, scratch);
  if (thread_id() == 0) {
    const double count = tokens;
    const float rho = static_cast<float>(triangle ? (pairs + diagonal) / (count * count)
                                                  : (tokens > 1 ? pairs / (count * (count - 1) / 2) : 0.0));
    const float tau = (rho > kParallel ? 1.0f : rho) * threshold_scale, limit = tau + kAlike;
    rho_out[image] = rho;
    tau_out[image] = tau;
    // Parallel rows are all at cosine 1, which is above no limit from 1 on.
    limit_out[image] = limit < 1.0f ? fminf(limit, kParallel) : 4.0f;
  }
}

// Step 3, pairs: bit q of row p is set where the token at place p of the order suppresses the one at a later place q of
// its group. Words of other groups are not written.
__global__ void __launch_bounds__(kThreads)
    find_conflicts(const float* __restrict__ cosine, const int* __restrict__ order, const int* __restrict__ group,
                   const float* __restrict__ limits, int tokens, int words, unsigned* __restrict__ conflicts) {
  const int place = static_cast<int>(blockIdx.x) * kWarpsOfBlock + warp_id();
  if (place >= tokens) return;
  const size_t image = blockIdx.y;
  const int* own_order = order + image * tokens;
  const int* own_group = group + image * tokens;
  const int token = own_order[place], mine = own_group[token];
  const float* row = cosine + (image * tokens + token) * static_cast<size_t>(tokens);
  const float limit = limits[image];
  for (int word = place / kWarp; word < words; ++word) {
    const int other = word * kWarp + lane_id();
    const int other_token = other < tokens ? own_order[other] : -1;
    const bool same = other < tokens && own_group[other_token] == mine;
    const unsigned bits = __ballot_sync(kAllLanes, same && other > place && row[other_token] > limit);
    const unsigned together = __ballot_sync(kAllLanes, same);
    if (lane_id() == 0) conflicts[(image * tokens + place) * words + word] = bits;
    if (!(together & 0x80000000u)) break;  // the group, a run of places, ends in this word
  }
}

constexpr int kSweepThreads = 128;
constexpr int kMostWords = divide_up(VTX_MOST_TOKENS, kWarp);
constexpr int kWordsOfLane = divide_up(kMostWords, kWarp);

// Step 3: one group of one image. A token survives if no survivor before it suppresses it.
__global__ void __launch_bounds__(kSweepThreads)
    suppress(const unsigned* __restrict__ conflicts, const int* __restrict__ order, const int* __restrict__ group,
             const float* __restrict__ score, int tokens, int words, int groups, unsigned char* __restrict__ survives,
             int* __restrict__ sizes, int* __restrict__ survivors) {
  VTX_SHARED(shared);
  int* sums = reinterpret_cast<int*>(shared);                                      // [2 * warps]
  unsigned* rows = reinterpret_cast<unsigned*>(sums + 2 * kSweepThreads / kWarp);  // [32, words of the group]
  const int own = static_cast<int>(blockIdx.x);
  const size_t image = blockIdx.y;
  order += image * tokens;
  group += image * tokens;
  score += image * tokens;
  int start = 0, size = 0;
  for (int i = thread_id(); i < tokens; i += kSweepThreads) {
    start += group[i] < own;
    size += group[i] == own;
  }
  start = block_sum(start, sums);
  size = block_sum(size, sums + kSweepThreads / kWarp);
  const int end = start + size, first_word = start / kWarp, own_words = size ? (end - 1) / kWarp - first_word + 1 : 0;
  unsigned removed[kWordsOfLane] = {};
  int alive = 0;
  for (int w = 0; w < own_words; ++w) {
    const int first = (first_word + w) * kWarp;
    for (int e = thread_id(); e < kWarp * own_words; e += kSweepThreads) {
      const int place = first + e / own_words, word = e % own_words;
      const bool written = place >= start && place < end && word >= w;
      rows[e] = written ? conflicts[(image * tokens + place) * words + first_word + word] : 0u;
    }
    __syncthreads();
    if (warp_id() == 0) {
      const int mine = first + lane_id();
      const bool may = mine >= start && mine < end && score[order[smaller(mine, tokens - 1)]] > 0.0f;
      const unsigned candidates = __ballot_sync(kAllLanes, may);
      unsigned held = 0;
#pragma unroll
      for (int i = 0; i < kWordsOfLane; ++i) held = w / kWarp == i ? removed[i] : held;
      unsigned current = __shfl_sync(kAllLanes, held, w % kWarp), kept = 0;
      for (int bit = 0; bit < kWarp; ++bit) {
        if (!((candidates & ~current) >> bit & 1u)) continue;
        kept |= 1u << bit;
        const unsigned* row = rows + bit * own_words;
        current |= row[w];
#pragma unroll
        for (int i = 0; i < kWordsOfLane; ++i) {
          const int word = lane_id() + i * kWarp;
          if (word < own_words) removed[i] |= row[word];
        }
      }
      if (mine >= start && mine < end) survives[image * tokens + mine] = kept >> lane_id() & 1u;
      alive += __popc(kept);
    }
    __syncthreads();
  }
  if (thread_id() == 0) {
    sizes[image * groups + own] = size;
    survivors[image * groups + own] = alive;
  }
}

constexpr int kShareThreads = 1024;

struct Budget {
  int keep, slot, groups, tokens;
  bool bounded, raster;
};

// Six numbers a group behind one a warp, and a byte a token.
constexpr size_t share_bytes(int groups, int tokens) {
  return (kShareThreads / kWarp + 6 * static_cast<size_t>(groups)) * sizeof(int) + tokens;
}
static_assert(share_bytes(VTX_MOST_TOKENS, VTX_MOST_TOKENS) <= kMostShared, "as many groups as tokens");

__device__ int capacity(const int* upper, const int* sizes, int rounds, int groups, int* sums) {
  int sum = 0;
  for (int g = thread_id(); g < groups; g += kShareThreads) sum += smaller(upper[g] + rounds, sizes[g]);
  return block_sum(sum, sums);
}

// Steps 4 and 5 of one image: rows [N] of the features, in output order.
__global__ void __launch_bounds__(kShareThreads)
    share(Budget budget, const int* __restrict__ all_sizes, const int* __restrict__ all_survivors,
          const unsigned char* __restrict__ survives, const int* __restrict__ order, const int* __restrict__ group,
          int* __restrict__ all_taken, int* __restrict__ rows) {
  VTX_SHARED(shared);
  const int groups = budget.groups, tokens = budget.tokens;
  int* sums = reinterpret_cast<int*>(shared);  // [32]
  int* sizes = sums + kShareThreads / kWarp;
  int* survivors = sizes + groups;
  int* upper = survivors + groups;
  int* taken = upper + groups;
  int* until = taken + groups;         // then the room left
  int* alive_before = until + groups;  // survivors at places before the group
  int* start = upper;                  // of the group in the order, when the room is given away
  int* offset = until;                 // of the group in the output, then too
  unsigned char* marked = reinterpret_cast<unsigned char*>(alive_before + groups);  // [tokens]
  const size_t image = blockIdx.x;
  order += image * tokens;
  group += image * tokens;
  survives += image * tokens;
  rows += image * budget.keep;

  const int cap = budget.bounded ? 5 * divide_up(budget.keep, 64) : budget.keep;
  int floors = 0, alive = 0;
  for (int g = thread_id(); g < groups; g += kShareThreads) {
    sizes[g] = all_sizes[image * groups + g];
    survivors[g] = all_survivors[image * groups + g];
    upper[g] = smaller(smaller(cap, sizes[g]), survivors[g]);
    floors += smaller(budget.bounded ? 1 : 0, sizes[g]);
    alive += survivors[g];
  }
  floors = block_sum(floors, sums);
  alive = block_sum(alive, sums);
  __syncthreads();
  // The least number of widening rounds after which the groups offer N tokens, or all they have.
  int low = 0, high = budget.keep + 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (capacity(upper, sizes, middle, groups, sums) < budget.keep)
      low = middle + 1;
    else
      high = middle;
  }
  const int extra = larger(0, budget.keep - budget.slot - floors);
  for (int g = thread_id(); g < groups; g += kShareThreads) {
    upper[g] = smaller(upper[g] + low, sizes[g]);
    int64_t cumulative = 0;
    for (int i = 0; i <= g; ++i) cumulative += survivors[i];
    until[g] = rounded_quotient(cumulative * extra, larger(1, alive));
  }
  __syncthreads();
  int given = 0;
  for (int g = thread_id(); g < groups; g += kShareThreads) {
    const int quota = until[g] - (g ? until[g - 1] : 0);
    taken[g] = smaller(smaller(budget.bounded ? 1 : 0, sizes[g]) + quota, upper[g]);
    given += taken[g];
  }
  given = block_sum(given, sums);
  const int missing = floors + extra - given;
  for (int g = thread_id(); g < groups; g += kShareThreads) until[g] = upper[g] - taken[g];
  __syncthreads();
  int more = 0;
  for (int g = thread_id(); g < groups; g += kShareThreads) {
    int before = 0;
    for (int i = 0; i < groups; ++i)
      if (survivors[i] > survivors[g] || (survivors[i] == survivors[g] && i < g)) before += until[i];
    more = larger(0, smaller(until[g], missing - before));
    taken[g] += more;
    all_taken[image * groups + g] = taken[g];
  }
  __syncthreads();
  for (int g = thread_id(); g < groups; g += kShareThreads) {
    int tokens_before = 0, taken_before = 0, survivors_before = 0;
    for (int i = 0; i < g; ++i) {
      tokens_before += sizes[i];
      taken_before += taken[i];
      survivors_before += survivors[i];
    }
    start[g] = tokens_before;
    offset[g] = taken_before;
    alive_before[g] = survivors_before;
  }
  for (int i = thread_id(); i < tokens; i += kShareThreads) marked[i] = 0;
  __syncthreads();
  // A group's survivors come first, then its other members, each by place.
  int before = 0;
  for (int from = 0; from < tokens; from += kShareThreads) {
    const int place = from + thread_id();
    const bool in = place < tokens, lives = in && survives[place] != 0;
    const int earlier = before;
    const int alive_until = earlier + place_among(lives, sums, &before);
    if (!in) continue;
    const int token = order[place], g = group[token];
    const int ahead = alive_until - alive_before[g], local = place - start[g];
    const int rank = lives ? ahead : survivors[g] + local - ahead;
    if (rank >= taken[g]) continue;
    if (budget.raster)
      marked[token] = 1;
    else
      rows[budget.slot + offset[g] + rank] = token + budget.slot;
  }
  __syncthreads();
  if (budget.slot && thread_id() == 0) rows[0] = 0;
  if (!budget.raster) return;
  before = 0;
  for (int from = 0; from < tokens; from += kShareThreads) {
    const int token = from + thread_id();
    const bool chosen = token < tokens && marked[token];
    const int earlier = before;
    const int place = earlier + place_among(chosen, sums, &before);
    if (chosen) rows[budget.slot + place] = token + budget.slot;
  }
}

struct Plan {
  int batch, tokens, width, keep, words, tiles;
  float *y, *means, *partial, *grams;
  double* tile_sums;
  Eigen eigen;
  int *group, *order, *sizes, *survivors, *taken, *rows;
  float *score, *rho, *tau, *limit;
  uint64_t* keys;
  unsigned* conflicts;
  unsigned char* survives;
  size_t bytes;
};

Plan plan_of(const vtx_sizes& sizes, const vtx_prunesid& parameters, void* base) {
  Workspace space(base);
  Plan p = {};
  p.batch = sizes.batch;
  p.tokens = sizes.grid_rows * sizes.grid_columns;
  p.width = sizes.width;
  p.keep = sizes.keep;
  p.words = divide_up(p.tokens, kWarp);
  p.tiles = gram_tiles(p.tokens);
  const size_t batch = p.batch, tokens = p.tokens, all = batch * tokens, of_groups = batch * parameters.groups;
  p.y = space.take<float>(2 * all * p.width);  // the sigmoids of all images, then their unit rows
  p.means = space.take<float>(batch * p.width);
  p.partial = space.take<float>(gram_partial_count(2 * p.batch, p.tokens, p.width));
  p.grams = space.take<float>(2 * all * tokens);
  p.tile_sums = space.take<double>(2 * batch * p.tiles);
  p.eigen = plan_eigen(space, p.batch, p.tokens, smaller(parameters.groups, p.tokens));
  p.group = space.take<int>(all);
  p.order = space.take<int>(all);
  p.score = space.take<float>(all);
  p.keys = space.take<uint64_t>(all);
  p.conflicts = space.take<unsigned>(all * p.words);
  p.survives = space.take<unsigned char>(all);
  p.sizes = space.take<int>(of_groups);
  p.survivors = space.take<int>(of_groups);
  p.taken = space.take<int>(of_groups);
  p.rows = space.take<int>(batch * p.keep);
  p.rho = space.take<float>(batch);
  p.tau = space.take<float>(batch);
  p.limit = space.take<float>(batch);
  p.bytes = space.used();
  return p;
}

vtx_status enqueue(const Plan& p, const vtx_sizes& sizes, const vtx_prunesid& by, const vtx_tensors& tensors,
                   vtx_stream stream) {
  const int slot = by.cls_slot, groups = by.groups;
  const size_t all = static_cast<size_t>(p.batch) * p.tokens;
  const Rows patches = {tensors.features, sizes.dtype, p.batch, slot, p.tokens, p.width};
  float* unit = p.y + all * p.width;
  VTX_TRY(sigmoid_and_unit_rows(patches, by.center == VTX_CENTER_TOKEN, p.y, unit, stream));
  if (by.center == VTX_CENTER_FEATURE) VTX_TRY(center_columns(p.y, p.batch, p.tokens, p.width, p.means, stream));
  VTX_TRY(gram(p.y, 2 * p.batch, p.tokens, p.width, p.partial, p.grams, p.tile_sums, stream));
  const float* cosine = p.grams + all * p.tokens;
  VTX_TRY(leading_eigenvectors(p.eigen, p.grams, stream));
  const float least = static_cast<float>(kCentred * p.tokens * p.width);
  VTX_TRY(launch(
      assign_groups, Grid{divide_up(p.tokens, kWarpsOfBlock), p.batch}, kThreads, kWarpsOfBlock * sizeof(double),
      stream, false, p.eigen, by.nms_score == VTX_CLS_ATTENTION ? tensors.scores : nullptr,
      static_cast<const double*>(p.tile_sums + static_cast<size_t>(p.batch) * p.tiles), cosine, p.tiles,
      by.threshold_scale, by.redundancy == VTX_TRIANGLE, least, p.group, p.score, p.keys, p.rho, p.tau, p.limit));
  VTX_TRY(order_by_keys(p.keys, p.batch, p.tokens, p.order, stream));
  VTX_TRY(launch(find_conflicts, Grid{divide_up(p.tokens, kWarpsOfBlock), p.batch}, kThreads, 0, stream, false, cosine,
                 p.order, p.group, p.limit, p.tokens, p.words, p.conflicts));
  const size_t sweep_shared = (2 * kSweepThreads / kWarp + kWarp * static_cast<size_t>(p.words)) * sizeof(int);
  VTX_TRY(launch(suppress, Grid{groups, p.batch}, kSweepThreads, sweep_shared, stream, false, p.conflicts, p.order,
                 p.group, p.score, p.tokens, p.words, groups, p.survives, p.sizes, p.survivors));
  const Budget budget = {p.keep, slot, groups, p.tokens, by.shares == VTX_BOUNDED, by.order == VTX_ORDER_RASTER};
  VTX_TRY(launch(share, Grid{p.batch, 1}, kShareThreads, share_bytes(groups, p.tokens), stream, false, budget, p.sizes,
                 p.survivors, p.survives, p.order, p.group, p.taken, p.rows));
  VTX_TRY(gather_rows(tensors.features, sizes.dtype, p.batch, slot + p.tokens, p.width, p.rows, p.keep, slot,
                      tensors.kept_features, tensors.keep_indices, stream));
  VTX_TRY(report(p.group, p.batch * p.tokens, tensors.groups, stream));
  VTX_TRY(report(p.sizes, p.batch * groups, tensors.sizes, stream));
  VTX_TRY(report(p.survivors, p.batch * groups, tensors.survivors, stream));
  VTX_TRY(report(p.taken, p.batch * groups, tensors.taken, stream));
  VTX_TRY(report(p.rho, p.batch, tensors.rho, stream));
  VTX_TRY(report(p.tau, p.batch, tensors.tau, stream));
  return report(p.eigen.residual, p.batch, tensors.residual, stream);
}

}  // namespace prunesid_kernels
}  // namespace vtx

using vtx::prunesid_kernels::enqueue;
using vtx::prunesid_kernels::plan_of;

VTX_CUDA_OP(prunesid, vtx_sizes, vtx_tensors)
