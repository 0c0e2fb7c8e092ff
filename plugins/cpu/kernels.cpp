// One instruction set's inner loops. CMake compiles this file several times, with VTX_KERNELS set to another name and
// the compiler told another instruction set; no header with inline functions may come in here, because a linker could
// keep the one instruction set's copy of them for all.
#include "kernels.h"

#ifndef VTX_KERNELS
#error "VTX_KERNELS names the instruction set"
#endif

namespace vtx {
namespace {

// Registers: how wide one is, and the sides of the tiles whose sums stay in them.
#if defined(__AVX512F__)
constexpr size_t kBytes = 64;
constexpr int kTileRows = 8, kTileVectors = 3, kDoubleRows = 4, kDoubleVectors = 6, kSkinnyRows = 16;
#elif defined(__AVX2__)
constexpr size_t kBytes = 32;
constexpr int kTileRows = 6, kTileVectors = 2, kDoubleRows = 6, kDoubleVectors = 2, kSkinnyRows = 6;
#elif defined(__aarch64__)
constexpr size_t kBytes = 16;
constexpr int kTileRows = 8, kTileVectors = 3, kDoubleRows = 8, kDoubleVectors = 3, kSkinnyRows = 6;
#else
constexpr size_t kBytes = 16;
constexpr int kTileRows = 6, kTileVectors = 2, kDoubleRows = 6, kDoubleVectors = 2, kSkinnyRows = 3;
#endif

constexpr size_t kDepth = 128;  // products that are summed in registers before they go to memory

template <typename Scalar>
struct Register;
template <>
struct Register<float> {
  typedef float type __attribute__((vector_size(kBytes)));
};
template <>
struct Register<double> {
  typedef double type __attribute__((vector_size(kBytes)));
};
typedef Register<float>::type Floats;
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
constexpr size_t kFloats = kBytes / sizeof(float);

template <typename Vector, typename Scalar>
inline Vector load(const Scalar* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <typename Vector, typename Scalar>
inline void store(Scalar* to, const Vector& value) {
  __builtin_memcpy(to, &value, sizeof value);
}

inline Floats broadcast(float value) {
  Floats all;
  for (size_t i = 0; i < kFloats; ++i) all[i] = value;
  return all;
}

inline float across(const Floats& value) {
  float sum = 0.0f;
  for (size_t i = 0; i < kFloats; ++i) sum += value[i];
  return sum;
}

template <typename Scalar, int Rows, int Vectors>
inline void tile(const Scalar* a, size_t lda, const Scalar* b, size_t ldb, size_t k, Scalar* c, size_t ldc) {
  typedef typename Register<Scalar>::type Vector;
  constexpr int lanes = kBytes / sizeof(Scalar);
  Vector sums[Rows][Vectors] = {};
  for (size_t step = 0; step < k; ++step) {
    Vector row[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) row[v] = load<Vector>(b + step * ldb + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Scalar factor = a[step * lda + r];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sums[r][v] += row[v] * factor;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      Scalar* to = c + r * ldc + v * lanes;
      store(to, load<Vector>(to) + sums[r][v]);
    }
  }
}

template <typename Scalar, int Rows, int Vectors>
void whole_block(const Scalar* a, size_t lda, const Scalar* b, size_t ldb, size_t k, Scalar* c, size_t ldc) {
  constexpr int columns = Vectors * (kBytes / sizeof(Scalar));
  static_assert(kPanel % Rows == 0 && kPanel % columns == 0, "tiles fill a block");
  for (size_t start = 0; start < k; start += kDepth) {
    const size_t depth = k - start < kDepth ? k - start : kDepth;
    for (int j = 0; j < kPanel; j += columns) {
      for (int i = 0; i < kPanel; i += Rows) {
        tile<Scalar, Rows, Vectors>(a + start * lda + i, lda, b + start * ldb + j, ldb, depth, c + i * ldc + j, ldc);
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

void dots(const float* x, const float* const* rows, size_t count, size_t width, float* out) {
  size_t row = 0;
  for (; row + 4 <= count; row += 4) some_dots<4>(x, rows + row, width, out + row);
  for (; row < count; ++row) some_dots<1>(x, rows + row, width, out + row);
}

float sum(const float* x, size_t width) {
  Floats sums[4] = {};
  size_t i = 0;
  for (; i + 4 * kFloats <= width; i += 4 * kFloats) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] += load<Floats>(x + i + v * kFloats);
  }
  float rest = 0.0f;
  for (; i < width; ++i) rest += x[i];
  return across((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

void shift(float* x, float by, size_t width) {
  for (size_t i = 0; i < width; ++i) x[i] -= by;
}

void subtract(float* x, const float* y, size_t width) {
  for (size_t i = 0; i < width; ++i) x[i] -= y[i];
}

// exp(x) to about one unit in the last place, for x from -87 to 87: 2^n exp(r) with |r| <= ln(2) / 2.
inline Floats exponential(Floats x) {
  const Floats least = broadcast(-87.0f), most = broadcast(87.0f);
  x = x < least ? least : x;
  x = x > most ? most : x;
  const float to_even = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats n = (x * 1.44269504f + to_even) - to_even;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * (1.0f / 5040) + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints power = __builtin_convertvector(n, Ints) + 127;
  const Words bits = __builtin_convertvector(power, Words) << 23;
  return p * load<Floats>(reinterpret_cast<const char*>(&bits));
}

void sigmoid(const float* x, size_t width, float* out) {
  size_t i = 0;
  for (; i + kFloats <= width; i += kFloats) store(out + i, 1.0f / (1.0f + exponential(-load<Floats>(x + i))));
  if (i < width) {
    Floats rest = {};
    for (size_t j = i; j < width; ++j) rest[j - i] = x[j];
    rest = 1.0f / (1.0f + exponential(-rest));
    for (size_t j = i; j < width; ++j) out[j] = rest[j - i];
  }
}

void from_half(const uint16_t* x, size_t width, float* out) {
  for (size_t i = 0; i < width; ++i) {
    const uint32_t sign = (x[i] & 0x8000u) << 16, magnitude = x[i] & 0x7fffu;
    const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
    const float tiny = static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-8f;  // 2^-24
    uint32_t tiny_bits;
    __builtin_memcpy(&tiny_bits, &tiny, sizeof tiny);
    const uint32_t bits = (magnitude < 0x0400u ? tiny_bits : normal) | sign;
    __builtin_memcpy(out + i, &bits, sizeof bits);
  }
}

void from_bfloat16(const uint16_t* x, size_t width, float* out) {
  for (size_t i = 0; i < width; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    __builtin_memcpy(out + i, &bits, sizeof bits);
  }
}

void accumulate(double* y, float scale, const float* x, size_t width) {
  for (size_t i = 0; i < width; ++i) y[i] += static_cast<double>(scale * x[i]);
}

// In squares of 16 rows and 16 columns, which stay in the nearest cache.
void transpose(const float* x, size_t ld, size_t rows, size_t width, const float* scale, float* panel) {
  for (size_t start = 0; start < width; start += 16) {
    const size_t end = width - start < 16 ? width : start + 16;
    for (size_t row = 0; row < rows; ++row) {
      const float factor = scale ? scale[row] : 1.0f;
      const float* from = x + row * ld;
      for (size_t k = start; k < end; ++k) panel[k * kPanel + row] = factor * from[k];
    }
  }
}

void maximum(float* y, const float* x, float* minus, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    y[i] = x[i] > y[i] ? x[i] : y[i];
    minus[i] = -y[i];
  }
}

float largest(const float* x, size_t count) {
  Floats most = broadcast(-__builtin_inff());
  size_t i = 0;
  for (; i + kFloats <= count; i += kFloats) {
    const Floats value = load<Floats>(x + i);
    most = value > most ? value : most;
  }
  float found = -__builtin_inff();
  for (size_t lane = 0; lane < kFloats; ++lane) found = most[lane] > found ? most[lane] : found;
  for (; i < count; ++i) found = x[i] > found ? x[i] : found;
  return found;
}

void along(const float* x, const double* direction, size_t width, double* square, double* product) {
  constexpr size_t lanes = 16;
  double squares[lanes] = {}, products[lanes] = {};
  size_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      const double value = x[i + lane];
      squares[lane] += value * value;
      products[lane] += value * direction[i + lane];
    }
  }
  for (; i < width; ++i) {
    squares[0] += static_cast<double>(x[i]) * x[i];
    products[0] += x[i] * direction[i];
  }
  *square = *product = 0;
  for (size_t lane = 0; lane < lanes; ++lane) {
    *square += squares[lane];
    *product += products[lane];
  }
}

void eliminate(const double* rows, size_t count, size_t width, size_t which, double* row) {
  size_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const double *a = rows + r * width, *b = a + width, *c = b + width, *d = c + width;
    const double pa = a[which], pb = b[which], pc = c[which], pd = d[which];
    for (size_t i = 0; i < width; ++i) row[i] -= (pa * a[i] + pb * b[i]) + (pc * c[i] + pd * d[i]);
  }
  for (; r < count; ++r) {
    const double* a = rows + r * width;
    const double pa = a[which];
    for (size_t i = 0; i < width; ++i) row[i] -= pa * a[i];
  }
}

// exp(-x) to about one unit in the last place, for x from 0 on; from 708 on it is 0.
inline double decaying(double x) {
  const bool is_gone = x >= 708.0;  // not so for NaN, which comes out again
  x = is_gone ? 708.0 : x;
  const double to_even = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
  const double n = (x * -1.4426950408889634 + to_even) - to_even;
  const double r = (-x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const int64_t bits = (static_cast<int64_t>(n == n ? n : 0.0) + 1023) << 52;
  double power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return is_gone ? 0.0 : p * power;
}

double distances(double* products, const double* lengths, size_t own, size_t count, double decay, double* out) {
  const double length = lengths[own];
  for (size_t i = 0; i < count; ++i) {
    const double square = length + lengths[i] - 2 * products[i];
    products[i] = (square < 0 ? 0 : square) + 1e-8;
  }
  for (size_t i = 0; i < count; ++i) out[i] = __builtin_sqrt(products[i]);
  for (size_t i = 0; i < count; ++i) products[i] = decaying(products[i] * decay);
  out[own] = products[own] = 0;
  constexpr size_t lanes = 16;
  double sums[lanes] = {};
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (size_t lane = 0; lane < lanes; ++lane) sums[lane] += products[i + lane];
  }
  for (; i < count; ++i) sums[0] += products[i];
  double sum = 0;
  for (size_t lane = 0; lane < lanes; ++lane) sum += sums[lane];
  return sum;
}

}  // namespace

#define VTX_JOIN_AGAIN(a, b) a##b
#define VTX_JOIN(a, b) VTX_JOIN_AGAIN(a, b)
#define VTX_TEXT_AGAIN(a) #a
#define VTX_TEXT(a) VTX_TEXT_AGAIN(a)

void VTX_JOIN(leading_dense_, VTX_KERNELS)(double*, size_t, size_t, double*, double*, double*);

extern const Kernels VTX_JOIN(kernels_, VTX_KERNELS);
const Kernels VTX_JOIN(kernels_, VTX_KERNELS) = {
    VTX_TEXT(VTX_KERNELS),
    whole_block<float, kTileRows, kTileVectors>,
    whole_block<double, kDoubleRows, kDoubleVectors>,
    skinny,
    square,
    dots,
    sum,
    shift,
    subtract,
    sigmoid,
    from_half,
    from_bfloat16,
    accumulate,
    transpose,
    maximum,
    largest,
    along,
    eliminate,
    distances,
    VTX_JOIN(leading_dense_, VTX_KERNELS),
};

}  // namespace vtx
