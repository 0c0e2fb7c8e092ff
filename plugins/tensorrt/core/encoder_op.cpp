#include "core/encoder_op.h"

#include <cmath>

#include "core/pointers.h"

namespace vtexport {

std::vector<Attribute> encoder::with_keep(int64_t least, std::vector<Attribute> own) {
  std::vector<Attribute> all{unread("plugin_namespace"), unread("plugin_version"),
                             integer("keep", least, VTX_MOST_TOKENS + 1)};
  for (Attribute& each : own) all.push_back(std::move(each));
  return all;
}

Attribute encoder::grid_rows() { return optional_integer("grid_rows", 1, VTX_MOST_TOKENS); }

Attribute encoder::grid_columns() { return optional_integer("grid_columns", 1, VTX_MOST_TOKENS); }

AnyEncoderOp::AnyEncoderOp(const OpType& type, const Values& values, std::vector<Tensor> inputs,
                           std::vector<Tensor> outputs, int32_t cls_rows, bool has_grid)
    : Op(type, values, std::move(inputs), std::move(outputs)), cls_rows_(cls_rows), has_grid_(has_grid) {
  fixed_['N'] = values.integer("keep");
  if (has_grid && values.has("grid_rows") != values.has("grid_columns")) {
    throw Refused("of the attributes grid_rows and grid_columns one is missing; give both or neither");
  }
}

void AnyEncoderOp::complete(Lengths& lengths) const {
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

void AnyEncoderOp::set_grid(vtx_sizes& sizes, int64_t patches) const {
  sizes.grid_rows = 1;
  sizes.grid_columns = static_cast<int32_t>(patches);
  if (!has_grid_) return;
  if (values().has("grid_rows")) {
    sizes.grid_rows = values().integer("grid_rows");
    sizes.grid_columns = values().integer("grid_columns");
  } else {
    sizes.grid_rows = sizes.grid_columns = static_cast<int32_t>(std::lround(std::sqrt(static_cast<double>(patches))));
  }
  if (int64_t{sizes.grid_rows} * sizes.grid_columns != patches) {
    const std::string many = std::to_string(patches) + " patches";
    throw Refused(values().has("grid_rows")
                      ? "the grid of " + std::to_string(sizes.grid_rows) + " x " + std::to_string(sizes.grid_columns) +
                            " does not have the features' " + many
                      : many + " are no square; give the attributes grid_rows and grid_columns");
  }
}

vtx_sizes AnyEncoderOp::sizes(const Lengths& lengths, vtx_dtype dtype) const {
  // An axis that the op does not have is unknown, and its size stays 0, which the kernel ignores.
  const auto length = [&](char axis) { return lengths[axis] == kUnknown ? 0 : static_cast<int32_t>(lengths[axis]); };
  vtx_sizes made{};
  made.batch = length('B');
  set_grid(made, length('T'));
  made.width = length('D');
  made.keep = length('N');
  made.heads = length('H');
  made.head_width = length('K');
  made.text_tokens = length('M');
  made.embedding_width = length('E');
  // With relevance llm the question has the features' own width.
  if (made.text_tokens && !made.embedding_width) made.embedding_width = made.width;
  made.dtype = dtype;
  return made;
}

vtx_tensors AnyEncoderOp::tensors(const void* const* given, void* const* made) const {
  vtx_tensors all{};
  set_pointers(all, inputs(), given);
  set_pointers(all, outputs(), made);
  return all;
}

}  // namespace vtexport
