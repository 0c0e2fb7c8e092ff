// The attributes of an ONNX Runtime node as fields, which is what the ops' table reads.
#ifndef VTX_ORT_NODE_FIELDS_H
#define VTX_ORT_NODE_FIELDS_H

#include <deque>
#include <string>
#include <vector>

#include "attributes.h"
#include "ort_api.h"

namespace vtx {

// It holds the values that the fields point to.
class NodeFields {
 public:
  // Those of the op's attributes that the node has and a native form reads, in the type that they have on the node.
  NodeFields(const OrtApi* api, const OrtKernelInfo* info, const OpSchema& op);
  NodeFields(const NodeFields&) = delete;

  const std::vector<Field>& fields() const { return fields_; }

 private:
  const OrtApi* api_;
  const OrtKernelInfo* info_;
  std::vector<Field> fields_;
  std::deque<int64_t> integers_;
  std::deque<float> numbers_;
  std::deque<std::string> texts_;

  bool take_integer(const char* name);
  bool take_number(const char* name);
  bool take_text(const char* name);
};

}  // namespace vtx

#endif
