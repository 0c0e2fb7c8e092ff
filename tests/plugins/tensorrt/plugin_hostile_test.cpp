// The plugins under input that TensorRT should never give: an error and a sentence in the log, never a crash.
#include <climits>
#include <cmath>
#include <random>

#include "checks.h"
#include "plugin_samples.h"
#include "recording_kernels.h"

using namespace samples;
using nvinfer1::DataType;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

namespace {

std::string refused(const char* op, const std::vector<PluginField>& fields) {
  const Made plugin = create(op, fields);
  return plugin ? "(taken)" : fake::logged();
}

}  // namespace

CASE(attributes_are_refused_in_the_log) {
  const int64_t keep = 0, many[2] = {64, 64};
  const float number = 64;
  CHECK(refused("VtxDivPrune", {{"keep", &keep, PluginFieldType::kINT64, 1}}) ==
        "VtxDivPrune: attribute keep is 0; give a whole number from 1 to 3841\n");
  CHECK_SAYS(refused("VtxDivPrune", {}), "VtxDivPrune: attribute keep is missing");
  CHECK_SAYS(refused("VtxDivPrune", {{"keep", many, PluginFieldType::kINT64, 2}}), "a list of 2");
  CHECK_SAYS(refused("VtxDivPrune", {{"keep", nullptr, PluginFieldType::kINT64, 1}}), "without data");
  CHECK_SAYS(refused("VtxDivPrune", {{nullptr, &keep, PluginFieldType::kINT64, 1}}), "has no name");
  CHECK_SAYS(refused("VtxDivPrune", {{"keep", &number, PluginFieldType::kFLOAT32, 1}}), "is a float");
  for (const auto type : {PluginFieldType::kFLOAT16, PluginFieldType::kINT8, PluginFieldType::kDIMS,
                          PluginFieldType::kUNKNOWN, static_cast<PluginFieldType>(12345)}) {
    CHECK_SAYS(refused("VtxDivPrune", {{"keep", many, type, 1}}), "of another type");
  }
}

CASE(lists_of_attributes_that_are_none) {
  auto& one = creator("VtxDivPrune");
  const int64_t keep = 64;
  const PluginField field{"keep", &keep, PluginFieldType::kINT64, 1};
  for (const PluginFieldCollection& each :
       {PluginFieldCollection{1, nullptr}, PluginFieldCollection{-1, &field}, PluginFieldCollection{INT_MAX, &field}}) {
    CHECK(!one.createPlugin("layer", &each, nvinfer1::TensorRTPhase::kBUILD));
    CHECK_SAYS(fake::logged(), "cannot be read");
  }
  CHECK(!one.createPlugin("layer", nullptr, nvinfer1::TensorRTPhase::kBUILD));
  CHECK_SAYS(fake::logged(), "no attributes");
  const PluginFieldCollection good{1, &field};
  CHECK(Made(one.createPlugin(nullptr, &good, static_cast<nvinfer1::TensorRTPhase>(9))));
}

CASE(types_are_refused_in_the_log) {
  for (const Sample& sample : samples::all()) {
    const Made plugin = create(sample);
    auto given = types(sample, DataType::kFLOAT);
    const auto in = static_cast<int32_t>(sample.shapes.size()), out = build(*plugin).getNbOutputs();
    std::vector<DataType> got(out);
    for (int32_t place = 0; place < in; ++place) {
      auto wrong = given;
      wrong[place] = DataType::kINT8;
      CHECK(build(*plugin).getOutputDataTypes(got.data(), out, wrong.data(), in) != 0);
      CHECK_SAYS(fake::logged(), "int8");
    }
    CHECK(build(*plugin).getOutputDataTypes(got.data(), out, given.data(), in + 1) != 0);
    CHECK_SAYS(fake::logged(), "inputs, and TensorRT gives " + std::to_string(in + 1));
    CHECK(build(*plugin).getOutputDataTypes(got.data(), out - 1, given.data(), in) != 0);
    CHECK(build(*plugin).getOutputDataTypes(nullptr, out, nullptr, in) != 0);
  }
  fake::logged();
}

