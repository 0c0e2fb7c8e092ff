// What the blocks of threads that share an image's eigenproblem have in common: their task, and products of their rows.
#pragma once

#include "parts.cuh"

namespace vtx {
namespace eigen_kernels {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 24;     // of a tile of a product
constexpr int kColumns = 32;  // of a tile
constexpr int kRowsOfLane = 6, kColumnsOfLane = 4;
constexpr int kDepth = 192;  // summands staged at a time
constexpr int kPitch = kRows + 2;
constexpr int kSharedBlock = 80;      // up to here the small matrices lie in shared memory: 3 x 80 x 80 floats
constexpr int kSharedInside = 64;     // up to here two of them lie there beside a product
constexpr int kOversampling = 16;     // vectors beyond the wanted ones; they set the rate of convergence
constexpr int kParts = 3;             // matrices that a member adds its rows' part to
constexpr int kMostCorrections = 40;  // nearly equal eigenvalues took 26, features like a tower's 6 at most
constexpr float kResidual = 1e-6f;    // of the largest eigenvalue
constexpr float kSettled = 3e-7f;     // the same for one vector, which is then left as it is: near float32's rounding
constexpr float kWideRange = 1e5f;    // of the largest eigenvalue over half of the block's smallest
constexpr size_t kMostPartial = size_t{1} << 22;
constexpr size_t kProductShared =
    larger<size_t>((kDepth * kColumns + kDepth * kPitch) * sizeof(float), kWarps * kRows * kColumns * sizeof(float));

// What one block of threads works on: rows [first, last) of one image.
struct Task {
  const float* gram;
  float scale;  // 1 / trace
  int tokens, block, count, members, member, first, last;
  float *x, *image, *c1, *c2, *own, *partial, *small, *squares, *values, *residual;
  float *point, *first_factor, *second_factor;  // [block], this block's own: coefficients of the corrections, 0 where a
                                                // vector needs none
  float* eigenvalue;                            // [block] there too, 0 for lost vectors
  float correction_scale;
  unsigned* arrived;
  unsigned round;

  __device__ void sync() { blocks_sync(arrived, members, round); }
  __device__ float* own_partial(int which) const {
    return partial + (static_cast<size_t>(member) * kParts + which) * block * block;
  }
};

// done(row, column, value) for the own rows of scale * gram * in; `in` [tokens, block] is complete.
template <class Done>
__device__ VTX_NOINLINE void times_gram(const Task& t, const float* in, unsigned char* shared, Done done) {
  float* xs = reinterpret_cast<float*>(shared);    // [kDepth, kColumns]
  float* gs = xs + kDepth * kColumns;              // [kDepth, kPitch]
  float* sums = reinterpret_cast<float*>(shared);  // [kWarps, kRows, kColumns], when xs and gs are no longer needed
  const int row = lane_id() / (kColumns / kColumnsOfLane) * kRowsOfLane;
  const int column = lane_id() % (kColumns / kColumnsOfLane) * kColumnsOfLane;
  for (int row0 = t.first; row0 < t.last; row0 += kRows)
    for (int column0 = 0; column0 < t.block; column0 += kColumns) {
      float sum[kRowsOfLane][kColumnsOfLane] = {};
      for (int k0 = 0; k0 < t.tokens; k0 += kDepth) {
#pragma unroll
        for (int i = 0; i < kDepth * kColumns / 4 / kThreads; ++i) {
          const int e = thread_id() + i * kThreads, k = e / (kColumns / 4), c = e % (kColumns / 4) * 4;
          float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          if (k0 + k < t.tokens && column0 + c < t.block)
            value = __ldcg(reinterpret_cast<const float4*>(in + static_cast<size_t>(k0 + k) * t.block + column0 + c));
          *reinterpret_cast<float4*>(xs + k * kColumns + c) = value;
        }
#pragma unroll 3
        for (int i = 0; i < kDepth * kRows / kThreads; ++i) {  // the matrix is symmetric: its columns for its rows
          const int e = thread_id() + i * kThreads, k = e / kRows, r = e % kRows;
          gs[k * kPitch + r] = k0 + k < t.tokens && row0 + r < t.last
                                   ? t.gram[static_cast<size_t>(k0 + k) * t.tokens + row0 + r] * t.scale
                                   : 0.0f;
        }
        __syncthreads();
#pragma unroll 2
        for (int k = warp_id(); k < kDepth; k += kWarps) {
          const float4 x = *reinterpret_cast<const float4*>(xs + k * kColumns + column);
          const float2* g = reinterpret_cast<const float2*>(gs + k * kPitch + row);
          const float2 g0 = g[0], g1 = g[1], g2 = g[2];
          const float left[kRowsOfLane] = {g0.x, g0.y, g1.x, g1.y, g2.x, g2.y};
#pragma unroll
          for (int i = 0; i < kRowsOfLane; ++i) {
            sum[i][0] = fmaf(left[i], x.x, sum[i][0]);
            sum[i][1] = fmaf(left[i], x.y, sum[i][1]);
            sum[i][2] = fmaf(left[i], x.z, sum[i][2]);
            sum[i][3] = fmaf(left[i], x.w, sum[i][3]);
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < kRowsOfLane; ++i)
        *reinterpret_cast<float4*>(sums + (warp_id() * kRows + row + i) * kColumns + column) =
            make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
      __syncthreads();
      for (int e = thread_id(); e < kRows * kColumns; e += kThreads) {
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) total += sums[warp * kRows * kColumns + e];
        const int r = row0 + e / kColumns, c = column0 + e % kColumns;
        if (r < t.last && c < t.block) done(r, c, total);
      }
      __syncthreads();
    }
}

// Rows that are staged at once: four arrays of them take less than 50 KB up to 3072 vectors.
__host__ __device__ constexpr int staged_rows(int block) {
  return block <= 128 ? kRows : larger(1, kRows * 128 / block);
}

// The own rows' part of aᵀ b into own_partial(which), on and above the diagonal; of all entries where `whole`.
__device__ void add_products(const Task& t, const float* a, const float* b, int which, int rows, bool first_rows,
                             bool whole) {
  float* out = t.own_partial(which);
  for (int e = thread_id(); e < t.block * t.block; e += kThreads) {
    const int i = e / t.block, j = e % t.block;
    if (i > j && !whole) continue;
    float sum = 0.0f;
    for (int r = 0; r < rows; ++r) sum = fmaf(a[r * t.block + i], b[r * t.block + j], sum);
    out[e] = first_rows ? sum : out[e] + sum;
  }
}

// Parts of xᵀ x, and of xᵀ image where there is an image.
__device__ VTX_NOINLINE void project(const Task& t, bool has_image, unsigned char* shared) {
  const int step = staged_rows(t.block);
  float* z = reinterpret_cast<float*>(shared);
  float* w = z + step * t.block;
  for (int row0 = t.first; row0 < t.last; row0 += step) {
    const int rows = smaller(step, t.last - row0);
    for (int e = thread_id(); e < rows * t.block; e += kThreads) {
      z[e] = t.x[static_cast<size_t>(row0) * t.block + e];
      if (has_image) w[e] = t.image[static_cast<size_t>(row0) * t.block + e];
    }
    __syncthreads();
    add_products(t, z, z, 0, rows, row0 == t.first, false);
    if (has_image) add_products(t, z, w, 1, rows, row0 == t.first, false);
    __syncthreads();
  }
}

}  // namespace eigen_kernels
}  // namespace vtx
