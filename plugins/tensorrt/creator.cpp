#include "creator.h"

#include <memory>

#include "conversion.h"
#include "log.h"
#include "plugin.h"

namespace vtexport {

Creator::Creator(const OpType& type) : type_(type) {
  for (const Attribute& each : type.attributes) {
    if (each.kind == Kind::kUnread) continue;
    const FieldType field = each.kind == Kind::kInteger  ? FieldType::kInt64
                            : each.kind == Kind::kNumber ? FieldType::kFloat32
                                                         : FieldType::kText;
    fields_.push_back(to_tensorrt({each.name, nullptr, field, 1}));
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

const char* Creator::getPluginVersion() const noexcept { return kVersion; }

const char* Creator::getPluginNamespace() const noexcept { return kNamespace; }

nvinfer1::IPluginV3* Creator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(type_.name, nullptr, [&] {
    if (!fields) throw Refused("TensorRT gives no attributes");
    std::vector<Field> given;
    const int32_t count = fields->nbFields;
    // A count that cannot be right is for Values::read to refuse; only a plausible list is touched.
    if (fields->fields && count > 0 && count <= kMostFields) {
      for (int32_t place = 0; place < count; ++place) given.push_back(from_tensorrt(fields->fields[place]));
    }
    return new Plugin(Op::create(type_, given.empty() ? nullptr : given.data(), count));
  });
}

}  // namespace vtexport
