// What the last call of a kernel was.
#pragma once

#include <string>
#include <vector>

#include "vtx_cuda.h"

namespace recording {

constexpr size_t kWorkspace = 4096;

struct Call {
  std::string op;
  vtx_sizes sizes{};
  vtx_step_sizes step_sizes{};
  std::vector<char> parameters;
  vtx_tensors tensors{};
  vtx_step_tensors step_tensors{};
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  vtx_stream stream = nullptr;
  int runs = 0;
  vtx_status answer = VTX_OK;  // of every function, until a test wants another

  void set(const vtx_sizes& given) { sizes = given; }
  void set(const vtx_step_sizes& given) { step_sizes = given; }
  void set(const vtx_tensors& given) { tensors = given; }
  void set(const vtx_step_tensors& given) { step_tensors = given; }

  template <class Parameters>
  const Parameters& as() const {
    return *reinterpret_cast<const Parameters*>(parameters.data());
  }
};

Call& last();

}  // namespace recording
