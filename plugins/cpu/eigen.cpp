// Block Krylov iteration: an orthonormal basis of the space of G X, G² X, ... for a block X of 16 vectors, in which
// the leading eigenvectors are found directly (Rayleigh-Ritz). Every block is made orthogonal to all blocks before it,
// twice, so a basis in float32 stays one; sums that decide are taken in double.
#include "eigen.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace vtx {
namespace {

constexpr size_t kDirect = 192;      // up to this size the whole matrix is solved directly
constexpr size_t kFirstLook = 96;    // basis vectors before the first solution: these, and two for each wanted one
constexpr double kTolerance = 2e-7;  // of the largest eigenvalue: what G v may have outside the basis
constexpr double kNoise = 3e-8;      // of the largest eigenvalue: what is left of a vector below this is nothing
constexpr double kExhausted = 1e-2;  // of a random vector: where the basis leaves less, it is the whole space
constexpr size_t kVectors = 4;       // at least so many eigenvectors of a small matrix to a task
constexpr size_t kChunk = 96;        // rows of one task
constexpr size_t kSquare = kLanes * kLanes;

// A block is [tokens][16]. Small matrices are [16][16] in double.
class Basis {
 public:
  Basis(const Executor& executor, Memory& memory, const float* matrix, size_t tokens)
      : executor_(executor),
        memory_(memory),
        matrix_(matrix),
        tokens_(tokens),
        chunks_((tokens + kChunk - 1) / kChunk),
        image_(block()),
        partial_square_(memory.take<double>(chunks_ * kSquare)) {
    float* start = block();
    uint32_t state = 1;
    for (size_t i = 0; i < tokens * kLanes; ++i) start[i] = random(state);
    multiply(start);
    is_finite_ = std::isfinite(largest_diagonal());
    if (is_finite_) adopt(kNoise * std::sqrt(largest_diagonal()));
  }

  size_t size() const { return blocks_.size() * kLanes; }
  bool is_finite() const { return is_finite_; }
  double largest() const { return largest_; }  // at most the largest eigenvalue

  // The product of the last block with the matrix, its part in the basis taken out and kept as a column of `projected`.
  void advance() {
    multiply(blocks_.back());
    largest_ = std::max(largest_, std::sqrt(largest_diagonal()));
    const size_t count = blocks_.size();
    reserve();
    remove_basis(count);
    coefficients_.emplace_back(sums_.begin(), sums_.begin() + count * kSquare);
    is_finite_ = is_finite_ && std::isfinite(largest_diagonal());
  }

  // Makes a block of the basis of what `advance` left. Where nothing was left, something random takes its place; where
  // the basis has become the whole space, zeros.
  void adopt() { adopt(kNoise * largest_); }

  // Qᵀ G Q in [size][size], divided by `scale`.
  void projected(double* out, double scale) const {
    const size_t n = size();
    for (size_t j = 0; j < blocks_.size(); ++j) {
      for (size_t i = 0; i <= j; ++i) {
        const double* part = coefficients_[j].data() + i * kSquare;
        for (size_t r = 0; r < kLanes; ++r) {
          for (size_t c = 0; c < kLanes; ++c) {
            const double value = i == j ? 0.5 * (part[r * kLanes + c] + part[c * kLanes + r]) : part[r * kLanes + c];
            out[(i * kLanes + r) * n + j * kLanes + c] = out[(j * kLanes + c) * n + i * kLanes + r] = value / scale;
          }
        }
      }
    }
  }

  // The squared norm of what G times a vector, given by its part in the last block [16], has outside the basis.
  double outside(const double* last) const {
    double sum = 0;
    for (size_t r = 0; r < kLanes; ++r) {
      for (size_t c = 0; c < kLanes; ++c) sum += last[r] * last[c] * square_[r * kLanes + c];
    }
    return sum;
  }

