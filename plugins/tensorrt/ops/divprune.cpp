// VtxDivPrune: docs/ops/divprune.md.
#include "core/encoder_op.h"
#include "ops/list.h"

namespace vtexport {
namespace {

vtx_status workspace(const vtx_sizes* sizes, const NoParameters*, size_t* bytes) {
  return vtx_cuda_divprune_workspace(sizes, bytes);
}

vtx_status run(const vtx_sizes* sizes, const NoParameters*, const vtx_tensors* tensors, void* scratch, size_t bytes,
               vtx_stream stream) {
  return vtx_cuda_divprune(sizes, tensors, scratch, bytes, stream);
}

std::unique_ptr<const Op> make(const OpType& type, const Values& values) {
  return std::make_unique<EncoderOp<NoParameters>>(type, values, std::vector<Tensor>{encoder::kFeatures},
                                                   std::vector<Tensor>{encoder::kKeptFeatures, encoder::kKeepIndices},
                                                   0, false, NoParameters{},
                                                   EncoderKernel<NoParameters>{workspace, run});
}

}  // namespace

const OpType& ops::divprune() {
  static const OpType type{"VtxDivPrune", encoder::with_keep(1, {unread("space")}), make};
  return type;
}

}  // namespace vtexport
