#include "attributes.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <utility>

namespace vtx {
namespace {

constexpr int32_t kMostShown = 40;  // characters of a text that a sentence shows

const char* type_name(FieldType type) {
  switch (type) {
    case FieldType::kInt32:
    case FieldType::kInt64:
      return "an integer";
    case FieldType::kFloat32:
    case FieldType::kFloat64:
      return "a float";
    case FieldType::kText:
      return "a string";
    case FieldType::kOther:
      break;
  }
  return "of another type";
}

std::string shown(double value) {
  std::ostringstream out;
  out.precision(9);
  out << value;
  return out.str();
}

// The beginning of a model's own text, for a log: a byte that is no printable ASCII character stands as "?".
std::string shown(const char* text, size_t length) {
  std::string all(text, std::min<size_t>(length, kMostShown));
  for (char& each : all) {
    if (each < ' ' || each > '~') each = '?';
  }
  return all;
}

std::string allowed(const Attribute& attribute) {
  if (attribute.kind == Kind::kWord) {
    std::string all;
    for (const Word& each : attribute.words) all += (all.empty() ? "" : ", ") + std::string(each.text);
    return all;
  }
  if (attribute.kind == Kind::kFlag) return "0 or 1";
  const std::string from = (attribute.above_least ? "above " : "from ") + shown(attribute.least);
  if (attribute.most >= FLT_MAX) return "a finite number " + from;
  return (attribute.kind == Kind::kNumber ? "a number " : "a whole number ") + from +
         (attribute.above_least ? ", at most " : " to ") + shown(attribute.most);
}

[[noreturn]] void refuse(const Attribute& attribute, const std::string& found) {
  throw Refused("attribute " + std::string(attribute.name) + " is " + found + "; give " + allowed(attribute));
}

// The elements of a field may lie anywhere, so they are copied and not read in place.
template <class T>
T first(const Field& field) {
  T value;
  std::memcpy(&value, field.data, sizeof value);
  return value;
}

std::string text_of(const Field& field) {
  const char* data = static_cast<const char*>(field.data);
  const size_t most = field.length > 0 ? static_cast<size_t>(field.length) : 0;
  return {data, strnlen(data, most)};
}

size_t find(const List<Attribute>& table, const char* name) {
  for (size_t place = 0; place < table.size(); ++place) {
    if (std::strcmp(table[place].name, name) == 0) return place;
  }
  return kNowhere;
}

void check_range(const Attribute& attribute, double value, const std::string& text) {
  // Written so that NaN fails.
  const bool enough = attribute.above_least ? value > attribute.least : value >= attribute.least;
  if (!(enough && value <= attribute.most)) refuse(attribute, text);
}

}  // namespace

Values Values::read(const OpSchema& op, const Field* fields, int64_t count) {
  if (count < 0 || count > kMostFields || (count > 0 && !fields)) {
    throw Refused("the list of " + std::to_string(count) + " attributes cannot be read");
  }
  const List<Attribute>& table = op.attributes;
  Values values(op);
  for (int64_t number = 0; number < count; ++number) {
    const Field& field = fields[number];
    if (!field.name) throw Refused("attribute " + std::to_string(number) + " has no name");
    const size_t place = find(table, field.name);
    if (place == kNowhere) {
      std::string known;
      for (const Attribute& each : table) {
        if (each.is_read) known += (known.empty() ? "" : ", ") + std::string(each.name);
      }
      const std::string name = shown(field.name, strnlen(field.name, kMostShown));
      throw Refused("there is no attribute " + name + "; those read are " + known);
    }
    const Attribute& attribute = table[place];
    if (!attribute.is_read) continue;
    if (values.values_[place].given) throw Refused("attribute " + std::string(attribute.name) + " is given twice");
    values.values_[place] = convert(attribute, field);
  }
  for (size_t place = 0; place < table.size(); ++place) {
    const Attribute& attribute = table[place];
    if (attribute.is_read && !attribute.is_optional && !values.values_[place].given) {
      throw Refused("attribute " + std::string(attribute.name) + " is missing; give " + allowed(attribute));
    }
  }
  return values;
}

Values::Value Values::convert(const Attribute& attribute, const Field& field) {
  const bool integral = field.type == FieldType::kInt32 || field.type == FieldType::kInt64;
  const bool floating = field.type == FieldType::kFloat32 || field.type == FieldType::kFloat64;
  const bool is_whole = attribute.kind == Kind::kInteger || attribute.kind == Kind::kFlag;
  const bool fits = is_whole ? integral : attribute.kind == Kind::kNumber ? floating : field.type == FieldType::kText;
  if (!fits) refuse(attribute, type_name(field.type));
  if (!field.data) refuse(attribute, "without data");
  Value value;
  value.given = true;
  if (attribute.kind == Kind::kWord) {
    const std::string text = text_of(field);
    // Behind a zero there may be no more than the closing one; what is cut off would not be read.
    if (field.length > 0 && text.size() + 1 < static_cast<size_t>(field.length)) {
      refuse(attribute, '"' + shown(text.data(), text.size()) + "\" and a zero byte before its end");
    }
    for (const Word& each : attribute.words) {
      if (text == each.text) {
        value.integer = each.value;
        value.text = each.text;
        return value;
      }
    }
    refuse(attribute, '"' + shown(text.data(), text.size()) + '"');
  }
  if (field.length != 1) refuse(attribute, "a list of " + std::to_string(field.length));
  if (is_whole) {
    value.integer = field.type == FieldType::kInt64 ? first<int64_t>(field) : first<int32_t>(field);
    check_range(attribute, static_cast<double>(value.integer), std::to_string(value.integer));
  } else {
    const double given = field.type == FieldType::kFloat64 ? first<double>(field) : first<float>(field);
    check_range(attribute, given, shown(given));
    value.number = static_cast<float>(given);
    // A double may round to the end of its range that is not allowed.
    if (attribute.above_least && !(value.number > attribute.least)) refuse(attribute, shown(given));
  }
  return value;
}

bool Values::has(const char* name) const {
  const size_t place = find(op_->attributes, name);
  return place != kNowhere && values_[place].given;
}

int32_t Values::integer(const char* name) const {
  const size_t place = find(op_->attributes, name);
  if (place == kNowhere) throw std::logic_error(std::string("no such attribute in the op's table: ") + name);
  return static_cast<int32_t>(values_[place].integer);
}

bool Values::holds(const Condition& condition) const {
  return vtx::holds(condition, [this](size_t place) { return number_at(place); });
}

void Values::fill(void* parameters) const {
  for (size_t place = 0; place < op_->attributes.size(); ++place) {
    const Attribute& attribute = op_->attributes[place];
    if (attribute.field == kNowhere) continue;
    char* to = static_cast<char*>(parameters) + attribute.field;
    const auto whole = static_cast<int32_t>(values_[place].integer);
    if (attribute.kind == Kind::kNumber) {
      std::memcpy(to, &values_[place].number, sizeof(float));
    } else {
      std::memcpy(to, &whole, sizeof whole);
    }
  }
}

std::vector<Field> Values::fields() const {
  std::vector<Field> made;
  for (size_t place = 0; place < op_->attributes.size(); ++place) {
    const Attribute& attribute = op_->attributes[place];
    const Value& value = values_[place];
    if (!value.given) continue;
    if (attribute.kind == Kind::kInteger || attribute.kind == Kind::kFlag) {
      made.push_back({attribute.name, &value.integer, FieldType::kInt64, 1});
    } else if (attribute.kind == Kind::kNumber) {
      made.push_back({attribute.name, &value.number, FieldType::kFloat32, 1});
    } else {  // with its closing zero, as TensorRT's ONNX parser gives strings
      made.push_back({attribute.name, value.text, FieldType::kText, static_cast<int32_t>(std::strlen(value.text)) + 1});
    }
  }
  return made;
}

}  // namespace vtx
