// The frame of every function of the C API.
#ifndef VTX_CPU_CALL_H
#define VTX_CPU_CALL_H

#include <exception>

#include "parallel.h"

namespace vtx {

// Runs `body` with the caller's threads if `checked`, the status of the arguments, allows it. Nothing is thrown.
template <typename Body>
vtx_status call(vtx_status checked, const void* tensors, const vtx_parallel* threads, const Body& body) {
  if (checked != VTX_OK) return checked;
  if (!tensors) return VTX_NULL_POINTER;
  try {
    body(Executor(threads));
  } catch (const std::exception&) {  // std::bad_alloc, or std::length_error of a vector
    return VTX_NO_MEMORY;
  }
  return VTX_OK;
}

}  // namespace vtx

#endif
