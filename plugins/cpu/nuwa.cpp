// VtxNuwa, stage 1 of Nüwa; steps as in docs/ops/nuwa.md.
#include <cmath>
#include <vector>

#include "call.h"
#include "image.h"
#include "select.h"

namespace vtx {
namespace {

constexpr int64_t kSide = 2;  // of a region, patches
constexpr double kSmall = 1e-8;

class Image {
 public:
  Image(const Executor& executor, const vtx_sizes& sizes, const vtx_nuwa& p, const vtx_tensors& tensors, size_t index)
      : executor_(executor),
        sizes_(sizes),
        p_(p),
        out_(tensors),
        index_(index),
        tokens_(tokens_of(sizes)),
        keep_(sizes.keep),
        kept_(tensors.keep_indices + index * keep_) {}

  void select() {
    find_salience();
    align();
    write_kept_rows(sizes_, out_, index_);
    const std::vector<int64_t> gathering = find_collectors();
    if (!gathering.empty()) aggregate(gathering);
  }

 private:
  void find_salience() {
    salience_ = memory_.take<double>(tokens_);
    pillar_by_ = memory_.take<double>(tokens_);
    const float* scores = out_.scores + index_ * tokens_;
    const size_t width = static_cast<size_t>(sizes_.heads) * sizes_.head_dim;
    for (size_t i = 0; i < tokens_; ++i) {
      const double score = static_cast<double>(scores[i]);
      double by = score, salience = score;
      if (p_.paper) {
        double square = 0, unused = 0;
        const float* key = out_.keys + (index_ * tokens_ + i) * width;
        kernels().along(key, zeros(width), width, &square, &unused);
        by = std::sqrt(square);
        salience = score * by;
      }
      salience_[i] = without_nan(salience);
      pillar_by_[i] = without_nan(by);
    }
  }

  const double* zeros(size_t width) {
    if (!zeros_) zeros_ = memory_.zeros<double>(width);
    return zeros_;
  }

  // 1 and 2: of every region its best, of those the best.
  void align() {
    const int64_t rows = sizes_.grid_rows, columns = sizes_.grid_columns;
    const auto is_better = [this](int64_t a, int64_t b) {
      return salience_[a] > salience_[b] || (salience_[a] == salience_[b] && a < b);
    };
    int64_t* candidates = memory_.take<int64_t>(tokens_);
    size_t count = 0;
    for (int64_t top = 0; top < rows; top += kSide) {
      for (int64_t left = 0; left < columns; left += kSide) {
        int64_t region[kSide * kSide];
        int64_t size = 0;
        for (int64_t y = top; y < std::min(rows, top + kSide); ++y) {
          for (int64_t x = left; x < std::min(columns, left + kSide); ++x) {
            const int64_t patch = y * columns + x;
            int64_t place = size++;
            for (; place > 0 && is_better(patch, region[place - 1]); --place) region[place] = region[place - 1];
            region[place] = patch;
          }
        }
        for (int64_t i = 0; i < std::min<int64_t>(size, p_.top_n); ++i) candidates[count++] = region[i];
      }
    }
    std::sort(candidates, candidates + count, is_better);
    std::copy_n(candidates, keep_, kept_);
    std::sort(kept_, kept_ + keep_);
  }

  // 3: the places among the kept tokens that are collectors.
  std::vector<int64_t> find_collectors() {
    std::vector<double> ascending(keep_);
    for (size_t n = 0; n < keep_; ++n) ascending[n] = pillar_by_[kept_[n]];
    std::sort(ascending.begin(), ascending.end());
    const double rank = static_cast<double>(p_.pillar_quantile) * static_cast<double>(keep_ - 1);
    const size_t below = static_cast<size_t>(std::max(0.0, std::ceil(rank - 1e-3)));
    const double threshold = ascending[std::min(below, keep_ - 1)];
    std::vector<int64_t> found;
    for (size_t n = 0; n < keep_; ++n) {
      const bool is_collector = pillar_by_[kept_[n]] < threshold;
      out_.merged[index_ * keep_ + n] = is_collector;
      if (is_collector) found.push_back(static_cast<int64_t>(n));
    }
    if (out_.pillar_threshold) out_.pillar_threshold[index_] = static_cast<float>(threshold);
    return found;
  }

