// The functions of vtx_cpu.h behind one signature.
#ifndef VTX_ORT_OPS_H
#define VTX_ORT_OPS_H

#include "schema.h"
#include "vtx_cpu.h"

namespace vtx {

using RunOp = vtx_status (*)(const void* sizes, const void* parameters, const void* tensors,
                             const vtx_parallel* threads);

RunOp run_of(const OpSchema& schema);

}  // namespace vtx

#endif
