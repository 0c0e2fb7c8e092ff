// The loops over rows, and the table of one instruction set's functions. Compiled once for each (registers.h).
#include "registers.h"

namespace vtx {
namespace {

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

extern const Kernels VTX_JOIN(kernels_, VTX_KERNELS);
const Kernels VTX_JOIN(kernels_, VTX_KERNELS) = {
    VTX_TEXT(VTX_KERNELS),
    VTX_KERNELS::block,
    VTX_KERNELS::block_double,
    VTX_KERNELS::skinny,
    VTX_KERNELS::square,
    VTX_KERNELS::dots,
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
    VTX_KERNELS::dense_values,
    VTX_KERNELS::dense_vectors,
};

}  // namespace vtx
