// Products of float32 rows in float32, never in TF32: selections turn on their last bits.
//
// A tile of 64 x 64 results is computed by 256 threads, 4 x 4 each. Where there are too few tiles to fill a GPU, the
// sums are cut into parts, which a second kernel adds in a fixed order, so that the result is the same in every run.
// How they are cut depends on the matrix alone and not on the batch.
#include "parts.cuh"

namespace vtx {
namespace gram_kernels {

constexpr int kThreads = 256;
constexpr int kSide = 4;    // results of a thread: kSide x kSide
constexpr int kDepth = 16;  // summands staged at a time
constexpr int kPitch = kTile + 4;
constexpr int kWanted = 128;  // blocks that fill a large GPU
constexpr size_t kShared = 2 * kDepth * kPitch * sizeof(float);

// The tile on or above the diagonal with this number, row by row.
__device__ void upper_tile(int number, int tiles_a_side, int* row, int* column) {
  int r = 0;
  while (number >= tiles_a_side - r) {
    number -= tiles_a_side - r;
    ++r;
  }
  *row = r;
  *column = r + number;
}

// sum[4][4] of this thread over summands [from, until): a(row, k) b(column, k) for the tile's rows and columns.
template <class A, class B>
__device__ void tile_product(int from, int until, A a, B b, float (&sum)[kSide][kSide]) {
  VTX_SHARED(shared);
  float* left = reinterpret_cast<float*>(shared);  // [kDepth, kPitch]
  float* right = left + kDepth * kPitch;
  const int row = thread_id() / (kTile / kSide) * kSide, column = thread_id() % (kTile / kSide) * kSide;
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j) sum[i][j] = 0.0f;
  constexpr int kEach = kDepth * kTile / kThreads;
  float next_left[kEach], next_right[kEach];
  const auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int k = a.depth(thread_id() + i * kThreads), r = a.place(thread_id() + i * kThreads);
      next_left[i] = k0 + k < until ? a(r, k0 + k) : 0.0f;
      const int l = b.depth(thread_id() + i * kThreads), c = b.place(thread_id() + i * kThreads);
      next_right[i] = k0 + l < until ? b(c, k0 + l) : 0.0f;
    }
  };
  fetch(from);
  for (int k0 = from; k0 < until; k0 += kDepth) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      left[a.depth(thread_id() + i * kThreads) * kPitch + a.place(thread_id() + i * kThreads)] = next_left[i];
      right[b.depth(thread_id() + i * kThreads) * kPitch + b.place(thread_id() + i * kThreads)] = next_right[i];
    }
    __syncthreads();
    if (k0 + kDepth < until) fetch(k0 + kDepth);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const float4 u = *reinterpret_cast<const float4*>(left + k * kPitch + row);
      const float4 v = *reinterpret_cast<const float4*>(right + k * kPitch + column);
      const float us[kSide] = {u.x, u.y, u.z, u.w}, vs[kSide] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < kSide; ++i)
#pragma unroll
        for (int j = 0; j < kSide; ++j) sum[i][j] = fmaf(us[i], vs[j], sum[i][j]);
    }
    __syncthreads();
  }
}

// Rows of a matrix whose sums run along the row: neighbouring threads read neighbouring summands.
struct AlongRows {
  const float* data;
  const int* list;  // which row, or NULL
  int first, count, width;
  __device__ static int depth(int i) { return i % kDepth; }
  __device__ static int place(int i) { return i / kDepth; }
  __device__ float operator()(int r, int k) const {
    if (first + r >= count) return 0.0f;
    const size_t row = list ? list[first + r] : first + r;
    return data[row * width + k];
  }
};

// Columns of rows, whose sums run across the rows: neighbouring threads read neighbouring columns.
struct AcrossRows {
  Rows rows;
  int image, first;
  __device__ static int depth(int i) { return i / kTile; }
  __device__ static int place(int i) { return i % kTile; }
  __device__ float operator()(int c, int k) const {
    if (first + c >= rows.width) return 0.0f;
    const size_t row = static_cast<size_t>(image) * (rows.skip + rows.rows) + rows.skip + k;
    return load(rows.data, row * rows.width + first + c, rows.type);
  }
};

