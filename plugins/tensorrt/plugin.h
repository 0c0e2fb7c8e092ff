// The plugin of every op: TensorRT's interfaces around an Op, which has all that differs from op to op.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/op.h"

namespace vtx {

constexpr const char* kNamespace = "vtexport";
constexpr const char* kVersion = "1";

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(std::shared_ptr<const Op> op) : op_(std::move(op)) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return op_->schema().name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuild
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t out_count) noexcept override;
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t out_count, const nvinfer1::DataType* in,
                             int32_t in_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* in, int32_t in_count, const nvinfer1::DimsExprs* shape_in,
                          int32_t shape_in_count, nvinfer1::DimsExprs* out, int32_t out_count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* all, int32_t in_count,
                                 int32_t out_count) noexcept override;
  int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(op_->outputs().size()); }
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* in, int32_t in_count,
                          const nvinfer1::DynamicPluginTensorDesc* out, int32_t out_count) const noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* in, int32_t in_count, const nvinfer1::PluginTensorDesc* out,
                        int32_t out_count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc* out,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  const char* name() const { return op_->schema().name; }

  std::shared_ptr<const Op> op_;  // never changes, so copies of a plugin share it
  // The network's own type of the features, once TensorRT has said it.
  mutable std::optional<nvinfer1::DataType> declared_;
  std::vector<nvinfer1::PluginField> serialized_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace vtx
