#include "node.h"

#include <cmath>
#include <cstring>

#include "constraints.h"

namespace vtx {
namespace {

// The largest length of an axis. Products of lengths have limits too; those the call checks.
int64_t limit(const OpSchema& op, char letter) {
  for (const Axis& axis : op.axes) {
    if (axis.letter == letter) return axis.most;
  }
  return VTX_MOST_WIDTH;
}

std::string names(const std::vector<Tensor>& tensors) {
  std::string all;
  for (const Tensor& each : tensors) all += (all.empty() ? "" : ", ") + std::string(each.name);
  return all;
}

std::vector<Tensor> those_there(const List<Tensor>& tensors, const Values& values) {
  std::vector<Tensor> there;
  for (const Tensor& each : tensors) {
    if (values.holds(each.when)) there.push_back(each);
  }
  return there;
}

// The members have several pointer types, all of one representation, so they are set by offset.
template <class Pointer>
void set_pointers(Tensors& all, const std::vector<Tensor>& table, Pointer const* pointers) {
  static_assert(sizeof(Pointer) == sizeof(void*));
  if (!pointers) return;  // the call then says which are missing
  for (size_t place = 0; place < table.size(); ++place) {
    std::memcpy(reinterpret_cast<char*>(&all) + table[place].offset, &pointers[place], sizeof(void*));
  }
}

}  // namespace

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

Node Node::read(const OpSchema& op, const Field* fields, int64_t count) {
  Node node(Values::read(op, fields, count));
  check_together(node.values_);
  return node;
}

Node::Node(const Values& values)
    : values_(values),
      inputs_(those_there(values.op().inputs, values)),
      outputs_(those_there(values.op().outputs, values)) {
  values_.fill(parameters_.data());
  fixed_['N'] = values_.integer("keep");
  if (op().place == Place::kLlm) fixed_['V'] = values_.integer("visual_count");
  if (op().cls_rows >= 0) cls_rows_ = static_cast<int32_t>(values_.number_at(op().cls_rows));
  needs_grid_ = values_.holds(op().needs_grid);
}

Lengths Node::lengths(const std::vector<Shape>& shapes) const {
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
      const int64_t most = limit(op(), letter);
      if (length < 1 || length > most) {
        const std::string which = most > 1 ? std::string(1, letter) + " has to be from 1 to " + std::to_string(most)
                                           : "axis " + std::to_string(axis) + " has to have the length 1";
        throw Refused(std::string(tensor.name) + " is " + shown(shape) + "; " + which);
      }
      if (found[letter] == kUnknown) found[letter] = length;
      if (found[letter] != length) {
        throw Refused(std::string(tensor.name) + " is " + shown(shape) + ", but " + letter + " of " +
                      shown(tensor.axes) + " is " + std::to_string(found[letter]) + " elsewhere");
      }
    }
  }
  if (op().place == Place::kLlm) {
    complete_llm(found);
  } else {
    complete_encoder(found);
  }
  return found;
}

void Node::complete_encoder(Lengths& lengths) const {
  const int64_t rows = lengths['R'], keep = lengths['N'];
  if (rows == kUnknown) return;
  const int64_t patches = rows - cls_rows_;
  if (patches < 1 || patches > VTX_MOST_TOKENS) {
    throw Refused("features has " + std::to_string(rows) + " rows, so " + std::to_string(patches) +
                  " patches; there have to be from 1 to " + std::to_string(VTX_MOST_TOKENS));
  }
  if (lengths['T'] != kUnknown && lengths['T'] != patches) {
    throw Refused("features has " + std::to_string(rows) + " rows, which makes T " + std::to_string(patches) +
                  (cls_rows_ ? " without CLS" : "") + ", but T is " + std::to_string(lengths['T']) + " elsewhere");
  }
  lengths['T'] = patches;
  if (keep > rows) {
    throw Refused("keep is " + std::to_string(keep) + ", more than the " + std::to_string(rows) + " rows of features");
  }
  vtx_sizes grid{};
  set_grid(grid, patches);
}

void Node::complete_llm(Lengths& lengths) const {
  const int64_t rows = lengths['S'], visual = lengths['V'], heads = lengths['H'], key_heads = lengths['G'];
  if (heads != kUnknown && key_heads != kUnknown && heads % key_heads != 0) {
    throw Refused("query has " + std::to_string(heads) + " heads, not a multiple of the " + std::to_string(key_heads) +
                  " of keys");
  }
  if (rows == kUnknown) return;
  if (rows < visual) {
    throw Refused("hidden_states has " + std::to_string(rows) + " rows, fewer than visual_count, which is " +
                  std::to_string(visual));
  }
  lengths['U'] = rows - dropped();
}

// Rows and columns of the patches: as the node says, else a square where the op goes by them, else one row.
void Node::set_grid(vtx_sizes& sizes, int64_t patches) const {
  sizes.grid_rows = 1;
  sizes.grid_columns = static_cast<int32_t>(patches);
  if (values_.has("grid_rows")) {
    sizes.grid_rows = values_.integer("grid_rows");
    sizes.grid_columns = values_.integer("grid_columns");
  } else if (needs_grid_) {
    sizes.grid_rows = sizes.grid_columns = static_cast<int32_t>(std::lround(std::sqrt(static_cast<double>(patches))));
  }
  if (int64_t{sizes.grid_rows} * sizes.grid_columns != patches) {
    const std::string many = std::to_string(patches) + " patches";
    throw Refused(values_.has("grid_rows")
                      ? "the grid of " + std::to_string(sizes.grid_rows) + " x " + std::to_string(sizes.grid_columns) +
                            " does not have the features' " + many
                      : many + " are no square; give the attributes grid_rows and grid_columns");
  }
}

Sizes Node::sizes(const Lengths& lengths, vtx_dtype dtype) const {
  Sizes made;
  std::memset(&made, 0, sizeof made);
  for (const Axis& axis : op().axes) {
    // An axis that the op does not have is unknown, and its size stays 0, which the call ignores.
    if (axis.size == kNowhere || lengths[axis.letter] == kUnknown) continue;
    const auto length = static_cast<int32_t>(lengths[axis.letter]);
    std::memcpy(reinterpret_cast<char*>(&made) + axis.size, &length, sizeof length);
  }
  if (op().place == Place::kLlm) {
    made.llm.dtype = dtype;
    return made;
  }
  set_grid(made.encoder, lengths['T']);
  // A question in the features' own space has their width.
  if (made.encoder.text_tokens && !made.encoder.embedding_width) made.encoder.embedding_width = made.encoder.width;
  made.encoder.dtype = dtype;
  return made;
}

Tensors Node::tensors(const void* const* given, void* const* made) const {
  Tensors all;
  std::memset(&all, 0, sizeof all);
  set_pointers(all, inputs_, given);
  set_pointers(all, outputs_, made);
  return all;
}

}  // namespace vtx
