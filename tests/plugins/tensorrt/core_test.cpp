// The plugins' core under input of every kind: it does what it says or refuses with a sentence, and nothing else.
#include <cfloat>
#include <climits>
#include <cmath>
#include <limits>
#include <random>

#include "checks.h"
#include "recording_kernels.h"
#include "samples.h"

using namespace vtx;
using samples::integer;
using samples::narrow;
using samples::number;
using samples::Owned;
using samples::Sample;
using samples::text;
using samples::wide;

namespace {

std::unique_ptr<const Op> create(const Sample& sample) {
  const auto fields = sample.fields();
  return Op::create(samples::type(sample.op), fields.data(), static_cast<int64_t>(fields.size()));
}

std::string refusal(const Sample& sample) {
  try {
    create(sample);
  } catch (const Refused& refused) {
    return refused.what();
  }
  return "(taken)";
}

std::vector<Shape> views(const std::vector<std::vector<int64_t>>& shapes) {
  std::vector<Shape> made;
  for (const auto& each : shapes) made.push_back({static_cast<int32_t>(each.size()), each.data()});
  return made;
}

std::string refusal(const Op& op, const std::vector<Shape>& shapes) {
  try {
    op.lengths(shapes);
  } catch (const Refused& refused) {
    return refused.what();
  }
  return "(taken)";
}

// The sample with one attribute replaced, or added where it has none of that name.
Sample with(const char* op, Owned attribute) {
  Sample sample = samples::of(op);
  for (Owned& each : sample.attributes) {
    if (each.name == attribute.name) {
      each = std::move(attribute);
      return sample;
    }
  }
  sample.attributes.push_back(std::move(attribute));
  return sample;
}

}  // namespace

CASE(every_op_takes_its_sample) {
  CHECK(samples::all().size() == std::size(ops::kAll));
  for (const Sample& sample : samples::all()) {
    const auto op = create(sample);
    const Lengths lengths = op->lengths(views(sample.shapes));
    CHECK(op->workspace(lengths, VTX_FLOAT16) == recording::kWorkspace);
  }
}

CASE(every_attribute_has_to_be_there) {
  for (const Sample& sample : samples::all()) {
    for (const Owned& missing : sample.attributes) {
      Sample rest{sample.op, {}, sample.shapes};
      for (const Owned& each : sample.attributes) {
        if (&each != &missing) {
          rest.attributes.emplace_back(each.name.c_str(), each.type, each.data.get(),
                                       each.type == FieldType::kText    ? each.length
                                       : each.type == FieldType::kInt64 ? 8
                                                                        : 4,
                                       each.length);
        }
      }
      CHECK_SAYS(refusal(rest), missing.name);
      CHECK_SAYS(refusal(rest), "missing");
    }
  }
}

CASE(integers_come_in_two_widths_and_floats_too) {
  CHECK(refusal(with("VtxDivPrune", narrow("keep", 64))) == "(taken)");
  CHECK(refusal(with("VtxSVDPrune", wide("energy", 0.9))) == "(taken)");
  CHECK(refusal(with("VtxCDPruner", wide("theta", 0.95))) == "(taken)");
}

CASE(wrong_types_are_refused) {
  CHECK_SAYS(refusal(with("VtxDivPrune", number("keep", 64))), "attribute keep is a float; give a whole number");
  CHECK_SAYS(refusal(with("VtxDivPrune", text("keep", "64"))), "attribute keep is a string");
  CHECK_SAYS(refusal(with("VtxSVDPrune", integer("energy", 1))), "attribute energy is an integer");
  CHECK_SAYS(refusal(with("VtxSVDPrune", integer("mode", 1))), "give budget, leverage");
  Owned other = integer("keep", 64);
  other.type = FieldType::kOther;
  CHECK_SAYS(refusal(with("VtxDivPrune", std::move(other))), "attribute keep is of another type");
}

