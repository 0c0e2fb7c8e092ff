// VtxAttentionTopK: docs/ops/llm.md.
#include "core/step_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

vtx_status workspace(const vtx_step_sizes* sizes, const NoParameters*, size_t* bytes) {
  return vtx_cuda_attention_topk_workspace(sizes, bytes);
}

vtx_status run(const vtx_step_sizes* sizes, const NoParameters*, const vtx_step_tensors* tensors, void* scratch,
               size_t bytes, vtx_stream stream) {
  return vtx_cuda_attention_topk(sizes, tensors, scratch, bytes, stream);
}

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  return std::make_unique<StepOp<NoParameters>>(
      type, values, std::vector<Tensor>{step::kHiddenStates, step::kVisualStart, step::kKeys, step::kQuery},
      NoParameters{}, StepKernel<NoParameters>{workspace, run});
}

}  // namespace

const OpType& ops::attention_topk() {
  static const OpType type{"VtxAttentionTopK", step::with_counts(), make};
  return type;
}

}  // namespace vtexport
