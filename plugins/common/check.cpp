#include "check.h"

#include <cstring>
#include <initializer_list>

namespace vtx {
namespace {

// A field of a structure. It is read as the bytes it is: a C caller may put any number where an enumeration is
// expected.
template <class Number>
Number at(const void* structure, size_t offset) {
  Number number;
  std::memcpy(&number, static_cast<const char*>(structure) + offset, sizeof number);
  return number;
}

bool is_between(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

bool is_product_between(int32_t one, int32_t other, int64_t most) {
  return one >= 1 && other >= 1 && static_cast<int64_t>(one) * other <= most;
}

// A call of an op, by its table.
class Call {
 public:
  Call(const OpSchema& op, const void* sizes, const void* parameters) : op_(op), parameters_(parameters) {
    is_llm_ = op.place == Place::kLlm;
    if (is_llm_) {
      std::memcpy(&llm_, sizes, sizeof llm_);
    } else {
      std::memcpy(&encoder_, sizes, sizeof encoder_);
    }
    dtype_ =
        is_llm_ ? at<int32_t>(sizes, offsetof(vtx_step_sizes, dtype)) : at<int32_t>(sizes, offsetof(vtx_sizes, dtype));
  }

  vtx_status check(const void* tensors) const {
    if (!deciding_parameters_hold()) return VTX_BAD_PARAMETER;
    if (!(is_llm_ ? llm_sizes_hold() : encoder_sizes_hold())) return VTX_BAD_SIZE;
    for (const Attribute& each : op_.attributes) {
      if (each.field != kNowhere && holds(each.when) && !is_allowed(each)) return VTX_BAD_PARAMETER;
    }
    if (!parameters_fit_together()) return VTX_BAD_PARAMETER;
    return tensors ? check_tensors(tensors) : VTX_OK;
  }

 private:
  bool holds(const Condition& condition) const {
    return vtx::holds(condition, [this](size_t place) {
      return static_cast<int64_t>(at<int32_t>(parameters_, op_.attributes[place].field));
    });
  }

  bool has_input(const char* name) const {
    for (const Tensor& each : op_.inputs) {
      if (std::strcmp(each.name, name) == 0 && holds(each.when)) return true;
    }
    return false;
  }

  int64_t tokens() const { return static_cast<int64_t>(encoder_.grid_rows) * encoder_.grid_columns; }

  int32_t cls_rows() const {
    return op_.cls_rows < 0 ? 0 : at<int32_t>(parameters_, op_.attributes[op_.cls_rows].field);
  }

  // Those that sizes or tensors depend on come first: without them neither can be judged.
  bool deciding_parameters_hold() const {
    const auto is_sound = [this](int place) { return place < 0 || is_allowed(op_.attributes[place]); };
    for (const List<Tensor>* tensors : {&op_.inputs, &op_.outputs, &op_.diagnostics}) {
      for (const Tensor& each : *tensors) {
        if (!is_sound(each.when.attribute)) return false;
      }
    }
    return is_sound(op_.cls_rows);
  }

  bool is_allowed(const Attribute& attribute) const {
    if (attribute.kind == Kind::kNumber) {
      const double value = static_cast<double>(at<float>(parameters_, attribute.field));
      // Written so that NaN fails.
      return (attribute.above_least ? value > attribute.least : value >= attribute.least) && value <= attribute.most;
    }
    const int64_t value = at<int32_t>(parameters_, attribute.field);
    if (attribute.kind == Kind::kWord) {
      for (const Word& each : attribute.words) {
        if (value == each.value) return true;
      }
      return false;
    }
    return static_cast<double>(value) >= attribute.least && static_cast<double>(value) <= attribute.most &&
           value <= bound(attribute);
  }

  int64_t bound(const Attribute& attribute) const {
    switch (attribute.bound) {
      case Bound::kKeep:
        return is_llm_ ? llm_.keep : encoder_.keep;
      case Bound::kPatchesToKeep:
        return static_cast<int64_t>(encoder_.keep) - cls_rows();
      case Bound::kVisualCount:
        return llm_.visual_count;
      case Bound::kTokens:
        return tokens();
      default:
        return INT64_MAX;
    }
  }

  bool encoder_sizes_hold() const {
    const vtx_sizes& s = encoder_;
    if (!is_between(s.batch, 1, VTX_MOST_BATCH) || !is_product_between(s.grid_rows, s.grid_columns, VTX_MOST_TOKENS) ||
        !is_between(s.width, 1, VTX_MOST_WIDTH) || !is_between(dtype_, VTX_FLOAT32, VTX_BFLOAT16) ||
        !is_between(s.keep, op_.least_keep, tokens() + cls_rows())) {
      return false;
    }
    if (has_input("keys") && !is_product_between(s.heads, s.head_dim, VTX_MOST_WIDTH)) return false;
    if (!has_input("text_embeds")) return true;
    // A question without embeddings of the patches beside it is in the space of the features.
    return is_between(s.text_tokens, 1, VTX_MOST_TEXT) && is_between(s.embedding_width, 1, VTX_MOST_WIDTH) &&
           (has_input("image_embeds") || s.embedding_width == s.width);
  }

  bool llm_sizes_hold() const {
    const vtx_step_sizes& s = llm_;
    if (!is_between(s.rows, 1, VTX_MOST_SEQUENCE) || !is_between(s.width, 1, VTX_MOST_WIDTH) ||
        !is_between(s.visual_count, 1, VTX_MOST_TOKENS) || s.visual_count > s.rows ||
        !is_between(s.keep, op_.least_keep, s.visual_count) || !is_between(dtype_, VTX_FLOAT32, VTX_BFLOAT16)) {
      return false;
    }
    if (has_input("keys") && !is_product_between(s.key_heads, s.head_dim, VTX_MOST_WIDTH)) return false;
    return !has_input("query") ||
           (is_product_between(s.query_heads, s.head_dim, VTX_MOST_WIDTH) && s.query_heads % s.key_heads == 0);
  }

  // What a table of single parameters cannot say.
  bool parameters_fit_together() const {
    if (&op_ == &ops::svdprune) {
      const auto& p = *static_cast<const vtx_svdprune*>(parameters_);
      return p.rank == 0 || p.rank_bound == p.rank;
    }
    if (&op_ == &ops::nuwa) return candidates(static_cast<const vtx_nuwa*>(parameters_)->top_n) >= encoder_.keep;
    return true;
  }

  // How many patches the 2 x 2 regions of the grid offer at `top_n` each.
  int64_t candidates(int32_t top_n) const {
    int64_t count = 0;
    for (int32_t rows : {2, 1}) {
      for (int32_t columns : {2, 1}) {
        const int64_t down = rows == 2 ? encoder_.grid_rows / 2 : encoder_.grid_rows % 2;
        const int64_t across = columns == 2 ? encoder_.grid_columns / 2 : encoder_.grid_columns % 2;
        const int32_t patches = rows * columns;
        count += down * across * (top_n < patches ? top_n : patches);
      }
    }
    return count;
  }

  // A missing tensor comes before a misaligned one.
  vtx_status check_tensors(const void* tensors) const {
    bool is_missing = false, is_misaligned = false;
    for (const List<Tensor>* list : {&op_.inputs, &op_.outputs, &op_.diagnostics}) {
      for (const Tensor& each : *list) {
        if (!holds(each.when)) continue;
        const void* pointer = at<const void*>(tensors, each.offset);
        is_missing |= pointer == nullptr && list != &op_.diagnostics;
        is_misaligned |= reinterpret_cast<uintptr_t>(pointer) % alignment(each.element) != 0;
      }
    }
    return is_missing ? VTX_NULL_POINTER : is_misaligned ? VTX_MISALIGNED : VTX_OK;
  }

  size_t alignment(Element element) const {
    switch (element) {
      case Element::kFloat32:
        return alignof(float);
      case Element::kInt64:
        return alignof(int64_t);
      case Element::kBool:
        return 1;
      default:
        return dtype_ == VTX_FLOAT32 ? 4 : 2;
    }
  }

  const OpSchema& op_;
  const void* parameters_;
  bool is_llm_;
  vtx_sizes encoder_{};
  vtx_step_sizes llm_{};
  int32_t dtype_;
};

}  // namespace

vtx_status check(const OpSchema& op, const void* sizes, const void* parameters, const void* tensors) {
  if (!sizes || (op.parameter_bytes && !parameters)) return VTX_NULL_POINTER;
  return Call(op, sizes, parameters).check(tensors);
}

}  // namespace vtx

extern "C" const char* vtx_status_text(vtx_status status) {
  // A C caller may put any number where an enumeration is expected; reading it as one would be undefined.
  static_assert(sizeof status == sizeof(int32_t), "enumerations of the C structures are ints");
  switch (vtx::at<int32_t>(&status, 0)) {
    case VTX_OK:
      return "done";
    case VTX_BAD_SIZE:
      return "a size is below 1 or above its limit, more tokens are to be kept than there are, or sizes do not fit "
             "together";
    case VTX_BAD_PARAMETER:
      return "a parameter is outside what the op allows (docs/ops)";
    case VTX_NULL_POINTER:
      return "a tensor or structure that the op needs is missing";
    case VTX_MISALIGNED:
      return "a tensor is not aligned to its elements, or the workspace not to 256 bytes";
    case VTX_SMALL_WORKSPACE:
      return "the workspace is smaller than the op asks for";
    case VTX_DEVICE_ERROR:
      return "a CUDA call failed";
    case VTX_NO_MEMORY:
      return "there is not enough memory for intermediate values";
    default:
      return "unknown status";
  }
}
