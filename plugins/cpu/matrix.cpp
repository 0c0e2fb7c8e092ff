#include "matrix.h"

#include <algorithm>

namespace vtx {
namespace {

void multiply(const float* a, size_t lda, const float* b, size_t ldb, size_t k, float* c) {
  kernels().block(a, lda, b, ldb, k, c, kPanel);
}

void multiply(const double* a, size_t lda, const double* b, size_t ldb, size_t k, double* c) {
  kernels().block_double(a, lda, b, ldb, k, c, kPanel);
}

}  // namespace

template <typename Number>
void gram_block(const Panels<Number>& panels, size_t block, Number scale, Number* out) {
  // Pairs in the order (0, 0), (0, 1), (1, 1), (0, 2), ...
  size_t j = 0;
  for (; block > j; ++j) block -= j + 1;
  const size_t i = block;
  alignas(64) Number found[kPanel * kPanel] = {};
  multiply(panels.panel(i), kPanel, panels.panel(j), kPanel, panels.depth(), found);
  const size_t down = panels.rows_of(i), across = panels.rows_of(j), rows = panels.rows();
  for (size_t r = 0; r < down; ++r) {
    Number* to = out + (i * kPanel + r) * rows + j * kPanel;
    for (size_t c = 0; c < across; ++c) to[c] = scale * found[r * kPanel + c];
  }
  if (i == j) return;
  for (size_t c = 0; c < across; ++c) {
    Number* to = out + (j * kPanel + c) * rows + i * kPanel;
    for (size_t r = 0; r < down; ++r) to[r] = scale * found[r * kPanel + c];
  }
}

template void gram_block(const Panels<float>&, size_t, float, float*);
template void gram_block(const Panels<double>&, size_t, double, double*);

void product(const Executor& executor, Memory& memory, const Panels<float>& a, const float* b, size_t ldb,
             size_t columns, float* out) {
  const size_t whole = columns / kPanel, rest = columns % kPanel;
  float* filled = nullptr;  // the last columns, which a block would read past
  if (rest) {
    filled = memory.zeros<float>(a.depth() * kPanel);
    for (size_t k = 0; k < a.depth(); ++k) std::copy_n(b + k * ldb + whole * kPanel, rest, filled + k * kPanel);
  }
  const size_t across = whole + (rest != 0);
  executor.each(a.count() * across, [&](size_t task) {
    const size_t i = task / across, j = task % across;
    const bool is_whole = j < whole;
    alignas(64) float found[kPanel * kPanel] = {};
    multiply(a.panel(i), kPanel, is_whole ? b + j * kPanel : filled, is_whole ? ldb : kPanel, a.depth(), found);
    for (size_t r = 0; r < a.rows_of(i); ++r) {
      std::copy_n(found + r * kPanel, is_whole ? kPanel : rest, out + (i * kPanel + r) * columns + j * kPanel);
    }
  });
}

void product_transposed(const Executor& executor, const Panels<float>& a, const Panels<float>& b, float* out) {
  executor.each(a.count() * b.count(), [&](size_t task) {
    const size_t i = task / b.count(), j = task % b.count();
    alignas(64) float found[kPanel * kPanel] = {};
    multiply(a.panel(i), kPanel, b.panel(j), kPanel, a.depth(), found);
    for (size_t r = 0; r < a.rows_of(i); ++r) {
      std::copy_n(found + r * kPanel, b.rows_of(j), out + (i * kPanel + r) * b.rows() + j * kPanel);
    }
  });
}

}  // namespace vtx
