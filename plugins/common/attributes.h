// The attributes of a node: read from a list of fields by the op's table, and written back to one.
//
// Nothing here knows a runtime, so all of it is tested without one.
#ifndef VTX_COMMON_ATTRIBUTES_H
#define VTX_COMMON_ATTRIBUTES_H

#include <stdexcept>
#include <string>
#include <vector>

#include "schema.h"

namespace vtx {

// What a runtime is told: one sentence, without the op's name, which is put in front of it.
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

// Values of an op's attributes. It keeps the table by reference: tables live as long as the library.
class Values {
 public:
  // Reads the fields of a node, or those that `fields()` once wrote.
  //
  // Throws Refused: a field has another type or length than its attribute, or a value that is not allowed by itself;
  // one is given twice, is missing, or is not of this op.
  static Values read(const OpSchema& op, const Field* fields, int64_t count);

  const OpSchema& op() const { return *op_; }
  bool has(const char* name) const;  // false where an optional one was left out, and where the op has none of that name
  int32_t integer(const char* name) const;
  int64_t number_at(size_t place) const { return values_[place].integer; }  // of an integer, a flag or a word
  bool holds(const Condition& condition) const;

  // Fills the op's structure, of parameter_bytes.
  void fill(void* parameters) const;

  // Every attribute that was read, as fields whose data lives as long as this object does where it is.
  std::vector<Field> fields() const;

 private:
  struct Value {
    bool given = false;
    int64_t integer = 0;
    float number = 0;
    const char* text = nullptr;  // the table's own
  };

  explicit Values(const OpSchema& op) : op_(&op), values_(op.attributes.size()) {}
  static Value convert(const Attribute& attribute, const Field& field);

  const OpSchema* op_;
  std::vector<Value> values_;
};

}  // namespace vtx

#endif
