// VtxPruneSID; steps as in docs/ops/prunesid.md.
#include <algorithm>
#include <cmath>
#include <vector>

#include "call.h"
#include "eigen.h"
#include "image.h"
#include "select.h"
#include "ties.h"

namespace vtx {
namespace {

constexpr size_t kSlice = 128;   // features of one task that sums unit rows
constexpr size_t kCompared = 8;  // survivors that a token is compared with at a time

// Members of all groups, group after group, each by descending score; then survivors first.
struct Groups {
  std::vector<int64_t> order, start, sizes, survivors;
};

class Image {
 public:
  Image(const Executor& executor, Memory& memory, const vtx_sizes& sizes, const vtx_prunesid& parameters)
      : executor_(executor),
        memory_(memory),
        p_(parameters),
        tokens_(tokens_of(sizes)),
        width_(sizes.width),
        keep_(sizes.keep) {}

  // Writes keep_indices [N] and what else is wanted of this image.
  void select(const Rows& features, const float* scores, const vtx_tensors& out, size_t index) {
    const size_t count = p_.groups;
    const Panels<float> panels(memory_, tokens_, width_);
    const Center center = p_.center == VTX_CENTER_TOKEN ? Center::kToken : Center::kFeature;
    patches_ = prepare(executor_, memory_, features, tokens_, Use::kSigmoid, center, panels);

    float* gram = memory_.take<float>(tokens_ * tokens_);
    double* resultant = memory_.zeros<double>(width_);
    const size_t blocks = gram_blocks(panels), slices = (width_ + kSlice - 1) / kSlice;
    executor_.each(blocks + slices, [&](size_t task) {
      if (task >= blocks) {
        const size_t first = (task - blocks) * kSlice;
        add_unit_rows(first, std::min(kSlice, width_ - first), resultant);
      } else {
        gram_block(panels, task, 1.0f, gram);
      }
    });
    const Leading leading = leading_eigenvectors(executor_, memory_, gram, tokens_, count);
    group(leading, count, scores);
    const double rho = mean_cosine(resultant);
    const double tau = static_cast<double>(p_.threshold_scale) * (rho > static_cast<double>(kParallel) ? 1 : rho);
    // Parallel rows are all at cosine 1, which is above no limit from 1 on.
    const double limit = tau + static_cast<double>(kAlike);
    suppress(limit < 1 ? std::min(limit, static_cast<double>(kParallel)) : INFINITY);
    const std::vector<int64_t> taken = allocate();
    write(taken, out, index);

    if (out.rho) out.rho[index] = static_cast<float>(rho);
    if (out.tau) out.tau[index] = static_cast<float>(tau);
    if (out.residual) out.residual[index] = worst_residual(executor_, memory_, gram, tokens_, leading, count);
  }

 private:
  void add_unit_rows(size_t first, size_t width, double* sum) const {
    for (size_t token = 0; token < tokens_; ++token) {
      kernels().accumulate(sum + first, patches_.inverse[token], patches_.rows + token * width_ + first, width);
    }
  }

  // Step 1: the group of every token, and the members of every group by descending score.
  void group(const Leading& leading, size_t count, const float* scores) {
    group_of_.resize(tokens_);
    score_.resize(tokens_);
    groups_.sizes.assign(count, 0);
    // Values descend, so directions that are there come first.
    const double energy = static_cast<double>(tokens_) * static_cast<double>(width_);
    const double weakest = std::max(kWeakestGroup * leading.values[0], kCentred * energy);
    size_t there = 0;
    while (there < count && leading.values[there] > weakest) ++there;
    for (size_t token = 0; token < tokens_; ++token) {
      const float* v = leading.vectors + token * leading.ld;
      size_t best = 0;
      float largest = 0;  // in units of kStep
      for (size_t j = 0; j < there; ++j) {
        const float own = std::nearbyint(std::fabs(v[j]) / kStep);
        if (own > largest) largest = own, best = j;
      }
      group_of_[token] = static_cast<int64_t>(best);
      score_[token] = without_nan(p_.nms_score == VTX_CLS_ATTENTION ? scores[token] : largest);
      ++groups_.sizes[best];
    }
    groups_.start.assign(count + 1, 0);
    for (size_t g = 0; g < count; ++g) groups_.start[g + 1] = groups_.start[g] + groups_.sizes[g];
    groups_.order.resize(tokens_);
    std::vector<int64_t> next(groups_.start);
    for (size_t token = 0; token < tokens_; ++token) {
      groups_.order[next[group_of_[token]]++] = static_cast<int64_t>(token);
    }
    for (size_t g = 0; g < count; ++g) {
      std::sort(groups_.order.begin() + groups_.start[g], groups_.order.begin() + groups_.start[g + 1],
                [this](int64_t a, int64_t b) { return score_[a] > score_[b] || (score_[a] == score_[b] && a < b); });
    }
  }

  // Step 2, by the sum of the unit rows: the mean of their cosines.
  double mean_cosine(const double* resultant) const {
    double whole = 0, diagonal = 0;
    for (size_t k = 0; k < width_; ++k) whole += resultant[k] * resultant[k];
    for (size_t token = 0; token < tokens_; ++token) {
      const double inverse = patches_.inverse[token];
      diagonal += static_cast<double>(patches_.squares[token]) * inverse * inverse;
    }
    const double count = static_cast<double>(tokens_);
    if (p_.redundancy == VTX_TRIANGLE) return (whole + diagonal) / (2 * count * count);
    return (whole - diagonal) / (count * (count - 1));
  }

