// Leading eigenvectors of a symmetric matrix.
#ifndef VTX_CPU_EIGEN_H
#define VTX_CPU_EIGEN_H

#include "memory.h"
#include "parallel.h"

namespace vtx {

// Both belong to the Memory that they were taken from.
struct Leading {
  const float* vectors;  // [T][ld], column j belongs to the j-th largest eigenvalue; norm 1, any sign
  size_t ld;
  const double* values;  // [count], descending
};

// The `count` leading eigenpairs of the positive semi-definite matrix [T][T], until |G v - theta v| is below about 2e-7
// of the largest eigenvalue for all of them. Deterministic. Where the matrix holds NaN the vectors are zero.
Leading leading_eigenvectors(const Executor& executor, Memory& memory, const float* matrix, size_t tokens,
                             size_t count);

// The largest |G v - theta v| among them, over the largest eigenvalue.
float worst_residual(const Executor& executor, Memory& memory, const float* matrix, size_t tokens,
                     const Leading& leading, size_t count);

}  // namespace vtx

#endif
