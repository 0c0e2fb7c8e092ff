// The samples as plugins: made by the library's creators from TensorRT's fields.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "conversion.h"
#include "fake_tensorrt.h"
#include "samples.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" void setLoggerFinder(nvinfer1::ILoggerFinder* finder);

namespace samples {

using Made = std::unique_ptr<nvinfer1::IPluginV3>;

inline nvinfer1::IPluginCreatorV3One& creator(const std::string& name) {
  setLoggerFinder(fake::finder());
  int32_t count = 0;
  auto* const* all = getCreators(count);
  for (int32_t place = 0; place < count; ++place) {
    auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(all[place]);
    if (name == one->getPluginName()) return *one;
  }
  throw std::logic_error("no creator of " + name);
}

inline Made create(const std::string& name, const std::vector<nvinfer1::PluginField>& fields,
                   nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
  const nvinfer1::PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return Made(creator(name).createPlugin("layer", &collection, phase));
}

inline Made create(const Sample& sample) {
  std::vector<nvinfer1::PluginField> fields;
  for (const Field& each : sample.fields()) fields.push_back(vtx::to_tensorrt(each));
  return create(sample.op, fields);
}

template <class Capability>
Capability& capability(nvinfer1::IPluginV3& plugin, nvinfer1::PluginCapabilityType type) {
  return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

inline nvinfer1::IPluginV3OneCore& core(nvinfer1::IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneCore>(plugin, nvinfer1::PluginCapabilityType::kCORE);
}
inline nvinfer1::IPluginV3OneBuild& build(nvinfer1::IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneBuild>(plugin, nvinfer1::PluginCapabilityType::kBUILD);
}
inline nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin) {
  return capability<nvinfer1::IPluginV3OneRuntime>(plugin, nvinfer1::PluginCapabilityType::kRUNTIME);
}

inline nvinfer1::Dims dims(const std::vector<int64_t>& lengths) {
  nvinfer1::Dims made{};
  made.nbDims = static_cast<int32_t>(lengths.size());
  for (size_t axis = 0; axis < lengths.size() && axis < nvinfer1::Dims::MAX_DIMS; ++axis) made.d[axis] = lengths[axis];
  return made;
}

// The types of a sample's inputs and outputs, with features of one type.
inline std::vector<nvinfer1::DataType> types(const Sample& sample, nvinfer1::DataType features) {
  const auto fields = sample.fields();
  const auto op = vtx::Op::create(type(sample.op), fields.data(), static_cast<int64_t>(fields.size()));
  std::vector<nvinfer1::DataType> made;
  for (const auto* tensors : {&op->inputs(), &op->outputs()}) {
    for (const vtx::Tensor& each : *tensors) {
      made.push_back(each.element == vtx::Element::kFeatures  ? features
                     : each.element == vtx::Element::kFloat32 ? nvinfer1::DataType::kFLOAT
                     : each.element == vtx::Element::kInt64   ? nvinfer1::DataType::kINT64
                                                              : nvinfer1::DataType::kBOOL);
    }
  }
  return made;
}

// Descriptions of all tensors as TensorRT gives them while it builds; outputs have no shapes here.
inline std::vector<nvinfer1::DynamicPluginTensorDesc> descriptions(const Sample& sample, nvinfer1::DataType features) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> made;
  for (const nvinfer1::DataType each : types(sample, features)) {
    nvinfer1::DynamicPluginTensorDesc one{};
    one.desc.type = each;
    one.desc.format = nvinfer1::TensorFormat::kLINEAR;
    if (made.size() < sample.shapes.size()) {
      one.desc.dims = one.min = one.opt = one.max = dims(sample.shapes[made.size()]);
    }
    made.push_back(one);
  }
  return made;
}

}  // namespace samples
