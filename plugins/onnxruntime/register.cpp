// The library's entry: registers every op with ONNX Runtime's CPU provider, once for each type of features.
#include <cstring>
#include <exception>
#include <memory>

#include "check.h"
#include "ops.h"
#include "ort_api.h"

namespace vtx {
namespace {

const OrtApi* api = nullptr;  // the same for every session of a process

OrtStatus* refuse(const Op& op, const std::string& text) {
  return CreateStatus::call(api, kInvalidArgument, (std::string(op.name) + ": " + text).c_str());
}

// One op for features of one type.
struct Registered {
  OrtCustomOp base;  // first, so that the one's address is the other's
  const Op* op;
  vtx_dtype dtype;
};

const Registered& registered(const OrtCustomOp* base) { return *reinterpret_cast<const Registered*>(base); }

class NodeAttributes : public Attributes {
 public:
  explicit NodeAttributes(const OrtKernelInfo* info) : info_(info) {}

  bool has_int(const char* name, int64_t* value) override {
    return is_done(GetAttributeInt::call(api, info_, name, value));
  }

  bool has_float(const char* name, float* value) override {
    return is_done(GetAttributeFloat::call(api, info_, name, value));
  }

  bool has_string(const char* name, std::string* value) override {
    size_t size = 0;
    if (!is_done(GetAttributeString::call(api, info_, name, static_cast<char*>(nullptr), &size)) || size == 0) {
      return false;
    }
    value->resize(size);
    if (!is_done(GetAttributeString::call(api, info_, name, value->data(), &size))) return false;
    value->resize(size - 1);  // the size counts the zero at the end
    return true;
  }

 private:
  static bool is_done(OrtStatus* status) {
    release(api, status);
    return status == nullptr;
  }

  const OrtKernelInfo* info_;
};

struct Kernel {
  const Op* op;
  vtx_dtype dtype;
  Settings settings;
};

OrtStatus* create(const OrtCustomOp* base, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const Op& op = *registered(base).op;
  try {
    NodeAttributes attributes(info);
    auto made = std::make_unique<Kernel>();
    made->op = &op;
    made->dtype = registered(base).dtype;
    Settings& settings = made->settings;
    settings.keep = attributes.whole("keep");
    if (op.is_step) settings.visual_count = attributes.whole("visual_count");
    settings.grid_rows = attributes.whole_or_zero("grid_rows");
    settings.grid_columns = attributes.whole_or_zero("grid_columns");
    op.read(attributes, settings);
    if (!attributes.error().empty()) return refuse(op, attributes.error());
    *kernel = made.release();
    return nullptr;
  } catch (const std::exception& error) {
    return refuse(op, error.what());
  }
}

// The lengths of the axes by letter, as the inputs give them.
class Axes {
 public:
  // False where an axis has another length already, or one that no size can have.
  bool set(char letter, int64_t length) {
    int64_t& known = lengths_[static_cast<unsigned char>(letter)];
    if (length < 0 || length > INT32_MAX || (letter == '1' && length != 1)) return false;
    if (known >= 0 && known != length) return false;
    known = length;
    return true;
  }

  int64_t of(char letter) const { return lengths_[static_cast<unsigned char>(letter)]; }
  int32_t size_of(char letter) const { return of(letter) < 0 ? 0 : static_cast<int32_t>(of(letter)); }

  Axes() {
    for (int64_t& each : lengths_) each = -1;
    lengths_[static_cast<unsigned char>('1')] = 1;
  }

 private:
  int64_t lengths_[128];
};

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Calls on one run of a node; an error is kept and ends it.
class Run {
 public:
  Run(const Kernel& kernel, OrtKernelContext* context) : kernel_(kernel), op_(*kernel.op), context_(context) {}

  OrtStatus* compute() {
    const Settings& s = kernel_.settings;
    size_t inputs = 0, outputs = 0;
    if (fail(GetInputCount::call(api, context_, &inputs)) || fail(GetOutputCount::call(api, context_, &outputs))) {
      return error_;
    }
    if (inputs != s.inputs.size() || outputs != s.outputs.size()) {
      return refuse(op_, "with these attributes the node has " + std::to_string(s.inputs.size()) + " inputs and " +
                             std::to_string(s.outputs.size()) + " outputs, not " + std::to_string(inputs) + " and " +
                             std::to_string(outputs));
    }
    axes_.set('N', s.keep);
    if (op_.is_step) axes_.set('V', s.visual_count);
    return op_.is_step ? compute_step() : compute_image();
  }

