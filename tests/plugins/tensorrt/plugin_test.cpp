// The plugins called as TensorRT calls them: creators, types, shapes, formats, serialisation, and the call of the
// kernel.
#include <set>

#include "checks.h"
#include "plugin_samples.h"
#include "recording_kernels.h"

using namespace samples;
using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::PluginTensorDesc;

CASE(creators) {
  setLoggerFinder(fake::finder());
  int32_t count = 0;
  auto* const* all = getCreators(count);
  CHECK(count == 10);
  std::set<std::string> names;
  for (int32_t place = 0; place < count; ++place) {
    CHECK(std::string(all[place]->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
    auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(all[place]);
    CHECK(std::string(one->getPluginVersion()) == "1" && std::string(one->getPluginNamespace()) == "vtexport");
    names.insert(one->getPluginName());
    CHECK(one->getFieldNames()->nbFields > 0 && std::string(one->getFieldNames()->fields[0].name) != "plugin_version");
  }
  for (const Sample& sample : samples::all()) CHECK(names.count(sample.op));
}

CASE(the_three_interfaces) {
  for (const Sample& sample : samples::all()) {
    const Made plugin = create(sample);
    CHECK(plugin);
    CHECK(std::string(core(*plugin).getPluginName()) == sample.op);
    CHECK(std::string(core(*plugin).getPluginVersion()) == "1");
    CHECK(std::string(core(*plugin).getPluginNamespace()) == "vtexport");
    CHECK(std::string(core(*plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_CORE");
    CHECK(std::string(build(*plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_BUILD");
    CHECK(std::string(runtime(*plugin).getInterfaceInfo().kind) == "PLUGIN_V3ONE_RUNTIME");
    CHECK(!plugin->getCapabilityInterface(static_cast<nvinfer1::PluginCapabilityType>(77)));
  }
}

CASE(types_of_outputs) {
  for (const Sample& sample : samples::all()) {
    for (const DataType features : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
      const Made plugin = create(sample);
      const auto expected = types(sample, features);
      const auto in = static_cast<int32_t>(sample.shapes.size()), out = build(*plugin).getNbOutputs();
      CHECK(static_cast<size_t>(in + out) == expected.size());
      std::vector<DataType> got(out);
      CHECK(build(*plugin).getOutputDataTypes(got.data(), out, expected.data(), in) == 0);
      CHECK(std::equal(got.begin(), got.end(), expected.begin() + in));
    }
  }
}

CASE(shapes_of_outputs_that_are_fixed) {
  for (const Sample& sample : samples::all()) {
    const Made plugin = create(sample);
    fake::Builder builder;
    std::vector<DimsExprs> in, out(build(*plugin).getNbOutputs());
    for (const auto& lengths : sample.shapes) {
      std::vector<const nvinfer1::IDimensionExpr*> all;
      for (const int64_t each : lengths) all.push_back(builder.length(each));
      in.push_back(builder.shape(all));
    }
    CHECK(build(*plugin).getOutputShapes(in.data(), static_cast<int32_t>(in.size()), nullptr, 0, out.data(),
                                         static_cast<int32_t>(out.size()), builder) == 0);
    const std::string name = sample.op;
    if (name == "VtxPruneSID" || name == "VtxDivPrune" || name == "VtxCDPruner") {
      CHECK(fake::shown(out[0]) == "[1, 64, 32]" && fake::shown(out[1]) == "[1, 64]");
    } else if (name == "VtxSVDPrune") {
      CHECK(fake::shown(out[0]) == "[2, 64, 32]" && fake::shown(out[1]) == "[2, 64]");
      for (size_t report = 2; report < 6; ++report) CHECK(fake::shown(out[report]) == "[2]");
    } else if (name == "VtxViTCoP" || name == "VtxNuwa") {
      const std::string keep = name == "VtxViTCoP" ? "172" : "112";
      CHECK(fake::shown(out[0]) == "[1, " + keep + ", 32]");
      CHECK(fake::shown(out[1]) == "[1, " + keep + "]" && fake::shown(out[2]) == "[1, " + keep + "]");
    } else {
      const std::string rows = name == "VtxClusterMerge" ? "505" : name == "VtxKeyNormTopK" ? "538" : "88";
      CHECK(fake::shown(out[0]) == "[1, " + rows + ", 32]" && fake::shown(out[1]) == "[1, " + rows + "]");
    }
  }
}

CASE(shapes_of_outputs_that_vary) {
  fake::Builder b;
  DimsExprs out[2];
  const Made step = create(samples::of("VtxTextSimilarityTopK"));
  const DimsExprs rows[] = {b.shape({b.length(1), b.unknown("S"), b.length(32)}), b.shape({b.length(1)})};
  CHECK(build(*step).getOutputShapes(rows, 2, nullptr, 0, out, 2, b) == 0);
  CHECK(fake::shown(out[0]) == "[1, (S - 512), 32]" && fake::shown(out[1]) == "[1, (S - 512)]");

  const Made encoder = create(samples::of("VtxDivPrune"));
  const DimsExprs images[] = {b.shape({b.unknown("images"), b.length(576), b.unknown("width")})};
  CHECK(build(*encoder).getOutputShapes(images, 1, nullptr, 0, out, 2, b) == 0);
  CHECK(fake::shown(out[0]) == "[images, 64, width]" && fake::shown(out[1]) == "[images, 64]");
}

CASE(formats) {
  for (const Sample& sample : samples::all()) {
    const Made plugin = create(sample);
    for (const DataType features : {DataType::kFLOAT, DataType::kHALF, DataType::kBF16}) {
      const auto all = descriptions(sample, features);
      const auto in = static_cast<int32_t>(sample.shapes.size()), count = static_cast<int32_t>(all.size());
      for (int32_t place = 0; place < count; ++place) {
        const auto takes = [&](DataType type, nvinfer1::TensorFormat format) {
          auto changed = all;
          changed[place].desc.type = type;
          changed[place].desc.format = format;
          return build(*plugin).supportsFormatCombination(place, changed.data(), in, count - in);
        };
        CHECK(takes(all[place].desc.type, nvinfer1::TensorFormat::kLINEAR));
        CHECK(!takes(all[place].desc.type, nvinfer1::TensorFormat::kCHW32));
        CHECK(!takes(DataType::kINT8, nvinfer1::TensorFormat::kLINEAR));
        CHECK(!takes(DataType::kINT32, nvinfer1::TensorFormat::kLINEAR));
      }
      CHECK(!build(*plugin).supportsFormatCombination(-1, all.data(), in, count - in));
      CHECK(!build(*plugin).supportsFormatCombination(count, all.data(), in, count - in));
      CHECK(!build(*plugin).supportsFormatCombination(0, all.data(), in + 1, count - in));
    }
  }
}

CASE(features_are_never_rounded) {
  const Sample sample = samples::of("VtxDivPrune");
  const Made plugin = create(sample);
  const auto takes = [&](nvinfer1::IPluginV3& one, DataType type) {
    const auto all = descriptions(sample, type);
    return build(one).supportsFormatCombination(0, all.data(), 1, 2);
  };
  const auto declare = [&](DataType type) {
    DataType out[2];
    CHECK(build(*plugin).getOutputDataTypes(out, 2, &type, 1) == 0);
  };
  declare(DataType::kFLOAT);
  const Made copy(plugin->clone());
  for (auto* each : {plugin.get(), copy.get()}) {
    CHECK(takes(*each, DataType::kFLOAT) && !takes(*each, DataType::kHALF) && !takes(*each, DataType::kBF16));
  }
  declare(DataType::kBF16);
  CHECK(takes(*plugin, DataType::kFLOAT) && !takes(*plugin, DataType::kHALF) && takes(*plugin, DataType::kBF16));
}

CASE(what_is_serialised_makes_the_same_plugin) {
  for (const Sample& sample : samples::all()) {
    const Made first = create(sample);
    const nvinfer1::PluginFieldCollection* written = runtime(*first).getFieldsToSerialize();
    CHECK(written && written->nbFields == static_cast<int32_t>(sample.attributes.size()));
    // TensorRT copies the fields' data into the engine.
    std::vector<std::string> names, data;
    for (int32_t place = 0; place < written->nbFields; ++place) {
      const nvinfer1::PluginField& each = written->fields[place];
      const size_t width = each.type == nvinfer1::PluginFieldType::kINT64     ? 8
                           : each.type == nvinfer1::PluginFieldType::kFLOAT32 ? 4
                                                                              : 1;
      names.emplace_back(each.name);
      data.emplace_back(static_cast<const char*>(each.data), each.length * width);
    }
    std::vector<nvinfer1::PluginField> fields;
    for (size_t place = 0; place < names.size(); ++place) {
      const nvinfer1::PluginField& each = written->fields[place];
      fields.emplace_back(names[place].c_str(), data[place].data(), each.type, each.length);
    }
    const Made second = create(sample.op, fields, nvinfer1::TensorRTPhase::kRUNTIME);
    CHECK(second);
    const Made third(second->clone());
    const Made fourth(runtime(*third).attachToContext(nullptr));
    const auto all = descriptions(sample, DataType::kFLOAT);
    std::vector<char> parameters;
    for (auto* each : {first.get(), second.get(), third.get(), fourth.get()}) {
      CHECK(build(*each).getWorkspaceSize(all.data(), static_cast<int32_t>(sample.shapes.size()), nullptr, 0) ==
            recording::kWorkspace);
      if (each == first.get()) parameters = recording::last().parameters;
      CHECK(recording::last().parameters == parameters);
    }
  }
}

CASE(the_kernel_is_called_with_the_tensors) {
  for (const Sample& sample : samples::all()) {
    const Made plugin = create(sample);
    const auto all = descriptions(sample, DataType::kHALF);
    const auto in = static_cast<int32_t>(sample.shapes.size()), count = static_cast<int32_t>(all.size());
    CHECK(build(*plugin).configurePlugin(all.data(), in, all.data() + in, count - in) == 0);
    std::vector<PluginTensorDesc> descs;
    for (const auto& each : all) descs.push_back(each.desc);
    CHECK(runtime(*plugin).onShapeChange(descs.data(), in, descs.data() + in, count - in) == 0);
    std::vector<std::unique_ptr<char[]>> memory;
    std::vector<const void*> inputs;
    std::vector<void*> outputs;
    for (int32_t place = 0; place < count; ++place) {
      memory.emplace_back(new char[64]);
      place < in ? inputs.push_back(memory.back().get()) : outputs.push_back(memory.back().get());
    }
    recording::last() = {};
    auto* stream = reinterpret_cast<cudaStream_t>(memory[0].get());
    CHECK(runtime(*plugin).enqueue(descs.data(), descs.data() + in, inputs.data(), outputs.data(), memory[0].get(),
                                   stream) == 0);
    const recording::Call& call = recording::last();
    CHECK(call.runs == 1 && call.stream == stream && call.workspace == memory[0].get());
    const bool is_step = call.step_sizes.rows != 0;
    CHECK(is_step ? call.step_tensors.hidden_states == inputs[0] && call.step_tensors.out_rows == outputs[1]
                  : call.tensors.features == inputs[0] && call.tensors.keep_indices == outputs[1]);
    CHECK((is_step ? call.step_sizes.dtype : call.sizes.dtype) == VTX_FLOAT16);
  }
  CHECK(fake::logged().empty());
}

int main() { return checks::run(); }