CASE(values_out_of_range_are_refused) {
  for (const int64_t keep : {int64_t{0}, int64_t{-1}, int64_t{3842}, int64_t{1} << 32, INT64_MAX, INT64_MIN}) {
    CHECK_SAYS(refusal(with("VtxDivPrune", integer("keep", keep))), "give a whole number from 1 to 3841");
  }
  const float infinite = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const float energy : {0.f, -1.f, 1.5f, infinite, -infinite, nan}) {
    CHECK_SAYS(refusal(with("VtxSVDPrune", number("energy", energy))), "give a number above 0, at most 1");
  }
  for (const float cutoff : {0.f, -8.f, infinite, nan}) {
    CHECK_SAYS(refusal(with("VtxViTCoP", number("cutoff", cutoff))), "give a finite number above 0");
  }
  CHECK_SAYS(refusal(with("VtxViTCoP", wide("cutoff", 1e-60))), "attribute cutoff is 1e-60");  // rounds to 0
  CHECK_SAYS(refusal(with("VtxViTCoP", wide("cutoff", 1e60))), "attribute cutoff is 1e+60");
  CHECK_SAYS(refusal(with("VtxCDPruner", number("theta", 0.96f))), "to 0.95");
}

CASE(texts_end_where_their_field_ends) {
  for (const std::string& known : {std::string("leverage"), std::string("leverage\0", 9)}) {
    CHECK(refusal(with("VtxSVDPrune", text("mode", known))) == "(taken)");
  }
  for (const std::string& longer : {std::string("leverage\0xy", 11), std::string("leverage\0\0", 10)}) {
    CHECK_SAYS(refusal(with("VtxSVDPrune", text("mode", longer))), "\"leverage\" and a zero byte before its end; give");
  }
  for (const std::string& unknown :
       {std::string("leverag"), std::string("leveragex"), std::string(), std::string(5000, 'x')}) {
    CHECK_SAYS(refusal(with("VtxSVDPrune", text("mode", unknown))), "give budget, leverage");
  }
  Owned negative = text("mode", "budget");
  negative.length = -5;
  CHECK_SAYS(refusal(with("VtxSVDPrune", std::move(negative))), "attribute mode is \"\"");
}

CASE(a_models_text_cannot_write_into_the_log) {
  const std::string lines = "a\n\x1b[31mERROR: \x7f\xc3\xa4";
  CHECK_SAYS(refusal(with("VtxSVDPrune", text("mode", lines))), "is \"a??[31mERROR: ???\"; give");
  CHECK_SAYS(refusal(with("VtxSVDPrune", integer("a\r\tb", 1))), "there is no attribute a??b; those read are");
}

CASE(attributes_that_contradict_each_other) {
  CHECK_SAYS(refusal(with("VtxPruneSID", integer("groups", 64))), "more than the 63 patches to keep");
  CHECK_SAYS(refusal(with("VtxSVDPrune", integer("rank", 5))), "with rank 5 it has to be the same");
  CHECK_SAYS(refusal(with("VtxViTCoP", integer("cluster_count", 173))), "more than keep");
  CHECK_SAYS(refusal(with("VtxViTCoP", integer("grid_rows", 24))), "one is missing");
  CHECK_SAYS(refusal(with("VtxKeyNormTopK", integer("keep", 78))), "more than visual_count");
  CHECK_SAYS(refusal(with("VtxClusterMerge", integer("clusters", 173))), "more than visual_count");
}