CASE(shapes_are_refused_in_the_log) {
  const Made plugin = create(samples::of("VtxDivPrune"));
  fake::Builder b;
  DimsExprs out[2];
  const auto said = [&](const DimsExprs& shape) {
    CHECK(build(*plugin).getOutputShapes(&shape, 1, nullptr, 0, out, 2, b) != 0);
    return fake::logged();
  };
  CHECK(said(b.shape({b.length(1), b.length(63), b.length(32)})) ==
        "VtxDivPrune: keep is 64, more than the 63 rows of features\n");
  CHECK_SAYS(said(b.shape({b.length(576), b.length(32)})), "features has rank 2; it has to be [B, R, D]");
  CHECK_SAYS(said(b.shape({b.length(0), b.length(576), b.length(32)})), "B has to be from 1 to 4096");
  CHECK_SAYS(said(b.shape({b.length(1), b.length(576), b.length(INT64_MAX)})), "D has to be from 1 to 65536");
  CHECK_SAYS(said(b.shape({nullptr, b.length(576), b.length(32)})), "cannot be told");
  DimsExprs rank = b.shape({b.length(1), b.length(576), b.length(32)});
  for (const int32_t wrong : {INT_MAX, INT_MIN, -1, 0, 8, 9}) {
    rank.nbDims = wrong;
    CHECK_SAYS(said(rank), "has rank " + std::to_string(wrong));
  }
  CHECK(build(*plugin).getOutputShapes(nullptr, 1, nullptr, 0, out, 2, b) != 0);
  CHECK(build(*plugin).getOutputShapes(&rank, 2, nullptr, 0, out, 2, b) != 0);
  CHECK(build(*plugin).getOutputShapes(&rank, 1, nullptr, 0, out, 3, b) != 0);
  fake::logged();
}

CASE(a_profile_whose_ends_do_not_fit) {
  const Sample sample = samples::of("VtxKeyNormTopK");
  const Made plugin = create(sample);
  const auto varying = [&] {
    auto made = descriptions(sample, DataType::kHALF);
    for (const int input : {0, 2}) made[input].desc.dims.d[1] = -1;
    return made;
  };
  auto all = varying();
  CHECK(build(*plugin).configurePlugin(all.data(), 3, all.data() + 3, 2) == 0);
  for (const int input : {0, 2}) all[input].min.d[1] = 76;  // fewer rows than visual_count
  CHECK(build(*plugin).configurePlugin(all.data(), 3, all.data() + 3, 2) != 0);
  CHECK(fake::logged() == "VtxKeyNormTopK: hidden_states has 76 rows, fewer than visual_count, which is 77\n");
  all = varying();
  for (const int input : {0, 2}) all[input].max.d[1] = int64_t{1} << 40;
  CHECK(build(*plugin).configurePlugin(all.data(), 3, all.data() + 3, 2) != 0);
  CHECK_SAYS(fake::logged(), "S has to be from 1 to 1048576");
  CHECK(build(*plugin).getWorkspaceSize(all.data(), 3, nullptr, 0) == 0);
  all = descriptions(sample, DataType::kHALF);  // fixed lengths, and no profile
  for (auto& each : all) each.min = each.max = {};
  CHECK(build(*plugin).configurePlugin(all.data(), 3, all.data() + 3, 2) == 0);
  CHECK(build(*plugin).getWorkspaceSize(all.data(), 3, nullptr, 0) == recording::kWorkspace);
  CHECK(build(*plugin).configurePlugin(nullptr, 3, nullptr, 2) != 0);
  CHECK(build(*plugin).configurePlugin(all.data(), -3, nullptr, 2) != 0);
  fake::logged();
}

CASE(what_the_kernel_refuses) {
  const Sample sample = samples::of("VtxSVDPrune");
  const Made plugin = create(sample);
  const auto all = descriptions(sample, DataType::kFLOAT);
  recording::last().answer = VTX_BAD_PARAMETER;
  CHECK(build(*plugin).configurePlugin(all.data(), 1, all.data() + 1, 6) != 0);
  CHECK_SAYS(fake::logged(), vtx_status_text(VTX_BAD_PARAMETER));
  CHECK(runtime(*plugin).onShapeChange(&all[0].desc, 1, nullptr, 6) != 0);
  recording::last().answer = VTX_DEVICE_ERROR;
  const void* in[1]{};
  void* out[6]{};
  CHECK(runtime(*plugin).enqueue(&all[0].desc, nullptr, in, out, nullptr, nullptr) != 0);
  recording::last().answer = VTX_OK;
  CHECK_SAYS(fake::logged(), "out of luck");
}

