// VtxViTCoP, stage I of ViTCoP; steps as in docs/ops/vitcop.md. The clustering is in double: what it decides by are
// small differences of large sums, and equal densities have to come out equal.
#include <cmath>
#include <vector>

#include "call.h"
#include "image.h"
#include "select.h"

namespace vtx {
namespace {

constexpr size_t kRows = 16;  // of one task
constexpr double kInfinite = std::numeric_limits<double>::infinity();

// Which patches are near each other, in whole numbers: the very radius is in it.
class Neighbourhood {
 public:
  Neighbourhood(const vtx_sizes& sizes, const vtx_vitcop& p) : columns_(sizes.grid_columns) {
    const int64_t common = std::gcd(sizes.grid_rows, sizes.grid_columns);
    down_ = sizes.grid_columns / common;
    across_ = sizes.grid_rows / common;
    const double radius = std::min(static_cast<double>(p.radius), 2.0);
    const double side = radius * static_cast<double>(static_cast<int64_t>(sizes.grid_rows) * columns_ / common);
    // The radius has been through float32, which moves a square by up to 1.2e-7 of itself.
    most_ = static_cast<int64_t>(std::floor(side * side * (1 + 1.5e-7)));
  }

  bool holds(int64_t one, int64_t other) const {
    const int64_t down = (one / columns_ - other / columns_) * down_;
    const int64_t across = (one % columns_ - other % columns_) * across_;
    return down * down + across * across <= most_;
  }

 private:
  int64_t columns_, down_, across_, most_;
};

class Clustering {
 public:
  Clustering(const Executor& executor, Memory& memory, const vtx_sizes& sizes, const vtx_vitcop& p, const int64_t* kept)
      : executor_(executor),
        memory_(memory),
        p_(p),
        near_(sizes, p),
        kept_(kept),
        count_(sizes.keep),
        tasks_((count_ + kRows - 1) / kRows),
        distance_(memory.take<double>(count_ * count_)),
        density_(memory.take<float>(count_)),
        delta_(memory.take<double>(count_)),
        parent_(memory.take<int64_t>(count_)),
        hangs_(memory.take<uint8_t>(count_)) {}

  void run(const float* keys, size_t width, int64_t* labels) {
    measure(keys, width);
    find_parents();
    label(labels);
  }

  void report(const vtx_tensors& out, size_t index) const {
    const size_t centers = p_.cluster_count;
    if (out.centers) std::copy_n(order_, centers, out.centers + index * centers);
    if (out.density) std::copy_n(density_, count_, out.density + index * count_);
    if (out.parent) std::copy_n(parent_, count_, out.parent + index * count_);
    if (out.delta) {
      for (size_t i = 0; i < count_; ++i) out.delta[index * count_ + i] = static_cast<float>(delta_[i]);
    }
  }

 private:
  // 2 and 3: distances and densities of the kept tokens' keys.
  void measure(const float* keys, size_t width) {
    const Panels<double> panels(memory_, count_, width);
    executor_.each(panels.count(), [&](size_t index) {
      double* panel = panels.panel(index);
      for (size_t start = 0; start < width; start += kRows) {  // in squares, which stay in the nearest cache
        const size_t end = std::min(width, start + kRows);
        for (size_t row = 0; row < panels.rows_of(index); ++row) {
          const float* key = keys + static_cast<size_t>(kept_[index * kPanel + row]) * width;
          for (size_t k = start; k < end; ++k) panel[k * kPanel + row] = static_cast<double>(key[k]);
        }
      }
      panels.fill_up(index);
    });
    double* product = memory_.take<double>(count_ * count_);
    gram(executor_, panels, product);
    const double cutoff = 1 / static_cast<double>(p_.cutoff), decay = cutoff * cutoff;
    double* length = memory_.take<double>(count_);
    for (size_t i = 0; i < count_; ++i) length[i] = product[i * (count_ + 1)];
    executor_.each(tasks_, [&](size_t task) {
      for (size_t i = task * kRows; i < std::min(count_, (task + 1) * kRows); ++i) {
        double* distance = distance_ + i * count_;
        const double others = kernels().distances(product + i * count_, length, i, count_, decay, distance);
        density_[i] = static_cast<float>(p_.counts_itself ? others + 1 : others);
      }
    });
  }

