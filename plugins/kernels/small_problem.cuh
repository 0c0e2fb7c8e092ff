// The projected eigenproblem of a block of vectors, solved by one block of threads: Cholesky-like elimination makes the
// vectors orthonormal, Jacobi rotations make their projection diagonal.
#pragma once

#include "device.cuh"

namespace vtx {

// Of a column of norm 1: below, it depends on those before it. What rounding did to the image grows as the pivot
// shrinks.
constexpr float kLeastPivot = 1e-5f, kLeastPivotWithImage = 1e-3f;
constexpr int kMostSweeps = 12;
constexpr int kScratch = 36;  // floats

// Shared memory: three numbers a vector, a turn for every two, and up to `shared_block` vectors the matrices.
constexpr size_t small_problem_shared(int block, int shared_block) {
  const size_t n = block;
  return ((n <= static_cast<size_t>(shared_block) ? 3 * n * n : 0) + 5 * n + kScratch) * sizeof(float);
}

// The pair number `pair` of round `round` when `n` (even) players all meet each other once.
__device__ inline void pair_of_round(int n, int round, int pair, int* p, int* q) {
  const int others = n - 1;
  int a = pair == 0 ? n - 1 : round + pair, b = pair == 0 ? round : round - pair;
  if (pair) {
    a = a >= others ? a - others : a;
    b = b < 0 ? b + others : b;
  }
  *p = smaller(a, b);
  *q = larger(a, b);
}

// A rotation of rows p and q.
struct alignas(16) Turn {
  float cosine, sine, tangent;
  short p, q;
};

// The rotation that makes [[pp, pq], [pq, qq]] diagonal. Its angle need not do so to the last bit, since the next sweep
// finds what is left, so that the quick reciprocals will do: on them a round of rotations waits. But it has to be a
// rotation: what cosine and sine lack of it grows with every round, so the cosine gets a step of Newton's method.
__device__ inline void set_turn(Turn& turn, float pp, float qq, float pq, float least) {
  turn.cosine = 1.0f;
  turn.sine = turn.tangent = 0.0f;
  if (!(fabsf(pq) > least)) return;
  const float theta = __fdividef(qq - pp, 2.0f * pq);
  const float square = fmaf(theta, theta, 1.0f);
  turn.tangent = __fdividef(copysignf(1.0f, theta), fabsf(theta) + square * rsqrtf(square));
  const float secant_square = fmaf(turn.tangent, turn.tangent, 1.0f), quick = rsqrtf(secant_square);
  turn.cosine = fmaf(0.5f * quick, fmaf(-secant_square * quick, quick, 1.0f), quick);
  turn.sine = turn.tangent * turn.cosine;
}

// From the parts of m = zᵀ z and, where `has_image`, h = zᵀ w of block x block (on and above the diagonal, summed over
// `members`, the first two of `parts` matrices each) to the rotation [block, block] with which z becomes orthonormal
// and h diagonal, columns by descending eigenvalue, and `values` [block]: the eigenvalues, 1 without an image, -1 for
// columns that depended on the others, whose rotation is 0. `angle`: sweeps end when no rotation had a larger tangent.
// `work` holds 4 x block x block floats in global memory, the rotation first.
__device__ VTX_NOINLINE inline void solve_small(const float* partial, int members, int parts, int block, bool has_image,
                                                float angle, float* work, float* values, unsigned char* shared,
                                                int shared_block) {
  // A warp has rows, its lanes their entries: no thread divides by the number of vectors.
  const int size = block * block, threads = thread_count(), n = block, warps = threads / kWarp;
  const bool fits = block <= shared_block;
  float* scale = reinterpret_cast<float*>(shared);   // [n]
  float* pivot = scale + n;                          // [n]: 1 / sqrt of the pivot, 0 for a dependent column
  float* place = pivot + n;                          // [n]
  Turn* turns = reinterpret_cast<Turn*>(place + n);  // [n / 2]
  float* largest = place + 3 * n;                    // [1]
  int* sums = reinterpret_cast<int*>(largest + 1);   // [warps]
  float* matrices = fits ? scale + 5 * n + kScratch : work + size;
  float *m = matrices, *h = m + size, *v = h + size;  // rows of v are vectors

  for (int e = 4 * thread_id(); e < size; e += 4 * threads) {
    const int i = e / n, j = e % n;  // and the three behind it, in the same row
    if (i > j + 3) continue;
    float4 a = make_float4(0.0f, 0.0f, 0.0f, 0.0f), b = a;
#pragma unroll 8
    for (int member = 0; member < members; ++member) {
      const float* part = partial + static_cast<size_t>(member) * parts * size + e;
      add_to(a, __ldcg(reinterpret_cast<const float4*>(part)));
      if (has_image) add_to(b, __ldcg(reinterpret_cast<const float4*>(part + size)));
    }
    const float as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (i > j + k) continue;
      m[e + k] = m[(j + k) * n + i] = as[k];
      h[e + k] = h[(j + k) * n + i] = bs[k];
    }
  }
  __syncthreads();
  for (int i = thread_id(); i < n; i += threads) scale[i] = 1.0f / sqrtf(fmaxf(m[i * n + i], kTiny));
  __syncthreads();
  for (int i = warp_id(); i < n; i += warps)
    for (int k = lane_id(); k < n; k += kWarp) {
      const float by = scale[i] * scale[k];
      m[i * n + k] *= by;
      h[i * n + k] *= by;
      v[i * n + k] = i == k ? scale[i] : 0.0f;
    }
  __syncthreads();

