// The inner loops, compiled once for each instruction set and chosen when the library is first used.
#ifndef VTX_CPU_KERNELS_H
#define VTX_CPU_KERNELS_H

#include <cstddef>
#include <cstdint>

namespace vtx {

constexpr int kPanel = 48;  // rows of a matrix that are packed together: [K][kPanel], a multiple of every tile's sides
constexpr int kLanes = 16;  // columns of the eigenvector search's blocks

struct Kernels {
  const char* name;

  // c[48][48] += sum over k of a[k][i] b[k][j], for 48 rows i and 48 columns j; lda, ldb, ldc in elements.
  void (*block)(const float* a, size_t lda, const float* b, size_t ldb, size_t k, float* c, size_t ldc);
  void (*block_double)(const double* a, size_t lda, const double* b, size_t ldb, size_t k, double* c, size_t ldc);

  // c[rows][16] = sign A b of A(i, k) = a[i row_stride + k k_stride] and b[k][16]; added to c unless `overwrite`.
  void (*skinny)(const float* a, size_t row_stride, size_t k_stride, const float* b, size_t rows, size_t k, float* c,
                 float sign, bool overwrite);

  // out[16][16] = blockᵀ block of block[rows][16], summed in double.
  void (*square)(const float* block, size_t rows, double* out);

  // The products of x with each of `count` rows.
  void (*dots)(const float* x, const float* const* rows, size_t count, size_t width, float* out);

  float (*sum)(const float* x, size_t width);
  // x -= by, or x -= y.
  void (*shift)(float* x, float by, size_t width);
  void (*subtract)(float* x, const float* y, size_t width);
  void (*sigmoid)(const float* x, size_t width, float* out);
  void (*from_half)(const uint16_t* x, size_t width, float* out);
  void (*from_bfloat16)(const uint16_t* x, size_t width, float* out);
  // y += scale x
  void (*accumulate)(double* y, float scale, const float* x, size_t width);
  // panel[k][48], column `place` onwards: `rows` rows of `width` floats, row stride ld, times scale.
  void (*transpose)(const float* x, size_t ld, size_t rows, size_t width, const float* scale, float* panel);
  // y = max(y, x), elementwise, and minus = -y; NaN in x is passed over.
  void (*maximum)(float* y, const float* x, float* minus, size_t count);
  // The largest of them; NaN is passed over.
  float (*largest)(const float* x, size_t count);
  // x . x and x . direction, in double.
  void (*along)(const float* x, const double* direction, size_t width, double* square, double* product);
  // row -= sum over earlier rows r < count of rows[r][which] rows[r]
  void (*eliminate)(const double* rows, size_t count, size_t width, size_t which, double* row);

  // Of point `own` to each of `count`, by its products with them and everyone's squared length: the distances, of
  // squares that have 1e-8 added, 0 to itself. Returns the sum of exp(-decay square) over the others; `products` is
  // used up.
  double (*distances)(double* products, const double* lengths, size_t own, size_t count, double decay, double* out);

  // See dense.cpp.
  void (*leading_dense)(double* matrix, size_t n, size_t count, double* values, double* vectors, double* work);
};

// Numbers of `work` that leading_dense needs.
constexpr size_t leading_dense_work(size_t n, size_t count) { return 12 * n + 4 * (count + kLanes); }

const Kernels& kernels();

}  // namespace vtx

#endif
