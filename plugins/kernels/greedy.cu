// VtxDivPrune and VtxCDPruner (docs/ops/divprune.md, cdpruner.md): N dependent picks over the cosines of all tokens.
// One block of threads an image picks; a thread has the gains of its tokens in registers.
#include "call.cuh"
#include "ties.h"

namespace vtx {
namespace greedy_kernels {

constexpr int kThreads = 1024;
constexpr int kTokensOfThread = divide_up(VTX_MOST_TOKENS, kThreads);
constexpr float kSpanned = 1.0f / 16384;  // a share of a token below this counts as nothing left
constexpr float kEqual = 1.0f / 16384;    // tokens whose mean cosines to the text span less are all as relevant
constexpr float kCoarse = 1.0f / 8192;    // r² is told apart from here on where it decides alone
constexpr float kNothingLeft = 1e-20f;
constexpr float kOffset = 1e-6f;

// Picks `keep` tokens, the untaken one of largest gain each time, ties to the lower index. start() gives the gains at
// first, step(round, picked) those after a pick, both through gain[i] for token i * kThreads + thread.
template <class Start, class Step>
__device__ void pick(int tokens, int keep, uint64_t* scratch, int64_t* order, unsigned char* taken, Start start,
                     Step step) {
  float gain[kTokensOfThread];
  unsigned own_taken = 0;
  start(gain);
  for (int round = 0; round < keep; ++round) {
    uint64_t best = ~uint64_t{0};
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i) {
      const int token = thread_id() + i * kThreads;
      if (token < tokens && !(own_taken >> i & 1u))
        best = smaller(best, best_first(gain[i], static_cast<unsigned>(token)));
    }
    best = warp_least(best);
    // By turns in two places, so that one barrier a round suffices.
    uint64_t* place = scratch + (round % 2) * (kThreads / kWarp);
    if (lane_id() == 0) place[warp_id()] = best;
    __syncthreads();
    best = warp_least(place[lane_id()]);
    const int picked = static_cast<int>(best & 0xffffffffu);
    if (picked % kThreads == thread_id()) {
      own_taken |= 1u << (picked / kThreads);
      taken[picked] = 1;
      order[round] = picked;
    }
    if (round + 1 < keep) step(round, picked, gain);
  }
}

// Picked tokens, ascending.
__device__ void list_taken(const unsigned char* taken, int tokens, int keep, int* sums, int* rows) {
  __syncthreads();
  int before = 0;
  for (int from = 0; from < tokens; from += kThreads) {
    const int token = from + thread_id();
    const bool chosen = token < tokens && taken[token];
    const int earlier = before;
    const int place = earlier + place_among(chosen, sums, &before);
    if (chosen && place < keep) rows[place] = token;
  }
}

// What both ops' blocks share in shared memory.
struct Board {
  uint64_t* scratch;     // [2, 32]
  int* sums;             // [32]
  unsigned char* taken;  // [tokens]
};
__host__ __device__ size_t board_bytes(int tokens) { return 3 * kWarp * sizeof(uint64_t) + round_up(tokens, 16); }
__device__ Board board(unsigned char* shared, int tokens) {
  Board b;
  b.scratch = reinterpret_cast<uint64_t*>(shared);
  b.sums = reinterpret_cast<int*>(b.scratch + 2 * kWarp);
  b.taken = reinterpret_cast<unsigned char*>(b.scratch + 3 * kWarp);
  for (int i = thread_id(); i < tokens; i += kThreads) b.taken[i] = 0;
  __syncthreads();
  return b;
}

// A cosine as cosines are told apart: rounded, that of parallel rows 1; and kShift larger.
__device__ __forceinline__ float settled(float cosine) { return (cosine > kParallel ? 1.0f : cosine) + kShift; }

// nearest [B, T]: the largest cosine of each token to another one, settled.
__global__ void __launch_bounds__(256)
    nearest_other(const float* __restrict__ cosine, int tokens, float* __restrict__ nearest) {
  const int token = static_cast<int>(blockIdx.x) * 8 + warp_id();
  if (token >= tokens) return;
  const size_t image = blockIdx.y;
  const float* row = cosine + (image * tokens + token) * static_cast<size_t>(tokens);
  uint64_t best = ~uint64_t{0};
  for (int i = lane_id(); i < tokens; i += kWarp)
    if (i != token) best = smaller(best, best_first(row[i], static_cast<unsigned>(i)));
  best = warp_least(best);
  if (lane_id() == 0) nearest[image * tokens + token] = settled(tokens > 1 ? row[best & 0xffffffffu] : -2.0f);
}

__global__ void __launch_bounds__(kThreads, 1)
    farthest(const float* __restrict__ cosine, const float* __restrict__ nearest, int tokens, int keep,
             int64_t* __restrict__ order, int* __restrict__ rows) {
  VTX_SHARED(shared);
  const Board b = board(shared, tokens);
  const size_t image = blockIdx.x;
  const float* own = cosine + image * tokens * static_cast<size_t>(tokens);
  float closest[kTokensOfThread];
  const auto start = [&](float (&gain)[kTokensOfThread]) {
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i) {
      const int token = thread_id() + i * kThreads;
      gain[i] = token < tokens ? -nearest[image * tokens + token] : 0.0f;
      closest[i] = settled(-2.0f);
    }
  };
  const auto step = [&](int, int picked, float (&gain)[kTokensOfThread]) {
    const float* row = own + static_cast<size_t>(picked) * tokens;
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i) {
      const int token = thread_id() + i * kThreads;
      if (token < tokens) closest[i] = larger(closest[i], settled(row[token]));
      gain[i] = -closest[i];
    }
  };
  pick(tokens, keep, b.scratch, order + image * keep, b.taken, start, step);
  list_taken(b.taken, tokens, keep, b.sums, rows + image * keep);
}