  // [tokens][ld]: the vectors with these coefficients [count][size].
  const float* vectors(const double* coefficients, size_t count, size_t ld) const {
    float* found = memory_.take<float>(tokens_ * ld);
    float* packed = memory_.zeros<float>(blocks_.size() * ld * kLanes);  // [ld / 16][size][16]
    for (size_t j = 0; j < count; ++j) {
      for (size_t i = 0; i < size(); ++i) {
        packed[((j / kLanes) * size() + i) * kLanes + j % kLanes] = static_cast<float>(coefficients[j * size() + i]);
      }
    }
    executor_.each(chunks_, [&](size_t chunk) {
      float sums[kChunk * kLanes];
      for (size_t part = 0; part < ld / kLanes; ++part) {
        for (size_t b = 0; b < blocks_.size(); ++b) {
          kernels().skinny(blocks_[b] + chunk * kChunk * kLanes, kLanes, 1,
                           packed + (part * size() + b * kLanes) * kLanes, rows_of(chunk), kLanes, sums, 1.0f, b == 0);
        }
        for (size_t row = 0; row < rows_of(chunk); ++row) {
          std::copy_n(sums + row * kLanes, kLanes, found + (chunk * kChunk + row) * ld + part * kLanes);
        }
      }
    });
    return found;
  }

 private:
  void adopt(double least) {
    normalise(least, true);
    reserve();
    remove_basis(blocks_.size());
    normalise(kExhausted, false);
    blocks_.push_back(image_);
    image_ = block();
  }

  float* block() { return memory_.take<float>(tokens_ * kLanes); }

  size_t rows_of(size_t chunk) const { return std::min(kChunk, tokens_ - chunk * kChunk); }