CASE(lists_that_are_none) {
  const OpSchema& type = samples::type("VtxDivPrune");
  const Owned keep = integer("keep", 64);
  const auto said = [&](const Field* fields, int64_t count) -> std::string {
    try {
      Op::create(type, fields, count);
    } catch (const Refused& refused) {
      return refused.what();
    }
    return "(taken)";
  };
  Field field = keep.field();
  CHECK(said(&field, 1) == "(taken)");
  CHECK_SAYS(said(nullptr, 0), "keep is missing");
  CHECK_SAYS(said(nullptr, 1), "cannot be read");
  CHECK_SAYS(said(&field, -1), "cannot be read");
  CHECK_SAYS(said(&field, INT_MAX), "cannot be read");
  const Field twice[] = {field, field};
  CHECK_SAYS(said(twice, 2), "given twice");
  field.length = 2;
  CHECK_SAYS(said(&field, 1), "a list of 2");
  field.length = 0;
  CHECK_SAYS(said(&field, 1), "a list of 0");
  field = keep.field();
  field.data = nullptr;
  CHECK_SAYS(said(&field, 1), "without data");
  field.name = nullptr;
  CHECK_SAYS(said(&field, 1), "has no name");
  const std::string long_name(10000, 'k');
  field.name = long_name.c_str();
  CHECK(said(&field, 1).size() < 200);
}

CASE(attributes_without_meaning_are_passed_over) {
  Sample sample = samples::of("VtxDivPrune");
  sample.attributes.push_back(text("plugin_namespace", "vtexport"));
  sample.attributes.push_back(integer("plugin_version", 1));
  sample.attributes.push_back(text("space", "whatever"));
  CHECK(refusal(sample) == "(taken)");
  CHECK(create(sample)->fields().size() == 1);
  CHECK_SAYS(refusal(with("VtxDivPrune", integer("keeep", 3))), "there is no attribute keeep; those read are keep");
}

CASE(data_may_lie_at_any_address) {
  char memory[16] = {};
  const int64_t value = 64;
  std::memcpy(memory + 1, &value, sizeof value);
  const Field field{"keep", memory + 1, FieldType::kInt64, 1};
  CHECK(Op::create(samples::type("VtxDivPrune"), &field, 1)->fields().size() == 1);
}

CASE(more_to_keep_than_there_is) {
  const auto divprune = create(samples::of("VtxDivPrune"));
  CHECK(refusal(*divprune, views({{1, 64, 32}})) == "(taken)");
  CHECK_SAYS(refusal(*divprune, views({{1, 63, 32}})), "keep is 64, more than the 63 rows of features");
  const auto prunesid = create(samples::of("VtxPruneSID"));
  CHECK(refusal(*prunesid, views({{1, 64, 32}, {1, 63}})) == "(taken)");  // 63 patches and CLS
  CHECK_SAYS(refusal(*prunesid, views({{1, 63, 32}, {1, 62}})), "more than the 63 rows");
  const auto step = create(samples::of("VtxKeyNormTopK"));
  CHECK_SAYS(refusal(*step, views({{1, 76, 32}, {1}, {1, 76, 2, 16}})), "76 rows, fewer than visual_count");
}

CASE(shapes_that_do_not_fit) {
  const auto prunesid = create(samples::of("VtxPruneSID"));
  CHECK_SAYS(refusal(*prunesid, views({{1, 577, 32}})), "it takes 2 inputs (features, scores), and here are 1");
  CHECK_SAYS(refusal(*prunesid, views({})), "here are 0");
  CHECK_SAYS(refusal(*prunesid, views({{1, 577, 32}, {1, 577}})), "makes T 576 without CLS, but T is 577 elsewhere");
  CHECK_SAYS(refusal(*prunesid, views({{2, 577, 32}, {1, 576}})), "scores is [1, 576], but B of [B, T] is 2 elsewhere");
  CHECK_SAYS(refusal(*prunesid, views({{577, 32}, {1, 576}})), "features has rank 2; it has to be [B, R, D]");
  CHECK_SAYS(refusal(*prunesid, views({{1, 1, 32}, {1, 576}})), "0 patches");
  CHECK_SAYS(refusal(*prunesid, {{3, nullptr}, {2, nullptr}}), "rank 3");
  CHECK_SAYS(refusal(*prunesid, {{INT_MAX, nullptr}, {INT_MIN, nullptr}}), "rank");
  for (const int64_t length : {int64_t{0}, int64_t{1} << 20, INT64_MAX}) {
    CHECK_SAYS(refusal(*prunesid, views({{length, 577, 32}, {1, 576}})), "B has to be from 1 to 4096");
    CHECK_SAYS(refusal(*prunesid, views({{1, length, 32}, {1, 576}})), "R has to be from 1 to 3841");
    CHECK_SAYS(refusal(*prunesid, views({{1, 577, length}, {1, 576}})), "D has to be from 1 to 65536");
  }
  const auto heads = create(samples::of("VtxAttentionTopK"));
  CHECK_SAYS(refusal(*heads, views({{1, 600, 32}, {1}, {1, 600, 3, 16}, {1, 4, 16}})), "4 heads, not a multiple");
  CHECK_SAYS(refusal(*heads, views({{2, 600, 32}, {1}, {1, 600, 2, 16}, {1, 4, 16}})),
             "axis 0 has to have the length 1");
}

