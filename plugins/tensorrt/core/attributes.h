// The attributes of an op: which there are and what they may be, read from a list of fields and written back to one.
//
// Nothing here knows TensorRT, so all of it is tested where its headers are not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace vtexport {

// What TensorRT is told in a log: one sentence, without the op's name, which is put in front of it.
class Refused : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A count of fields beyond it is garbage, and reading so many would leave the caller's array.
constexpr int64_t kMostFields = 256;

enum class FieldType { kInt32, kInt64, kFloat32, kFloat64, kText, kOther };

// One attribute as it comes and goes. `length` counts elements, of kText characters; a text need not end with a zero.
struct Field {
  const char* name;
  const void* data;
  FieldType type;
  int32_t length;
};

enum class Kind {
  kInteger,
  kNumber,
  kWord,
  kUnread  // stands on the ONNX node and means nothing to the op; a field of that name is passed over
};

struct Word {
  const char* text;
  int32_t value;
};

struct Attribute {
  const char* name;
  Kind kind;
  double least = 0, most = 0;  // of integers and numbers
  bool above_least = false;    // whether `least` itself is not allowed
  bool optional = false;
  std::vector<Word> words = {};
};

Attribute integer(const char* name, int64_t least, int64_t most);
Attribute flag(const char* name);  // 0 or 1
Attribute optional_integer(const char* name, int64_t least, int64_t most);
Attribute number(const char* name, double least, double most);  // both ends allowed
Attribute positive(const char* name);                           // any finite number above 0
Attribute positive(const char* name, double most);
Attribute word(const char* name, std::vector<Word> words);
Attribute unread(const char* name);

// Values of an op's attributes. It keeps the table by reference: tables live as long as the library.
class Values {
 public:
  // Reads the fields of a node, or those that `fields()` once wrote.
  //
  // Throws Refused: a field has another type or length than its attribute, or a value that is not allowed; one is
  // given twice, is missing, or is not of this op.
  static Values read(const std::vector<Attribute>& table, const Field* fields, int64_t count);

  bool has(const char* name) const;  // false where an optional one was left out
  int32_t integer(const char* name) const;
  float number(const char* name) const;
  int32_t word(const char* name) const;  // the value of the word

  // Every attribute that was read, as fields whose data lives as long as this object does where it is.
  std::vector<Field> fields() const;

 private:
  struct Value {
    bool given = false;
    int64_t integer = 0;
    float number = 0;
    const char* text = nullptr;  // the table's own
  };

  explicit Values(const std::vector<Attribute>& table) : table_(&table), values_(table.size()) {}
  static Value convert(const Attribute& attribute, const Field& field);
  const Value& at(const char* name, Kind kind) const;

  const std::vector<Attribute>* table_;
  std::vector<Value> values_;
};

}  // namespace vtexport
