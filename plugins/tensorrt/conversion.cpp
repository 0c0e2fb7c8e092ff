#include "conversion.h"

namespace vtx {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

Field from_tensorrt(const PluginField& field) {
  FieldType type = FieldType::kOther;
  switch (field.type) {
    case PluginFieldType::kINT32:
      type = FieldType::kInt32;
      break;
    case PluginFieldType::kINT64:
      type = FieldType::kInt64;
      break;
    case PluginFieldType::kFLOAT32:
      type = FieldType::kFloat32;
      break;
    case PluginFieldType::kFLOAT64:
      type = FieldType::kFloat64;
      break;
    case PluginFieldType::kCHAR:
      type = FieldType::kText;
      break;
    default:
      break;
  }
  return {field.name, field.data, type, field.length};
}

PluginField to_tensorrt(const Field& field) {
  PluginFieldType type = PluginFieldType::kUNKNOWN;
  switch (field.type) {
    case FieldType::kInt32:
      type = PluginFieldType::kINT32;
      break;
    case FieldType::kInt64:
      type = PluginFieldType::kINT64;
      break;
    case FieldType::kFloat32:
      type = PluginFieldType::kFLOAT32;
      break;
    case FieldType::kFloat64:
      type = PluginFieldType::kFLOAT64;
      break;
    case FieldType::kText:
      type = PluginFieldType::kCHAR;
      break;
    case FieldType::kOther:
      break;
  }
  return {field.name, field.data, type, field.length};
}

const char* type_name(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return "float32";
    case nvinfer1::DataType::kHALF:
      return "float16";
    case nvinfer1::DataType::kBF16:
      return "bfloat16";
    case nvinfer1::DataType::kINT64:
      return "int64";
    case nvinfer1::DataType::kINT32:
      return "int32";
    case nvinfer1::DataType::kINT8:
      return "int8";
    case nvinfer1::DataType::kUINT8:
      return "uint8";
    case nvinfer1::DataType::kBOOL:
      return "bool";
    default:  // newer headers have more
      return "another type";
  }
}

}  // namespace vtx