CASE(lengths_that_are_not_known_yet) {
  const auto prunesid = create(samples::of("VtxPruneSID"));
  Lengths lengths = prunesid->lengths(views({{-1, 577, 32}, {-1, -1}}));
  CHECK(lengths['B'] == kUnknown && lengths['T'] == 576 && lengths['N'] == 64);
  lengths = prunesid->lengths(views({{INT64_MIN, -1, -1}, {3, -1}}));
  CHECK(lengths['B'] == 3 && lengths['T'] == kUnknown);
  const auto step = create(samples::of("VtxTextSimilarityTopK"));
  lengths = step->lengths(views({{1, -1, 32}, {1}}));
  CHECK(lengths['U'] == kUnknown && step->dropped() == 512);
  CHECK(step->lengths(views({{1, 600, 32}, {1}}))['U'] == 88);
}

CASE(grids) {
  Sample sample = samples::of("VtxViTCoP");  // without a grid of its own
  CHECK(refusal(*create(sample), views({{1, 400, 32}, {1, 400}, {1, 400, 2, 16}})) == "(taken)");
  CHECK_SAYS(refusal(*create(sample), views({{1, 480, 32}, {1, 480}, {1, 480, 2, 16}})), "480 patches are no square");
  sample.attributes.push_back(integer("grid_rows", 20));
  sample.attributes.push_back(integer("grid_columns", 24));
  const auto op = create(sample);
  const Lengths lengths = op->lengths(views({{1, 480, 32}, {1, 480}, {1, 480, 2, 16}}));
  op->workspace(lengths, VTX_FLOAT32);
  CHECK(recording::last().sizes.grid_rows == 20 && recording::last().sizes.grid_columns == 24);
  CHECK_SAYS(refusal(*op, views({{1, 576, 32}, {1, 576}, {1, 576, 2, 16}})), "20 x 24 does not have");
}

CASE(what_the_kernel_refuses_is_said) {
  const Sample sample = samples::of("VtxDivPrune");
  const auto op = create(sample);
  const Lengths lengths = op->lengths(views(sample.shapes));
  recording::last().answer = VTX_DEVICE_ERROR;
  std::string said;
  try {
    op->run(lengths, VTX_FLOAT32, nullptr, nullptr, nullptr, nullptr);
  } catch (const Refused& refused) {
    said = refused.what();
  }
  recording::last().answer = VTX_OK;
  CHECK_SAYS(said, "out of luck");  // what the last CUDA error was
}

