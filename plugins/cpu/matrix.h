// Products of tall matrices, on packed rows.
#ifndef VTX_CPU_MATRIX_H
#define VTX_CPU_MATRIX_H

#include "kernels.h"
#include "memory.h"
#include "parallel.h"

namespace vtx {

// Rows of a matrix packed for products: 48 of them to a panel [depth][48], the last panel filled up with zeros.
template <typename Number>
class Panels {
 public:
  Panels(Memory& memory, size_t rows, size_t depth)
      : rows_(rows), depth_(depth), data_(memory.take<Number>(count() * kPanel * depth)) {}

  size_t rows() const { return rows_; }
  size_t depth() const { return depth_; }
  size_t count() const { return (rows_ + kPanel - 1) / kPanel; }
  size_t rows_of(size_t panel) const { return rows_ - panel * kPanel < kPanel ? rows_ - panel * kPanel : kPanel; }
  Number* panel(size_t index) const { return data_ + index * kPanel * depth_; }

  // Zeros behind the rows of the last panel; whoever fills panels calls it for each.
  void fill_up(size_t index) const {
    if (rows_of(index) == kPanel) return;
    for (size_t k = 0; k < depth_; ++k) {
      for (size_t row = rows_of(index); row < kPanel; ++row) panel(index)[k * kPanel + row] = Number(0);
    }
  }

 private:
  size_t rows_, depth_;
  Number* data_;
};

// One block of 48 x 48 of Y Yᵀ, times scale, into out [rows][rows], and its mirror image: exactly symmetric.
// `block` counts the pairs of panels (i <= j); there are gram_blocks(panels) of them.
template <typename Number>
void gram_block(const Panels<Number>& panels, size_t block, Number scale, Number* out);

template <typename Number>
size_t gram_blocks(const Panels<Number>& panels) {
  return panels.count() * (panels.count() + 1) / 2;
}

template <typename Number>
void gram(const Executor& executor, const Panels<Number>& panels, Number* out) {
  executor.each(gram_blocks(panels), [&](size_t block) { gram_block(panels, block, Number(1), out); });
}

// out [a.rows][ld] = A B for columns of B: row k of B is b + k ldb, `columns` wide.
void product(const Executor& executor, Memory& memory, const Panels<float>& a, const float* b, size_t ldb,
             size_t columns, float* out);

// out [a.rows][b.rows] = A Bᵀ
void product_transposed(const Executor& executor, const Panels<float>& a, const Panels<float>& b, float* out);

}  // namespace vtx

#endif
