// The leading eigenpairs of a small symmetric matrix, directly and in double: Householder reflections make it
// tridiagonal, bisection finds the eigenvalues, inverse iteration the vectors. Compiled once for each instruction set
// (registers.h).
#include "registers.h"

namespace vtx {
namespace {

typedef double Doubles __attribute__((vector_size(kBytes)));
constexpr size_t kWide = kBytes / sizeof(double);

constexpr int kBisections = 38;  // each halves the interval of an eigenvalue
constexpr double kTiny = 1e-290;
constexpr int kIterations = 2, kStarts = 4;

inline double magnitude(double x) { return x < 0 ? -x : x; }

inline Doubles load(const double* from) { return load<Doubles>(from); }

inline double across(const Doubles& value) {
  double sum = 0;
  for (size_t i = 0; i < kWide; ++i) sum += value[i];
  return sum;
}

inline double dot(const double* x, const double* y, size_t n) {
  Doubles one = {}, other = {};
  size_t i = 0;
  for (; i + 2 * kWide <= n; i += 2 * kWide) {
    one += load(x + i) * load(y + i);
    other += load(x + i + kWide) * load(y + i + kWide);
  }
  double sum = across(one + other);
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// x -= a y + b z, returns x . next
inline double update(double* x, double a, const double* y, double b, const double* z, const double* next, size_t n) {
  Doubles sums = {};
  size_t i = 0;
  for (; i + kWide <= n; i += kWide) {
    const Doubles value = load(x + i) - (load(y + i) * a + load(z + i) * b);
    store(x + i, value);
    sums += value * load(next + i);
  }
  double sum = across(sums);
  for (; i < n; ++i) {
    x[i] -= a * y[i] + b * z[i];
    sum += x[i] * next[i];
  }
  return sum;
}

// The same for four rows [4][ld], which share what they read; products[4].
inline void update_rows(double* x, size_t ld, const double* a, const double* y, const double* b, const double* z,
                        const double* next, size_t n, double* products) {
  Doubles sums[4] = {};
  size_t i = 0;
  for (; i + kWide <= n; i += kWide) {
    const Doubles one = load(y + i), other = load(z + i), factor = load(next + i);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const Doubles value = load(x + r * ld + i) - (one * a[r] + other * b[r]);
      store(x + r * ld + i, value);
      sums[r] += value * factor;
    }
  }
  for (int r = 0; r < 4; ++r) {
    double* row = x + r * ld;
    products[r] = across(sums[r]);
    for (size_t j = i; j < n; ++j) {
      row[j] -= a[r] * y[j] + b[r] * z[j];
      products[r] += row[j] * next[j];
    }
  }
}

// Leaves the diagonal and what is beside it, and the reflections I - beta v vᵀ: v in row k from column k + 1.
void make_tridiagonal(double* matrix, size_t n, double* diagonal, double* beside, double* beta, double* v, double* w,
                      double* p) {
  for (size_t i = 0; i < n; ++i) v[i] = w[i] = p[i] = 0;
  for (size_t k = 0; k < n; ++k) {
    double* row = matrix + k * n;
    for (size_t j = k; j < n; ++j) row[j] -= v[k] * w[j] + w[k] * v[j];
    diagonal[k] = row[k];
    beta[k] = beside[k] = 0;
    if (k + 1 == n) break;
    // The reflection that makes row k zero from column k + 2.
    double* next = row + k + 1;
    const size_t rest = n - k - 1;
    const double square = dot(next, next, rest), length = __builtin_sqrt(square);
    if (length > kTiny && rest > 1) {
      beside[k] = next[0] > 0 ? -length : length;
      const double first = next[0] - beside[k];
      const double norm = square - next[0] * next[0] + first * first;
      next[0] = first;
      beta[k] = norm > kTiny ? 2 / norm : 0;
    } else {
      beside[k] = next[0];
      for (size_t j = 0; j < rest; ++j) next[j] = 0;
    }
    // One pass applies the last reflection to the rows below and multiplies them by the next one's vector.
    size_t i = k + 1;
    for (; i + 4 <= n; i += 4) {
      update_rows(matrix + i * n + k + 1, n, v + i, w + k + 1, w + i, v + k + 1, next, rest, p + i);
    }
    for (; i < n; ++i) p[i] = update(matrix + i * n + k + 1, v[i], w + k + 1, w[i], v + k + 1, next, rest);
    for (i = k + 1; i < n; ++i) p[i] *= beta[k];
    const double half = 0.5 * beta[k] * dot(p + k + 1, next, rest);
    for (size_t j = 0; j < rest; ++j) {
      v[k + 1 + j] = next[j];
      w[k + 1 + j] = p[k + 1 + j] - half * next[j];
    }
  }
}

// values[j] = the j-th largest eigenvalue, for kWide of them at a time.
void bisect(const double* diagonal, const double* beside, size_t n, size_t count, double* values, double* squares) {
  double low = diagonal[0], high = diagonal[0];
  for (size_t i = 0; i < n; ++i) {
    const double reach = magnitude(beside[i]) + (i ? magnitude(beside[i - 1]) : 0);
    low = diagonal[i] - reach < low ? diagonal[i] - reach : low;
    high = diagonal[i] + reach > high ? diagonal[i] + reach : high;
    squares[i] = i ? beside[i - 1] * beside[i - 1] : 0;
  }
  constexpr size_t lanes = 2 * kWide;
  for (size_t first = 0; first < count; first += lanes) {
    double rank[lanes], found[lanes];
    for (size_t lane = 0; lane < lanes; ++lane) {
      rank[lane] = static_cast<double>(n) - static_cast<double>(first + lane);
    }
    const Doubles none = {};
    const Doubles wanted[2] = {load(rank), load(rank + kWide)};
    Doubles least[2] = {none + low, none + low}, most[2] = {none + high, none + high};
    for (int step = 0; step < kBisections; ++step) {
      Doubles middle[2], q[2], below[2];
      for (int h = 0; h < 2; ++h) {
        middle[h] = (least[h] + most[h]) * 0.5;
        q[h] = none + 1.0;
        below[h] = none;
      }
      for (size_t i = 0; i < n; ++i) {
        for (int h = 0; h < 2; ++h) {
          q[h] = diagonal[i] - middle[h] - squares[i] / q[h];
          const Doubles size = q[h] < 0.0 ? -q[h] : q[h];
          q[h] = size < kTiny ? none - kTiny : q[h];
          below[h] = q[h] < 0.0 ? below[h] + 1.0 : below[h];
        }
      }
      for (int h = 0; h < 2; ++h) {
        least[h] = below[h] < wanted[h] ? middle[h] : least[h];
        most[h] = below[h] < wanted[h] ? most[h] : middle[h];
      }
    }
    for (int h = 0; h < 2; ++h) store(found + h * kWide, (least[h] + most[h]) * 0.5);
    for (size_t lane = 0; lane < lanes && first + lane < count; ++lane) values[first + lane] = found[lane];
  }
}

// The factors of a tridiagonal matrix less `shift` on its diagonal, rows exchanged where that keeps numbers small.
struct Factors {
  double *lower, *inverse, *upper, *second;  // 1 / pivot, and what is one and two columns right of it
  bool* is_exchanged;
};

void factorise(const double* diagonal, const double* beside, size_t n, double shift, double floor, Factors& f) {
  double pivot = diagonal[0] - shift, right = n > 1 ? beside[0] : 0;
  for (size_t i = 0; i + 1 < n; ++i) {
    const double below = beside[i], next = diagonal[i + 1] - shift, beyond = i + 2 < n ? beside[i + 1] : 0;
    f.is_exchanged[i] = magnitude(below) > magnitude(pivot);
    if (f.is_exchanged[i]) {
      f.lower[i] = pivot * (1 / below);
      f.inverse[i] = 1 / below;
      f.upper[i] = next;
      f.second[i] = beyond;
      pivot = right - f.lower[i] * next;
      right = -f.lower[i] * beyond;
    } else {
      f.inverse[i] = 1 / (magnitude(pivot) < floor ? floor : pivot);
      f.lower[i] = below * f.inverse[i];
      f.upper[i] = right;
      f.second[i] = 0;
      pivot = next - f.lower[i] * right;
      right = beyond;
    }
  }
  f.inverse[n - 1] = 1 / (magnitude(pivot) < floor ? floor : pivot);
  f.upper[n - 1] = f.second[n - 1] = 0;
}

void solve(const Factors& f, size_t n, double* x) {
  for (size_t i = 0; i + 1 < n; ++i) {
    if (f.is_exchanged[i]) {
      const double held = x[i];
      x[i] = x[i + 1];
      x[i + 1] = held;
    }
    x[i + 1] -= f.lower[i] * x[i];
  }
  for (size_t i = n; i-- > 0;) {
    double value = x[i];
    if (i + 2 < n) value -= f.second[i] * x[i + 2];
    if (i + 1 < n) value -= f.upper[i] * x[i + 1];
    x[i] = value * f.inverse[i];
  }
}

void start_vector(double* x, size_t n, uint64_t seed) {
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (size_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x[i] = static_cast<double>(static_cast<int64_t>(state >> 11)) * 0x1p-52 - 1.0;
  }
}

// Scales x to norm 1 after taking away its parts along the vectors of near eigenvalues; false where nothing is left.
bool make_orthonormal(double* x, size_t n, size_t first, size_t which, const double* values, const double* vectors,
                      double close) {
  double largest = 0;
  for (size_t i = 0; i < n; ++i) largest = magnitude(x[i]) > largest ? magnitude(x[i]) : largest;
  if (!(largest > 0 && largest < 1e300)) return false;
  for (size_t i = 0; i < n; ++i) x[i] /= largest;
  const double before = __builtin_sqrt(dot(x, x, n));
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t other = first; other < which; ++other) {
      if (values[other] - values[which] > close) continue;
      const double part = dot(x, vectors + other * n, n);
      for (size_t i = 0; i < n; ++i) x[i] -= part * vectors[other * n + i];
    }
  }
  const double length = __builtin_sqrt(dot(x, x, n));
  if (!(length > 1e-8 * before)) return false;
  for (size_t i = 0; i < n; ++i) x[i] /= length;
  return true;
}

}  // namespace

