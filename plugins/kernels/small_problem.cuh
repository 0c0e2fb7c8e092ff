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

inline size_t small_problem_shared(int block, int shared_block) {
  const size_t square = static_cast<size_t>(block) * block;
  return ((block <= shared_block ? 3 * square : 0) + 4 * block + kScratch) * sizeof(float);
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

struct Turn {
  float cosine, sine, tangent;
};

// The rotation that makes [[pp, pq], [pq, qq]] diagonal.
__device__ inline Turn turn_of(float pp, float qq, float pq, float least) {
  if (!(fabsf(pq) > least)) return {1.0f, 0.0f, 0.0f};
  const float theta = (qq - pp) / (2.0f * pq);
  const float tangent = copysignf(1.0f, theta) / (fabsf(theta) + sqrtf(fmaf(theta, theta, 1.0f)));
  const float cosine = 1.0f / sqrtf(fmaf(tangent, tangent, 1.0f));
  return {cosine, tangent * cosine, tangent};
}

// From the parts of m = zᵀ z and, where `has_image`, h = zᵀ w of block x block (on and above the diagonal, summed over
// `members`, the first two of `parts` matrices each) to the rotation [block, block] with which z becomes orthonormal
// and h diagonal, columns by descending eigenvalue, and `values` [block]: the eigenvalues, 1 without an image, -1 for
// columns that depended on the others, whose rotation is 0. `angle`: sweeps end when no rotation had a larger tangent.
// `work` holds 4 x block x block floats in global memory, the rotation first.
__device__ VTX_NOINLINE inline void solve_small(const float* partial, int members, int parts, int block, bool has_image,
                                                float angle, float* work, float* values, unsigned char* shared,
                                                int shared_block) {
  const int size = block * block, threads = thread_count(), n = block;
  const bool fits = block <= shared_block;
  float* vectors_of_use = reinterpret_cast<float*>(shared);
  float* scale = vectors_of_use;                    // [n]
  float* pivot = scale + n;                         // [n]: 1 / sqrt of the pivot, 0 for a dependent column
  float* place = pivot + n;                         // [n]
  float* largest = place + n;                       // [1]
  int* sums = reinterpret_cast<int*>(largest + 1);  // [warps]
  float* matrices = fits ? scale + 4 * n + kScratch : work + size;
  float *m = matrices, *h = m + size, *v = h + size;  // rows of v are vectors

  for (int e = thread_id(); e < size; e += threads) {
    const int i = e / n, j = e % n;
    if (i > j) continue;
    float a = 0.0f, b = 0.0f;
    for (int member = 0; member < members; ++member) {
      const float* part = partial + static_cast<size_t>(member) * parts * size + e;
      a += __ldcg(part);
      if (has_image) b += __ldcg(part + size);
    }
    m[e] = m[j * n + i] = a;
    h[e] = h[j * n + i] = b;
  }
  __syncthreads();
  for (int i = thread_id(); i < n; i += threads) scale[i] = 1.0f / sqrtf(fmaxf(m[i * n + i], kTiny));
  __syncthreads();
  for (int e = thread_id(); e < size; e += threads) {
    const float by = scale[e / n] * scale[e % n];
    m[e] *= by;
    h[e] *= by;
    v[e] = e / n == e % n ? scale[e / n] : 0.0f;
  }
  __syncthreads();

  // Elimination from the left: m = L D Lᵀ, h <- L⁻¹ h, v <- L⁻¹ v.
  for (int j = 0; j < n; ++j) {
    const float diagonal = m[j * n + j];
    const bool independent = diagonal > (has_image ? kLeastPivotWithImage : kLeastPivot);
    if (thread_id() == 0) pivot[j] = independent ? 1.0f / sqrtf(diagonal) : 0.0f;
    const int below = n - j - 1;
    if (independent)
      for (int e = thread_id(); e < below * n; e += threads) {
        const int i = j + 1 + e / n, k = e % n;
        const float factor = m[i * n + j] / diagonal;
        if (k > j) m[i * n + k] = fmaf(-factor, m[j * n + k], m[i * n + k]);
        if (k <= j) v[i * n + k] = fmaf(-factor, v[j * n + k], v[i * n + k]);
        h[i * n + k] = fmaf(-factor, h[j * n + k], h[i * n + k]);
      }
    __syncthreads();
  }
  // And from the right: h <- h L⁻ᵀ.
  if (has_image)
    for (int j = 0; j < n; ++j) {
      const int below = n - j - 1;
      if (pivot[j] > 0.0f)
        for (int e = thread_id(); e < below * n; e += threads) {
          const int r = e / below, i = j + 1 + e % below;
          h[r * n + i] = fmaf(-(m[i * n + j] / m[j * n + j]), h[r * n + j], h[r * n + i]);
        }
      __syncthreads();
    }
  // m becomes the symmetric matrix of the orthonormal vectors.
  float own_largest = 0.0f;
  for (int e = thread_id(); e < size; e += threads) v[e] *= pivot[e / n];
  __syncthreads();
  for (int e = thread_id(); e < size; e += threads) {
    const int i = e / n, j = e % n;
    m[e] = 0.5f * (h[e] + h[j * n + i]) * pivot[i] * pivot[j];
    if (i == j) own_largest = fmaxf(own_largest, fabsf(m[e]));
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
  if (has_image)
    for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
      const float least = 3e-8f * *largest;
      int turned_far = 0;
      for (int round = 0; round < n - 1; ++round) {
        const int pairs = n / 2;
        for (int e = thread_id(); e < pairs * pairs; e += threads) {
          int p, q, r, s;
          pair_of_round(n, round, e / pairs, &p, &q);
          pair_of_round(n, round, e % pairs, &r, &s);
          if (p > r) continue;  // the mirror image is written with its counterpart
          const Turn left = turn_of(from[p * n + p], from[q * n + q], from[p * n + q], least);
          if (p == r) {
            const float pq = from[p * n + q];
            const bool turned = left.sine != 0.0f;
            to[p * n + p] = from[p * n + p] - left.tangent * (turned ? pq : 0.0f);
            to[q * n + q] = from[q * n + q] + left.tangent * (turned ? pq : 0.0f);
            to[p * n + q] = to[q * n + p] = turned ? 0.0f : pq;
            if (fabsf(left.tangent) > angle) turned_far = 1;
            continue;
          }
          const Turn right = turn_of(from[r * n + r], from[s * n + s], from[r * n + s], least);
          const float pr = from[p * n + r], ps = from[p * n + s], qr = from[q * n + r], qs = from[q * n + s];
          const float a = left.cosine * pr - left.sine * qr, b = left.cosine * ps - left.sine * qs;
          const float c = left.sine * pr + left.cosine * qr, d = left.sine * ps + left.cosine * qs;
          to[p * n + r] = to[r * n + p] = right.cosine * a - right.sine * b;
          to[p * n + s] = to[s * n + p] = right.sine * a + right.cosine * b;
          to[q * n + r] = to[r * n + q] = right.cosine * c - right.sine * d;
          to[q * n + s] = to[s * n + q] = right.sine * c + right.cosine * d;
        }
        for (int e = thread_id(); e < pairs * n; e += threads) {
          int p, q;
          pair_of_round(n, round, e / n, &p, &q);
          const Turn turn = turn_of(from[p * n + p], from[q * n + q], from[p * n + q], least);
          const int k = e % n;
          const float x = v[p * n + k], y = v[q * n + k];
          v[p * n + k] = turn.cosine * x - turn.sine * y;
          v[q * n + k] = turn.sine * x + turn.cosine * y;
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
  for (int e = thread_id(); e < size; e += threads)
    work[static_cast<size_t>(e % n) * n + static_cast<int>(place[e / n])] = v[e];
}

}  // namespace vtx
