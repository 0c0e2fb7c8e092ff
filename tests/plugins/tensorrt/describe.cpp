// Says in JSON what an op is with given attributes, and what its kernel is called with; one request a line block:
//
//   op VtxDivPrune             the op's name
//   int keep 64                also int32, float, double, text
//   input 1 576 1024           shapes of its inputs, -1 for lengths that are not known; none asks for the attributes
//   alone dtype 0                    a vtx_dtype end
//
// The answer is one line: inputs, outputs, sizes, parameters (the bytes of the structure, in hexadecimal), fields, or
// {"refused": SENTENCE}.
#include <deque>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "core/op.h"
#include "ops_table.h"
#include "recording_kernels.h"

namespace {

using namespace vtx;

struct Given {
  std::string name;
  FieldType type;
  std::string text;
  union {
    int64_t int64;
    int32_t int32;
    float float32;
    double float64;
  };

  Field field() const {
    if (type == FieldType::kText) return {name.c_str(), text.data(), type, static_cast<int32_t>(text.size())};
    return {name.c_str(), &int64, type, 1};
  }
};

struct Request {
  std::string op;
  std::deque<Given> attributes;
  std::vector<std::vector<int64_t>> shapes;
  int dtype = VTX_FLOAT32;
};

std::string quoted(const std::string& text) {
  std::string made = "\"";
  for (const char each : text) {
    if (each == '"' || each == '\\') made += '\\';
    made += each < ' ' ? ' ' : each;
  }
  return made + '"';
}

const char* word(Element element) {
  switch (element) {
    case Element::kFeatures:
      return "features";
    case Element::kFloat32:
      return "float32";
    case Element::kInt64:
      return "int64";
    case Element::kBool:
      return "bool";
  }
  return "?";
}

std::string listed(const std::vector<Tensor>& tensors, const Lengths& lengths) {
  std::ostringstream out;
  const char* between = "";
  for (const Tensor& each : tensors) {
    out << between << "{\"name\":" << quoted(each.name) << ",\"type\":" << quoted(word(each.element)) << ",\"shape\":[";
    for (const char* axis = each.axes; *axis; ++axis) {
      out << (axis == each.axes ? "" : ",") << (*axis == '1' ? 1 : lengths[*axis]);
    }
    out << "]}";
    between = ",";
  }
  return out.str();
}

std::string hexadecimal(const void* data, size_t length) {
  std::string made;
  for (size_t place = 0; place < length; ++place) {
    const unsigned value = static_cast<const unsigned char*>(data)[place];
    made += "0123456789abcdef"[value / 16];
    made += "0123456789abcdef"[value % 16];
  }
  return made;
}

const OpSchema& find(const std::string& name) {
  for (const OpSchema* each : ops::kAll) {
    if (name == each->name) return *each;
  }
  throw Refused("there is no op " + name);
}

std::string answer(const Request& request) {
  std::vector<Field> fields;
  for (const Given& each : request.attributes) fields.push_back(each.field());
  const OpSchema& type = find(request.op);
  const auto op = Op::create(type, fields.data(), static_cast<int64_t>(fields.size()));
  std::ostringstream out;
  std::vector<Shape> shapes;
  for (const auto& each : request.shapes) shapes.push_back({static_cast<int32_t>(each.size()), each.data()});
  Lengths lengths;
  if (!shapes.empty()) lengths = op->lengths(shapes);
  out << "{\"inputs\":[" << listed(op->inputs(), lengths) << "],\"outputs\":[" << listed(op->outputs(), lengths) << ']';
  bool is_known = !shapes.empty();
  for (const auto& each : request.shapes) {
    for (const int64_t length : each) is_known = is_known && length >= 0;
  }
  if (is_known) {
    op->workspace(lengths, static_cast<vtx_dtype>(request.dtype));
    const recording::Call& call = recording::last();
    const bool is_step = op->inputs()[0].name[0] == 'h';
    out << ",\"kernel\":" << quoted(call.op) << ",\"sizes\":\""
        << (is_step ? hexadecimal(&call.step_sizes, sizeof call.step_sizes)
                    : hexadecimal(&call.sizes, sizeof call.sizes))
        << "\",\"parameters\":\"" << hexadecimal(call.parameters.data(), call.parameters.size()) << '"';
  }
  // What a copy from its own fields writes is what it wrote.
  const std::vector<Field> once = op->fields();
  const auto copy = Op::create(type, once.data(), static_cast<int64_t>(once.size()));
  const std::vector<Field> twice = copy->fields();
  out << ",\"fields\":[";
  for (size_t place = 0; place < once.size(); ++place) {
    const Field& each = once[place];
    const size_t width = each.type == FieldType::kInt64 ? 8 : each.type == FieldType::kFloat32 ? 4 : 1;
    const std::string bytes = hexadecimal(each.data, each.length * width);
    if (twice.size() != once.size() || bytes != hexadecimal(twice[place].data, twice[place].length * width)) {
      throw std::logic_error("an op written and read is another one");
    }
    out << (place ? "," : "") << quoted(each.name);
  }
  out << "]}";
  return out.str();
}

bool read(Request& request, std::istringstream& line, const std::string& word) {
  Given given;
  given.int64 = 0;
  if (word == "op") return static_cast<bool>(line >> request.op);
  if (word == "dtype") return static_cast<bool>(line >> request.dtype);
  if (word == "input") {
    std::vector<int64_t> shape;
    for (int64_t length; line >> length;) shape.push_back(length);
    request.shapes.push_back(shape);
    return true;
  }
  line >> given.name;
  std::string value;
  line >> value;
  if (word == "int") {
    given.type = FieldType::kInt64;
    given.int64 = std::stoll(value);
  } else if (word == "int32") {
    given.type = FieldType::kInt32;
    given.int32 = std::stoi(value);
  } else if (word == "float") {
    given.type = FieldType::kFloat32;
    given.float32 = std::stof(value);
  } else if (word == "double") {
    given.type = FieldType::kFloat64;
    given.float64 = std::stod(value);
  } else if (word == "text") {
    given.type = FieldType::kText;
    given.text = value;
  } else {
    return false;
  }
  request.attributes.push_back(given);
  return true;
}

}  // namespace

int main() {
  Request request;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word == "end") {
      try {
        std::cout << answer(request) << std::endl;
      } catch (const Refused& refused) {
        std::cout << "{\"refused\":" << quoted(refused.what()) << '}' << std::endl;
      }
      request = {};
    } else if (!read(request, words, word)) {
      std::cerr << "not a request: " << line << '\n';
      return 2;
    }
  }
}
