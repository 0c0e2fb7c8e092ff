// A node of an op as a runtime has it: what its attributes say, and from its inputs' shapes to the sizes of a call.
#ifndef VTX_COMMON_NODE_H
#define VTX_COMMON_NODE_H

#include <array>
#include <string>
#include <vector>

#include "attributes.h"

namespace vtx {

// Lengths by the letter of their axis.
class Lengths {
 public:
  Lengths() { of_.fill(kUnknown); }
  int64_t& operator[](char axis) { return of_[static_cast<unsigned char>(axis) & 127]; }
  int64_t operator[](char axis) const { return of_[static_cast<unsigned char>(axis) & 127]; }

 private:
  std::array<int64_t, 128> of_;
};

struct Shape {
  int32_t rank;
  const int64_t* lengths;  // below 0 where one is not fixed yet
};

// Sizes and tensors of a call: of the op's place.
union Sizes {
  vtx_sizes encoder;
  vtx_step_sizes llm;
};
union Tensors {
  vtx_tensors encoder;
  vtx_step_tensors llm;
};

class Node {
 public:
  // Throws Refused, with a sentence, as Values::read does, and where attributes contradict each other.
  static Node read(const OpSchema& op, const Field* fields, int64_t count);

  const OpSchema& op() const { return values_.op(); }
  std::vector<Field> fields() const { return values_.fields(); }

  // Of a node with these attributes.
  const std::vector<Tensor>& inputs() const { return inputs_; }
  const std::vector<Tensor>& outputs() const { return outputs_; }

  // The op's structure, NULL where it has none.
  const void* parameters() const { return op().parameter_bytes ? parameters_.data() : nullptr; }

  // The lengths of all axes, those of the outputs too, as far as the inputs' shapes are known.
  //
  // Throws Refused: a rank or length does not fit, is zero or beyond its limit, or more is to be kept than there is.
  Lengths lengths(const std::vector<Shape>& shapes) const;

  // How many rows fewer than axis `S` there are in `U`, which is the only length of an output that is computed.
  int64_t dropped() const { return fixed_['V'] - fixed_['N']; }

  // Of a call with these lengths, which are known, and these pointers in the order of inputs and outputs; a missing
  // list leaves its tensors out.
  Sizes sizes(const Lengths& lengths, vtx_dtype dtype) const;
  Tensors tensors(const void* const* inputs, void* const* outputs) const;

 private:
  explicit Node(const Values& values);

  void complete_encoder(Lengths& lengths) const;
  void complete_llm(Lengths& lengths) const;
  void set_grid(vtx_sizes& sizes, int64_t patches) const;

  Values values_;
  std::vector<Tensor> inputs_, outputs_;
  alignas(std::max_align_t) std::array<char, kMostParameterBytes> parameters_{};
  Lengths fixed_;  // by attributes
  int32_t cls_rows_ = 0;
  bool needs_grid_ = false;
};

// The axes of a tensor, such as "[B, N, D]".
std::string shown(const char* axes);
std::string shown(const Shape& shape);

}  // namespace vtx

#endif
