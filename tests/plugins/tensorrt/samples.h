// For every op attributes that it takes and shapes of inputs that go with them.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/op.h"
#include "ops_table.h"

namespace samples {

using vtx::Field;
using vtx::FieldType;

// A field with memory of its own, as long as its data and no byte longer, so that AddressSanitizer sees a read beyond
// it.
struct Owned {
  std::string name;
  FieldType type;
  int32_t length;
  std::unique_ptr<char[]> data;

  Owned(const char* name_, FieldType type_, const void* from, size_t bytes, int32_t length_)
      : name(name_), type(type_), length(length_), data(new char[bytes]) {
    std::memcpy(data.get(), from, bytes);
  }
  Field field() const { return {name.c_str(), data.get(), type, length}; }
};

inline Owned integer(const char* name, int64_t value) { return {name, FieldType::kInt64, &value, sizeof value, 1}; }
inline Owned narrow(const char* name, int32_t value) { return {name, FieldType::kInt32, &value, sizeof value, 1}; }
inline Owned number(const char* name, float value) { return {name, FieldType::kFloat32, &value, sizeof value, 1}; }
inline Owned wide(const char* name, double value) { return {name, FieldType::kFloat64, &value, sizeof value, 1}; }
// Without a closing zero.
inline Owned text(const char* name, const std::string& value) {
  return {name, FieldType::kText, value.data(), value.size(), static_cast<int32_t>(value.size())};
}

struct Sample {
  const char* op;
  std::vector<Owned> attributes;
  std::vector<std::vector<int64_t>> shapes;

  std::vector<Field> fields() const {
    std::vector<Field> all;
    for (const Owned& each : attributes) all.push_back(each.field());
    return all;
  }
};

inline const vtx::OpSchema& type(const std::string& name) {
  for (const vtx::OpSchema* each : vtx::ops::kAll) {
    if (name == each->name) return *each;
  }
  throw std::logic_error("no op " + name);
}

// A value that an attribute may have: its lower end, or its first word.
inline Owned least(const vtx::Attribute& attribute) {
  if (attribute.kind == vtx::Kind::kWord) return text(attribute.name, attribute.words[0].text);
  if (attribute.kind != vtx::Kind::kNumber) return integer(attribute.name, static_cast<int64_t>(attribute.least));
  return number(attribute.name, static_cast<float>(attribute.above_least ? attribute.most : attribute.least));
}

// What the sample does not name and an op has to have is at its least.
template <class... Attributes>
Sample make(const char* op, std::vector<std::vector<int64_t>> shapes, Attributes... attributes) {
  Sample made{op, {}, std::move(shapes)};
  (made.attributes.push_back(std::move(attributes)), ...);
  for (const vtx::Attribute& each : type(op).attributes) {
    bool is_given = !each.is_read || each.is_optional;
    for (const Owned& own : made.attributes) is_given = is_given || own.name == each.name;
    if (!is_given) made.attributes.push_back(least(each));
  }
  return made;
}

inline std::vector<Sample> all() {
  std::vector<Sample> made;
  made.push_back(make("VtxPruneSID", {{1, 577, 32}, {1, 576}}, integer("keep", 64), integer("groups", 16),
                      number("threshold_scale", 2), text("center", "token"), text("nms_score", "cls_attention"),
                      text("order", "group"), integer("cls_slot", 1), text("redundancy", "pairs"),
                      text("shares", "bounded")));
  made.push_back(make("VtxSVDPrune", {{2, 576, 32}}, integer("keep", 64), number("energy", 0.9f), integer("rank", 0),
                      integer("rank_bound", 32), text("center", "feature-mean"), text("mode", "leverage"),
                      number("leverage", 0.5f)));
  made.push_back(make("VtxViTCoP", {{1, 576, 32}, {1, 576}, {1, 576, 2, 16}}, integer("keep", 172),
                      integer("clusters", 1), text("clustering", "official"), integer("cluster_count", 20),
                      number("cutoff", 8), number("radius", 0.6f), text("variant", "official")));
  made.push_back(make("VtxNuwa", {{1, 576, 32}, {1, 576}, {1, 576, 2, 16}, {1, 576, 32}}, integer("keep", 112),
                      integer("top_n", 1), number("distance", 280), number("pillar_quantile", 0.55f),
                      text("variant", "paper"), integer("grid_rows", 18), integer("grid_columns", 32)));
  made.push_back(make("VtxDivPrune", {{1, 576, 32}}, integer("keep", 64)));
  made.push_back(make("VtxCDPruner", {{1, 576, 32}, {1, 576, 48}, {1, 5, 48}}, integer("keep", 64),
                      text("relevance", "clip"), integer("negate", 1), number("theta", 0.5f)));
  made.push_back(make("VtxClusterMerge", {{1, 600, 32}, {1}, {1, 600, 2, 16}, {1, 172}}, integer("visual_count", 172),
                      integer("keep", 77), integer("clusters", 20), text("merge", "sum")));
  made.push_back(
      make("VtxKeyNormTopK", {{1, 600, 32}, {1}, {1, 600, 2, 16}}, integer("visual_count", 77), integer("keep", 15)));
  made.push_back(make("VtxAttentionTopK", {{1, 600, 32}, {1}, {1, 600, 2, 16}, {1, 4, 16}},
                      integer("visual_count", 576), integer("keep", 64)));
  made.push_back(make("VtxTextSimilarityTopK", {{1, 600, 32}, {1}}, integer("visual_count", 576), integer("keep", 64)));
  return made;
}

inline Sample of(const std::string& name) {
  for (Sample& each : all()) {
    if (name == each.op) return std::move(each);
  }
  throw std::logic_error("no sample of " + name);
}

}  // namespace samples
