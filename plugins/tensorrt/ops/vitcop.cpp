// VtxViTCoP: docs/ops/vitcop.md.
#include "core/encoder_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  vtx_vitcop p{};
  p.clusters = values.integer("clusters");
  p.clustering = static_cast<vtx_clustering>(values.word("clustering"));
  p.cluster_count = values.integer("cluster_count");
  p.cutoff = values.number("cutoff");
  p.radius = values.number("radius");
  p.counts_itself = values.word("variant");
  if (p.cluster_count > values.integer("keep")) {
    throw Refused("attribute cluster_count is " + std::to_string(p.cluster_count) + ", more than keep, which is " +
                  std::to_string(values.integer("keep")));
  }
  std::vector<Tensor> inputs{encoder::kFeatures, encoder::kScores};
  std::vector<Tensor> outputs{encoder::kKeptFeatures, encoder::kKeepIndices};
  if (p.clusters) {
    inputs.push_back(encoder::kKeys);
    outputs.push_back(encoder::kLabels);
  }
  return std::make_unique<EncoderOp<vtx_vitcop>>(type, values, inputs, outputs, 0, true, p,
                                                 EncoderKernel<vtx_vitcop>{vtx_cuda_vitcop_workspace, vtx_cuda_vitcop});
}

}  // namespace

const OpType& ops::vitcop() {
  static const OpType type{
      "VtxViTCoP",
      encoder::with_keep(
          1, {flag("clusters"),
              word("clustering", {{"official", VTX_CLUSTERING_OFFICIAL}, {"fixed", VTX_CLUSTERING_FIXED}}),
              integer("cluster_count", 1, VTX_MOST_TOKENS), positive("cutoff"), positive("radius"),
              word("variant", {{"official", 1}, {"paper", 0}}), encoder::grid_rows(), encoder::grid_columns(),
              unread("cluster_share"), unread("stages"), unread("merge"), unread("deep_positions")}),
      make};
  return type;
}

}  // namespace vtexport
