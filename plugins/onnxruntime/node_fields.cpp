#include "node_fields.h"

namespace vtx {
namespace {

bool is_done(const OrtApi* api, OrtStatus* status) {
  release(api, status);
  return status == nullptr;
}

}  // namespace

NodeFields::NodeFields(const OrtApi* api, const OrtKernelInfo* info, const OpSchema& op) : api_(api), info_(info) {
  for (const Attribute& each : op.attributes) {
    if (!each.is_read) continue;
    // ONNX Runtime does not say the type that an attribute has, but refuses to give it as another one.
    if (take_integer(each.name) || take_number(each.name)) continue;
    take_text(each.name);
  }
}

bool NodeFields::take_integer(const char* name) {
  int64_t value = 0;
  if (!is_done(api_, GetAttributeInt::call(api_, info_, name, &value))) return false;
  fields_.push_back({name, &integers_.emplace_back(value), FieldType::kInt64, 1});
  return true;
}

bool NodeFields::take_number(const char* name) {
  float value = 0;
  if (!is_done(api_, GetAttributeFloat::call(api_, info_, name, &value))) return false;
  fields_.push_back({name, &numbers_.emplace_back(value), FieldType::kFloat32, 1});
  return true;
}

bool NodeFields::take_text(const char* name) {
  size_t size = 0;
  if (!is_done(api_, GetAttributeString::call(api_, info_, name, static_cast<char*>(nullptr), &size)) || size == 0) {
    return false;
  }
  std::string value(size, '\0');
  if (!is_done(api_, GetAttributeString::call(api_, info_, name, value.data(), &size))) return false;
  value.resize(size - 1);  // the size counts the zero at the end
  const std::string& kept = texts_.emplace_back(value);
  fields_.push_back({name, kept.data(), FieldType::kText, static_cast<int32_t>(kept.size())});
  return true;
}

}  // namespace vtx
