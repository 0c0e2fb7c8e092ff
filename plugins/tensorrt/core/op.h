// One op with its attributes: tensors and shapes, and the call of its kernel. Nothing of TensorRT is in here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/attributes.h"
#include "vtx_cuda.h"

namespace vtexport {

enum class Element {
  kFeatures,  // float32, float16 or bfloat16, the same in all such tensors of a node
  kFloat32,
  kInt64,
  kBool
};

// An input or output. Its shape is a word of letters, one for each axis; equal letters are equal lengths:
//   behind the tower   B images, R rows of features (R = c + T), T patches, D width, N kept, H heads, K head width,
//                      M text tokens, E embedding width
//   inside the model   S rows, W width, V visual tokens, G key heads, H query heads, K head width, U rows left; 1 is
//   one
struct Tensor {
  const char* name;
  Element element;
  const char* axes;
  size_t slot;  // where its pointer is in vtx_tensors or vtx_step_tensors
};

constexpr int64_t kUnknown = -1;  // a length that is not fixed yet

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
  const int64_t* lengths;  // kUnknown where one is not fixed yet; TensorRT says so by any negative number
};

class Op;

// An entry of the list of ops: a name, a table of attributes, and what makes the op from their values.
struct OpType {
  const char* name;
  std::vector<Attribute> attributes;
  std::unique_ptr<const Op> (*make)(const OpType& type, const Values& values);
};

const std::vector<const OpType*>& op_types();

class Op {
 public:
  virtual ~Op() = default;

  // Throws Refused, with a sentence, as Values::read does, and where attributes contradict each other.
  static std::unique_ptr<const Op> create(const OpType& type, const Field* fields, int64_t count);

  const OpType& type() const { return type_; }
  const std::vector<Tensor>& inputs() const { return inputs_; }
  const std::vector<Tensor>& outputs() const { return outputs_; }
  std::vector<Field> fields() const { return values_.fields(); }

  // The lengths of all axes, those of the outputs too, as far as the inputs' shapes are known.
  //
  // Throws Refused: a rank or length does not fit, is zero or beyond its limit, or more is to be kept than there is.
  Lengths lengths(const std::vector<Shape>& shapes) const;

  // Bytes of workspace. Throws Refused where the kernel refuses the sizes or parameters.
  virtual size_t workspace(const Lengths& lengths, vtx_dtype dtype) const = 0;

  // Enqueues the op; `inputs` and `outputs` in the order of the tables. Throws Refused where the kernel refuses or
  // fails.
  virtual void run(const Lengths& lengths, vtx_dtype dtype, const void* const* inputs, void* const* outputs,
                   void* workspace, vtx_stream stream) const = 0;

  // How many rows fewer than axis `S` there are in `U`, which is the only length of an output that is computed.
  virtual int64_t dropped() const { return 0; }

 protected:
  Op(const OpType& type, const Values& values, std::vector<Tensor> inputs, std::vector<Tensor> outputs)
      : type_(type), values_(values), inputs_(std::move(inputs)), outputs_(std::move(outputs)) {}

  const Values& values() const { return values_; }

  Lengths fixed_;  // by attributes

 private:
  virtual void complete(Lengths& lengths) const = 0;  // derives what follows from the inputs, and checks it

  const OpType& type_;
  Values values_;
  std::vector<Tensor> inputs_, outputs_;
};

// Of ops that have no parameters beside their counts.
struct NoParameters {};

// Throws Refused for every status but VTX_OK.
void check(vtx_status status);

}  // namespace vtexport