// cosines [B, T]: of unit rows to the mean of the text's unit rows.
__global__ void __launch_bounds__(256)
    similarity_to(const float* __restrict__ unit, const float* __restrict__ direction, int tokens, int width,
                  bool negate, float* __restrict__ cosines) {
  const int token = static_cast<int>(blockIdx.x) * 8 + warp_id();
  if (token >= tokens) return;
  const size_t image = blockIdx.y;
  const float* row = unit + (image * tokens + token) * static_cast<size_t>(width);
  float sum = 0.0f;
  for (int d = lane_id(); d < width; d += kWarp) sum += row[d] * direction[image * width + d];
  sum = warp_sum(sum);
  if (lane_id() == 0) cosines[image * tokens + token] = negate ? -sum : sum;
}

struct Relevance {
  bool has_text;
  float exponent;
};

__global__ void __launch_bounds__(kThreads, 1)
    most_diverse(const float* __restrict__ cosine, const float* __restrict__ similarity, Relevance by, int tokens,
                 int keep, float* __restrict__ cholesky, float* __restrict__ relevance, int64_t* __restrict__ order,
                 int* __restrict__ rows) {
  VTX_SHARED(shared);
  const Board b = board(shared, tokens);
  float* column = reinterpret_cast<float*>(shared + board_bytes(tokens));  // [keep]: of the token just picked
  const size_t image = blockIdx.x;
  const float* own = cosine + image * tokens * static_cast<size_t>(tokens);
  float* factors = cholesky + image * keep * static_cast<size_t>(tokens);  // [keep, T]

  // Step 2: r over the tokens of the image.
  float lowest = 0.0f, span = 1.0f;
  if (by.has_text) {
    uint64_t least = ~uint64_t{0}, most = ~uint64_t{0};
    for (int i = thread_id(); i < tokens; i += kThreads) {
      const float value = similarity[image * tokens + i];
      least = smaller(least, best_first(-value, static_cast<unsigned>(i)));
      most = smaller(most, best_first(value, static_cast<unsigned>(i)));
    }
    least = block_least(least, b.scratch);
    most = block_least(most, b.scratch);
    lowest = similarity[image * tokens + (least & 0xffffffffu)];
    span = similarity[image * tokens + (most & 0xffffffffu)] - lowest;
  }
  const bool do_differ = !(span < kEqual);
  if (!do_differ) span = kOffset;
  float weight[kTokensOfThread], share[kTokensOfThread];
  const auto coarse = [](float value) { return rintf(value / kCoarse) * kCoarse; };
  const auto gains = [&](float (&gain)[kTokensOfThread]) {
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i)
      gain[i] = share[i] > kSpanned ? weight[i] * share[i] : coarse(weight[i]) * kNothingLeft;
  };
  const auto start = [&](float (&gain)[kTokensOfThread]) {
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i) {
      const int token = thread_id() + i * kThreads;
      weight[i] = share[i] = 0.0f;
      if (token >= tokens) continue;
      float r = 1.0f;
      if (by.has_text) {
        r = ((do_differ ? similarity[image * tokens + token] - lowest : 0.0f) + kOffset) / span;
        if (by.exponent > 0.0f) r = expf(by.exponent * (r - 1.0f));
      }
      relevance[image * tokens + token] = r;
      weight[i] = r * r;
      share[i] = own[static_cast<size_t>(token) * tokens + token] > 0.5f ? 1.0f : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i) gain[i] = coarse(weight[i]) * share[i];
  };
  const auto step = [&](int round, int picked, float (&gain)[kTokensOfThread]) {
    // The picked token's own factors and share, for everyone.
    if (picked % kThreads == thread_id()) {
#pragma unroll
      for (int i = 0; i < kTokensOfThread; ++i)
        if (picked / kThreads == i) column[keep] = 1.0f / sqrtf(fmaxf(share[i], kSpanned));
    }
    for (int i = thread_id(); i < round; i += kThreads) column[i] = factors[static_cast<size_t>(i) * tokens + picked];
    __syncthreads();
    const float* row = own + static_cast<size_t>(picked) * tokens;
    const float inverse = column[keep];
#pragma unroll
    for (int i = 0; i < kTokensOfThread; ++i) {
      const int token = thread_id() + i * kThreads;
      if (token >= tokens) continue;
      float inside = 0.0f;
#pragma unroll 8
      for (int k = 0; k < round; ++k)
        inside = fmaf(column[k], factors[static_cast<size_t>(k) * tokens + token], inside);
      const float factor = (row[token] - inside) * inverse;
      factors[static_cast<size_t>(round) * tokens + token] = factor;
      share[i] -= factor * factor;
    }
    gains(gain);
    // Others read this round's factors, and write `column`, behind the barrier of the next pick.
  };
  pick(tokens, keep, b.scratch, order + image * keep, b.taken, start, step);
  list_taken(b.taken, tokens, keep, b.sums, rows + image * keep);
}