CASE(tensors_that_are_missing) {
  for (const Sample& sample : samples::all()) {
    const Made plugin = create(sample);
    std::vector<PluginTensorDesc> descs;
    for (const auto& each : descriptions(sample, DataType::kFLOAT)) descs.push_back(each.desc);
    std::vector<const void*> in(descs.size());
    std::vector<void*> out(descs.size());
    CHECK(runtime(*plugin).enqueue(descs.data(), nullptr, in.data(), out.data(), nullptr, nullptr) != 0);
    CHECK_SAYS(fake::logged(), vtx_status_text(VTX_NULL_POINTER));
    CHECK(runtime(*plugin).enqueue(descs.data(), nullptr, nullptr, nullptr, nullptr, nullptr) != 0);
    CHECK(runtime(*plugin).enqueue(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr) != 0);
    std::unique_ptr<char[]> memory(new char[64]);
    for (auto& each : in) each = memory.get() + 1;  // not aligned to its elements
    for (auto& each : out) each = memory.get() + 1;
    fake::logged();
    CHECK(runtime(*plugin).enqueue(descs.data(), nullptr, in.data(), out.data(), memory.get(), nullptr) != 0);
    CHECK_SAYS(fake::logged(), vtx_status_text(VTX_MISALIGNED));
  }
}

CASE(descriptions_of_any_content) {
  std::mt19937 random(11);
  const int64_t odd[] = {0, 1, -1, 2, 16, 64, 576, 577, 3840, 3841, 65536, INT_MAX, INT64_MAX, INT64_MIN};
  for (int round = 0; round < 3000; ++round) {
    const auto all = samples::all();
    const Sample& sample = all[random() % all.size()];
    const Made plugin = create(sample);
    auto given = descriptions(sample, DataType::kFLOAT);
    for (auto& each : given) {
      if (random() % 4 == 0) each.desc.type = static_cast<DataType>(random() % 14);
      for (auto* dims : {&each.desc.dims, &each.min, &each.max}) {
        if (random() % 8 == 0) dims->nbDims = static_cast<int32_t>(random() % 10) - 1;
        if (random() % 3 == 0) dims->d[random() % 3] = odd[random() % std::size(odd)];
      }
    }
    const auto in = static_cast<int32_t>(sample.shapes.size()), count = static_cast<int32_t>(given.size());
    std::vector<PluginTensorDesc> descs;
    for (const auto& each : given) descs.push_back(each.desc);
    std::vector<const void*> inputs(count);
    std::vector<void*> outputs(count);
    build(*plugin).configurePlugin(given.data(), in, given.data() + in, count - in);
    build(*plugin).getWorkspaceSize(given.data(), in, given.data() + in, count - in);
    for (int32_t place = 0; place < count; ++place) {
      build(*plugin).supportsFormatCombination(place, given.data(), in, count - in);
    }
    runtime(*plugin).onShapeChange(descs.data(), in, descs.data() + in, count - in);
    CHECK(runtime(*plugin).enqueue(descs.data(), descs.data() + in, inputs.data(), outputs.data(), nullptr, nullptr) !=
          0);
  }
  fake::logged();
}

CASE(where_sentences_go) {
  fake::set_finds_by_thread(false);  // as while a model is parsed: then to the global logger
  CHECK_SAYS(refused("VtxDivPrune", {}), "keep is missing");
  fake::set_version((NV_TENSORRT_MAJOR + 1) * 10000);  // whose loggers are others: to stderr
  CHECK(refused("VtxDivPrune", {}).empty());
  fake::set_version(NV_TENSORRT_VERSION);
  fake::set_finds_by_thread(true);
  setLoggerFinder(nullptr);
  int32_t count = 0;
  getCreators(count);
  CHECK(count == 10);
}

CASE(tensorrt_rtx_gets_no_creators) {
  setLoggerFinder(fake::finder());
  fake::set_version(10701);
  int32_t count = -1;
  CHECK(!getCreators(count) && count == 0);
  fake::set_version(NV_TENSORRT_VERSION);
  CHECK(getCreators(count) && count == 10);
}