__device__ void write_tile(const float (&sum)[kSide][kSide], float* tile) {
  const int row = thread_id() / (kTile / kSide) * kSide, column = thread_id() % (kTile / kSide) * kSide;
#pragma unroll
  for (int i = 0; i < kSide; ++i)
    *reinterpret_cast<float4*>(tile + (row + i) * kTile + column) =
        make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
}

__device__ int part_of(int split, int splits, int width) {
  return static_cast<int>(static_cast<int64_t>(width) * split / splits);
}

__global__ void __launch_bounds__(kThreads)
    gram_parts(const float* __restrict__ y, int rows, int width, int splits, float* __restrict__ partial) {
  const int side = divide_up(rows, kTile), tiles = side * (side + 1) / 2;
  const int split = static_cast<int>(blockIdx.x) / tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  int row, column;
  upper_tile(tile, side, &row, &column);
  const float* own = y + static_cast<size_t>(blockIdx.y) * rows * width;
  float sum[kSide][kSide];
  tile_product(part_of(split, splits, width), part_of(split + 1, splits, width),
               AlongRows{own, nullptr, row * kTile, rows, width}, AlongRows{own, nullptr, column * kTile, rows, width},
               sum);
  write_tile(sum, partial + ((static_cast<size_t>(blockIdx.y) * splits + split) * tiles + tile) * kTile * kTile);
}

// Adds the parts of a tile, and writes it and its mirror image.
__global__ void __launch_bounds__(kThreads) gram_sum(const float* __restrict__ partial, int rows, int splits,
                                                     float* __restrict__ gram, double* __restrict__ tile_sums) {
  VTX_SHARED(shared);
  float* mirror = reinterpret_cast<float*>(shared);  // [kTile, kTile + 1]
  double* sums = reinterpret_cast<double*>(mirror + kTile * (kTile + 1));
  const int side = divide_up(rows, kTile), tiles = side * (side + 1) / 2, tile = static_cast<int>(blockIdx.x);
  int row, column;
  upper_tile(tile, side, &row, &column);
  float* own = gram + static_cast<size_t>(blockIdx.y) * rows * rows;
  double above = 0.0;
  for (int i = thread_id(); i < kTile * kTile; i += kThreads) {
    float value = 0.0f;
    for (int split = 0; split < splits; ++split)
      value += partial[((static_cast<size_t>(blockIdx.y) * splits + split) * tiles + tile) * kTile * kTile + i];
    const int r = i / kTile, c = i % kTile;
    const int to_row = row * kTile + r, to_column = column * kTile + c;
    mirror[c * (kTile + 1) + r] = value;
    if (to_row < rows && to_column < rows) {
      own[static_cast<size_t>(to_row) * rows + to_column] = value;
      if (to_row < to_column) above += value;
    }
  }
  __syncthreads();
  if (row != column)
    for (int i = thread_id(); i < kTile * kTile; i += kThreads) {
      const int to_row = column * kTile + i / kTile, to_column = row * kTile + i % kTile;
      if (to_row < rows && to_column < rows)
        own[static_cast<size_t>(to_row) * rows + to_column] = mirror[i / kTile * (kTile + 1) + i % kTile];
    }
  if (tile_sums) {
    above = block_sum(above, sums);
    if (thread_id() == 0) tile_sums[static_cast<size_t>(blockIdx.y) * tiles + tile] = above;
  }
}

__global__ void __launch_bounds__(kThreads)
    rows_parts(const float* __restrict__ b, const int* __restrict__ a_rows, int m, int n, int width, int splits,
               float* __restrict__ partial) {
  const int down = divide_up(m, kTile), across = divide_up(n, kTile), tiles = down * across;
  const int split = static_cast<int>(blockIdx.x) / tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  const float* own = b + static_cast<size_t>(blockIdx.y) * n * width;
  float sum[kSide][kSide];
  tile_product(part_of(split, splits, width), part_of(split + 1, splits, width),
               AlongRows{own, a_rows + static_cast<size_t>(blockIdx.y) * m, tile / across * kTile, m, width},
               AlongRows{own, nullptr, tile % across * kTile, n, width}, sum);
  write_tile(sum, partial + ((static_cast<size_t>(blockIdx.y) * splits + split) * tiles + tile) * kTile * kTile);
}