  // Step 3: the survivors of every group first, each part by descending score.
  void suppress(double limit) {
    groups_.survivors.assign(groups_.sizes.size(), 0);
    const float** rows = memory_.take<const float*>(tokens_);
    int64_t* rest = memory_.take<int64_t>(tokens_);
    executor_.each(groups_.sizes.size(), [&](size_t g) {
      const size_t start = groups_.start[g], end = groups_.start[g + 1];
      size_t kept = 0, dropped = 0;
      for (size_t place = start; place < end; ++place) {
        const int64_t token = groups_.order[place];
        if (score_[token] > 0 && !is_similar(token, start, kept, rows + start, limit)) {
          rows[start + kept] = patches_.rows + token * width_;
          groups_.order[start + kept] = token;  // behind `place` nothing is read again
          ++kept;
        } else {
          rest[start + dropped] = token;
          ++dropped;
        }
      }
      std::copy_n(rest + start, dropped, groups_.order.begin() + start + kept);
      groups_.survivors[g] = static_cast<int64_t>(kept);
    });
  }

  // Whether one of the survivors so far, [start, start + kept) in the order, is more similar to the token than the
  // limit.
  bool is_similar(int64_t token, size_t start, size_t kept, const float* const* rows, double limit) const {
    const float* x = patches_.rows + token * width_;
    for (size_t first = 0; first < kept; first += kCompared) {
      float products[kCompared];
      const size_t count = std::min(kCompared, kept - first);
      kernels().dots(x, rows + first, count, width_, products);
      for (size_t i = 0; i < count; ++i) {
        const float other = patches_.inverse[groups_.order[start + first + i]];
        if (products[i] * patches_.inverse[token] * other > limit) return true;
      }
    }
    return false;
  }

  // Step 4, in whole numbers.
  std::vector<int64_t> allocate() const {
    const size_t count = groups_.sizes.size();
    const bool is_bounded = p_.shares == VTX_BOUNDED;
    const int64_t cap = is_bounded ? 5 * ((keep_ + 63) / 64) : keep_;
    std::vector<int64_t> upper(count), taken(count);
    int64_t floor = 0, whole = 0, survivors = 0;
    for (size_t g = 0; g < count; ++g) {
      floor += is_bounded && groups_.sizes[g] > 0;
      upper[g] = std::min({cap, groups_.sizes[g], groups_.survivors[g]});
      whole += upper[g];
      survivors += groups_.survivors[g];
    }
    for (bool is_widened = true; whole < keep_ && is_widened;) {
      is_widened = false;
      whole = 0;
      for (size_t g = 0; g < count; ++g) {
        is_widened |= upper[g] < groups_.sizes[g];
        upper[g] = std::min(upper[g] + 1, groups_.sizes[g]);
        whole += upper[g];
      }
    }
    const int64_t extra = std::max<int64_t>(0, keep_ - p_.cls_slot - floor);
    int64_t running = 0, before = 0, missing = floor + extra;
    for (size_t g = 0; g < count; ++g) {
      running += groups_.survivors[g];
      const int64_t until = rounded_quotient(running * extra, std::max<int64_t>(1, survivors));
      const int64_t least = is_bounded && groups_.sizes[g] > 0;
      taken[g] = std::min(least + until - before, upper[g]);
      missing -= taken[g];
      before = until;
    }
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [this](size_t a, size_t b) { return groups_.survivors[a] > groups_.survivors[b]; });
    for (size_t g : order) {
      const int64_t more = std::min(upper[g] - taken[g], missing);
      taken[g] += more;
      missing -= more;
    }
    return taken;
  }

  // Step 5.
  void write(const std::vector<int64_t>& taken, const vtx_tensors& out, size_t index) const {
    const size_t count = taken.size();
    int64_t* kept = out.keep_indices + index * keep_;
    if (p_.cls_slot) *kept++ = -1;
    int64_t* const first = kept;
    for (size_t g = 0; g < count; ++g) {
      kept = std::copy_n(groups_.order.begin() + groups_.start[g], taken[g], kept);
    }
    if (p_.order == VTX_ORDER_RASTER) std::sort(first, kept);
    const auto report = [&](int64_t* tensor, const std::vector<int64_t>& values) {
      if (tensor) std::copy(values.begin(), values.end(), tensor + index * values.size());
    };
    report(out.groups, group_of_);
    report(out.sizes, groups_.sizes);
    report(out.survivors, groups_.survivors);
    report(out.taken, taken);
  }

  const Executor& executor_;
  Memory& memory_;
  const vtx_prunesid& p_;
  const size_t tokens_, width_;
  const int64_t keep_;
  Patches patches_ = {};
  std::vector<int64_t> group_of_;
  std::vector<float> score_;
  Groups groups_;
};

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_prunesid(const vtx_sizes* sizes, const vtx_prunesid* parameters,
                                       const vtx_tensors* tensors, const vtx_parallel* executor) {
  return vtx::call_images(vtx::ops::prunesid, sizes, parameters, tensors, executor,
                          [&](const vtx::Executor& threads, size_t index) {
                            const size_t tokens = vtx::tokens_of(*sizes), slot = parameters->cls_slot;
                            vtx::Memory memory;
                            const vtx::Rows patches = vtx::rows_of(*sizes, *tensors, index, slot).from(slot);
                            const float* scores = vtx::image_of(tensors->scores, index, tokens);
                            vtx::Image(threads, memory, *sizes, *parameters).select(patches, scores, *tensors, index);
                            vtx::write_kept_rows(*sizes, *tensors, index, slot);
                          });
}
