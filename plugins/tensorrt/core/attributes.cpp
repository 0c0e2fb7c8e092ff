#include "core/attributes.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <utility>

namespace vtexport {
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

std::string allowed(const Attribute& attribute) {
  if (attribute.kind == Kind::kWord) {
    std::string all;
    for (const Word& each : attribute.words) all += (all.empty() ? "" : ", ") + std::string(each.text);
    return all;
  }
  const std::string from = (attribute.above_least ? "above " : "from ") + shown(attribute.least);
  if (attribute.most >= FLT_MAX) return "a finite number " + from;
  return (attribute.kind == Kind::kInteger ? "a whole number " : "a number ") + from +
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

void check_range(const Attribute& attribute, double value) {
  // Written so that NaN fails.
  const bool enough = attribute.above_least ? value > attribute.least : value >= attribute.least;
  if (!(enough && value <= attribute.most)) refuse(attribute, shown(value));
}

}  // namespace

Attribute integer(const char* name, int64_t least, int64_t most) {
  return {name, Kind::kInteger, static_cast<double>(least), static_cast<double>(most)};
}

Attribute flag(const char* name) { return integer(name, 0, 1); }

Attribute optional_integer(const char* name, int64_t least, int64_t most) {
  Attribute made = integer(name, least, most);
  made.optional = true;
  return made;
}

Attribute number(const char* name, double least, double most) { return {name, Kind::kNumber, least, most}; }

Attribute positive(const char* name) { return positive(name, FLT_MAX); }

Attribute positive(const char* name, double most) { return {name, Kind::kNumber, 0, most, true}; }

Attribute word(const char* name, std::vector<Word> words) {
  Attribute made{name, Kind::kWord};
  made.words = std::move(words);
  return made;
}

Attribute unread(const char* name) { return {name, Kind::kUnread}; }

Values Values::read(const std::vector<Attribute>& table, const Field* fields, int64_t count) {
  if (count < 0 || count > kMostFields || (count > 0 && !fields)) {
    throw Refused("the list of " + std::to_string(count) + " attributes cannot be read");
  }
  Values values(table);
  for (int64_t number = 0; number < count; ++number) {
    const Field& field = fields[number];
    if (!field.name) throw Refused("attribute " + std::to_string(number) + " has no name");
    size_t place = 0;
    while (place < table.size() && std::strcmp(table[place].name, field.name) != 0) ++place;
    if (place == table.size()) {
      std::string known;
      for (const Attribute& each : table) {
        if (each.kind != Kind::kUnread) known += (known.empty() ? "" : ", ") + std::string(each.name);
      }
      const std::string name(field.name, strnlen(field.name, kMostShown));
      throw Refused("there is no attribute " + name + "; those read are " + known);
    }
    const Attribute& attribute = table[place];
    if (attribute.kind == Kind::kUnread) continue;
    if (values.values_[place].given) throw Refused("attribute " + std::string(attribute.name) + " is given twice");
    values.values_[place] = convert(attribute, field);
  }
  for (size_t place = 0; place < table.size(); ++place) {
    const Attribute& attribute = table[place];
    if (attribute.kind != Kind::kUnread && !attribute.optional && !values.values_[place].given) {
      throw Refused("attribute " + std::string(attribute.name) + " is missing; give " + allowed(attribute));
    }
  }
  return values;
}

Values::Value Values::convert(const Attribute& attribute, const Field& field) {
  const bool integral = field.type == FieldType::kInt32 || field.type == FieldType::kInt64;
  const bool floating = field.type == FieldType::kFloat32 || field.type == FieldType::kFloat64;
  const bool fits = attribute.kind == Kind::kInteger  ? integral
                    : attribute.kind == Kind::kNumber ? floating
                                                      : field.type == FieldType::kText;
  if (!fits) refuse(attribute, type_name(field.type));
  if (!field.data) refuse(attribute, "without data");
  Value value;
  value.given = true;
  if (attribute.kind == Kind::kWord) {
    const std::string text = text_of(field);
    for (const Word& each : attribute.words) {
      if (text == each.text) {
        value.integer = each.value;
        value.text = each.text;
        return value;
      }
    }
    refuse(attribute, '"' + text.substr(0, kMostShown) + '"');
  }
  if (field.length != 1) refuse(attribute, "a list of " + std::to_string(field.length));
  if (attribute.kind == Kind::kInteger) {
    value.integer = field.type == FieldType::kInt64 ? first<int64_t>(field) : first<int32_t>(field);
    check_range(attribute, static_cast<double>(value.integer));
  } else {
    const double given = field.type == FieldType::kFloat64 ? first<double>(field) : first<float>(field);
    check_range(attribute, given);
    value.number = static_cast<float>(given);
    // A double may round to the end of its range that is not allowed.
    if (attribute.above_least && !(value.number > attribute.least)) refuse(attribute, shown(given));
  }
  return value;
}

const Values::Value& Values::at(const char* name, Kind kind) const {
  for (size_t place = 0; place < table_->size(); ++place) {
    const Attribute& attribute = (*table_)[place];
    if (attribute.kind == kind && std::strcmp(attribute.name, name) == 0) return values_[place];
  }
  throw std::logic_error(std::string("no such attribute in the op's table: ") + name);
}

bool Values::has(const char* name) const { return at(name, Kind::kInteger).given; }

int32_t Values::integer(const char* name) const { return static_cast<int32_t>(at(name, Kind::kInteger).integer); }

float Values::number(const char* name) const { return at(name, Kind::kNumber).number; }

int32_t Values::word(const char* name) const { return static_cast<int32_t>(at(name, Kind::kWord).integer); }

std::vector<Field> Values::fields() const {
  std::vector<Field> made;
  for (size_t place = 0; place < table_->size(); ++place) {
    const Attribute& attribute = (*table_)[place];
    const Value& value = values_[place];
    if (!value.given) continue;
    if (attribute.kind == Kind::kInteger) {
      made.push_back({attribute.name, &value.integer, FieldType::kInt64, 1});
    } else if (attribute.kind == Kind::kNumber) {
      made.push_back({attribute.name, &value.number, FieldType::kFloat32, 1});
    } else {  // with its closing zero, as TensorRT's ONNX parser gives strings
      made.push_back({attribute.name, value.text, FieldType::kText, static_cast<int32_t>(std::strlen(value.text)) + 1});
    }
  }
  return made;
}

}  // namespace vtexport