__global__ void __launch_bounds__(kThreads)
    weighted_parts(const float* __restrict__ a, Rows b, int m, int splits, float* __restrict__ partial) {
  const int down = divide_up(m, kTile), across = divide_up(b.width, kTile), tiles = down * across;
  const int split = static_cast<int>(blockIdx.x) / tiles, tile = static_cast<int>(blockIdx.x) % tiles;
  float sum[kSide][kSide];
  tile_product(part_of(split, splits, b.rows), part_of(split + 1, splits, b.rows),
               AlongRows{a + static_cast<size_t>(blockIdx.y) * m * b.rows, nullptr, tile / across * kTile, m, b.rows},
               AcrossRows{b, static_cast<int>(blockIdx.y), tile % across * kTile}, sum);
  write_tile(sum, partial + ((static_cast<size_t>(blockIdx.y) * splits + split) * tiles + tile) * kTile * kTile);
}

__global__ void __launch_bounds__(kThreads)
    parts_sum(const float* __restrict__ partial, int m, int n, int splits, float* __restrict__ c) {
  const int across = divide_up(n, kTile), tiles = divide_up(m, kTile) * across, tile = static_cast<int>(blockIdx.x);
  for (int i = thread_id(); i < kTile * kTile; i += kThreads) {
    const int row = tile / across * kTile + i / kTile, column = tile % across * kTile + i % kTile;
    if (row >= m || column >= n) continue;
    float value = 0.0f;
    for (int split = 0; split < splits; ++split)
      value += partial[((static_cast<size_t>(blockIdx.y) * splits + split) * tiles + tile) * kTile * kTile + i];
    c[(static_cast<size_t>(blockIdx.y) * m + row) * n + column] = value;
  }
}

int splits_of(int tiles, int depth) { return larger(1, smaller(divide_up(kWanted, tiles), depth / (2 * kDepth))); }
int tiles_of(int m, int n) { return divide_up(m, kTile) * divide_up(n, kTile); }

}  // namespace gram_kernels

using namespace gram_kernels;

int gram_tiles(int rows) { return divide_up(rows, kTile) * (divide_up(rows, kTile) + 1) / 2; }
int gram_splits(int rows, int width) { return splits_of(gram_tiles(rows), width); }

size_t gram_partial_count(int batch, int rows, int width) {
  return static_cast<size_t>(batch) * gram_splits(rows, width) * gram_tiles(rows) * kTile * kTile;
}

vtx_status gram(const float* y, int batch, int rows, int width, float* partial, float* gram, double* tile_sums,
                vtx_stream stream) {
  const int splits = gram_splits(rows, width), tiles = gram_tiles(rows);
  VTX_TRY(launch(gram_parts, Grid{tiles * splits, batch}, kThreads, kShared, stream, false, y, rows, width, splits,
                 partial));
  const size_t shared = kTile * (kTile + 1) * sizeof(float) + kThreads / kWarp * sizeof(double);
  return launch(gram_sum, Grid{tiles, batch}, kThreads, shared, stream, false, static_cast<const float*>(partial), rows,
                splits, gram, tile_sums);
}

size_t product_partial_count(int batch, int m, int n, int width) {
  return static_cast<size_t>(batch) * tiles_of(m, n) * splits_of(tiles_of(m, n), width) * kTile * kTile;
}

vtx_status product_of_rows(const float* b, const int* a_rows, int batch, int m, int n, int width, float* partial,
                           float* c, vtx_stream stream) {
  const int tiles = tiles_of(m, n), splits = splits_of(tiles, width);
  VTX_TRY(launch(rows_parts, Grid{tiles * splits, batch}, kThreads, kShared, stream, false, b, a_rows, m, n, width,
                 splits, partial));
  return launch(parts_sum, Grid{tiles, batch}, kThreads, 0, stream, false, static_cast<const float*>(partial), m, n,
                splits, c);
}

vtx_status product_with_rows(const float* a, const Rows& b, int m, float* partial, float* c, vtx_stream stream) {
  const int tiles = tiles_of(m, b.width), splits = splits_of(tiles, b.rows);
  VTX_TRY(launch(weighted_parts, Grid{tiles * splits, b.batch}, kThreads, kShared, stream, false, a, b, m, splits,
                 partial));
  return launch(parts_sum, Grid{tiles, b.batch}, kThreads, 0, stream, false, static_cast<const float*>(partial), m,
                b.width, splits, c);
}

}  // namespace vtx
