// The frame of every function of the C API: what a call is checked for, and its workspace.
#pragma once

#include "check.h"
#include "parts.cuh"

namespace vtx {

// Whether the caller's workspace will do.
vtx_status check_workspace(const void* workspace, size_t given, size_t needed);

// plan_of(base) lays out the arrays of a call from `base` on, and says how many `bytes` they take.
template <class PlanOf>
vtx_status workspace_bytes_of(const OpSchema& op, const void* sizes, const void* parameters, size_t* bytes,
                              const PlanOf& plan_of) {
  VTX_TRY(check(op, sizes, parameters, nullptr));
  if (!bytes) return VTX_NULL_POINTER;
  *bytes = plan_of(nullptr).bytes;
  return VTX_OK;
}

// enqueue(plan) follows once everything is checked.
template <class PlanOf, class Enqueue>
vtx_status call(const OpSchema& op, const void* sizes, const void* parameters, const void* tensors, void* workspace,
                size_t workspace_bytes, const PlanOf& plan_of, const Enqueue& enqueue) {
  VTX_TRY(check(op, sizes, parameters, tensors));
  if (!tensors) return VTX_NULL_POINTER;
  const auto plan = plan_of(workspace);
  VTX_TRY(check_workspace(workspace, workspace_bytes, plan.bytes));
  return enqueue(plan);
}

}  // namespace vtx

// The two functions of an op in the C API, from `plan_of(sizes, parameters, base)` and
// `enqueue(plan, sizes, parameters, tensors, stream)` of its file.
#define VTX_CUDA_OP(op, sizes_type, tensors_type)                                                           \
  extern "C" vtx_status vtx_cuda_##op##_workspace(const sizes_type* sizes, const vtx_##op* parameters,      \
                                                  size_t* bytes) {                                          \
    return vtx::workspace_bytes_of(vtx::ops::op, sizes, parameters, bytes,                                  \
                                   [&](void* base) { return plan_of(*sizes, *parameters, base); });         \
  }                                                                                                         \
  extern "C" vtx_status vtx_cuda_##op(const sizes_type* sizes, const vtx_##op* parameters,                  \
                                      const tensors_type* tensors, void* workspace, size_t workspace_bytes, \
                                      vtx_stream stream) {                                                  \
    return vtx::call(                                                                                       \
        vtx::ops::op, sizes, parameters, tensors, workspace, workspace_bytes,                               \
        [&](void* base) { return plan_of(*sizes, *parameters, base); },                                     \
        [&](const auto& plan) { return enqueue(plan, *sizes, *parameters, *tensors, stream); });            \
  }

// The same of an op without parameters, from functions that are named.
#define VTX_CUDA_OP_WITHOUT_PARAMETERS(op, sizes_type, tensors_type, plan_of, enqueue)                       \
  extern "C" vtx_status vtx_cuda_##op##_workspace(const sizes_type* sizes, size_t* bytes) {                  \
    return vtx::workspace_bytes_of(vtx::ops::op, sizes, nullptr, bytes,                                      \
                                   [&](void* base) { return plan_of(*sizes, base); });                       \
  }                                                                                                          \
  extern "C" vtx_status vtx_cuda_##op(const sizes_type* sizes, const tensors_type* tensors, void* workspace, \
                                      size_t workspace_bytes, vtx_stream stream) {                           \
    return vtx::call(                                                                                        \
        vtx::ops::op, sizes, nullptr, tensors, workspace, workspace_bytes,                                   \
        [&](void* base) { return plan_of(*sizes, base); },                                                   \
        [&](const auto& plan) { return enqueue(plan, *sizes, *tensors, stream); });                          \
  }
