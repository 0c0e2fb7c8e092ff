// VtxKeyNormTopK, VtxAttentionTopK and VtxTextSimilarityTopK (docs/ops/llm.md): the n' visual rows of the best scores.
#include "call.cuh"
#include "steps.cuh"

namespace vtx {
namespace steps_kernels {

constexpr int kThreads = 256;
constexpr int kRowsOfBlock = kThreads / kWarp;
constexpr float kMostNorm = 1e30f;

__global__ void __launch_bounds__(kThreads) norms(vtx_step_sizes sizes, const int64_t* __restrict__ start,
                                                  const void* __restrict__ keys, float* __restrict__ saliency) {
  const int token = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  if (token >= sizes.visual_count) return;
  const size_t row = visual_start_of(sizes, start) + token,
               width = static_cast<size_t>(sizes.key_heads) * sizes.head_dim;
  float square = 0.0f;
  for (int d = lane_id(); d < sizes.head_dim; d += kWarp) {
    float sum = 0.0f;
    for (int h = 0; h < sizes.key_heads; ++h)
      sum += load(keys, row * width + static_cast<size_t>(h) * sizes.head_dim + d, sizes.dtype);
    sum /= static_cast<float>(sizes.key_heads);
    square += sum * sum;
  }
  const float norm = sqrtf(warp_sum(square));
  if (lane_id() == 0) saliency[token] = norm < kMostNorm ? norm : kMostNorm;
}

__global__ void __launch_bounds__(128)
    copy_rows(vtx_step_sizes sizes, const int64_t* __restrict__ start, const unsigned char* __restrict__ from,
              const int* __restrict__ kept, int row_bytes, unsigned char* __restrict__ to, int64_t* __restrict__ rows) {
  const int64_t first = visual_start_of(sizes, start), place = blockIdx.x;
  const int64_t gone = sizes.visual_count - sizes.keep, among = place - first;
  const int64_t row = among < 0 ? place : among < sizes.keep ? first + kept[among] : place + gone;
  copy_row(from + row * row_bytes, to + place * row_bytes, row_bytes);
  if (thread_id() == 0) rows[place] = row;
}

__global__ void __launch_bounds__(kThreads)
    step_keys(const float* __restrict__ scores, int count, bool largest, uint64_t* __restrict__ keys) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (i >= count) return;
  const float value = scores[i];
  keys[i] = best_first(largest || !(value == value) ? value : -value, static_cast<unsigned>(i));
}

// logits [H, S] of the last row's query, scaled, from head `first_head` on.
__global__ void __launch_bounds__(kThreads) logits(vtx_step_sizes sizes, int first_head, const void* __restrict__ keys,
                                                   const void* __restrict__ query, float* __restrict__ out) {
  const int row = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  const int head = first_head + static_cast<int>(blockIdx.y);
  if (row >= sizes.rows) return;
  const size_t group = head / (sizes.query_heads / sizes.key_heads);
  const size_t key = (static_cast<size_t>(row) * sizes.key_heads + group) * sizes.head_dim;
  const size_t own = static_cast<size_t>(head) * sizes.head_dim;
  float sum = 0.0f;
  for (int d = lane_id(); d < sizes.head_dim; d += kWarp)
    sum += load(query, own + d, sizes.dtype) * load(keys, key + d, sizes.dtype);
  sum = warp_sum(sum);
  if (lane_id() == 0)
    out[static_cast<size_t>(head) * sizes.rows + row] = sum / sqrtf(static_cast<float>(sizes.head_dim));
}

// sums [H, 2]: a head's largest logit, and the sum of the exponentials above it.
__global__ void __launch_bounds__(kThreads)
    softmax_sums(const float* __restrict__ logit, int rows, float* __restrict__ sums) {
  VTX_SHARED(shared);
  const float* own = logit + static_cast<size_t>(blockIdx.x) * rows;
  float most = -INFINITY;
  for (int i = thread_id(); i < rows; i += kThreads) most = fmaxf(most, own[i]);
  float* scratch = reinterpret_cast<float*>(shared);
  for (int step = kWarp / 2; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
  if (lane_id() == 0) scratch[warp_id()] = most;
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarp; ++warp) most = fmaxf(most, scratch[warp]);
  __syncthreads();
  float sum = 0.0f;
  for (int i = thread_id(); i < rows; i += kThreads) sum += expf(own[i] - most);
  sum = block_sum(sum, scratch);
  if (thread_id() == 0) {
    sums[2 * blockIdx.x] = most;
    sums[2 * blockIdx.x + 1] = sum;
  }
}

__global__ void __launch_bounds__(kThreads)
    attention(vtx_step_sizes sizes, const int64_t* __restrict__ start, const float* __restrict__ logit,
              const float* __restrict__ sums, float* __restrict__ scores) {
  const int token = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  if (token >= sizes.visual_count) return;
  const size_t row = visual_start_of(sizes, start) + token;
  float sum = 0.0f;
  for (int h = lane_id(); h < sizes.query_heads; h += kWarp)
    sum += expf(logit[static_cast<size_t>(h) * sizes.rows + row] - sums[2 * h]) / sums[2 * h + 1];
  sum = warp_sum(sum);
  if (lane_id() == 0) scores[token] = sum / static_cast<float>(sizes.query_heads);
}

// mean [W] of the text's rows, in parts of the sequence that are added in order; zero where there is no text.
constexpr int kParts = 32;

__global__ void __launch_bounds__(kThreads) text_parts(vtx_step_sizes sizes, const int64_t* __restrict__ start,
                                                       const void* __restrict__ hidden, float* __restrict__ parts) {
  const int column = static_cast<int>(blockIdx.x) * kThreads + thread_id(), part = static_cast<int>(blockIdx.y);
  if (column >= sizes.width) return;
  const int64_t first = visual_start_of(sizes, start), end = first + sizes.visual_count;
  double sum = 0.0;
  for (int64_t row = part; row < sizes.rows; row += kParts) {
    if (row >= first && row < end) continue;
    sum += load(hidden, static_cast<size_t>(row) * sizes.width + column, sizes.dtype);
  }
  parts[static_cast<size_t>(part) * sizes.width + column] = static_cast<float>(sum);
}

__global__ void __launch_bounds__(kThreads)
    text_sum(int width, const float* __restrict__ parts, float* __restrict__ sum_out) {
  const int column = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (column >= width) return;
  double sum = 0.0;
  for (int part = 0; part < kParts; ++part) sum += parts[static_cast<size_t>(part) * width + column];
  sum_out[column] = static_cast<float>(sum);
}

// Cosines of the visual rows to the text's sum, which is as good as its mean.
__global__ void __launch_bounds__(kThreads)
    similarities(vtx_step_sizes sizes, const int64_t* __restrict__ start, const void* __restrict__ hidden,
                 const float* __restrict__ text, float* __restrict__ scores) {
  const int token = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  if (token >= sizes.visual_count) return;
  const size_t row = (visual_start_of(sizes, start) + token) * sizes.width;
  float product = 0.0f, square = 0.0f, text_square = 0.0f;
  const float by = 1.0f / static_cast<float>(larger(1, sizes.rows - sizes.visual_count));
  for (int d = lane_id(); d < sizes.width; d += kWarp) {
    const float x = load(hidden, row + d, sizes.dtype), t = text[d] * by;
    product += x * t;
    square += x * x;
    text_square += t * t;
  }
  product = warp_sum(product);
  square = fmaxf(warp_sum(square), kTiny);
  text_square = fmaxf(warp_sum(text_square), kTiny);
  if (lane_id() == 0) scores[token] = product / sqrtf(square) / sqrtf(text_square);
}

struct Plan {
  float *scores, *logits, *sums, *parts, *text;
  uint64_t* keys;
  int *rank, *kept;
  size_t bytes;
};

Plan plan_of(const vtx_step_sizes& sizes, bool attends, bool reads_text, void* base) {
  Workspace space(base);
  Plan p = {};
  p.scores = space.take<float>(sizes.visual_count);
  p.keys = space.take<uint64_t>(sizes.visual_count);
  p.rank = space.take<int>(sizes.visual_count);
  p.kept = space.take<int>(sizes.keep);
  if (attends) {
    p.logits = space.take<float>(static_cast<size_t>(sizes.query_heads) * sizes.rows);
    p.sums = space.take<float>(2 * static_cast<size_t>(sizes.query_heads));
  }
  if (reads_text) {
    p.parts = space.take<float>(static_cast<size_t>(kParts) * sizes.width);
    p.text = space.take<float>(sizes.width);
  }
  p.bytes = space.used();
  return p;
}

vtx_status keep_best(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, const Plan& p, bool largest,
                     vtx_stream stream) {
  VTX_TRY(launch(step_keys, Grid{divide_up(sizes.visual_count, kThreads), 1}, kThreads, 0, stream, false, p.scores,
                 sizes.visual_count, largest, p.keys));
  VTX_TRY(ranks(p.keys, 1, sizes.visual_count, p.rank, stream));
  VTX_TRY(chosen_ascending(p.rank, 1, sizes.visual_count, sizes.keep, p.kept, stream));
  VTX_TRY(splice(sizes, tensors, p.kept, stream));
  return report(p.scores, sizes.visual_count, tensors.saliency, stream);
}

}  // namespace steps_kernels

