// The ops as ONNX Runtime sees them: names, inputs, outputs, and from attributes to the structures of vtx_ops.h.
#ifndef VTX_ORT_OPS_H
#define VTX_ORT_OPS_H

#include <initializer_list>
#include <string>
#include <vector>

#include "vtx_cpu.h"

namespace vtx {

// An input or output. `axes` has a letter an axis: B images, R rows of the features, T patches, D their width, H heads,
// K their width, M text tokens, E width of the embeddings, N kept tokens; inside the language model 1 a one, S rows in,
// O rows out, W width, G key heads, K their width, Q query heads, V visual tokens.
struct Tensor {
  const char* name;
  const char* axes;
  enum Type { kOfFeatures, kReal, kWhole, kTruth } type;
  size_t offset;  // in vtx_tensors or vtx_step_tensors
};

// What the attributes of a node say.
struct Settings {
  int32_t keep = 0;
  int32_t visual_count = 0;  // of the ops inside the language model
  int32_t grid_rows = 0;     // 0 where the node does not say
  int32_t grid_columns = 0;
  union {
    vtx_prunesid prunesid;
    vtx_svdprune svdprune;
    vtx_vitcop vitcop;
    vtx_nuwa nuwa;
    vtx_cdpruner cdpruner;
    vtx_cluster_merge cluster_merge;
  };
  int32_t cls_rows = 0;
  std::vector<Tensor> inputs, outputs;  // of a node with these attributes
};

// Reads attributes; the first that is missing, of another type or not allowed is kept as a sentence.
class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual bool has_int(const char* name, int64_t* value) = 0;
  virtual bool has_float(const char* name, float* value) = 0;
  virtual bool has_string(const char* name, std::string* value) = 0;

  int32_t whole(const char* name);
  int32_t whole_or_zero(const char* name);  // 0 where it is missing
  int32_t flag(const char* name);           // 0 or 1
  float real(const char* name);
  int word(const char* name, std::initializer_list<const char*> words);

  const std::string& error() const { return error_; }

 private:
  void fail(const std::string& text) {
    if (error_.empty()) error_ = text;
  }

  std::string error_;
};

struct Op {
  const char* name;
  bool is_step;
  size_t required_inputs, required_outputs;  // those that a node has with any attributes
  std::vector<Tensor> inputs, outputs;       // the most that one has; for their types
  void (*read)(Attributes&, Settings&);
  // With tensors NULL: whether sizes and parameters are allowed.
  vtx_status (*run)(const vtx_sizes&, const Settings&, const vtx_tensors*, const vtx_parallel*);
  vtx_status (*run_step)(const vtx_step_sizes&, const Settings&, const vtx_step_tensors*, const vtx_parallel*);
};

const std::vector<Op>& ops();

}  // namespace vtx

#endif