  // Elimination from the left: m = L D Lᵀ, h <- L⁻¹ h, v <- L⁻¹ v. L⁻¹ has nothing above the diagonal, so there L lies,
  // by columns.
  for (int j = 0; j < n; ++j) {
    const float diagonal = m[j * n + j];
    const bool independent = diagonal > (has_image ? kLeastPivotWithImage : kLeastPivot);
    if (thread_id() == 0) pivot[j] = independent ? 1.0f / sqrtf(diagonal) : 0.0f;
    if (independent)
      for (int i = j + 1 + warp_id(); i < n; i += warps) {
        const float factor = m[i * n + j] / diagonal;
        if (lane_id() == 0) v[j * n + i] = factor;
        for (int k = lane_id(); k < n; k += kWarp) {
          if (k > j)
            m[i * n + k] = fmaf(-factor, m[j * n + k], m[i * n + k]);
          else
            v[i * n + k] = fmaf(-factor, v[j * n + k], v[i * n + k]);
          h[i * n + k] = fmaf(-factor, h[j * n + k], h[i * n + k]);
        }
      }
    __syncthreads();
  }
  // And from the right: h <- h L⁻ᵀ, every row by itself.
  if (has_image)
    for (int j = 0; j < n; ++j) {
      if (!(pivot[j] > 0.0f)) continue;
      for (int r = warp_id(); r < n; r += warps) {
        const float own = h[r * n + j];
        for (int i = j + 1 + lane_id(); i < n; i += kWarp) h[r * n + i] = fmaf(-v[j * n + i], own, h[r * n + i]);
      }
      __syncwarp();
    }
  __syncthreads();
  // m becomes the symmetric matrix of the orthonormal vectors.
  float own_largest = 0.0f;
  for (int i = warp_id(); i < n; i += warps)
    for (int k = lane_id(); k < n; k += kWarp) {
      v[i * n + k] = k > i ? 0.0f : v[i * n + k] * pivot[i];
      m[i * n + k] = 0.5f * (h[i * n + k] + h[k * n + i]) * pivot[i] * pivot[k];
      if (i == k) own_largest = fmaxf(own_largest, fabsf(m[i * n + k]));
    }
  for (int step = kWarp / 2; step; step /= 2)
    own_largest = fmaxf(own_largest, __shfl_xor_sync(kAllLanes, own_largest, step));
  if (lane_id() == 0) place[warp_id() % n] = own_largest;
  __syncthreads();
  if (thread_id() == 0) {
    float most = 0.0f;
    for (int warp = 0; warp < smaller(threads / kWarp, n); ++warp) most = fmaxf(most, place[warp]);
    *largest = most;
  }
  __syncthreads();