  // 4: the nearest denser token of every token.
  void find_parents() {
    const bool is_strict = p_.clustering == VTX_CLUSTERING_FIXED;
    executor_.each(tasks_, [&](size_t task) {
      for (size_t i = task * kRows; i < std::min(count_, (task + 1) * kRows); ++i) {
        const double* distance = distance_ + i * count_;
        double nearest = kInfinite, farthest = 0;
        size_t parent = 0;
        bool is_densest = true;
        for (size_t j = 0; j < count_; ++j) {
          farthest = distance[j] > farthest ? distance[j] : farthest;
          const bool is_tied = density_[j] == density_[i] && (is_strict ? j < i : j != i);
          if (!(density_[j] > density_[i] || is_tied)) continue;
          is_densest = false;
          if (distance[j] < nearest && near_.holds(kept_[i], kept_[j])) {
            nearest = distance[j];
            parent = j;
          }
        }
        hangs_[i] = nearest < kInfinite;
        parent_[i] = static_cast<int64_t>(parent);
        delta_[i] = is_strict && is_densest ? farthest : nearest;
      }
    });
  }

  // 5 and 6: centres, and the label that every token reaches.
  void label(int64_t* labels) {
    double* gamma = memory_.take<double>(count_);
    for (size_t i = 0; i < count_; ++i) {
      const double product = delta_[i] * static_cast<double>(density_[i]);
      gamma[i] = delta_[i] < kInfinite ? without_nan(product) : kInfinite;
    }
    const size_t centers = p_.cluster_count;
    order_ = memory_.take<int64_t>(count_);
    best_first(gamma, count_, count_, order_, memory_);
    int64_t* rank = memory_.take<int64_t>(count_);
    for (size_t r = 0; r < count_; ++r) rank[order_[r]] = static_cast<int64_t>(r);
    int64_t* target = memory_.take<int64_t>(count_);
    int64_t* next = memory_.take<int64_t>(count_);
    for (size_t i = 0; i < count_; ++i) {
      target[i] = parent_[i];
      if (p_.clustering == VTX_CLUSTERING_FIXED && !hangs_[i]) target[i] = nearest_center(i, rank);
      if (rank[i] < static_cast<int64_t>(centers)) target[i] = static_cast<int64_t>(i);
    }
    for (size_t reach = 1; reach < count_; reach *= 2) {
      for (size_t i = 0; i < count_; ++i) next[i] = target[target[i]];
      std::swap(target, next);
    }
    for (size_t i = 0; i < count_; ++i) {
      const int64_t found = rank[target[i]];
      labels[i] = found < static_cast<int64_t>(centers) ? found : -1;
    }
  }

  int64_t nearest_center(size_t i, const int64_t* rank) const {
    double nearest = kInfinite;
    int64_t found = order_[0];
    for (size_t j = 0; j < count_; ++j) {
      if (rank[j] < p_.cluster_count && distance_[i * count_ + j] < nearest) {
        nearest = distance_[i * count_ + j];
        found = static_cast<int64_t>(j);
      }
    }
    return found;
  }

  const Executor& executor_;
  Memory& memory_;
  const vtx_vitcop& p_;
  const Neighbourhood near_;
  const int64_t* kept_;
  const size_t count_, tasks_;
  double* distance_;  // [N][N]
  float* density_;
  double* delta_;
  int64_t* parent_;
  uint8_t* hangs_;  // whether a token has a denser one nearby
  int64_t* order_ = nullptr;
};

void select_vitcop(const Executor& executor, const vtx_sizes& sizes, const vtx_vitcop& p, const vtx_tensors& out,
                   size_t index) {
  Memory memory;
  const size_t tokens = tokens_of(sizes), keep = sizes.keep;
  float* scores = memory.take<float>(tokens);
  for (size_t i = 0; i < tokens; ++i) scores[i] = without_nan(out.scores[index * tokens + i]);
  int64_t* kept = out.keep_indices + index * keep;
  best_first(scores, tokens, keep, kept, memory);
  std::sort(kept, kept + keep);
  write_kept_rows(sizes, out, index);
  if (!p.clusters) return;
  const size_t width = static_cast<size_t>(sizes.heads) * sizes.head_dim;
  Clustering clustering(executor, memory, sizes, p, kept);
  clustering.run(out.keys + index * tokens * width, width, out.labels + index * keep);
  clustering.report(out, index);
}

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_vitcop(const vtx_sizes* sizes, const vtx_vitcop* parameters, const vtx_tensors* tensors,
                                     const vtx_parallel* executor) {
  return vtx::call_images(vtx::ops::vitcop, sizes, parameters, tensors, executor,
                          [&](const vtx::Executor& threads, size_t index) {
                            vtx::select_vitcop(threads, *sizes, *parameters, *tensors, index);
                          });
}
