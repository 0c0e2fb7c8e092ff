#include "creator.h"

#include <memory>

#include "conversion.h"
#include "log.h"
#include "plugin.h"

namespace vtx {

Creator::Creator(const OpSchema& op) : op_(op) {
  for (const Attribute& each : op.attributes) {
    if (!each.is_read) continue;
    const bool is_word = each.kind == Kind::kWord;
    const FieldType field = is_word                      ? FieldType::kText
                            : each.kind == Kind::kNumber ? FieldType::kFloat32
                                                         : FieldType::kInt64;
    fields_.push_back(to_tensorrt({each.name, nullptr, field, 1}));
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

const char* Creator::getPluginVersion() const noexcept { return kVersion; }

const char* Creator::getPluginNamespace() const noexcept { return kNamespace; }

nvinfer1::IPluginV3* Creator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(op_.name, nullptr, [&] {
    if (!fields) throw Refused("TensorRT gives no attributes");
    std::vector<Field> given;
    const int32_t count = fields->nbFields;
    // A count that cannot be right is for Values::read to refuse; only a plausible list is touched.
    if (fields->fields && count > 0 && count <= kMostFields) {
      for (int32_t place = 0; place < count; ++place) given.push_back(from_tensorrt(fields->fields[place]));
    }
    return new Plugin(Op::create(op_, given.empty() ? nullptr : given.data(), count));
  });
}

}  // namespace vtx