  // 4: the rows of the collectors.
  void aggregate(const std::vector<int64_t>& gathering) {
    const size_t count = gathering.size(), width = sizes_.width;
    const Rows similar = {out_.similarity_features + index_ * tokens_ * width, VTX_FLOAT32, width};
    const Panels<float> every(memory_, tokens_, width);
    const Patches unit = prepare(executor_, memory_, similar, tokens_, Use::kUnit, Center::kNone, every);
    const Panels<float> own(memory_, count, width);
    executor_.each(count, [&](size_t i) {
      const int64_t token = kept_[gathering[i]];
      kernels().transpose(unit.rows + token * width, width, 1, width, unit.inverse + token,
                          own.panel(i / kPanel) + i % kPanel);
    });
    own.fill_up(own.count() - 1);
    float* cosine = memory_.take<float>(count * tokens_);
    product_transposed(executor_, own, every, cosine);

    const Panels<float> weights(memory_, count, tokens_);
    executor_.each(count, [&](size_t i) {
      weigh(kept_[gathering[i]], cosine + i * tokens_, weights.panel(i / kPanel) + i % kPanel);
    });
    weights.fill_up(weights.count() - 1);
    const Rows features = rows_of(sizes_, out_, index_);
    const float* rows = static_cast<const float*>(features.data);
    if (features.dtype != VTX_FLOAT32) {
      float* converted = memory_.take<float>(tokens_ * width);
      for (size_t i = 0; i < tokens_; ++i) as_float(features, i, converted + i * width);
      rows = converted;
    }
    float* made = memory_.take<float>(count * width);
    product(executor_, weights, rows, width, width, made);
    char* to = static_cast<char*>(out_.kept_features) + index_ * keep_ * features.row_bytes();
    for (size_t i = 0; i < count; ++i) {
      store_rounded(made + i * width, width, features.dtype, to + gathering[i] * features.row_bytes());
    }
  }

  // Ŵ of one collector, every kPanel-th number of `weights`.
  void weigh(int64_t token, const float* cosine, float* weights) const {
    const int64_t columns = sizes_.grid_columns, row = token / columns, column = token % columns;
    double sum = 0;
    for (size_t i = 0; i < tokens_; ++i) {
      const int64_t down = static_cast<int64_t>(i) / columns - row, across = static_cast<int64_t>(i) % columns - column;
      const double square = static_cast<double>(down * down + across * across) / static_cast<double>(p_.distance);
      double weight = 1;
      if (static_cast<int64_t>(i) != token) {
        const double likeness = cosine[i] < 0 ? 0 : static_cast<double>(cosine[i]);
        weight = square < 1 ? likeness * (1 - std::sqrt(square)) : 0;
      }
      weights[i * kPanel] = static_cast<float>(weight);
      sum += weight;
    }
    const double scale = 1 / (sum + kSmall);
    for (size_t i = 0; i < tokens_; ++i) {
      weights[i * kPanel] = static_cast<float>(scale * static_cast<double>(weights[i * kPanel]));
    }
    if (!p_.paper) weights[static_cast<size_t>(token) * kPanel] = 1.0f;
  }

  const Executor& executor_;
  Memory memory_;
  const vtx_sizes& sizes_;
  const vtx_nuwa& p_;
  const vtx_tensors& out_;
  const size_t index_, tokens_, keep_;
  int64_t* kept_;
  double* salience_ = nullptr;
  double* pillar_by_ = nullptr;
  const double* zeros_ = nullptr;
};

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_nuwa(const vtx_sizes* sizes, const vtx_nuwa* parameters, const vtx_tensors* tensors,
                                   const vtx_parallel* executor) {
  return vtx::call_images(vtx::ops::nuwa, sizes, parameters, tensors, executor,
                          [&](const vtx::Executor& threads, size_t index) {
                            vtx::Image(threads, *sizes, *parameters, *tensors, index).select();
                          });
}
