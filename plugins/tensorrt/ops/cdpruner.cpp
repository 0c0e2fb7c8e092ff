// VtxCDPruner: docs/ops/cdpruner.md.
#include "core/encoder_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  vtx_cdpruner p{};
  p.relevance_of = static_cast<vtx_relevance>(values.word("relevance"));
  p.negate = values.integer("negate");
  p.theta = values.number("theta");
  std::vector<Tensor> inputs{encoder::kFeatures};
  if (p.relevance_of == VTX_RELEVANCE_LLM) inputs.push_back(encoder::kQuestionEmbeds);
  if (p.relevance_of == VTX_RELEVANCE_CLIP) {
    inputs.push_back(encoder::kImageEmbeds);
    inputs.push_back(encoder::kTextEmbeds);
  }
  return std::make_unique<EncoderOp<vtx_cdpruner>>(
      type, values, inputs, std::vector<Tensor>{encoder::kKeptFeatures, encoder::kKeepIndices}, 0, false, p,
      EncoderKernel<vtx_cdpruner>{vtx_cuda_cdpruner_workspace, vtx_cuda_cdpruner});
}

}  // namespace

const OpType& ops::cdpruner() {
  static const OpType type{
      "VtxCDPruner",
      encoder::with_keep(
          1,
          {word("relevance", {{"llm", VTX_RELEVANCE_LLM}, {"clip", VTX_RELEVANCE_CLIP}, {"none", VTX_RELEVANCE_NONE}}),
           flag("negate"), number("theta", 0, 0.95)}),
      make};
  return type;
}

}  // namespace vtexport
