#include "matrix.h"

#include <algorithm>

namespace vtx {
namespace {

void multiply(const float* a, const float* b, size_t k, size_t rows, float* c) { kernels().block(a, b, k, rows, c); }

void multiply(const double* a, const double* b, size_t k, size_t rows, double* c) {
  kernels().block_double(a, b, k, rows, c);
}

}  // namespace

template <typename Number>
void gram_block(const Panels<Number>& panels, size_t block, Number scale, Number* out) {
  // Pairs in the order (0, 0), (0, 1), (1, 1), (0, 2), ...
  size_t j = 0;
  for (; block > j; ++j) block -= j + 1;
  const size_t i = block;
  alignas(64) Number found[kPanel * kPanel] = {};
  multiply(panels.panel(i), panels.panel(j), panels.depth(), panels.rows_of(i), found);
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

void product(const Executor& executor, const Panels<float>& a, const float* b, size_t ldb, size_t columns, float* out) {
  constexpr size_t depth = 128;  // rows of B that are brought together at a time: far apart they would share cache sets
  const size_t across = (columns + kPanel - 1) / kPanel;
  executor.each(a.count() * across, [&](size_t task) {
    const size_t i = task / across, j = task % across, width = std::min<size_t>(kPanel, columns - j * kPanel);
    alignas(64) float found[kPanel * kPanel] = {};
    alignas(64) float rows[depth * kPanel] = {};
    for (size_t start = 0; start < a.depth(); start += depth) {
      const size_t some = std::min(depth, a.depth() - start);
      for (size_t k = 0; k < some; ++k) std::copy_n(b + (start + k) * ldb + j * kPanel, width, rows + k * kPanel);
      multiply(a.panel(i) + start * kPanel, rows, some, a.rows_of(i), found);
    }
    for (size_t r = 0; r < a.rows_of(i); ++r) {
      std::copy_n(found + r * kPanel, width, out + (i * kPanel + r) * columns + j * kPanel);
    }
  });
}

void product_transposed(const Executor& executor, const Panels<float>& a, const Panels<float>& b, float* out) {
  executor.each(a.count() * b.count(), [&](size_t task) {
    const size_t i = task / b.count(), j = task % b.count();
    alignas(64) float found[kPanel * kPanel] = {};
    multiply(a.panel(i), b.panel(j), a.depth(), a.rows_of(i), found);
    for (size_t r = 0; r < a.rows_of(i); ++r) {
      std::copy_n(found + r * kPanel, b.rows_of(j), out + (i * kPanel + r) * b.rows() + j * kPanel);
    }
  });
}

}  // namespace vtx