struct Plan {
  int batch, tokens, width, keep;
  float *unit, *text, *partial, *cosine, *nearest, *direction, *factors, *relevance;
  int64_t* order;
  int* rows;
  size_t bytes;
};

Plan plan_of(const vtx_sizes& sizes, const vtx_cdpruner* cdpruner, void* base) {
  Workspace space(base);
  Plan p = {};
  p.batch = sizes.batch;
  p.tokens = sizes.grid_rows * sizes.grid_columns;
  p.width = sizes.width;
  p.keep = sizes.keep;
  const size_t batch = p.batch, all = batch * p.tokens;
  p.unit = space.take<float>(all * p.width);
  p.partial = space.take<float>(gram_partial_count(p.batch, p.tokens, p.width));
  p.cosine = space.take<float>(all * p.tokens);
  p.nearest = space.take<float>(all);
  p.order = space.take<int64_t>(batch * p.keep);
  p.rows = space.take<int>(batch * p.keep);
  if (cdpruner) {
    const bool has_text = cdpruner->relevance_of != VTX_RELEVANCE_NONE;
    const size_t embedding = has_text ? sizes.embedding_width : 0;
    // The unit rows of image_embeds take turns with those of the text.
    const size_t text_rows = has_text ? sizes.text_tokens : 0;
    const size_t image_rows = cdpruner->relevance_of == VTX_RELEVANCE_CLIP ? p.tokens : 0;
    p.text = space.take<float>(batch * larger(text_rows, image_rows) * embedding);
    p.direction = space.take<float>(batch * embedding);
    p.factors = space.take<float>(all * p.keep);
    p.relevance = space.take<float>(all);
  }
  p.bytes = space.used();
  return p;
}

