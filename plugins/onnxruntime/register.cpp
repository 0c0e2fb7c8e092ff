// The library's entry: registers every op with ONNX Runtime's CPU provider, once for each type of features.
#include <algorithm>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "node.h"
#include "node_fields.h"
#include "ops.h"
#include "ort_api.h"

namespace vtx {
namespace {

const OrtApi* api = nullptr;  // the same for every session of a process

OrtStatus* refuse(const OpSchema& op, const std::string& text) {
  return CreateStatus::call(api, kInvalidArgument, (std::string(op.name) + ": " + text).c_str());
}

// One op for features of one type.
struct Registered {
  OrtCustomOp base;  // first, so that the one's address is the other's
  const OpSchema* op;
  vtx_dtype dtype;
  std::vector<Element> inputs, outputs;  // the most that a node has
};

const Registered& registered(const OrtCustomOp* base) { return *reinterpret_cast<const Registered*>(base); }

struct Kernel {
  Node node;
  vtx_dtype dtype;
  RunOp run;
};

OrtStatus* create(const OrtCustomOp* base, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const OpSchema& op = *registered(base).op;
  try {
    const NodeFields given(api, info, op);
    const std::vector<Field>& fields = given.fields();
    Node node = Node::read(op, fields.data(), static_cast<int64_t>(fields.size()));
    *kernel = new Kernel{std::move(node), registered(base).dtype, run_of(op)};
    return nullptr;
  } catch (const std::exception& error) {
    return refuse(op, error.what());
  }
}

// Calls on one run of a node; an error is kept and ends it.
class Run {
 public:
  Run(const Kernel& kernel, OrtKernelContext* context)
      : kernel_(kernel), node_(kernel.node), op_(node_.op()), context_(context) {}

  // Throws Refused.
  OrtStatus* compute() {
    size_t inputs = 0, outputs = 0;
    if (fail(GetInputCount::call(api, context_, &inputs)) || fail(GetOutputCount::call(api, context_, &outputs)) ||
        !read_inputs(inputs)) {
      return error_;
    }
    const Lengths lengths = node_.lengths(shapes());
    if (outputs != node_.outputs().size()) {
      throw Refused("with these attributes it has " + std::to_string(node_.outputs().size()) +
                    " outputs, and here are " + std::to_string(outputs));
    }
    const Sizes sizes = node_.sizes(lengths, kernel_.dtype);
    const vtx_status checked = check(op_, &sizes, node_.parameters(), nullptr);
    if (checked != VTX_OK) throw Refused(describe(checked, lengths['N']));
    if (!make_outputs(lengths)) return error_;
    const Tensors tensors = node_.tensors(inputs_.data(), outputs_.data());
    const vtx_parallel threads = executor();
    const vtx_status status = kernel_.run(&sizes, node_.parameters(), &tensors, &threads);
    if (status != VTX_OK) throw Refused(vtx_status_text(status));
    return nullptr;
  }

 private:
  bool fail(OrtStatus* status) {
    if (status) error_ = status;
    return status != nullptr;
  }

  std::vector<Shape> shapes() const {
    std::vector<Shape> made;
    for (const auto& each : shapes_) made.push_back({static_cast<int32_t>(each.size()), each.data()});
    return made;
  }

  std::string describe(vtx_status status, int64_t keep) const {
    std::string text = std::string(vtx_status_text(status)) + " (keep " + std::to_string(keep);
    const std::vector<Shape> all = shapes();
    for (size_t i = 0; i < all.size(); ++i) text += std::string(", ") + node_.inputs()[i].name + " " + shown(all[i]);
    return text + ")";
  }

  bool read_inputs(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const OrtValue* value = nullptr;
      void* data = nullptr;
      if (fail(GetInput::call(api, context_, i, &value))) return false;
      if (!value) throw Refused("input " + std::to_string(i) + " is missing");
      if (!read_shape(value)) return false;
      if (fail(GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data))) return false;
      inputs_.push_back(data);
    }
    return true;
  }

  bool read_shape(const OrtValue* value) {
    OrtShape* info = nullptr;
    if (fail(GetTensorTypeAndShape::call(api, value, &info))) return false;
    size_t rank = 0;
    OrtStatus* status = GetDimensionsCount::call(api, info, &rank);
    std::vector<int64_t>& shape = shapes_.emplace_back(status ? 0 : rank);
    shape.reserve(1);  // a shape of rank 0 has an address, too
    if (!status) status = GetDimensions::call(api, info, shape.data(), rank);
    release(api, info);
    return !fail(status);
  }

