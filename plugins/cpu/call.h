// The frame of every function of the C API.
#ifndef VTX_CPU_CALL_H
#define VTX_CPU_CALL_H

#include <exception>

#include "check.h"
#include "parallel.h"

namespace vtx {

// Checks the arguments of an op and runs `body` with the caller's threads. Nothing is thrown.
template <typename Body>
vtx_status call(const OpSchema& op, const void* sizes, const void* parameters, const void* tensors,
                const vtx_parallel* threads, const Body& body) {
  const vtx_status checked = check(op, sizes, parameters, tensors);
  if (checked != VTX_OK) return checked;
  if (!tensors) return VTX_NULL_POINTER;
  try {
    body(Executor(threads));
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error of a vector
    return VTX_NO_MEMORY;
  }
  return VTX_OK;
}

// The same with `body` for every image of a batch, as (threads, index).
template <typename Body>
vtx_status call_images(const OpSchema& op, const vtx_sizes* sizes, const void* parameters, const vtx_tensors* tensors,
                       const vtx_parallel* threads, const Body& body) {
  return call(op, sizes, parameters, tensors, threads, [&](const Executor& executor) {
    for (size_t index = 0; index < static_cast<size_t>(sizes->batch); ++index) body(executor, index);
  });
}

}  // namespace vtx

#endif
