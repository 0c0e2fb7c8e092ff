#include "ops.h"

#include <stdexcept>
#include <string>

#include "ops_table.h"

namespace vtx {

#define VTX_WITH_PARAMETERS(op, sizes_type, tensors_type)                                                    \
  if (&schema == &ops::op) {                                                                                 \
    return [](const void* sizes, const void* parameters, const void* tensors, const vtx_parallel* threads) { \
      return vtx_cpu_##op(static_cast<const sizes_type*>(sizes), static_cast<const vtx_##op*>(parameters),   \
                          static_cast<const tensors_type*>(tensors), threads);                               \
    };                                                                                                       \
  }
#define VTX_WITHOUT_PARAMETERS(op, sizes_type, tensors_type)                                                          \
  if (&schema == &ops::op) {                                                                                          \
    return [](const void* sizes, const void*, const void* tensors, const vtx_parallel* threads) {                     \
      return vtx_cpu_##op(static_cast<const sizes_type*>(sizes), static_cast<const tensors_type*>(tensors), threads); \
    };                                                                                                                \
  }

RunOp run_of(const OpSchema& schema) {
  VTX_EACH_OP(VTX_WITH_PARAMETERS, VTX_WITHOUT_PARAMETERS)
  throw std::logic_error(std::string("no function for ") + schema.name);
}

}  // namespace vtx