namespace VTX_KERNELS {

// values[count], descending, of the symmetric matrix[n][n], whose largest entry should be near 1. The matrix, and
// `work` of 6 n numbers, then hold what dense_vectors needs.
void dense_values(double* matrix, size_t n, size_t count, double* values, double* work) {
  double *diagonal = work, *beside = work + n, *beta = work + 2 * n, *v = work + 3 * n;
  make_tridiagonal(matrix, n, diagonal, beside, beta, v, work + 4 * n, work + 5 * n);
  bisect(diagonal, beside, n, count, values, v);
}

// vectors[first .. last][n] of norm 1, the values made more exact. The eigenvalue before the first has to be apart from
// it (kDenseApart). `scratch` has 5 n numbers.
void dense_vectors(const double* matrix, size_t n, size_t first, size_t last, double* values, double* vectors,
                   const double* work, double* scratch) {
  const double *diagonal = work, *beside = work + n, *beta = work + 2 * n;
  bool* is_exchanged = reinterpret_cast<bool*>(scratch + 4 * n);
  Factors factors = {scratch, scratch + n, scratch + 2 * n, scratch + 3 * n, is_exchanged};
  double scale = kTiny;
  for (size_t i = 0; i < n; ++i) {
    const double size = magnitude(diagonal[i]) + magnitude(beside[i]);
    scale = size > scale ? size : scale;
  }
  for (size_t j = first; j < last; ++j) {
    double* x = vectors + j * n;
    factorise(diagonal, beside, n, values[j], 1e-16 * scale, factors);
    bool is_found = false;
    for (int start = 0; start < kStarts && !is_found; ++start) {
      start_vector(x, n, j * kStarts + start + 1);
      is_found = true;
      for (int step = 0; step < kIterations && is_found; ++step) {
        solve(factors, n, x);
        is_found = make_orthonormal(x, n, first, j, values, vectors, kDenseApart);
      }
    }
    if (!is_found) {
      for (size_t i = 0; i < n; ++i) x[i] = 0;
      continue;
    }
    double quotient = 0;
    for (size_t i = 0; i < n; ++i) {
      quotient += diagonal[i] * x[i] * x[i] + (i + 1 < n ? 2 * beside[i] * x[i] * x[i + 1] : 0);
    }
    if (magnitude(quotient - values[j]) < 1e-9 * scale) values[j] = quotient;
  }
  // Back through the reflections.
  for (size_t j = first; j < last; ++j) {
    double* x = vectors + j * n;
    for (size_t k = n - 1; k-- > 0;) {
      if (beta[k] == 0) continue;
      const double* reflection = matrix + k * n + k + 1;
      const double part = beta[k] * dot(reflection, x + k + 1, n - k - 1);
      for (size_t i = k + 1; i < n; ++i) x[i] -= part * reflection[i - k - 1];
    }
  }
}

}  // namespace VTX_KERNELS
}  // namespace vtx
