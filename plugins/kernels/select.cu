// Ranking, choosing and gathering of rows.
#include "parts.cuh"

namespace vtx {
namespace select_kernels {

constexpr int kThreads = 256;  // a warp a key

// A key's rank, or at its rank its number.
template <bool by_rank>
__global__ void __launch_bounds__(kThreads)
    count_smaller(const uint64_t* __restrict__ keys, int count, int* __restrict__ out) {
  const int own = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + warp_id();
  if (own >= count) return;
  const uint64_t* image = keys + static_cast<size_t>(blockIdx.y) * count;
  const uint64_t key = image[own];
  int smaller_keys = 0;
  for (int i = lane_id(); i < count; i += kWarp) smaller_keys += image[i] < key;
  smaller_keys = warp_sum(smaller_keys);
  out += static_cast<size_t>(blockIdx.y) * count;
  if (lane_id() == 0) out[by_rank ? smaller_keys : own] = by_rank ? own : smaller_keys;
}

__global__ void __launch_bounds__(kThreads)
    keys_of(const float* __restrict__ values, int count, uint64_t* __restrict__ keys) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (i >= count) return;
  const size_t at = static_cast<size_t>(blockIdx.y) * count + i;
  keys[at] = best_first(values[at], static_cast<unsigned>(i));
}

constexpr int kScanThreads = 1024;

__global__ void __launch_bounds__(kScanThreads)
    compact(const int* __restrict__ rank, int count, int keep, int* __restrict__ chosen) {
  VTX_SHARED(shared);
  int* sums = reinterpret_cast<int*>(shared);  // [warps]
  const size_t image = blockIdx.x;
  int before = 0;
  for (int start = 0; start < count; start += kScanThreads) {
    const int i = start + thread_id();
    const bool is_chosen = i < count && rank[image * count + i] < keep;
    const int earlier = before;
    const int place = earlier + place_among(is_chosen, sums, &before);
    if (is_chosen && place < keep) chosen[image * keep + place] = i;
  }
}

constexpr int kGatherThreads = 128;

__global__ void __launch_bounds__(kGatherThreads)
    gather(const unsigned char* __restrict__ features, int source_rows, int row_bytes, const int* __restrict__ chosen,
           int keep, int skip, unsigned char* __restrict__ kept, int64_t* __restrict__ indices) {
  const size_t image = blockIdx.y, place = image * keep + blockIdx.x;
  const int row = chosen[place];
  copy_row(features + (image * source_rows + row) * row_bytes, kept + place * row_bytes, row_bytes);
  if (thread_id() == 0) indices[place] = row - skip;
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads) copy_as(const From* __restrict__ from, int count, To* __restrict__ to) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread_id();
  if (i < count) to[i] = from[i];
}

template <class From, class To>
vtx_status copied(const From* from, int count, To* to, vtx_stream stream) {
  if (!to) return VTX_OK;
  return launch(copy_as<From, To>, Grid{divide_up(count, kThreads), 1}, kThreads, 0, stream, false, from, count, to);
}

}  // namespace select_kernels

using namespace select_kernels;

vtx_status report(const float* from, int count, float* to, vtx_stream stream) {
  return copied(from, count, to, stream);
}
vtx_status report(const int* from, int count, int64_t* to, vtx_stream stream) {
  return copied(from, count, to, stream);
}
vtx_status report(const int64_t* from, int count, int64_t* to, vtx_stream stream) {
  return copied(from, count, to, stream);
}

vtx_status ranks(const uint64_t* keys, int batch, int count, int* rank, vtx_stream stream) {
  return launch(count_smaller<false>, Grid{divide_up(count, kThreads / kWarp), batch}, kThreads, 0, stream, false, keys,
                count, rank);
}

vtx_status order_by_keys(const uint64_t* keys, int batch, int count, int* order, vtx_stream stream) {
  return launch(count_smaller<true>, Grid{divide_up(count, kThreads / kWarp), batch}, kThreads, 0, stream, false, keys,
                count, order);
}

vtx_status best_first_keys(const float* values, int batch, int count, uint64_t* keys, vtx_stream stream) {
  return launch(keys_of, Grid{divide_up(count, kThreads), batch}, kThreads, 0, stream, false, values, count, keys);
}

vtx_status chosen_ascending(const int* rank, int batch, int count, int keep, int* chosen, vtx_stream stream) {
  return launch(compact, Grid{batch, 1}, kScanThreads, kScanThreads / kWarp * sizeof(int), stream, false, rank, count,
                keep, chosen);
}

vtx_status gather_rows(const void* features, vtx_dtype type, int batch, int source_rows, int width, const int* chosen,
                       int keep, int skip, void* kept, int64_t* indices, vtx_stream stream) {
  return launch(gather, Grid{keep, batch}, kGatherThreads, 0, stream, false,
                static_cast<const unsigned char*>(features), source_rows, width * element_bytes(type), chosen, keep,
                skip, static_cast<unsigned char*>(kept), indices);
}

}  // namespace vtx
