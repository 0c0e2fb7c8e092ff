// TensorRT's words for fields and types, and ours.
#pragma once

#include <NvInferRuntime.h>

#include "attributes.h"

namespace vtx {

Field from_tensorrt(const nvinfer1::PluginField& field);
nvinfer1::PluginField to_tensorrt(const Field& field);
const char* type_name(nvinfer1::DataType type);

}  // namespace vtx