using namespace steps_kernels;

vtx_status key_norms(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, float* saliency, vtx_stream stream) {
  return launch(norms, Grid{divide_up(sizes.visual_count, kRowsOfBlock), 1}, kThreads, 0, stream, false, sizes,
                tensors.visual_start, tensors.keys, saliency);
}

vtx_status splice(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors, const int* kept, vtx_stream stream) {
  return launch(copy_rows, Grid{sizes.rows - sizes.visual_count + sizes.keep, 1}, 128, 0, stream, false, sizes,
                tensors.visual_start, static_cast<const unsigned char*>(tensors.hidden_states), kept,
                sizes.width * element_bytes(sizes.dtype), static_cast<unsigned char*>(tensors.hidden_states_out),
                tensors.out_rows);
}

namespace steps_kernels {

Plan plan_of_key_norm_topk(const vtx_step_sizes& sizes, void* base) { return plan_of(sizes, false, false, base); }

vtx_status enqueue_key_norm_topk(const Plan& p, const vtx_step_sizes& sizes, const vtx_step_tensors& tensors,
                                 vtx_stream stream) {
  VTX_TRY(key_norms(sizes, tensors, p.scores, stream));
  return keep_best(sizes, tensors, p, false, stream);
}

Plan plan_of_attention_topk(const vtx_step_sizes& sizes, void* base) { return plan_of(sizes, true, false, base); }

vtx_status enqueue_attention_topk(const Plan& p, const vtx_step_sizes& sizes, const vtx_step_tensors& tensors,
                                  vtx_stream stream) {
  for (int first = 0; first < sizes.query_heads; first += kMostGridY) {  // once, but for 65,536 heads of width 1
    const Grid heads = {divide_up(sizes.rows, kRowsOfBlock), smaller(sizes.query_heads - first, kMostGridY)};
    VTX_TRY(launch(logits, heads, kThreads, 0, stream, false, sizes, first, tensors.keys, tensors.query, p.logits));
  }
  VTX_TRY(launch(softmax_sums, Grid{sizes.query_heads, 1}, kThreads, kRowsOfBlock * sizeof(float), stream, false,
                 p.logits, sizes.rows, p.sums));
  VTX_TRY(launch(attention, Grid{divide_up(sizes.visual_count, kRowsOfBlock), 1}, kThreads, 0, stream, false, sizes,
                 tensors.visual_start, p.logits, p.sums, p.scores));
  return keep_best(sizes, tensors, p, true, stream);
}

Plan plan_of_text_similarity_topk(const vtx_step_sizes& sizes, void* base) { return plan_of(sizes, false, true, base); }

vtx_status enqueue_text_similarity_topk(const Plan& p, const vtx_step_sizes& sizes, const vtx_step_tensors& tensors,
                                        vtx_stream stream) {
  const int columns = divide_up(sizes.width, kThreads);
  VTX_TRY(launch(text_parts, Grid{columns, kParts}, kThreads, 0, stream, false, sizes, tensors.visual_start,
                 tensors.hidden_states, p.parts));
  VTX_TRY(launch(text_sum, Grid{columns, 1}, kThreads, 0, stream, false, sizes.width, p.parts, p.text));
  VTX_TRY(launch(similarities, Grid{divide_up(sizes.visual_count, kRowsOfBlock), 1}, kThreads, 0, stream, false, sizes,
                 tensors.visual_start, tensors.hidden_states, p.text, p.scores));
  return keep_best(sizes, tensors, p, true, stream);
}

}  // namespace steps_kernels
}  // namespace vtx

using namespace vtx::steps_kernels;

VTX_CUDA_OP_WITHOUT_PARAMETERS(key_norm_topk, vtx_step_sizes, vtx_step_tensors, plan_of_key_norm_topk,
                               enqueue_key_norm_topk)
VTX_CUDA_OP_WITHOUT_PARAMETERS(attention_topk, vtx_step_sizes, vtx_step_tensors, plan_of_attention_topk,
                               enqueue_attention_topk)
VTX_CUDA_OP_WITHOUT_PARAMETERS(text_similarity_topk, vtx_step_sizes, vtx_step_tensors, plan_of_text_similarity_topk,
                               enqueue_text_similarity_topk)