CASE(tensors_reach_their_places) {
  for (const Sample& sample : samples::all()) {
    const auto op = create(sample);
    std::vector<std::unique_ptr<char[]>> memory;  // an address for every tensor, aligned for all types
    std::vector<const void*> in;
    std::vector<void*> out;
    for (size_t place = 0; place < op->inputs().size(); ++place)
      in.push_back((memory.emplace_back(new char[64])).get());
    for (size_t place = 0; place < op->outputs().size(); ++place)
      out.push_back((memory.emplace_back(new char[64])).get());
    char stream = 0;
    const int before = recording::last().runs;
    op->run(op->lengths(views(sample.shapes)), VTX_BFLOAT16, in.data(), out.data(), memory[0].get(), &stream);
    const recording::Call& call = recording::last();
    CHECK(call.runs == before + 1 && call.workspace == memory[0].get() && call.stream == &stream);
    CHECK(call.workspace_bytes == recording::kWorkspace);
    const bool is_step = op->inputs()[0].name == std::string("hidden_states");
    const char* base =
        is_step ? reinterpret_cast<const char*>(&call.step_tensors) : reinterpret_cast<const char*>(&call.tensors);
    const size_t count = (is_step ? sizeof call.step_tensors : sizeof call.tensors) / sizeof(void*);
    size_t set = 0;
    for (size_t place = 0; place < count; ++place) {
      const void* pointer;
      std::memcpy(&pointer, base + place * sizeof pointer, sizeof pointer);
      set += pointer != nullptr;
    }
    CHECK(set == in.size() + out.size());  // no other tensor, such as a test's intermediate values, is asked for
    if (is_step) {
      CHECK(call.step_tensors.hidden_states == in[0] && call.step_tensors.out_rows == out[1]);
    } else {
      CHECK(call.tensors.features == in[0] && call.tensors.keep_indices == out[1]);
    }
  }
}

CASE(random_input_is_taken_or_refused) {
  std::mt19937 random(7);
  const auto below = [&](int64_t end) { return static_cast<int64_t>(random() % static_cast<uint64_t>(end)); };
  const std::vector<Sample> all = samples::all();
  const std::vector<int64_t> odd{0,   1,   -1,   2,    4,     16,      63,        64,
                                 576, 577, 3840, 3841, 65536, INT_MAX, INT64_MAX, INT64_MIN};
  int taken = 0;
  for (int round = 0; round < 20000; ++round) {
    const Sample& sample = all[below(static_cast<int64_t>(all.size()))];
    std::vector<Owned> attributes;
    for (const Owned& each : sample.attributes) {
      const bool is_text = each.type == FieldType::kText;
      if (below(12)) {
        attributes.emplace_back(each.name.c_str(), each.type, each.data.get(),
                                is_text                          ? each.length
                                : each.type == FieldType::kInt64 ? 8
                                                                 : 4,
                                each.length);
        continue;
      }
      switch (below(6)) {
        case 0:
          attributes.push_back(integer(each.name.c_str(), odd[below(static_cast<int64_t>(odd.size()))]));
          break;
        case 1: {
          const auto bits = static_cast<uint32_t>(random());
          float value;
          std::memcpy(&value, &bits, sizeof value);
          attributes.push_back(number(each.name.c_str(), value));
          break;
        }
        case 2:
          attributes.push_back(text(each.name.c_str(), std::string(below(40), static_cast<char>(random()))));
          break;
        case 3:
          attributes.push_back(integer("another", 1));
          break;
        case 4:
          attributes.push_back(narrow(each.name.c_str(), static_cast<int32_t>(below(100))));
          break;
        default:
          break;  // missing
      }
    }
    std::vector<Field> fields;
    for (const Owned& each : attributes) fields.push_back(each.field());
    try {
      const auto op = Op::create(samples::type(sample.op), fields.data(), static_cast<int64_t>(fields.size()));
      auto shapes = sample.shapes;
      for (auto& shape : shapes) {
        for (int64_t& length : shape) {
          if (!below(10)) length = odd[below(static_cast<int64_t>(odd.size()))];
        }
        if (!below(30)) shape.resize(below(9), 7);
      }
      if (!below(30)) shapes.resize(below(6));
      const Lengths lengths = op->lengths(views(shapes));
      bool is_known = true;
      for (const auto& shape : shapes) {
        for (const int64_t length : shape) is_known = is_known && length >= 0;
      }
      if (is_known) op->workspace(lengths, VTX_FLOAT32);
      ++taken;
    } catch (const Refused& refused) {
      CHECK(std::string(refused.what()).size() > 10 && std::string(refused.what()).size() < 600);
    }
  }
  CHECK(taken > 1000 && taken < 19000);
}

int main() { return checks::run(); }