  float *from = m, *to = h;
  const int pairs = n / 2;
  if (has_image)
    for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
      const float least = fmaxf(3e-8f * *largest, kTiny);
      int turned_far = 0;
      for (int round = 0; round < n - 1; ++round) {
        for (int pair = thread_id(); pair < pairs; pair += threads) {
          int p, q;
          pair_of_round(n, round, pair, &p, &q);
          Turn turn;
          turn.p = static_cast<short>(p);
          turn.q = static_cast<short>(q);
          set_turn(turn, from[p * n + p], from[q * n + q], from[p * n + q], least);
          turns[pair] = turn;
          if (fabsf(turn.tangent) > angle) turned_far = 1;
        }
        __syncthreads();
        for (int own = warp_id(); own < pairs; own += warps) {
          const Turn left = turns[own];
          const int p = left.p, q = left.q;
          for (int other = lane_id(); other < pairs; other += kWarp) {
            const Turn right = turns[other];
            const int r = right.p, s = right.q;
            if (p > r) continue;  // the mirror image is written with its counterpart
            if (p == r) {
              const float pq = from[p * n + q];
              const bool turned = left.sine != 0.0f;
              to[p * n + p] = from[p * n + p] - left.tangent * (turned ? pq : 0.0f);
              to[q * n + q] = from[q * n + q] + left.tangent * (turned ? pq : 0.0f);
              to[p * n + q] = to[q * n + p] = turned ? 0.0f : pq;
              continue;
            }
            const float pr = from[p * n + r], ps = from[p * n + s], qr = from[q * n + r], qs = from[q * n + s];
            const float a = left.cosine * pr - left.sine * qr, b = left.cosine * ps - left.sine * qs;
            const float c = left.sine * pr + left.cosine * qr, d = left.sine * ps + left.cosine * qs;
            to[p * n + r] = to[r * n + p] = right.cosine * a - right.sine * b;
            to[p * n + s] = to[s * n + p] = right.sine * a + right.cosine * b;
            to[q * n + r] = to[r * n + q] = right.cosine * c - right.sine * d;
            to[q * n + s] = to[s * n + q] = right.sine * c + right.cosine * d;
          }
          for (int k = lane_id(); k < n; k += kWarp) {
            const float x = v[p * n + k], y = v[q * n + k];
            v[p * n + k] = left.cosine * x - left.sine * y;
            v[q * n + k] = left.sine * x + left.cosine * y;
          }
        }
        float* const swap = from;
        from = to;
        to = swap;
        __syncthreads();
      }
      if (block_sum(turned_far, sums) == 0) break;
    }

  // Columns by descending eigenvalue, dependent ones last.
  for (int i = thread_id(); i < n; i += threads)
    scale[i] = pivot[i] > 0.0f ? (has_image ? from[i * n + i] : 1.0f) : -3e38f;
  __syncthreads();
  for (int i = thread_id(); i < n; i += threads) {
    const uint64_t key = best_first(scale[i], static_cast<unsigned>(i));
    int before = 0;
    for (int j = 0; j < n; ++j) before += best_first(scale[j], static_cast<unsigned>(j)) < key;
    place[i] = static_cast<float>(before);
    values[before] = pivot[i] > 0.0f ? fmaxf(scale[i], 0.0f) : -1.0f;
  }
  __syncthreads();
  for (int k = warp_id(); k < n; k += warps)
    for (int i = lane_id(); i < n; i += kWarp)
      work[static_cast<size_t>(k) * n + static_cast<int>(place[i])] = v[i * n + k];
}

}  // namespace vtx