Plan plan_of_divprune(const vtx_sizes& sizes, void* base) { return plan_of(sizes, nullptr, base); }

Plan plan_of(const vtx_sizes& sizes, const vtx_cdpruner& parameters, void* base) {
  return plan_of(sizes, &parameters, base);
}

vtx_status enqueue_divprune(const Plan& p, const vtx_sizes& sizes, const vtx_tensors& tensors, vtx_stream stream) {
  VTX_TRY(unit_rows(Rows{tensors.features, sizes.dtype, p.batch, 0, p.tokens, p.width}, p.unit, stream));
  VTX_TRY(gram(p.unit, p.batch, p.tokens, p.width, p.partial, p.cosine, nullptr, stream));
  VTX_TRY(launch(nearest_other, Grid{divide_up(p.tokens, 8), p.batch}, 256, 0, stream, false, p.cosine, p.tokens,
                 p.nearest));
  VTX_TRY(launch(farthest, Grid{p.batch, 1}, kThreads, board_bytes(p.tokens), stream, false, p.cosine, p.nearest,
                 p.tokens, p.keep, p.order, p.rows));
  VTX_TRY(gather_rows(tensors.features, sizes.dtype, p.batch, p.tokens, p.width, p.rows, p.keep, 0,
                      tensors.kept_features, tensors.keep_indices, stream));
  return report(p.order, p.batch * p.keep, tensors.order, stream);
}

vtx_status enqueue(const Plan& p, const vtx_sizes& sizes, const vtx_cdpruner& by, const vtx_tensors& tensors,
                   vtx_stream stream) {
  VTX_TRY(unit_rows(Rows{tensors.features, sizes.dtype, p.batch, 0, p.tokens, p.width}, p.unit, stream));
  VTX_TRY(gram(p.unit, p.batch, p.tokens, p.width, p.partial, p.cosine, nullptr, stream));
  const bool has_text = by.relevance_of != VTX_RELEVANCE_NONE;
  if (has_text) {
    // The mean of the cosines to every text row is the product with the mean of their unit vectors.
    const int width = sizes.embedding_width;
    VTX_TRY(unit_rows(Rows{tensors.text_embeds, VTX_FLOAT32, p.batch, 0, sizes.text_tokens, width}, p.text, stream));
    VTX_TRY(column_means(p.text, p.batch, sizes.text_tokens, width, p.direction, stream));
    const float* compared = p.unit;
    if (by.relevance_of == VTX_RELEVANCE_CLIP) {
      VTX_TRY(unit_rows(Rows{tensors.image_embeds, VTX_FLOAT32, p.batch, 0, p.tokens, width}, p.text, stream));
      compared = p.text;
    }
    VTX_TRY(launch(similarity_to, Grid{divide_up(p.tokens, 8), p.batch}, 256, 0, stream, false, compared, p.direction,
                   p.tokens, width, by.negate != 0, p.nearest));
  }
  const Relevance relevance = {has_text, by.theta > 0.0f ? by.theta / (2.0f * (1.0f - by.theta)) : 0.0f};
  const size_t shared = board_bytes(p.tokens) + (p.keep + 1) * sizeof(float);
  VTX_TRY(launch(most_diverse, Grid{p.batch, 1}, kThreads, shared, stream, false, p.cosine, p.nearest, relevance,
                 p.tokens, p.keep, p.factors, p.relevance, p.order, p.rows));
  VTX_TRY(gather_rows(tensors.features, sizes.dtype, p.batch, p.tokens, p.width, p.rows, p.keep, 0,
                      tensors.kept_features, tensors.keep_indices, stream));
  VTX_TRY(report(p.order, p.batch * p.keep, tensors.order, stream));
  return report(p.relevance, p.batch * p.tokens, tensors.relevance, stream);
}

}  // namespace greedy_kernels
}  // namespace vtx

using namespace vtx::greedy_kernels;

VTX_CUDA_OP_WITHOUT_PARAMETERS(divprune, vtx_sizes, vtx_tensors, plan_of_divprune, enqueue_divprune)
VTX_CUDA_OP(cdpruner, vtx_sizes, vtx_tensors)
