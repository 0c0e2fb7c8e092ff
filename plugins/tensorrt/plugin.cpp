#include "plugin.h"

#include <algorithm>
#include <array>
#include <string>

#include "conversion.h"
#include "log.h"

namespace vtx {

using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::PluginTensorDesc;

namespace plugin {

bool is_feature_type(DataType type) {
  return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

DataType type_of(Element element, DataType features) {
  switch (element) {
    case Element::kFloat32:
      return DataType::kFLOAT;
    case Element::kInt64:
      return DataType::kINT64;
    case Element::kBool:
      return DataType::kBOOL;
    case Element::kFeatures:
      break;
  }
  return features;
}

vtx_dtype dtype_of(DataType features) {
  switch (features) {
    case DataType::kFLOAT:
      return VTX_FLOAT32;
    case DataType::kHALF:
      return VTX_FLOAT16;
    case DataType::kBF16:
      return VTX_BFLOAT16;
    default:
      throw Refused(std::string("features of ") + type_name(features) +
                    " cannot be; give float32, float16 or bfloat16");
  }
}

void check_count(const char* what, int32_t count, size_t expected) {
  if (count != static_cast<int32_t>(expected)) {
    throw Refused("with these attributes it has " + std::to_string(expected) + " " + what + ", and TensorRT gives " +
                  std::to_string(count));
  }
}

Shape view(const nvinfer1::Dims& dims) { return {dims.nbDims, dims.d}; }

bool is_fixed(const nvinfer1::Dims& dims) {
  const int32_t rank = std::clamp(dims.nbDims, 0, nvinfer1::Dims::MAX_DIMS);
  return std::none_of(dims.d, dims.d + rank, [](int64_t length) { return length < 0; });
}

const nvinfer1::Dims& dims_of(const PluginTensorDesc& desc) { return desc.dims; }

// The largest or smallest shape; where a tensor's lengths are all fixed, a profile need not have been asked for.
const nvinfer1::Dims& max_of(const DynamicPluginTensorDesc& each) {
  return is_fixed(each.desc.dims) ? each.desc.dims : each.max;
}
const nvinfer1::Dims& min_of(const DynamicPluginTensorDesc& each) {
  return is_fixed(each.desc.dims) ? each.desc.dims : each.min;
}

template <class Description>
std::vector<Shape> shapes_of(const Description* in, int32_t count, const nvinfer1::Dims& (*dims)(const Description&)) {
  if (count < 0 || (count > 0 && !in)) throw Refused("TensorRT gives no inputs");
  std::vector<Shape> shapes;
  for (int32_t place = 0; place < count; ++place) shapes.push_back(view(dims(in[place])));
  return shapes;
}

}  // namespace plugin

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(name(), nullptr, [this] {
    auto made = std::make_unique<Plugin>(op_);
    made->declared_ = declared_;
    return made.release();
  });
}

int32_t Plugin::getOutputDataTypes(DataType* out, int32_t out_count, const DataType* in,
                                   int32_t in_count) const noexcept {
  return guarded(name(), 1, [&] {
    plugin::check_count("inputs", in_count, op_->inputs().size());
    plugin::check_count("outputs", out_count, op_->outputs().size());
    if (!in || !out) throw Refused("TensorRT gives no types");
    plugin::dtype_of(in[0]);
    for (int32_t place = 0; place < in_count; ++place) {
      const Tensor& tensor = op_->inputs()[place];
      const DataType expected = plugin::type_of(tensor.element, in[0]);
      if (in[place] != expected) {
        throw Refused(std::string(tensor.name) + " is " + type_name(in[place]) + "; it has to be " +
                      type_name(expected));
      }
    }
    for (int32_t place = 0; place < out_count; ++place) {
      out[place] = plugin::type_of(op_->outputs()[place].element, in[0]);
    }
    declared_ = in[0];
    return 0;
  });
}

int32_t Plugin::getOutputShapes(const DimsExprs* in, int32_t in_count, const DimsExprs*, int32_t, DimsExprs* out,
                                int32_t out_count, nvinfer1::IExprBuilder& builder) noexcept {
  return guarded(name(), 1, [&] {
    plugin::check_count("inputs", in_count, op_->inputs().size());
    plugin::check_count("outputs", out_count, op_->outputs().size());
    if (!in || !out) throw Refused("TensorRT gives no shapes");
    std::vector<std::array<int64_t, nvinfer1::Dims::MAX_DIMS>> known(in_count);
    std::vector<Shape> shapes;
    for (int32_t place = 0; place < in_count; ++place) {
      const int32_t rank = std::clamp(in[place].nbDims, 0, nvinfer1::Dims::MAX_DIMS);
      for (int32_t axis = 0; axis < rank; ++axis) {
        const IDimensionExpr* length = in[place].d[axis];
        known[place][axis] = length && length->isConstant() ? length->getConstantValue() : kUnknown;
      }
      shapes.push_back({in[place].nbDims, known[place].data()});
    }
    const Lengths lengths = op_->lengths(shapes);
    // The expression of an axis: a constant where the length is known, else that of an input which has the axis.
    const auto expression = [&](char letter) -> const IDimensionExpr* {
      if (lengths[letter] != kUnknown) return builder.constant(lengths[letter]);
      for (int32_t place = 0; place < in_count; ++place) {
        const char* axes = op_->inputs()[place].axes;
        for (int32_t axis = 0; axes[axis]; ++axis) {
          if (axes[axis] == letter) return in[place].d[axis];
        }
      }
      return nullptr;
    };
    for (int32_t place = 0; place < out_count; ++place) {
      const Tensor& tensor = op_->outputs()[place];
      out[place].nbDims = 0;
      for (const char* axis = tensor.axes; *axis; ++axis) {
        const IDimensionExpr* length = expression(*axis == 'U' && lengths['U'] == kUnknown ? 'S' : *axis);
        if (length && *axis == 'U' && lengths['U'] == kUnknown) {
          const IDimensionExpr* dropped = builder.constant(op_->dropped());
          length = dropped ? builder.operation(nvinfer1::DimensionOperation::kSUB, *length, *dropped) : nullptr;
        }
        if (!length) throw Refused(std::string("the shape of ") + tensor.name + " cannot be told");
        out[place].d[out[place].nbDims++] = length;
      }
    }
    return 0;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* all, int32_t in_count,
                                       int32_t out_count) noexcept {
  const auto inputs = static_cast<int32_t>(op_->inputs().size()), outputs = getNbOutputs();
  if (!all || in_count != inputs || out_count != outputs || position < 0 || position >= inputs + outputs) return false;
  const PluginTensorDesc& asked = all[position].desc;
  if (asked.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == 0) {
    // In a network that is not strongly typed TensorRT may offer float16 for features that are float32. Rounded
    // features change which tokens are kept, so only the network's own type will do, and float32, which holds all
    // others.
    return plugin::is_feature_type(asked.type) &&
           (!declared_ || asked.type == *declared_ || asked.type == DataType::kFLOAT);
  }
  const Tensor& tensor = position < inputs ? op_->inputs()[position] : op_->outputs()[position - inputs];
  return asked.type == plugin::type_of(tensor.element, all[0].desc.type);
}

int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* in, int32_t in_count, const DynamicPluginTensorDesc*,
                                int32_t out_count) noexcept {
  return guarded(name(), 1, [&] {
    plugin::check_count("inputs", in_count, op_->inputs().size());
    plugin::check_count("outputs", out_count, op_->outputs().size());
    for (const auto end : {plugin::min_of, plugin::max_of}) {
      const Lengths lengths = op_->lengths(plugin::shapes_of(in, in_count, end));
      op_->workspace(lengths, plugin::dtype_of(in[0].desc.type));
    }
    return 0;
  });
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* in, int32_t in_count, const DynamicPluginTensorDesc*,
                                int32_t) const noexcept {
  return guarded(name(), size_t{0}, [&] {
    plugin::check_count("inputs", in_count, op_->inputs().size());
    // The kernels' workspace never shrinks where a length grows, so that of the largest shapes serves all.
    const Lengths lengths = op_->lengths(plugin::shapes_of(in, in_count, plugin::max_of));
    return op_->workspace(lengths, plugin::dtype_of(in[0].desc.type));
  });
}

int32_t Plugin::onShapeChange(const PluginTensorDesc* in, int32_t in_count, const PluginTensorDesc*, int32_t) noexcept {
  return guarded(name(), 1, [&] {
    plugin::check_count("inputs", in_count, op_->inputs().size());
    const Lengths lengths = op_->lengths(plugin::shapes_of(in, in_count, plugin::dims_of));
    op_->workspace(lengths, plugin::dtype_of(in[0].type));
    return 0;
  });
}

int32_t Plugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc*, const void* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded(name(), 1, [&] {
    const auto in_count = static_cast<int32_t>(op_->inputs().size());
    const Lengths lengths = op_->lengths(plugin::shapes_of(in, in_count, plugin::dims_of));
    op_->run(lengths, plugin::dtype_of(in[0].type), inputs, outputs, workspace, stream);
    return 0;
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(name(), nullptr, [this] {
    serialized_.clear();
    for (const Field& each : op_->fields()) serialized_.push_back(to_tensorrt(each));
    collection_.nbFields = static_cast<int32_t>(serialized_.size());
    collection_.fields = serialized_.data();
    return &collection_;
  });
}

}  // namespace vtx
