// Whether a call of an op can be carried out: what every native form asks before it touches a tensor.
#ifndef VTX_COMMON_CHECK_H
#define VTX_COMMON_CHECK_H

#include "ops_table.h"

namespace vtx {

// The first thing that is wrong: VTX_NULL_POINTER for missing structures, then VTX_BAD_PARAMETER of what decides about
// sizes, VTX_BAD_SIZE, VTX_BAD_PARAMETER, VTX_NULL_POINTER and VTX_MISALIGNED of the tensors that the op reads and
// writes.
//
// `sizes` and `tensors` are the structures of the op's place, `parameters` is the op's own and not looked at where it
// has none; with `tensors` NULL only sizes and parameters are looked at. No value of any argument is out of bounds, and
// what passes cannot overflow: every tensor has fewer than 2^43 elements.
vtx_status check(const OpSchema& op, const void* sizes, const void* parameters, const void* tensors);

}  // namespace vtx

#endif
