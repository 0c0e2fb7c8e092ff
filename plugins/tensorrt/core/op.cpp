#include "core/op.h"

#include <cstring>

namespace vtexport {
namespace {

// The largest length of an axis. Products of lengths have limits too; those the kernel checks.
int64_t limit(char axis) {
  switch (axis) {
    case 'B':
      return VTX_MOST_BATCH;
    case 'T':
    case 'V':
      return VTX_MOST_TOKENS;
    case 'R':
    case 'N':
      return VTX_MOST_TOKENS + 1;
    case 'M':
      return VTX_MOST_TEXT;
    case 'S':
    case 'U':
      return VTX_MOST_SEQUENCE;
    case '1':
      return 1;
    default:
      return VTX_MOST_WIDTH;
  }
}

std::string shown(const Shape& shape) {
  std::string all = "[";
  for (int32_t axis = 0; axis < shape.rank; ++axis) {
    if (axis) all += ", ";
    all += shape.lengths[axis] < 0 ? "?" : std::to_string(shape.lengths[axis]);
  }
  return all + "]";
}

std::string shown(const char* axes) {
  std::string all = "[";
  for (const char* axis = axes; *axis; ++axis) all += (axis == axes ? "" : ", ") + std::string(1, *axis);
  return all + "]";
}

std::string names(const std::vector<Tensor>& tensors) {
  std::string all;
  for (const Tensor& each : tensors) all += (all.empty() ? "" : ", ") + std::string(each.name);
  return all;
}

}  // namespace

void check(vtx_status status) {
  if (status == VTX_OK) return;
  std::string sentence = vtx_status_text(status);
  if (status == VTX_DEVICE_ERROR) sentence += std::string(" (") + vtx_cuda_last_error() + ")";
  throw Refused(sentence);
}

std::unique_ptr<const Op> Op::create(const OpType& type, const Field* fields, int64_t count) {
  return type.make(type, Values::read(type.attributes, fields, count));
}

Lengths Op::lengths(const std::vector<Shape>& shapes) const {
  if (shapes.size() != inputs_.size()) {
    throw Refused("with these attributes it takes " + std::to_string(inputs_.size()) + " inputs (" + names(inputs_) +
                  "), and here are " + std::to_string(shapes.size()));
  }
  Lengths found = fixed_;
  for (size_t place = 0; place < inputs_.size(); ++place) {
    const Tensor& tensor = inputs_[place];
    const Shape& shape = shapes[place];
    const auto rank = static_cast<int32_t>(std::strlen(tensor.axes));
    if (shape.rank != rank || !shape.lengths) {
      throw Refused(std::string(tensor.name) + " has rank " + std::to_string(shape.rank) + "; it has to be " +
                    shown(tensor.axes));
    }
    for (int32_t axis = 0; axis < rank; ++axis) {
      const char letter = tensor.axes[axis];
      const int64_t length = shape.lengths[axis];
      if (length < 0) continue;
      if (length < 1 || length > limit(letter)) {
        throw Refused(std::string(tensor.name) + " is " + shown(shape) + "; " + letter + " has to be from 1 to " +
                      std::to_string(limit(letter)));
      }
      if (found[letter] == kUnknown) found[letter] = length;
      if (found[letter] != length) {
        throw Refused(std::string(tensor.name) + " is " + shown(shape) + ", but " + letter + " of " +
                      shown(tensor.axes) + " is " + std::to_string(found[letter]) + " elsewhere");
      }
    }
  }
  complete(found);
  return found;
}

}  // namespace vtexport
