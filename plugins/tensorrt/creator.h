// The creator of one op's plugins.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "core/op.h"

namespace vtx {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const OpSchema& op);

  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;
  // The attributes that are read: TensorRT's ONNX parser passes those, and warns of each that a node lacks.
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;

 private:
  const OpSchema& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vtx
