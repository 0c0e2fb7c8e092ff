// VtxSVDPrune: docs/ops/svdprune.md.
#include "core/encoder_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  vtx_svdprune p{};
  p.energy = values.number("energy");
  p.rank = values.integer("rank");
  p.rank_bound = values.integer("rank_bound");
  p.center = static_cast<vtx_center>(values.word("center"));
  p.mode = static_cast<vtx_svd_mode>(values.word("mode"));
  p.leverage = values.number("leverage");
  if (p.rank && p.rank_bound != p.rank) {
    throw Refused("attribute rank_bound is " + std::to_string(p.rank_bound) + "; with rank " + std::to_string(p.rank) +
                  " it has to be the same");
  }
  std::vector<Tensor> outputs{encoder::kKeptFeatures, encoder::kKeepIndices, encoder::kRank, encoder::kEnergy};
  if (p.mode == VTX_MODE_LEVERAGE) {
    outputs.push_back(encoder::kCount);
    outputs.push_back(encoder::kLeverage);
  }
  return std::make_unique<EncoderOp<vtx_svdprune>>(
      type, values, std::vector<Tensor>{encoder::kFeatures}, outputs, 0, false, p,
      EncoderKernel<vtx_svdprune>{vtx_cuda_svdprune_workspace, vtx_cuda_svdprune});
}

}  // namespace

const OpType& ops::svdprune() {
  static const OpType type{
      "VtxSVDPrune",
      encoder::with_keep(
          1, {positive("energy", 1), integer("rank", 0, VTX_MOST_TOKENS), integer("rank_bound", 1, VTX_MOST_TOKENS),
              word("center", {{"none", VTX_CENTER_NONE}, {"feature-mean", VTX_CENTER_FEATURE}}),
              word("mode", {{"budget", VTX_MODE_BUDGET}, {"leverage", VTX_MODE_LEVERAGE}}), positive("leverage", 1),
              unread("space")}),
      make};
  return type;
}

}  // namespace vtexport