 private:
  OrtStatus* compute_image() {
    const Settings& s = kernel_.settings;
    vtx_tensors tensors = {};
    if (!read_inputs(&tensors)) return error_;
    vtx_sizes sizes = {};
    sizes.batch = axes_.size_of('B');
    sizes.width = axes_.size_of('D');
    sizes.keep = s.keep;
    sizes.heads = axes_.size_of('H');
    sizes.head_width = axes_.size_of('K');
    sizes.embedding_width = axes_.size_of('E');
    sizes.text_tokens = axes_.size_of('M');
    sizes.dtype = kernel_.dtype;
    const int32_t tokens = axes_.size_of('R') - s.cls_rows;
    if (!axes_.set('T', tokens)) return refuse(op_, "features and another input have different numbers of patches");
    if (!set_grid(tokens, sizes)) {
      return refuse(op_, std::to_string(tokens) +
                             " patches need the attributes grid_rows and grid_columns, whose "
                             "product they are");
    }
    const vtx_status checked = op_.run(sizes, s, nullptr, nullptr);
    if (checked != VTX_OK) return refuse(op_, describe(checked));
    if (!make_outputs(&tensors)) return error_;
    const vtx_parallel threads = executor();
    const vtx_status status = op_.run(sizes, s, &tensors, &threads);
    return status == VTX_OK ? nullptr : refuse(op_, vtx_status_text(status));
  }

  OrtStatus* compute_step() {
    const Settings& s = kernel_.settings;
    vtx_step_tensors tensors = {};
    if (!read_inputs(&tensors)) return error_;
    vtx_step_sizes sizes = {};
    sizes.rows = axes_.size_of('S');
    sizes.width = axes_.size_of('W');
    sizes.visual_count = s.visual_count;
    sizes.keep = s.keep;
    sizes.key_heads = axes_.size_of('G');
    sizes.head_width = axes_.size_of('K');
    sizes.query_heads = axes_.size_of('Q');
    sizes.dtype = kernel_.dtype;
    const vtx_status checked = op_.run_step(sizes, s, nullptr, nullptr);
    if (checked != VTX_OK) return refuse(op_, describe(checked));
    axes_.set('O', static_cast<int64_t>(sizes.rows) - sizes.visual_count + sizes.keep);
    if (!make_outputs(&tensors)) return error_;
    const vtx_parallel threads = executor();
    const vtx_status status = op_.run_step(sizes, s, &tensors, &threads);
    return status == VTX_OK ? nullptr : refuse(op_, vtx_status_text(status));
  }

  bool fail(OrtStatus* status) {
    if (status) error_ = status;
    return status != nullptr;
  }

  std::string describe(vtx_status status) const {
    std::string text = vtx_status_text(status);
    text += " (keep " + std::to_string(kernel_.settings.keep);
    for (size_t i = 0; i < shapes_.size(); ++i) {
      text += std::string(", ") + kernel_.settings.inputs[i].name + " " + text_of(shapes_[i]);
    }
    return text + ")";
  }

  // Rows and columns of the patches: as the node says, else a square, else one row where it does not matter.
  bool set_grid(int32_t tokens, vtx_sizes& sizes) const {
    const Settings& s = kernel_.settings;
    if (s.grid_rows || s.grid_columns) {
      sizes.grid_rows = s.grid_rows;
      sizes.grid_columns = s.grid_columns;
      return static_cast<int64_t>(s.grid_rows) * s.grid_columns == tokens;
    }
    int32_t side = 0;
    while (static_cast<int64_t>(side + 1) * (side + 1) <= tokens && side < VTX_MOST_TOKENS) ++side;
    const bool is_square = side * side == tokens;
    sizes.grid_rows = is_square ? side : 1;
    sizes.grid_columns = is_square ? side : tokens;
    const bool needs_grid =
        !std::strcmp(op_.name, "VtxNuwa") || (!std::strcmp(op_.name, "VtxViTCoP") && s.vitcop.clusters);
    return is_square || !needs_grid;
  }

  template <typename Tensors>
  bool read_inputs(Tensors* tensors) {
    for (size_t i = 0; i < kernel_.settings.inputs.size(); ++i) {
      const Tensor& tensor = kernel_.settings.inputs[i];
      const OrtValue* value = nullptr;
      if (fail(GetInput::call(api, context_, i, &value))) return false;
      if (!value) {
        error_ = refuse(op_, std::string("input ") + tensor.name + " is missing");
        return false;
      }
      if (!read_shape(tensor, value)) return false;
      void* data = nullptr;
      if (fail(GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data))) return false;
      set(tensors, tensor, data);
    }
    return true;
  }

  bool read_shape(const Tensor& tensor, const OrtValue* value) {
    OrtShape* info = nullptr;
    if (fail(GetTensorTypeAndShape::call(api, value, &info))) return false;
    size_t rank = 0;
    OrtStatus* status = GetDimensionsCount::call(api, info, &rank);
    std::vector<int64_t> shape(status ? 0 : rank);
    if (!status) status = GetDimensions::call(api, info, shape.data(), rank);
    release(api, info);
    if (fail(status)) return false;
    bool fits = rank == std::strlen(tensor.axes);
    for (size_t axis = 0; axis < rank && fits; ++axis) fits = axes_.set(tensor.axes[axis], shape[axis]);
    shapes_.push_back(shape);
    if (!fits) {
      error_ = refuse(op_, std::string("input ") + tensor.name + " has shape " + text_of(shape) +
                               ", which does not fit its axes " + tensor.axes + " and the other inputs");
    }
    return fits;
  }

