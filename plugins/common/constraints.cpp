#include "constraints.h"

#include "ops_table.h"

namespace vtx {
namespace {

// What an upper bound is on this node, "" where only a call's sizes say.
std::string bound_text(const Values& values, const Attribute& attribute, int64_t* most) {
  switch (attribute.bound) {
    case Bound::kKeep:
      *most = values.integer("keep");
      return "keep, which is " + std::to_string(*most);
    case Bound::kPatchesToKeep: {
      const OpSchema& op = values.op();
      *most = values.integer("keep") - (op.cls_rows < 0 ? 0 : values.number_at(op.cls_rows));
      return "the " + std::to_string(*most) + " patches to keep";
    }
    case Bound::kVisualCount:
      *most = values.integer("visual_count");
      return "visual_count, which is " + std::to_string(*most);
    default:
      return "";
  }
}

}  // namespace

void check_together(const Values& values) {
  const OpSchema& op = values.op();
  for (size_t place = 0; place < op.attributes.size(); ++place) {
    const Attribute& attribute = op.attributes[place];
    int64_t most = 0;
    const std::string bound = bound_text(values, attribute, &most);
    if (!bound.empty() && values.number_at(place) > most) {
      throw Refused("attribute " + std::string(attribute.name) + " is " + std::to_string(values.number_at(place)) +
                    ", more than " + bound);
    }
  }
  if (values.has("grid_rows") != values.has("grid_columns")) {
    throw Refused("of the attributes grid_rows and grid_columns one is missing; give both or neither");
  }
  if (&op == &ops::svdprune) {
    const int32_t rank = values.integer("rank"), bound = values.integer("rank_bound");
    if (rank && bound != rank) {
      throw Refused("attribute rank_bound is " + std::to_string(bound) + "; with rank " + std::to_string(rank) +
                    " it has to be the same");
    }
  }
}

}  // namespace vtx