  bool make_outputs(const Lengths& lengths) {
    for (size_t i = 0; i < node_.outputs().size(); ++i) {
      std::vector<int64_t> shape;
      for (const char* axis = node_.outputs()[i].axes; *axis; ++axis)
        shape.push_back(*axis == '1' ? 1 : lengths[*axis]);
      OrtValue* value = nullptr;
      void* data = nullptr;
      if (fail(GetOutput::call(api, context_, i, shape.data(), shape.size(), &value)) ||
          fail(GetTensorMutableData::call(api, value, &data))) {
        return false;
      }
      outputs_.push_back(data);
    }
    return true;
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
  const Node& node_;
  const OpSchema& op_;
  OrtKernelContext* context_;
  std::vector<std::vector<int64_t>> shapes_;
  std::vector<const void*> inputs_;
  std::vector<void*> outputs_;
  OrtStatus* error_ = nullptr;
};

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Kernel& own = *static_cast<const Kernel*>(kernel);
  try {
    return Run(own, context).compute();
  } catch (const std::exception& error) {
    return refuse(own.node.op(), error.what());
  }
}

OrtElement element_of(Element element, vtx_dtype dtype) {
  switch (element) {
    case Element::kFloat32:
      return kFloat;
    case Element::kInt64:
      return kInt64;
    case Element::kBool:
      return kBool;
    default:
      return dtype == VTX_FLOAT32 ? kFloat : dtype == VTX_FLOAT16 ? kFloat16 : kBFloat16;
  }
}

// The elements of all tensors that nodes of an op may have, by position. The schema sees to it that a position has the
// same with any attributes, and that those that every node has come first.
std::vector<Element> elements_of(const List<Tensor>& tensors) {
  std::vector<Element> elements;
  std::vector<std::string> names;
  for (const Tensor& each : tensors) {
    if (std::find(names.begin(), names.end(), each.name) != names.end()) continue;  // with other axes
    names.push_back(each.name);
    elements.push_back(each.element);
  }
  return elements;
}

OrtCharacteristic characteristic(const List<Tensor>& tensors, size_t index) {
  const auto is_always_there = [](const Tensor& each) { return each.when.attribute < 0; };
  const auto required = std::count_if(tensors.begin(), tensors.end(), is_always_there);
  return index < static_cast<size_t>(required) ? kRequired : kOptional;
}

Registered make_registered(const OpSchema& op, vtx_dtype dtype) {
  Registered made = {};
  OrtCustomOp& base = made.base;
  base.version = kOperatorVersion;
  base.name = [](const OrtCustomOp* self) { return registered(self).op->name; };
  base.provider = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  base.input_count = [](const OrtCustomOp* self) { return registered(self).inputs.size(); };
  base.output_count = [](const OrtCustomOp* self) { return registered(self).outputs.size(); };
  base.input_type = [](const OrtCustomOp* self, size_t index) {
    return element_of(registered(self).inputs[index], registered(self).dtype);
  };
  base.output_type = [](const OrtCustomOp* self, size_t index) {
    return element_of(registered(self).outputs[index], registered(self).dtype);
  };
  base.input_characteristic = [](const OrtCustomOp* self, size_t index) {
    return characteristic(registered(self).op->inputs, index);
  };
  base.output_characteristic = [](const OrtCustomOp* self, size_t index) {
    return characteristic(registered(self).op->outputs, index);
  };
  base.input_memory = [](const OrtCustomOp*, size_t) { return 0; };
  for (auto& each : base.variadic) each = [](const OrtCustomOp*) { return 1; };
  base.create_kernel_v2 = create;
  base.compute_v2 = compute;
  base.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  made.op = &op;
  made.dtype = dtype;
  made.inputs = elements_of(op.inputs);
  made.outputs = elements_of(op.outputs);
  return made;
}

std::vector<Registered> make_all() {
  std::vector<Registered> all;
  for (const OpSchema* op : ops::kAll) {
    for (vtx_dtype dtype : {VTX_FLOAT32, VTX_FLOAT16, VTX_BFLOAT16}) all.push_back(make_registered(*op, dtype));
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