  // From -1 to 1, the same on every machine.
  static float random(uint32_t& state) {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state >> 8) - (1 << 23)) * (1.0f / (1 << 23));
  }

  // image_ = G block
  void multiply(const float* block) {
    executor_.each(chunks_, [&](size_t chunk) {
      float* to = image_ + chunk * kChunk * kLanes;
      kernels().skinny(matrix_ + chunk * kChunk * tokens_, tokens_, 1, block, rows_of(chunk), tokens_, to, 1.0f, true);
      kernels().square(to, rows_of(chunk), partial_square_ + chunk * kSquare);
    });
    sum_squares();
  }

  void sum_squares() {
    std::fill_n(square_, kSquare, 0.0);
    for (size_t chunk = 0; chunk < chunks_; ++chunk) {
      for (size_t i = 0; i < kSquare; ++i) square_[i] += partial_square_[chunk * kSquare + i];
    }
  }

  double largest_diagonal() const {
    double found = 0;
    for (size_t i = 0; i < kLanes; ++i) {
      const double each = square_[i * kLanes + i];
      if (!std::isfinite(each)) return each;
      found = std::max(found, each);
    }
    return found;
  }

  void reserve() {
    const size_t needed = blocks_.size() * kSquare;
    if (partial_size_ < chunks_ * needed) {
      partial_size_ = 2 * chunks_ * needed;
      partial_ = memory_.take<float>(partial_size_);
    }
    if (sums_.size() < needed) {
      sums_.resize(2 * needed);
      factors_.resize(2 * needed);
    }
  }

  // image_ -= Q Qᵀ image_; leaves Qᵀ image_ in sums_ [count][16][16] and the square of the rest in square_.
  void remove_basis(size_t count) {
    executor_.each(chunks_, [&](size_t chunk) {
      const size_t start = chunk * kChunk * kLanes;
      for (size_t b = 0; b < count; ++b) {
        kernels().skinny(blocks_[b] + start, 1, kLanes, image_ + start, kLanes, rows_of(chunk),
                         partial_ + (chunk * count + b) * kSquare, 1.0f, true);
      }
    });
    for (size_t i = 0; i < count * kSquare; ++i) {
      double sum = 0;
      for (size_t chunk = 0; chunk < chunks_; ++chunk) {
        sum += static_cast<double>(partial_[chunk * count * kSquare + i]);
      }
      sums_[i] = sum;
      factors_[i] = static_cast<float>(sum);
    }
    executor_.each(chunks_, [&](size_t chunk) {
      const size_t start = chunk * kChunk * kLanes;
      for (size_t b = 0; b < count; ++b) {
        kernels().skinny(blocks_[b] + start, kLanes, 1, factors_.data() + b * kSquare, rows_of(chunk), kLanes,
                         image_ + start, -1.0f, false);
      }
      kernels().square(image_ + start, rows_of(chunk), partial_square_ + chunk * kSquare);
    });
    sum_squares();
  }

  // Makes the columns of image_ orthonormal by the Cholesky factor of their squares. A column that has no more than
  // `least` beside those before it becomes random, of norm near 1, or zero.
  void normalise(double least, bool replaces) {
    double factor[kSquare] = {}, inverse[kSquare] = {};  // R of square = Rᵀ R, upper
    bool is_gone[kLanes];
    for (size_t j = 0; j < kLanes; ++j) {
      for (size_t i = 0; i <= j; ++i) {
        double value = square_[i * kLanes + j];
        for (size_t k = 0; k < i; ++k) value -= factor[k * kLanes + i] * factor[k * kLanes + j];
        if (i < j) {
          factor[i * kLanes + j] = is_gone[i] ? 0 : value / factor[i * kLanes + i];
        } else {
          is_gone[j] = !(value > least * least);
          factor[j * kLanes + j] = is_gone[j] ? 0 : std::sqrt(value);
        }
      }
    }
    for (size_t j = 0; j < kLanes; ++j) {
      if (is_gone[j]) continue;
      inverse[j * kLanes + j] = 1 / factor[j * kLanes + j];
      for (size_t i = j; i-- > 0;) {
        if (is_gone[i]) continue;
        double value = 0;
        for (size_t k = i + 1; k <= j; ++k) value += factor[i * kLanes + k] * inverse[k * kLanes + j];
        inverse[i * kLanes + j] = -value / factor[i * kLanes + i];
      }
    }
    float right[kSquare];
    for (size_t i = 0; i < kSquare; ++i) right[i] = static_cast<float>(inverse[i]);
    executor_.each(chunks_, [&](size_t chunk) {
      float* rows = image_ + chunk * kChunk * kLanes;
      float before[kChunk * kLanes];
      std::copy_n(rows, rows_of(chunk) * kLanes, before);
      kernels().skinny(before, kLanes, 1, right, rows_of(chunk), kLanes, rows, 1.0f, true);
    });
    for (size_t j = 0; j < kLanes; ++j) {
      if (!is_gone[j]) continue;
      uint32_t state = static_cast<uint32_t>(kLanes * blocks_.size() + j + 2);
      const float size = replaces ? std::sqrt(3.0f / static_cast<float>(tokens_)) : 0.0f;
      for (size_t row = 0; row < tokens_; ++row) image_[row * kLanes + j] = size * random(state);
    }
  }

  const Executor& executor_;
  Memory& memory_;
  const float* matrix_;
  size_t tokens_, chunks_;
  std::vector<const float*> blocks_;
  std::vector<std::vector<double>> coefficients_;
  float* image_;
  double* partial_square_;
  float* partial_ = nullptr;
  size_t partial_size_ = 0;
  std::vector<double> sums_;
  std::vector<float> factors_;
  double square_[kSquare] = {};
  double largest_ = 0;
  bool is_finite_ = true;
};

// The leading eigenpairs of a small matrix [n][n] in double, which is used up; vectors [count][n].
void solve_dense(const Executor& executor, Memory& memory, double* matrix, size_t n, size_t count, double* values,
                 double* vectors) {
  double* work = memory.take<double>(6 * n);
  kernels().dense_values(matrix, n, count, values, work);
  // Vectors of neighbouring eigenvalues belong to one task; the cuts do not depend on the number of threads.
  std::vector<size_t> cuts = {0};
  for (size_t j = 1; j < count; ++j) {
    if (j - cuts.back() >= kVectors && values[j - 1] - values[j] > 2 * kDenseApart) cuts.push_back(j);
  }
  const size_t tasks = cuts.size();
  cuts.push_back(count);
  double* scratch = memory.take<double>(tasks * 5 * n);
  executor.each(tasks, [&](size_t task) {
    kernels().dense_vectors(matrix, n, cuts[task], cuts[task + 1], values, vectors, work, scratch + task * 5 * n);
  });
}

