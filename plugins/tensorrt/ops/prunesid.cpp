// VtxPruneSID: docs/ops/prunesid.md.
#include "core/encoder_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  vtx_prunesid p{};
  p.groups = values.integer("groups");
  p.threshold_scale = values.number("threshold_scale");
  p.center = static_cast<vtx_center>(values.word("center"));
  p.nms_score = static_cast<vtx_nms_score>(values.word("nms_score"));
  p.order = static_cast<vtx_order>(values.word("order"));
  p.cls_slot = values.integer("cls_slot");
  p.redundancy = static_cast<vtx_redundancy>(values.word("redundancy"));
  p.shares = static_cast<vtx_shares>(values.word("shares"));
  const int32_t patches = values.integer("keep") - p.cls_slot;
  if (p.groups > patches) {
    throw Refused("attribute groups is " + std::to_string(p.groups) + ", more than the " + std::to_string(patches) +
                  " patches to keep");
  }
  std::vector<Tensor> inputs{encoder::kFeatures};
  if (p.nms_score == VTX_CLS_ATTENTION) inputs.push_back(encoder::kScores);
  return std::make_unique<EncoderOp<vtx_prunesid>>(
      type, values, inputs, std::vector<Tensor>{encoder::kKeptFeatures, encoder::kKeepIndices}, p.cls_slot, false, p,
      EncoderKernel<vtx_prunesid>{vtx_cuda_prunesid_workspace, vtx_cuda_prunesid});
}

}  // namespace

const OpType& ops::prunesid() {
  static const OpType type{
      "VtxPruneSID",
      encoder::with_keep(4, {integer("groups", 1, VTX_MOST_TOKENS), positive("threshold_scale"),
                             word("center", {{"token", VTX_CENTER_TOKEN}, {"feature", VTX_CENTER_FEATURE}}),
                             word("nms_score", {{"cls_attention", VTX_CLS_ATTENTION}, {"abs_v", VTX_ABS_V}}),
                             word("order", {{"group", VTX_ORDER_GROUP}, {"raster", VTX_ORDER_RASTER}}),
                             flag("cls_slot"), word("redundancy", {{"pairs", VTX_PAIRS}, {"triangle", VTX_TRIANGLE}}),
                             word("shares", {{"bounded", VTX_BOUNDED}, {"proportional", VTX_PROPORTIONAL}}),
                             unread("variant"), unread("space")}),
      make};
  return type;
}

}  // namespace vtexport
