// VtxClusterMerge: docs/ops/llm.md.
#include "core/step_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  vtx_cluster_merge p{};
  p.clusters = values.integer("clusters");
  p.mean = values.word("merge");
  if (p.clusters > values.integer("visual_count")) {
    throw Refused("attribute clusters is " + std::to_string(p.clusters) + ", more than visual_count, which is " +
                  std::to_string(values.integer("visual_count")));
  }
  return std::make_unique<StepOp<vtx_cluster_merge>>(
      type, values, std::vector<Tensor>{step::kHiddenStates, step::kVisualStart, step::kKeys, step::kLabels}, p,
      StepKernel<vtx_cluster_merge>{vtx_cuda_cluster_merge_workspace, vtx_cuda_cluster_merge});
}

}  // namespace

const OpType& ops::cluster_merge() {
  static const OpType type{
      "VtxClusterMerge",
      step::with_counts({integer("clusters", 1, VTX_MOST_TOKENS), word("merge", {{"sum", 0}, {"mean", 1}})}), make};
  return type;
}

}  // namespace vtexport