// The whole matrix, solved directly.
Leading solve_whole(const Executor& executor, Memory& memory, const float* matrix, size_t n, size_t count) {
  double* values = memory.take<double>(count);
  float* vectors = memory.take<float>(n * count);
  double* wide = memory.take<double>(n * n);
  double* coefficients = memory.take<double>(count * n);
  double scale = 1e-290;
  for (size_t i = 0; i < n * n; ++i) scale = std::max(scale, static_cast<double>(std::fabs(matrix[i])));
  for (size_t i = 0; i < n * n; ++i) wide[i] = static_cast<double>(matrix[i]) / scale;
  solve_dense(executor, memory, wide, n, count, values, coefficients);
  for (size_t j = 0; j < count; ++j) {
    values[j] *= scale;
    for (size_t i = 0; i < n; ++i) vectors[i * count + j] = static_cast<float>(coefficients[j * n + i]);
  }
  return {vectors, count, values};
}

}  // namespace

Leading leading_eigenvectors(const Executor& executor, Memory& memory, const float* matrix, size_t tokens,
                             size_t count) {
  const size_t first_look = 2 * count + kFirstLook;
  if (tokens <= kDirect || 4 * first_look >= 3 * tokens) {
    return solve_whole(executor, memory, matrix, tokens, count);
  }
  const size_t ld = (count + kLanes - 1) / kLanes * kLanes;
  double* values = memory.zeros<double>(count);
  Basis basis(executor, memory, matrix, tokens);
  if (basis.is_finite()) basis.advance();
  for (size_t wanted = first_look; basis.is_finite(); wanted = basis.size() + basis.size() / 8 + kLanes) {
    while (basis.size() < std::min(wanted, tokens) && basis.is_finite()) {
      basis.adopt();
      basis.advance();
    }
    if (!basis.is_finite()) break;
    const size_t n = basis.size();
    Memory small;
    double* matrix_of_basis = small.take<double>(n * n);
    double* coefficients = small.take<double>(count * n);
    const double scale = std::max(basis.largest(), 1e-290);
    basis.projected(matrix_of_basis, scale);
    solve_dense(executor, small, matrix_of_basis, n, count, values, coefficients);
    double worst = 0;
    for (size_t j = 0; j < count; ++j) {
      worst = std::max(worst, basis.outside(coefficients + j * n + n - kLanes));
      values[j] *= scale;
    }
    if (std::sqrt(worst) <= kTolerance * values[0] || n >= tokens) {
      return {basis.vectors(coefficients, count, ld), ld, values};
    }
  }
  return {memory.zeros<float>(tokens * ld), ld, values};
}

float worst_residual(const Executor& executor, Memory& memory, const float* matrix, size_t tokens,
                     const Leading& leading, size_t count) {
  const size_t parts = (count + kLanes - 1) / kLanes;
  float* vectors = memory.zeros<float>(tokens * kLanes);
  float* image = memory.take<float>(tokens * kLanes);
  double worst = 0;
  for (size_t part = 0; part < parts; ++part) {
    const size_t columns = std::min<size_t>(kLanes, count - part * kLanes);
    for (size_t i = 0; i < tokens; ++i) {
      std::copy_n(leading.vectors + i * leading.ld + part * kLanes, columns, vectors + i * kLanes);
    }
    executor.each((tokens + kChunk - 1) / kChunk, [&](size_t chunk) {
      const size_t start = chunk * kChunk, rows = std::min(kChunk, tokens - start);
      kernels().skinny(matrix + start * tokens, tokens, 1, vectors, rows, tokens, image + start * kLanes, 1.0f, true);
    });
    for (size_t j = 0; j < columns; ++j) {
      const double value = leading.values[part * kLanes + j];
      double sum = 0;
      for (size_t i = 0; i < tokens; ++i) {
        const double rest = image[i * kLanes + j] - value * vectors[i * kLanes + j];
        sum += rest * rest;
      }
      worst = std::isnan(sum) ? sum : std::max(worst, sum);
    }
  }
  return static_cast<float>(std::sqrt(worst) / std::max(leading.values[0], 1e-30));
}

}  // namespace vtx
