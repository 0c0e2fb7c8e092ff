// The products of matrices, in tiles whose sums stay in registers. Compiled once for each instruction set
// (registers.h).
#include "registers.h"

namespace vtx {
namespace {

// The sides of the tiles.
#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVectors = 3, kDoubleRows = 4, kDoubleVectors = 6, kSkinnyRows = 16;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 2, kDoubleRows = 6, kDoubleVectors = 2, kSkinnyRows = 6;
#elif defined(__aarch64__)
constexpr int kTileRows = 8, kTileVectors = 3, kDoubleRows = 8, kDoubleVectors = 3, kSkinnyRows = 6;
#else
constexpr int kTileRows = 6, kTileVectors = 2, kDoubleRows = 6, kDoubleVectors = 2, kSkinnyRows = 3;
#endif

constexpr size_t kDepth = 128;  // products that are summed in registers before they go to memory

template <typename Scalar, int Rows, int Vectors>
inline void tile(const Scalar* a, const Scalar* b, size_t k, Scalar* c) {
  typedef typename Register<Scalar>::type Vector;
  constexpr int lanes = kBytes / sizeof(Scalar);
  Vector sums[Rows][Vectors] = {};
  for (size_t step = 0; step < k; ++step) {
    Vector row[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) row[v] = load<Vector>(b + step * kPanel + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Scalar factor = a[step * kPanel + r];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] += row[v] * factor;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      Scalar* to = c + r * kPanel + v * lanes;
      store(to, load<Vector>(to) + sums[r][v]);
    }
  }
}

template <typename Scalar, int Rows, int Vectors>
void whole_block(const Scalar* a, const Scalar* b, size_t k, size_t rows, Scalar* c) {
  constexpr int columns = Vectors * (kBytes / sizeof(Scalar));
  static_assert(kPanel % Rows == 0 && kPanel % columns == 0, "tiles fill a block");
  for (size_t start = 0; start < k; start += kDepth) {
    const size_t depth = k - start < kDepth ? k - start : kDepth;
    for (int j = 0; j < kPanel; j += columns) {
      for (size_t i = 0; i < rows; i += Rows) {
        tile<Scalar, Rows, Vectors>(a + start * kPanel + i, b + start * kPanel + j, depth, c + i * kPanel + j);
      }
    }
  }
}

template <int Rows>
inline void skinny_rows(const float* a, size_t row_stride, size_t k_stride, const float* b, size_t k, float* c,
                        float sign, bool overwrite) {
  constexpr int vectors = kLanes / kFloats;
  Floats total[Rows][vectors] = {};
  for (size_t start = 0; start < k; start += kDepth) {
    const size_t end = k - start < kDepth ? k : start + kDepth;
    Floats sums[Rows][vectors] = {};
    for (size_t step = start; step < end; ++step) {
      Floats row[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) row[v] = load<Floats>(b + step * kLanes + v * kFloats);
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        const float factor = a[r * row_stride + step * k_stride];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) sums[r][v] += row[v] * factor;
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < vectors; ++v) total[r][v] += sums[r][v];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < vectors; ++v) {
      float* to = c + r * kLanes + v * kFloats;
      const Floats found = total[r][v] * sign;
      store(to, overwrite ? found : load<Floats>(to) + found);
    }
  }
}

template <int Rows>
inline void some_dots(const float* x, const float* const* rows, size_t width, float* out) {
  Floats sums[Rows][2] = {};
  size_t i = 0;
  for (; i + 2 * kFloats <= width; i += 2 * kFloats) {
    const Floats first = load<Floats>(x + i), second = load<Floats>(x + i + kFloats);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      sums[r][0] += first * load<Floats>(rows[r] + i);
      sums[r][1] += second * load<Floats>(rows[r] + i + kFloats);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float rest = 0.0f;
    for (size_t j = i; j < width; ++j) rest += x[j] * rows[r][j];
    out[r] = across(sums[r][0] + sums[r][1]) + rest;
  }
}

}  // namespace

namespace VTX_KERNELS {

void block(const float* a, const float* b, size_t k, size_t rows, float* c) {
  whole_block<float, kTileRows, kTileVectors>(a, b, k, rows, c);
}

void block_double(const double* a, const double* b, size_t k, size_t rows, double* c) {
  whole_block<double, kDoubleRows, kDoubleVectors>(a, b, k, rows, c);
}

void skinny(const float* a, size_t row_stride, size_t k_stride, const float* b, size_t rows, size_t k, float* c,
            float sign, bool overwrite) {
  size_t row = 0;
  for (; row + kSkinnyRows <= rows; row += kSkinnyRows) {
    skinny_rows<kSkinnyRows>(a + row * row_stride, row_stride, k_stride, b, k, c + row * kLanes, sign, overwrite);
  }
  for (; row + 4 <= rows; row += 4) {
    skinny_rows<4>(a + row * row_stride, row_stride, k_stride, b, k, c + row * kLanes, sign, overwrite);
  }
  for (; row < rows; ++row) {
    skinny_rows<1>(a + row * row_stride, row_stride, k_stride, b, k, c + row * kLanes, sign, overwrite);
  }
}

void square(const float* block, size_t rows, double* out) {
  typedef Register<double>::type Doubles;
  constexpr int lanes = kBytes / sizeof(double), vectors = kLanes / lanes, half = 8;
  for (int top = 0; top < kLanes; top += half) {
    for (int left = 0; left < vectors; ++left) {
      Doubles sums[half] = {};
      for (size_t row = 0; row < rows; ++row) {
        const float* x = block + row * kLanes;
        Doubles wide;
        for (int i = 0; i < lanes; ++i) wide[i] = x[left * lanes + i];
#pragma GCC unroll 8
        for (int r = 0; r < half; ++r) sums[r] += wide * static_cast<double>(x[top + r]);
      }
      for (int r = 0; r < half; ++r) store(out + (top + r) * kLanes + left * lanes, sums[r]);
    }
  }
}

void dots(const float* x, const float* const* rows, size_t count, size_t width, float* out) {
  size_t row = 0;
  for (; row + 4 <= count; row += 4) some_dots<4>(x, rows + row, width, out + row);
  for (; row < count; ++row) some_dots<1>(x, rows + row, width, out + row);
}

}  // namespace VTX_KERNELS
}  // namespace vtx
