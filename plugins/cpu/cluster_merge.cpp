// VtxClusterMerge; steps as in docs/ops/llm.md.
#include <vector>

#include "call.h"
#include "kernels.h"
#include "steps.h"

namespace vtx {
namespace {

// Tokens that share one merged token.
struct Group {
  std::vector<int64_t> members;  // ascending
  double total = 0;              // of their l
  int64_t single = 0;            // how many stay as they are
};

class Merging {
 public:
  Merging(const vtx_step_sizes& sizes, const vtx_cluster_merge& p, const vtx_step_tensors& tensors)
      : sizes_(sizes), p_(p), tensors_(tensors), saliency_(sizes.visual_count), groups_(p.clusters + 1) {}

  void run() {
    Memory memory;
    key_norms(sizes_, tensors_, saliency_.data(), memory);
    for (int32_t i = 0; i < sizes_.visual_count; ++i) {
      const int64_t slot = std::clamp<int64_t>(tensors_.labels[i], -1, p_.clusters - 1) + 1;
      groups_[slot].members.push_back(i);
      groups_[slot].total += saliency_[i];
      if (tensors_.saliency) tensors_.saliency[i] = static_cast<float>(saliency_[i]);
    }
    std::vector<Group*> present;
    for (Group& group : groups_) {
      if (!group.members.empty()) present.push_back(&group);
    }
    const bool is_crowded = present.size() > static_cast<size_t>(sizes_.keep);
    if (!is_crowded) share(present);
    if (tensors_.quotas) {
      for (size_t slot = 0; slot < groups_.size(); ++slot) tensors_.quotas[slot] = groups_[slot].single;
    }
    if (is_crowded) join(present);
    write(present);
  }

 private:
  // 2: how many tokens of every group stay single.
  void share(const std::vector<Group*>& present) const {
    const int64_t clusters = static_cast<int64_t>(present.size()), singles = sizes_.keep - clusters;
    const int64_t others = std::max<int64_t>(1, sizes_.visual_count - clusters);
    int64_t missing = singles;
    for (Group* group : present) {
      const int64_t spare = static_cast<int64_t>(group->members.size()) - 1;
      group->single = rounded_quotient(spare * singles, others);
      missing -= group->single;
    }
    std::vector<Group*> order = by_total(present);
    if (missing < 0) std::reverse(order.begin(), order.end());
    for (Group* group : order) {
      if (missing > 0 && group->single < static_cast<int64_t>(group->members.size()) - 1) {
        ++group->single;
        --missing;
      } else if (missing < 0 && group->single > 0) {
        --group->single;
        ++missing;
      }
    }
  }

  static std::vector<Group*> by_total(std::vector<Group*> groups) {
    std::stable_sort(groups.begin(), groups.end(), [](const Group* a, const Group* b) { return a->total < b->total; });
    return groups;
  }

  // 3: the n' - 1 groups of smallest total stay, all others become one.
  void join(std::vector<Group*>& present) const {
    std::vector<Group*> order = by_total(present);
    Group* together = order[sizes_.keep - 1];
    for (size_t i = sizes_.keep; i < order.size(); ++i) {
      together->members.insert(together->members.end(), order[i]->members.begin(), order[i]->members.end());
    }
    std::sort(together->members.begin(), together->members.end());
    order.resize(sizes_.keep);
    present = order;
  }

  // 4 and 5.
  void write(const std::vector<Group*>& present) const {
    std::vector<int64_t> kept;
    std::vector<std::pair<int64_t, std::vector<int64_t>>> merged;  // the middle token, and what its row stands for
    for (Group* group : present) {
      std::vector<int64_t> ranked = group->members;
      std::stable_sort(ranked.begin(), ranked.end(),
                       [this](int64_t a, int64_t b) { return saliency_[a] < saliency_[b]; });
      kept.insert(kept.end(), ranked.begin(), ranked.begin() + group->single);
      std::vector<int64_t> rest(ranked.begin() + group->single, ranked.end());
      std::sort(rest.begin(), rest.end());
      const int64_t middle = rest[rest.size() / 2];
      kept.push_back(middle);
      merged.emplace_back(middle, std::move(rest));
    }
    std::sort(kept.begin(), kept.end());
    splice(sizes_, tensors_, kept.data());

    const Rows hidden = hidden_rows(sizes_, tensors_);
    const size_t start = first_visual(sizes_, tensors_), width = hidden.width;
    std::vector<double> sum(width);
    std::vector<float> row(width), made(width);
    for (const auto& [middle, rest] : merged) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t token : rest) {
        kernels().accumulate(sum.data(), 1.0f, as_float(hidden, start + token, row.data()), width);
      }
      const double scale = 1 / static_cast<double>(rest.size());
      const float* own = as_float(hidden, start + middle, row.data());
      for (size_t k = 0; k < width; ++k) {
        made[k] = static_cast<float>(scale * sum[k] + (p_.mean ? 0.0 : static_cast<double>(own[k])));
      }
      const size_t place = std::lower_bound(kept.begin(), kept.end(), middle) - kept.begin();
      char* to = static_cast<char*>(tensors_.hidden_states_out) + (start + place) * hidden.row_bytes();
      store_rounded(made.data(), width, sizes_.dtype, to);
    }
  }

  const vtx_step_sizes& sizes_;
  const vtx_cluster_merge& p_;
  const vtx_step_tensors& tensors_;
  std::vector<double> saliency_;
  std::vector<Group> groups_;  // the label -1 first
};

}  // namespace
}  // namespace vtx

extern "C" vtx_status vtx_cpu_cluster_merge(const vtx_step_sizes* sizes, const vtx_cluster_merge* parameters,
                                            const vtx_step_tensors* tensors, const vtx_parallel* executor) {
  return vtx::call(vtx::ops::cluster_merge, sizes, parameters, tensors, executor,
                   [&](const vtx::Executor&) { vtx::Merging(*sizes, *parameters, *tensors).run(); });
}
