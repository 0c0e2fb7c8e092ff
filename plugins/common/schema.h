// What the table of the ops (ops_table.h) is made of: nodes, tensors and structures of each, as every form goes by
// them.
#ifndef VTX_COMMON_SCHEMA_H
#define VTX_COMMON_SCHEMA_H

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "vtx_ops.h"

namespace vtx {

// A constant array and its length.
template <class T>
class List {
 public:
  constexpr List() = default;
  template <size_t count>
  constexpr List(const T (&data)[count]) : data_(data), count_(count) {}

  constexpr const T* begin() const { return data_; }
  constexpr const T* end() const { return data_ + count_; }
  constexpr size_t size() const { return count_; }
  constexpr const T& operator[](size_t place) const { return data_[place]; }

 private:
  const T* data_ = nullptr;
  size_t count_ = 0;
};

constexpr size_t kNowhere = SIZE_MAX;       // in place of an offset in a structure
constexpr size_t kMostParameterBytes = 64;  // of any op's structure of parameters
constexpr int64_t kUnknown = -1;            // a length that is not fixed yet
enum class Place { kEncoder, kLlm };        // vtx_sizes and vtx_tensors, or vtx_step_sizes and vtx_step_tensors
enum class Kind { kInteger, kNumber, kFlag, kWord };

enum class Element {
  kFeatures,  // float32, float16 or bfloat16, the same in all such tensors of a node
  kFloat32,
  kInt64,
  kBool
};

// What an integer's upper bound is besides its `most`.
enum class Bound { kNone, kKeep, kPatchesToKeep, kVisualCount, kTokens };

struct Word {
  const char* text;
  int32_t value;
};

// The values of one attribute, by its place in the table, with which something is there: a bit for each.
struct Condition {
  int attribute;
  uint32_t values;
};
constexpr Condition kAlways = {-1, 1}, kNever = {-1, 0};

struct Attribute {
  const char* name;
  Kind kind;
  bool is_read;  // false: it stands on the ONNX node and means nothing to a native form
  bool is_optional = false;
  size_t field = kNowhere;     // its offset in the op's structure
  double least = 0, most = 0;  // of integers, flags and numbers
  bool above_least = false;    // whether `least` itself is not allowed
  Bound bound = Bound::kNone;
  List<Word> words = {};
  Condition when = kAlways;  // else it means nothing, and a C caller need not fill it in
};

// An input, an output or an intermediate value. `axes` is a word of letters, one for each axis; equal letters are equal
// lengths:
//   encoder   B images, R rows of features (R = c + T), T patches, D width, N kept, H heads, K head width,
//             M text tokens, E embedding width
//   llm       S rows, W width, V visual tokens, G key heads, H query heads, K head width, U rows left; 1 is one
struct Tensor {
  const char* name;
  Element element;
  const char* axes;
  size_t offset;  // of its pointer in vtx_tensors or vtx_step_tensors
  Condition when;
};

struct Axis {
  char letter;
  int64_t most;
  size_t size;  // the offset of its length in vtx_sizes or vtx_step_sizes
};

struct OpSchema {
  const char* name;      // of the node
  const char* function;  // of the C API, without the form's prefix
  Place place;
  int32_t least_keep;
  int cls_rows;          // the place of the flag that says whether features have a CLS row; -1: they have none
  Condition needs_grid;  // kNever: the op has no use for one, and its node no attributes for it
  size_t parameter_bytes;
  List<Axis> axes;
  List<Attribute> attributes;
  List<Tensor> inputs, outputs, diagnostics;
};

// Whether a condition holds, given the number that the attribute at a place has.
template <class NumberAt>
bool holds(const Condition& condition, const NumberAt& number_at) {
  if (condition.attribute < 0) return condition.values != 0;
  const int64_t number = number_at(static_cast<size_t>(condition.attribute));
  return number >= 0 && number < 32 && (condition.values >> number & 1u) != 0;
}

}  // namespace vtx

#endif
