// One op with its attributes: its node and the call of its kernel. Nothing of TensorRT is in here.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "node.h"
#include "vtx_cuda.h"

namespace vtx {

// The functions of vtx_cuda.h behind one signature.
struct Kernel {
  vtx_status (*workspace)(const void* sizes, const void* parameters, size_t* bytes);
  vtx_status (*run)(const void* sizes, const void* parameters, const void* tensors, void* workspace, size_t bytes,
                    vtx_stream stream);
};

class Op {
 public:
  // Throws Refused, with a sentence, as Node::read does.
  static std::unique_ptr<const Op> create(const OpSchema& schema, const Field* fields, int64_t count);

  const OpSchema& schema() const { return node_.op(); }
  const std::vector<Tensor>& inputs() const { return node_.inputs(); }
  const std::vector<Tensor>& outputs() const { return node_.outputs(); }
  std::vector<Field> fields() const { return node_.fields(); }

  // As Node has them.
  Lengths lengths(const std::vector<Shape>& shapes) const { return node_.lengths(shapes); }
  int64_t dropped() const { return node_.dropped(); }

  // Bytes of workspace. Throws Refused where the kernel refuses the sizes or parameters.
  size_t workspace(const Lengths& lengths, vtx_dtype dtype) const;

  // Enqueues the op; `inputs` and `outputs` in the order of the tables. Throws Refused where the kernel refuses or
  // fails.
  void run(const Lengths& lengths, vtx_dtype dtype, const void* const* inputs, void* const* outputs, void* workspace,
           vtx_stream stream) const;

 private:
  Op(Node node, const Kernel& kernel) : node_(std::move(node)), kernel_(kernel) {}

  Node node_;
  Kernel kernel_;
};

}  // namespace vtx
