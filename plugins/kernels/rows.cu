// Rows made ready for products: as float, at norm 1, through the sigmoid, centred.
#include "parts.cuh"

namespace vtx {
namespace rows_kernels {

constexpr int kThreads = 128;  // a warp a row
constexpr int kRowsOfBlock = kThreads / kWarp;

__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ float inverse_norm(const void* data, size_t start, int width, vtx_dtype type) {
  float square = 0.0f;
  for (int d = lane_id(); d < width; d += kWarp) {
    const float x = load(data, start + d, type);
    square += x * x;
  }
  return 1.0f / sqrtf(fmaxf(warp_sum(square), kTiny));
}

__global__ void __launch_bounds__(kThreads)
    prepare(Rows rows, bool center_rows, float* __restrict__ y, float* __restrict__ unit) {
  const int row = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  if (row >= rows.rows) return;
  const size_t image = blockIdx.y, width = rows.width;
  const size_t from = (image * (rows.skip + rows.rows) + rows.skip + row) * width;
  const size_t to = (image * rows.rows + row) * width;
  const float inverse = inverse_norm(rows.data, from, rows.width, rows.type);
  float mean = 0.0f;
  if (y && center_rows) {
    for (int d = lane_id(); d < rows.width; d += kWarp) mean += sigmoid(load(rows.data, from + d, rows.type));
    mean = warp_sum(mean) / static_cast<float>(rows.width);
  }
  for (int d = lane_id(); d < rows.width; d += kWarp) {
    const float x = load(rows.data, from + d, rows.type);
    if (y) y[to + d] = sigmoid(x) - mean;
    unit[to + d] = x * inverse;
  }
}

__global__ void __launch_bounds__(kThreads)
    convert(Rows rows, const int* __restrict__ chosen, int source_rows, float* __restrict__ y) {
  const int row = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  if (row >= rows.rows) return;
  const size_t image = blockIdx.y, width = rows.width;
  const size_t source = chosen ? chosen[image * rows.rows + row] : row;
  const size_t from = (image * (rows.skip + source_rows) + rows.skip + source) * width;
  const size_t to = (image * rows.rows + row) * width;
  for (int d = lane_id(); d < rows.width; d += kWarp) y[to + d] = load(rows.data, from + d, rows.type);
}

constexpr int kColumns = 32;
constexpr int kSumThreads = 512;

// A block sums 32 columns, every warp some of the rows.
__global__ void __launch_bounds__(kSumThreads)
    mean_of_columns(const float* __restrict__ y, int rows, int width, float* __restrict__ means) {
  VTX_SHARED(shared);
  double* sums = reinterpret_cast<double*>(shared);  // [warps, 32]
  const int column = static_cast<int>(blockIdx.x) * kColumns + lane_id();
  const size_t image = blockIdx.y;
  double sum = 0.0;
  if (column < width)
    for (int row = warp_id(); row < rows; row += kSumThreads / kWarp) sum += y[(image * rows + row) * width + column];
  sums[thread_id()] = sum;
  __syncthreads();
  if (warp_id() == 0 && column < width) {
    for (int warp = 1; warp < kSumThreads / kWarp; ++warp) sum += sums[warp * kWarp + lane_id()];
    means[image * width + column] = static_cast<float>(sum / rows);
  }
}

__global__ void __launch_bounds__(kThreads)
    subtract(float* __restrict__ y, const float* __restrict__ means, int rows, int width) {
  const int row = static_cast<int>(blockIdx.x) * kRowsOfBlock + warp_id();
  if (row >= rows) return;
  const size_t image = blockIdx.y;
  for (int d = lane_id(); d < width; d += kWarp) y[(image * rows + row) * width + d] -= means[image * width + d];
}

}  // namespace rows_kernels

using namespace rows_kernels;

vtx_status unit_rows(const Rows& rows, float* unit, vtx_stream stream) {
  return launch(prepare, Grid{divide_up(rows.rows, kRowsOfBlock), rows.batch}, kThreads, 0, stream, false, rows, false,
                static_cast<float*>(nullptr), unit);
}

vtx_status sigmoid_and_unit_rows(const Rows& rows, bool center_rows, float* y, float* unit, vtx_stream stream) {
  return launch(prepare, Grid{divide_up(rows.rows, kRowsOfBlock), rows.batch}, kThreads, 0, stream, false, rows,
                center_rows, y, unit);
}

vtx_status float_rows(const Rows& rows, const int* chosen, int source_rows, float* y, vtx_stream stream) {
  return launch(convert, Grid{divide_up(rows.rows, kRowsOfBlock), rows.batch}, kThreads, 0, stream, false, rows, chosen,
                source_rows, y);
}

vtx_status column_means(const float* y, int batch, int rows, int width, float* means, vtx_stream stream) {
  return launch(mean_of_columns, Grid{divide_up(width, kColumns), batch}, kSumThreads, kSumThreads * sizeof(double),
                stream, false, y, rows, width, means);
}

vtx_status center_columns(float* y, int batch, int rows, int width, float* sums, vtx_stream stream) {
  VTX_TRY(column_means(y, batch, rows, width, sums, stream));
  return launch(subtract, Grid{divide_up(rows, kRowsOfBlock), batch}, kThreads, 0, stream, false, y, sums, rows, width);
}

}  // namespace vtx
