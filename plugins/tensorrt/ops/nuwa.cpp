// VtxNuwa: docs/ops/nuwa.md.
#include "core/encoder_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  vtx_nuwa p{};
  p.top_n = values.integer("top_n");
  p.distance = values.number("distance");
  p.pillar_quantile = values.number("pillar_quantile");
  p.paper = values.word("variant");
  std::vector<Tensor> inputs{encoder::kFeatures, encoder::kScores};
  if (p.paper) inputs.push_back(encoder::kKeys);
  inputs.push_back(encoder::kSimilarityFeatures);
  return std::make_unique<EncoderOp<vtx_nuwa>>(
      type, values, inputs, std::vector<Tensor>{encoder::kKeptFeatures, encoder::kKeepIndices, encoder::kMerged}, 0,
      true, p, EncoderKernel<vtx_nuwa>{vtx_cuda_nuwa_workspace, vtx_cuda_nuwa});
}

}  // namespace

const OpType& ops::nuwa() {
  static const OpType type{
      "VtxNuwa",
      encoder::with_keep(1, {integer("top_n", 1, 4), positive("distance"), number("pillar_quantile", 0, 1),
                             word("variant", {{"official", 0}, {"paper", 1}}), encoder::grid_rows(),
                             encoder::grid_columns(), unread("stages")}),
      make};
  return type;
}

}  // namespace vtexport
