#include "core/step_op.h"

#include "core/pointers.h"

namespace vtexport {

std::vector<Attribute> step::with_counts(std::vector<Attribute> own) {
  std::vector<Attribute> all{unread("plugin_namespace"), unread("plugin_version"),
                             integer("visual_count", 1, VTX_MOST_TOKENS), integer("keep", 1, VTX_MOST_TOKENS)};
  for (Attribute& each : own) all.push_back(std::move(each));
  return all;
}

AnyStepOp::AnyStepOp(const OpType& type, const Values& values, std::vector<Tensor> inputs)
    : Op(type, values, std::move(inputs), {step::kHiddenStatesOut, step::kRows}), keep_(values.integer("keep")) {
  fixed_['V'] = values.integer("visual_count");
  if (keep_ > fixed_['V']) {
    throw Refused("keep is " + std::to_string(keep_) + ", more than visual_count, which is " +
                  std::to_string(fixed_['V']));
  }
}

void AnyStepOp::complete(Lengths& lengths) const {
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

vtx_step_sizes AnyStepOp::sizes(const Lengths& lengths, vtx_dtype dtype) const {
  // An axis that the op does not have is unknown, and its size stays 0, which the kernel ignores.
  const auto length = [&](char axis) { return lengths[axis] == kUnknown ? 0 : static_cast<int32_t>(lengths[axis]); };
  vtx_step_sizes made{};
  made.rows = length('S');
  made.width = length('W');
  made.visual_count = length('V');
  made.keep = static_cast<int32_t>(keep_);
  made.key_heads = length('G');
  made.head_width = length('K');
  made.query_heads = length('H');
  made.dtype = dtype;
  return made;
}

vtx_step_tensors AnyStepOp::tensors(const void* const* given, void* const* made) const {
  vtx_step_tensors all{};
  set_pointers(all, inputs(), given);
  set_pointers(all, outputs(), made);
  return all;
}

}  // namespace vtexport