  template <typename Tensors>
  bool make_outputs(Tensors* tensors) {
    for (size_t i = 0; i < kernel_.settings.outputs.size(); ++i) {
      const Tensor& tensor = kernel_.settings.outputs[i];
      std::vector<int64_t> shape;
      for (const char* axis = tensor.axes; *axis; ++axis) shape.push_back(axes_.of(*axis));
      OrtValue* value = nullptr;
      void* data = nullptr;
      if (fail(GetOutput::call(api, context_, i, shape.data(), shape.size(), &value)) ||
          fail(GetTensorMutableData::call(api, value, &data))) {
        return false;
      }
      set(tensors, tensor, data);
    }
    return true;
  }

  template <typename Tensors>
  static void set(Tensors* tensors, const Tensor& tensor, void* data) {
    std::memcpy(reinterpret_cast<char*>(tensors) + tensor.offset, &data, sizeof data);
  }

  // ONNX Runtime's own threads for this session.
  vtx_parallel executor() const {
    const auto run = [](void* context, size_t count, void (*task)(void*, size_t), void* argument) {
      OrtStatus* status =
          ParallelFor::call(api, static_cast<const OrtKernelContext*>(context), task, count, size_t(0), argument);
      if (!status) return;
      release(api, status);  // nothing has run then
      for (size_t index = 0; index < count; ++index) task(argument, index);
    };
    return {run, context_, 2};
  }

  const Kernel& kernel_;
  const Op& op_;
  OrtKernelContext* context_;
  Axes axes_;
  std::vector<std::vector<int64_t>> shapes_;
  OrtStatus* error_ = nullptr;
};

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Kernel& own = *static_cast<const Kernel*>(kernel);
  try {
    return Run(own, context).compute();
  } catch (const std::exception& error) {
    return refuse(*own.op, error.what());
  }
}

OrtElement element_of(const Tensor& tensor, vtx_dtype dtype) {
  switch (tensor.type) {
    case Tensor::kReal:
      return kFloat;
    case Tensor::kWhole:
      return kInt64;
    case Tensor::kTruth:
      return kBool;
    default:
      return dtype == VTX_FLOAT32 ? kFloat : dtype == VTX_FLOAT16 ? kFloat16 : kBFloat16;
  }
}

Registered make_registered(const Op& op, vtx_dtype dtype) {
  Registered made = {};
  OrtCustomOp& base = made.base;
  base.version = kOperatorVersion;
  base.name = [](const OrtCustomOp* self) { return registered(self).op->name; };
  base.provider = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  base.input_count = [](const OrtCustomOp* self) { return registered(self).op->inputs.size(); };
  base.output_count = [](const OrtCustomOp* self) { return registered(self).op->outputs.size(); };
  base.input_type = [](const OrtCustomOp* self, size_t index) {
    return element_of(registered(self).op->inputs[index], registered(self).dtype);
  };
  base.output_type = [](const OrtCustomOp* self, size_t index) {
    return element_of(registered(self).op->outputs[index], registered(self).dtype);
  };
  base.input_characteristic = [](const OrtCustomOp* self, size_t index) {
    return index < registered(self).op->required_inputs ? kRequired : kOptional;
  };
  base.output_characteristic = [](const OrtCustomOp* self, size_t index) {
    return index < registered(self).op->required_outputs ? kRequired : kOptional;
  };
  base.input_memory = [](const OrtCustomOp*, size_t) { return 0; };
  for (auto& each : base.variadic) each = [](const OrtCustomOp*) { return 1; };
  base.create_kernel_v2 = create;
  base.compute_v2 = compute;
  base.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  made.op = &op;
  made.dtype = dtype;
  return made;
}

std::vector<Registered> make_all() {
  std::vector<Registered> all;
  for (const Op& op : ops()) {
    for (vtx_dtype dtype : {VTX_FLOAT32, VTX_FLOAT16, VTX_BFLOAT16}) all.push_back(make_registered(op, dtype));
  }
  return all;
}

OrtStatus* register_all(OrtOptions* options) {
  static const std::vector<Registered> all = make_all();  // ONNX Runtime keeps their addresses
  OrtDomain* domain = nullptr;
  if (OrtStatus* status = CreateCustomOpDomain::call(api, "vtexport", &domain)) return status;
  for (const Registered& each : all) {
    if (OrtStatus* status = CustomOpDomainAdd::call(api, domain, &each.base)) return status;
  }
  return AddCustomOpDomain::call(api, options, domain);
}

}  // namespace
}  // namespace vtx

extern "C" __attribute__((visibility("default"))) vtx::OrtStatus* RegisterCustomOps(vtx::OrtOptions* options,
                                                                                    const vtx::OrtApiBase* base) {
  vtx::api = base->get_api(vtx::kApiVersion);
  if (vtx::api) return vtx::register_all(options);
  const vtx::OrtApi* oldest = base->get_api(1);
  return vtx::CreateStatus::call(oldest, vtx::kFailed, "the vtexport library needs ONNX Runtime 1.17 or newer");
}
