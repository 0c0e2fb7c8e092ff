#include "core/op.h"

#include <stdexcept>
#include <string>

#include "ops_table.h"

namespace vtx {
namespace {

#define VTX_WITH_PARAMETERS(op, sizes_type, tensors_type)                                                           \
  if (&schema == &ops::op) {                                                                                        \
    return {[](const void* sizes, const void* parameters, size_t* bytes) {                                          \
              return vtx_cuda_##op##_workspace(static_cast<const sizes_type*>(sizes),                               \
                                               static_cast<const vtx_##op*>(parameters), bytes);                    \
            },                                                                                                      \
            [](const void* sizes, const void* parameters, const void* tensors, void* workspace, size_t bytes,       \
               vtx_stream stream) {                                                                                 \
              return vtx_cuda_##op(static_cast<const sizes_type*>(sizes), static_cast<const vtx_##op*>(parameters), \
                                   static_cast<const tensors_type*>(tensors), workspace, bytes, stream);            \
            }};                                                                                                     \
  }
#define VTX_WITHOUT_PARAMETERS(op, sizes_type, tensors_type)                                                        \
  if (&schema == &ops::op) {                                                                                        \
    return {                                                                                                        \
        [](const void* sizes, const void*, size_t* bytes) {                                                         \
          return vtx_cuda_##op##_workspace(static_cast<const sizes_type*>(sizes), bytes);                           \
        },                                                                                                          \
        [](const void* sizes, const void*, const void* tensors, void* workspace, size_t bytes, vtx_stream stream) { \
          return vtx_cuda_##op(static_cast<const sizes_type*>(sizes), static_cast<const tensors_type*>(tensors),    \
                               workspace, bytes, stream);                                                           \
        }};                                                                                                         \
  }

Kernel kernel_of(const OpSchema& schema) {
  VTX_EACH_OP(VTX_WITH_PARAMETERS, VTX_WITHOUT_PARAMETERS)
  throw std::logic_error(std::string("no kernel of ") + schema.name);
}

// Throws Refused for every status but VTX_OK.
void demand(vtx_status status) {
  if (status == VTX_OK) return;
  std::string sentence = vtx_status_text(status);
  if (status == VTX_DEVICE_ERROR) sentence += std::string(" (") + vtx_cuda_last_error() + ")";
  throw Refused(sentence);
}

}  // namespace

std::unique_ptr<const Op> Op::create(const OpSchema& schema, const Field* fields, int64_t count) {
  return std::unique_ptr<const Op>(new Op(Node::read(schema, fields, count), kernel_of(schema)));
}

size_t Op::workspace(const Lengths& lengths, vtx_dtype dtype) const {
  const Sizes sizes = node_.sizes(lengths, dtype);
  size_t bytes = 0;
  demand(kernel_.workspace(&sizes, node_.parameters(), &bytes));
  return bytes;
}

void Op::run(const Lengths& lengths, vtx_dtype dtype, const void* const* inputs, void* const* outputs, void* workspace,
             vtx_stream stream) const {
  const Sizes sizes = node_.sizes(lengths, dtype);
  const Tensors tensors = node_.tensors(inputs, outputs);
  size_t bytes = 0;
  demand(kernel_.workspace(&sizes, node_.parameters(), &bytes));
  demand(kernel_.run(&sizes, node_.parameters(), &tensors, workspace, bytes, stream));
}

}  // namespace vtx
