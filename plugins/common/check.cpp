#include "check.h"

#include <cfloat>
#include <cstring>
#include <initializer_list>

namespace vtx {
namespace {

// A C caller may put any number where an enumeration is expected; reading it as one would be undefined.
template <typename Enumeration>
int number_of(const Enumeration& value) {
  static_assert(sizeof(Enumeration) == sizeof(int), "enumerations of the C structures are ints");
  int number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

template <typename Enumeration>
bool is_one_of(const Enumeration& value, int most) {
  return number_of(value) >= 0 && number_of(value) <= most;
}

bool is_flag(int32_t value) { return value == 0 || value == 1; }

bool is_between(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

// False for NaN and infinity.
bool is_positive(float value) { return value > 0.0f && value <= FLT_MAX; }

bool is_share(float value) { return value > 0.0f && value <= 1.0f; }

bool is_product_between(int32_t one, int32_t other, int64_t most) {
  return one >= 1 && other >= 1 && static_cast<int64_t>(one) * other <= most;
}

size_t element_bytes(const vtx_dtype& dtype) { return number_of(dtype) == VTX_FLOAT32 ? 4 : 2; }

// Collects what is wrong with tensors; a missing one comes before a misaligned one.
class Tensors {
 public:
  void required(const void* tensor, size_t alignment) {
    missing_ |= tensor == nullptr;
    optional(tensor, alignment);
  }

  void optional(const void* tensor, size_t alignment) {
    misaligned_ |= reinterpret_cast<uintptr_t>(tensor) % alignment != 0;
  }

  vtx_status status() const { return missing_ ? VTX_NULL_POINTER : misaligned_ ? VTX_MISALIGNED : VTX_OK; }

 private:
  bool missing_ = false;
  bool misaligned_ = false;
};

int64_t tokens_of(const vtx_sizes& sizes) { return static_cast<int64_t>(sizes.grid_rows) * sizes.grid_columns; }

// Sizes that every op behind the vision tower has.
bool sizes_hold(const vtx_sizes& sizes, int32_t least_keep, int32_t cls_rows) {
  return is_between(sizes.batch, 1, VTX_MOST_BATCH) &&
         is_product_between(sizes.grid_rows, sizes.grid_columns, VTX_MOST_TOKENS) &&
         is_between(sizes.width, 1, VTX_MOST_WIDTH) && is_one_of(sizes.dtype, VTX_BFLOAT16) &&
         is_between(sizes.keep, least_keep, tokens_of(sizes) + cls_rows);
}

bool keys_hold(const vtx_sizes& sizes) { return is_product_between(sizes.heads, sizes.head_width, VTX_MOST_WIDTH); }

Tensors common_tensors(const vtx_sizes& sizes, const vtx_tensors& tensors) {
  Tensors found;
  found.required(tensors.features, element_bytes(sizes.dtype));
  found.required(tensors.kept_features, element_bytes(sizes.dtype));
  found.required(tensors.keep_indices, alignof(int64_t));
  return found;
}

// How many patches the 2 x 2 regions of the grid offer at `top_n` each.
int64_t candidates(const vtx_sizes& sizes, int32_t top_n) {
  int64_t count = 0;
  for (int32_t rows : {2, 1}) {
    for (int32_t columns : {2, 1}) {
      const int64_t down = rows == 2 ? sizes.grid_rows / 2 : sizes.grid_rows % 2;
      const int64_t across = columns == 2 ? sizes.grid_columns / 2 : sizes.grid_columns % 2;
      const int32_t patches = rows * columns;
      count += down * across * (top_n < patches ? top_n : patches);
    }
  }
  return count;
}

bool step_sizes_hold(const vtx_step_sizes& sizes, bool has_keys, bool has_query) {
  if (!is_between(sizes.rows, 1, VTX_MOST_SEQUENCE) || !is_between(sizes.width, 1, VTX_MOST_WIDTH) ||
      !is_between(sizes.visual_count, 1, VTX_MOST_TOKENS) || sizes.visual_count > sizes.rows ||
      !is_between(sizes.keep, 1, sizes.visual_count) || !is_one_of(sizes.dtype, VTX_BFLOAT16)) {
    return false;
  }
  if (has_keys && !is_product_between(sizes.key_heads, sizes.head_width, VTX_MOST_WIDTH)) return false;
  return !has_query || (is_product_between(sizes.query_heads, sizes.head_width, VTX_MOST_WIDTH) &&
                        sizes.query_heads % sizes.key_heads == 0);
}

Tensors step_tensors(const vtx_step_sizes& sizes, const vtx_step_tensors& tensors) {
  Tensors found;
  found.required(tensors.hidden_states, element_bytes(sizes.dtype));
  found.required(tensors.visual_start, alignof(int64_t));
  found.required(tensors.hidden_states_out, element_bytes(sizes.dtype));
  found.required(tensors.out_rows, alignof(int64_t));
  found.optional(tensors.saliency, alignof(float));
  return found;
}

// The ops that take the best n' need nothing but sizes.
vtx_status check_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors, bool has_keys, bool has_query) {
  if (!sizes) return VTX_NULL_POINTER;
  if (!step_sizes_hold(*sizes, has_keys, has_query)) return VTX_BAD_SIZE;
  if (!tensors) return VTX_OK;
  Tensors found = step_tensors(*sizes, *tensors);
  if (has_keys) found.required(tensors->keys, element_bytes(sizes->dtype));
  if (has_query) found.required(tensors->query, element_bytes(sizes->dtype));
  return found.status();
}

}  // namespace

vtx_status check_prunesid(const vtx_sizes* sizes, const vtx_prunesid* parameters, const vtx_tensors* tensors) {
  if (!sizes || !parameters) return VTX_NULL_POINTER;
  const vtx_prunesid& p = *parameters;
  if (!is_flag(p.cls_slot)) return VTX_BAD_PARAMETER;
  if (!sizes_hold(*sizes, 4, p.cls_slot)) return VTX_BAD_SIZE;
  if (!is_between(p.groups, 1, sizes->keep - p.cls_slot) || !is_positive(p.threshold_scale) ||
      !is_one_of(p.center, VTX_CENTER_FEATURE) || !is_one_of(p.nms_score, VTX_ABS_V) ||
      !is_one_of(p.order, VTX_ORDER_RASTER) || !is_one_of(p.redundancy, VTX_TRIANGLE) ||
      !is_one_of(p.shares, VTX_PROPORTIONAL)) {
    return VTX_BAD_PARAMETER;
  }
  if (!tensors) return VTX_OK;
  Tensors found = common_tensors(*sizes, *tensors);
  if (p.nms_score == VTX_CLS_ATTENTION) found.required(tensors->scores, alignof(float));
  for (const int64_t* each : {tensors->groups, tensors->sizes, tensors->survivors, tensors->taken}) {
    found.optional(each, alignof(int64_t));
  }
  for (const float* each : {tensors->rho, tensors->tau, tensors->residual}) found.optional(each, alignof(float));
  return found.status();
}

vtx_status check_svdprune(const vtx_sizes* sizes, const vtx_svdprune* parameters, const vtx_tensors* tensors) {
  if (!sizes || !parameters) return VTX_NULL_POINTER;
  const vtx_svdprune& p = *parameters;
  if (!sizes_hold(*sizes, 1, 0)) return VTX_BAD_SIZE;
  const bool is_centred = number_of(p.center) == VTX_CENTER_FEATURE || number_of(p.center) == VTX_CENTER_NONE;
  if (!is_share(p.energy) || !is_share(p.leverage) || !is_between(p.rank, 0, tokens_of(*sizes)) ||
      !is_between(p.rank_bound, 1, tokens_of(*sizes)) || (p.rank != 0 && p.rank_bound != p.rank) || !is_centred ||
      !is_one_of(p.mode, VTX_MODE_LEVERAGE)) {
    return VTX_BAD_PARAMETER;
  }
  if (!tensors) return VTX_OK;
  Tensors found = common_tensors(*sizes, *tensors);
  found.required(tensors->rank, alignof(int64_t));
  found.required(tensors->energy, alignof(float));
  if (p.mode == VTX_MODE_LEVERAGE) {
    found.required(tensors->count, alignof(int64_t));
    found.required(tensors->leverage, alignof(float));
  }
  found.optional(tensors->leverages, alignof(float));
  found.optional(tensors->residual, alignof(float));
  return found.status();
}

vtx_status check_vitcop(const vtx_sizes* sizes, const vtx_vitcop* parameters, const vtx_tensors* tensors) {
  if (!sizes || !parameters) return VTX_NULL_POINTER;
  const vtx_vitcop& p = *parameters;
  if (!is_flag(p.clusters)) return VTX_BAD_PARAMETER;
  if (!sizes_hold(*sizes, 1, 0) || (p.clusters && !keys_hold(*sizes))) return VTX_BAD_SIZE;
  // Without clusters the other parameters have no meaning, so a caller need not fill them in.
  if (p.clusters && (!is_one_of(p.clustering, VTX_CLUSTERING_FIXED) || !is_between(p.cluster_count, 1, sizes->keep) ||
                     !is_positive(p.cutoff) || !is_positive(p.radius) || !is_flag(p.counts_itself))) {
    return VTX_BAD_PARAMETER;
  }
  if (!tensors) return VTX_OK;
  Tensors found = common_tensors(*sizes, *tensors);
  found.required(tensors->scores, alignof(float));
  if (p.clusters) {
    found.required(tensors->keys, alignof(float));
    found.required(tensors->labels, alignof(int64_t));
    found.optional(tensors->centers, alignof(int64_t));
    found.optional(tensors->density, alignof(float));
    found.optional(tensors->delta, alignof(float));
    found.optional(tensors->parent, alignof(int64_t));
  }
  return found.status();
}

vtx_status check_nuwa(const vtx_sizes* sizes, const vtx_nuwa* parameters, const vtx_tensors* tensors) {
  if (!sizes || !parameters) return VTX_NULL_POINTER;
  const vtx_nuwa& p = *parameters;
  if (!is_flag(p.paper)) return VTX_BAD_PARAMETER;
  if (!sizes_hold(*sizes, 1, 0) || (p.paper && !keys_hold(*sizes))) return VTX_BAD_SIZE;
  if (!is_between(p.top_n, 1, 4) || candidates(*sizes, p.top_n) < sizes->keep || !is_positive(p.distance) ||
      !(p.pillar_quantile >= 0.0f && p.pillar_quantile <= 1.0f)) {
    return VTX_BAD_PARAMETER;
  }
  if (!tensors) return VTX_OK;
  Tensors found = common_tensors(*sizes, *tensors);
  found.required(tensors->scores, alignof(float));
  found.required(tensors->similarity_features, alignof(float));
  if (p.paper) found.required(tensors->keys, alignof(float));
  found.required(tensors->merged, 1);
  found.optional(tensors->pillar_threshold, alignof(float));
  return found.status();
}

vtx_status check_divprune(const vtx_sizes* sizes, const vtx_tensors* tensors) {
  if (!sizes) return VTX_NULL_POINTER;
  if (!sizes_hold(*sizes, 1, 0)) return VTX_BAD_SIZE;
  if (!tensors) return VTX_OK;
  Tensors found = common_tensors(*sizes, *tensors);
  found.optional(tensors->order, alignof(int64_t));
  return found.status();
}

vtx_status check_cdpruner(const vtx_sizes* sizes, const vtx_cdpruner* parameters, const vtx_tensors* tensors) {
  if (!sizes || !parameters) return VTX_NULL_POINTER;
  const vtx_cdpruner& p = *parameters;
  if (!is_one_of(p.relevance_of, VTX_RELEVANCE_NONE)) return VTX_BAD_PARAMETER;
  if (!sizes_hold(*sizes, 1, 0)) return VTX_BAD_SIZE;
  if (p.relevance_of != VTX_RELEVANCE_NONE) {
    const bool fits = p.relevance_of == VTX_RELEVANCE_CLIP || sizes->embedding_width == sizes->width;
    if (!is_between(sizes->text_tokens, 1, VTX_MOST_TEXT) || !is_between(sizes->embedding_width, 1, VTX_MOST_WIDTH) ||
        !fits) {
      return VTX_BAD_SIZE;
    }
  }
  if (!is_flag(p.negate) || !(p.theta >= 0.0f && p.theta <= 0.95f)) return VTX_BAD_PARAMETER;
  if (!tensors) return VTX_OK;
  Tensors found = common_tensors(*sizes, *tensors);
  if (p.relevance_of != VTX_RELEVANCE_NONE) found.required(tensors->text_embeds, alignof(float));
  if (p.relevance_of == VTX_RELEVANCE_CLIP) found.required(tensors->image_embeds, alignof(float));
  found.optional(tensors->order, alignof(int64_t));
  found.optional(tensors->relevance, alignof(float));
  return found.status();
}

vtx_status check_cluster_merge(const vtx_step_sizes* sizes, const vtx_cluster_merge* parameters,
                               const vtx_step_tensors* tensors) {
  if (!sizes || !parameters) return VTX_NULL_POINTER;
  if (!step_sizes_hold(*sizes, true, false)) return VTX_BAD_SIZE;
  if (!is_between(parameters->clusters, 1, sizes->visual_count) || !is_flag(parameters->mean)) return VTX_BAD_PARAMETER;
  if (!tensors) return VTX_OK;
  Tensors found = step_tensors(*sizes, *tensors);
  found.required(tensors->keys, element_bytes(sizes->dtype));
  found.required(tensors->labels, alignof(int64_t));
  found.optional(tensors->quotas, alignof(int64_t));
  return found.status();
}

vtx_status check_key_norm_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors) {
  return check_topk(sizes, tensors, true, false);
}

vtx_status check_attention_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors) {
  return check_topk(sizes, tensors, true, true);
}

vtx_status check_text_similarity_topk(const vtx_step_sizes* sizes, const vtx_step_tensors* tensors) {
  return check_topk(sizes, tensors, false, false);
}

}  // namespace vtx

extern "C" const char* vtx_status_text(vtx_status status) {
  switch (vtx::number_of(status)) {
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
