// Generated from plugins/schema/ops.toml by plugins/schema/generate.py. Not to be edited.
// clang-format off
#ifndef VTX_COMMON_OPS_TABLE_H
#define VTX_COMMON_OPS_TABLE_H

#include "schema.h"

namespace vtx {
namespace ops {

inline constexpr Axis kEncoderAxes[] = {
    {'B', VTX_MOST_BATCH, offsetof(vtx_sizes, batch)},
    {'R', VTX_MOST_TOKENS + 1, kNowhere},
    {'T', VTX_MOST_TOKENS, kNowhere},
    {'D', VTX_MOST_WIDTH, offsetof(vtx_sizes, width)},
    {'N', VTX_MOST_TOKENS + 1, offsetof(vtx_sizes, keep)},
    {'H', VTX_MOST_WIDTH, offsetof(vtx_sizes, heads)},
    {'K', VTX_MOST_WIDTH, offsetof(vtx_sizes, head_dim)},
    {'M', VTX_MOST_TEXT, offsetof(vtx_sizes, text_tokens)},
    {'E', VTX_MOST_WIDTH, offsetof(vtx_sizes, embedding_width)},
};

inline constexpr Axis kLlmAxes[] = {
    {'1', 1, kNowhere},
    {'S', VTX_MOST_SEQUENCE, offsetof(vtx_step_sizes, rows)},
    {'U', VTX_MOST_SEQUENCE, kNowhere},
    {'W', VTX_MOST_WIDTH, offsetof(vtx_step_sizes, width)},
    {'V', VTX_MOST_TOKENS, offsetof(vtx_step_sizes, visual_count)},
    {'N', VTX_MOST_TOKENS, offsetof(vtx_step_sizes, keep)},
    {'G', VTX_MOST_WIDTH, offsetof(vtx_step_sizes, key_heads)},
    {'H', VTX_MOST_WIDTH, offsetof(vtx_step_sizes, query_heads)},
    {'K', VTX_MOST_WIDTH, offsetof(vtx_step_sizes, head_dim)},
};

namespace prunesid_parts {
inline constexpr Word kCenter[] = {{"token", VTX_CENTER_TOKEN}, {"feature", VTX_CENTER_FEATURE}};
inline constexpr Word kNmsScore[] = {{"cls_attention", VTX_CLS_ATTENTION}, {"abs_v", VTX_ABS_V}};
inline constexpr Word kOrder[] = {{"group", VTX_ORDER_GROUP}, {"raster", VTX_ORDER_RASTER}};
inline constexpr Word kRedundancy[] = {{"pairs", VTX_PAIRS}, {"triangle", VTX_TRIANGLE}};
inline constexpr Word kShares[] = {{"bounded", VTX_BOUNDED}, {"proportional", VTX_PROPORTIONAL}};
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"keep", Kind::kInteger, true, false, kNowhere, 4, VTX_MOST_TOKENS + 1, false, Bound::kNone, {}, kAlways},
    {"variant", Kind::kWord, false},
    {"groups", Kind::kInteger, true, false, offsetof(vtx_prunesid, groups), 1, VTX_MOST_TOKENS, false, Bound::kPatchesToKeep, {}, kAlways},
    {"threshold_scale", Kind::kNumber, true, false, offsetof(vtx_prunesid, threshold_scale), 0, FLT_MAX, true, Bound::kNone, {}, kAlways},
    {"center", Kind::kWord, true, false, offsetof(vtx_prunesid, center), 0, 0, false, Bound::kNone, List<Word>(kCenter), kAlways},
    {"nms_score", Kind::kWord, true, false, offsetof(vtx_prunesid, nms_score), 0, 0, false, Bound::kNone, List<Word>(kNmsScore), kAlways},
    {"order", Kind::kWord, true, false, offsetof(vtx_prunesid, order), 0, 0, false, Bound::kNone, List<Word>(kOrder), kAlways},
    {"cls_slot", Kind::kFlag, true, false, offsetof(vtx_prunesid, cls_slot), 0, 1, false, Bound::kNone, {}, kAlways},
    {"redundancy", Kind::kWord, true, false, offsetof(vtx_prunesid, redundancy), 0, 0, false, Bound::kNone, List<Word>(kRedundancy), kAlways},
    {"shares", Kind::kWord, true, false, offsetof(vtx_prunesid, shares), 0, 0, false, Bound::kNone, List<Word>(kShares), kAlways},
    {"space", Kind::kWord, false},
};
inline constexpr Tensor kInputs[] = {
    {"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features), kAlways},
    {"scores", Element::kFloat32, "BT", offsetof(vtx_tensors, scores), {7, 1u << 0}},
};
inline constexpr Tensor kOutputs[] = {
    {"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features), kAlways},
    {"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"groups", Element::kInt64, "BT", offsetof(vtx_tensors, groups), kAlways},
    {"sizes", Element::kInt64, "BG", offsetof(vtx_tensors, sizes), kAlways},
    {"survivors", Element::kInt64, "BG", offsetof(vtx_tensors, survivors), kAlways},
    {"taken", Element::kInt64, "BG", offsetof(vtx_tensors, taken), kAlways},
    {"rho", Element::kFloat32, "B", offsetof(vtx_tensors, rho), kAlways},
    {"tau", Element::kFloat32, "B", offsetof(vtx_tensors, tau), kAlways},
    {"residual", Element::kFloat32, "B", offsetof(vtx_tensors, residual), kAlways},
};
}  // namespace prunesid_parts
inline constexpr OpSchema prunesid = {"VtxPruneSID", "prunesid", Place::kEncoder, 4, 9, kNever, sizeof(vtx_prunesid),
    kEncoderAxes, prunesid_parts::kAttributes, prunesid_parts::kInputs, prunesid_parts::kOutputs, prunesid_parts::kDiagnostics};
static_assert(sizeof(vtx_prunesid) <= kMostParameterBytes);

namespace svdprune_parts {
inline constexpr Word kCenter[] = {{"none", VTX_CENTER_NONE}, {"feature-mean", VTX_CENTER_FEATURE}};
inline constexpr Word kMode[] = {{"budget", VTX_MODE_BUDGET}, {"leverage", VTX_MODE_LEVERAGE}};
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS + 1, false, Bound::kNone, {}, kAlways},
    {"energy", Kind::kNumber, true, false, offsetof(vtx_svdprune, energy), 0, 1, true, Bound::kNone, {}, kAlways},
    {"rank", Kind::kInteger, true, false, offsetof(vtx_svdprune, rank), 0, VTX_MOST_TOKENS, false, Bound::kTokens, {}, kAlways},
    {"rank_bound", Kind::kInteger, true, false, offsetof(vtx_svdprune, rank_bound), 1, VTX_MOST_TOKENS, false, Bound::kTokens, {}, kAlways},
    {"center", Kind::kWord, true, false, offsetof(vtx_svdprune, center), 0, 0, false, Bound::kNone, List<Word>(kCenter), kAlways},
    {"space", Kind::kWord, false},
    {"mode", Kind::kWord, true, false, offsetof(vtx_svdprune, mode), 0, 0, false, Bound::kNone, List<Word>(kMode), kAlways},
    {"leverage", Kind::kNumber, true, false, offsetof(vtx_svdprune, leverage), 0, 1, true, Bound::kNone, {}, kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features), kAlways},
    {"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices), kAlways},
    {"rank", Element::kInt64, "B", offsetof(vtx_tensors, rank), kAlways},
    {"energy", Element::kFloat32, "B", offsetof(vtx_tensors, energy), kAlways},
    {"count", Element::kInt64, "B", offsetof(vtx_tensors, count), {8, 1u << 1}},
    {"leverage", Element::kFloat32, "B", offsetof(vtx_tensors, leverage), {8, 1u << 1}},
};
inline constexpr Tensor kDiagnostics[] = {
    {"leverages", Element::kFloat32, "BT", offsetof(vtx_tensors, leverages), kAlways},
    {"residual", Element::kFloat32, "B", offsetof(vtx_tensors, residual), kAlways},
};
}  // namespace svdprune_parts
inline constexpr OpSchema svdprune = {"VtxSVDPrune", "svdprune", Place::kEncoder, 1, -1, kNever, sizeof(vtx_svdprune),
    kEncoderAxes, svdprune_parts::kAttributes, svdprune_parts::kInputs, svdprune_parts::kOutputs, svdprune_parts::kDiagnostics};
static_assert(sizeof(vtx_svdprune) <= kMostParameterBytes);

namespace vitcop_parts {
inline constexpr Word kClustering[] = {{"official", VTX_CLUSTERING_OFFICIAL}, {"fixed", VTX_CLUSTERING_FIXED}};
inline constexpr Word kVariant[] = {{"official", 1}, {"paper", 0}};
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS + 1, false, Bound::kNone, {}, kAlways},
    {"grid_rows", Kind::kInteger, true, true, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"grid_columns", Kind::kInteger, true, true, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"stages", Kind::kWord, false},
    {"clusters", Kind::kFlag, true, false, offsetof(vtx_vitcop, clusters), 0, 1, false, Bound::kNone, {}, kAlways},
    {"clustering", Kind::kWord, true, false, offsetof(vtx_vitcop, clustering), 0, 0, false, Bound::kNone, List<Word>(kClustering), {6, 1u << 1}},
    {"cluster_share", Kind::kNumber, false},
    {"cluster_count", Kind::kInteger, true, false, offsetof(vtx_vitcop, cluster_count), 1, VTX_MOST_TOKENS, false, Bound::kKeep, {}, {6, 1u << 1}},
    {"cutoff", Kind::kNumber, true, false, offsetof(vtx_vitcop, cutoff), 0, FLT_MAX, true, Bound::kNone, {}, {6, 1u << 1}},
    {"radius", Kind::kNumber, true, false, offsetof(vtx_vitcop, radius), 0, FLT_MAX, true, Bound::kNone, {}, {6, 1u << 1}},
    {"merge", Kind::kWord, false},
    {"deep_positions", Kind::kWord, false},
    {"variant", Kind::kWord, true, false, offsetof(vtx_vitcop, counts_itself), 0, 0, false, Bound::kNone, List<Word>(kVariant), {6, 1u << 1}},
};
inline constexpr Tensor kInputs[] = {
    {"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features), kAlways},
    {"scores", Element::kFloat32, "BT", offsetof(vtx_tensors, scores), kAlways},
    {"keys", Element::kFloat32, "BTHK", offsetof(vtx_tensors, keys), {6, 1u << 1}},
};
inline constexpr Tensor kOutputs[] = {
    {"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features), kAlways},
    {"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices), kAlways},
    {"labels", Element::kInt64, "BN", offsetof(vtx_tensors, labels), {6, 1u << 1}},
};
inline constexpr Tensor kDiagnostics[] = {
    {"centers", Element::kInt64, "BC", offsetof(vtx_tensors, centers), {6, 1u << 1}},
    {"density", Element::kFloat32, "BN", offsetof(vtx_tensors, density), {6, 1u << 1}},
    {"delta", Element::kFloat32, "BN", offsetof(vtx_tensors, delta), {6, 1u << 1}},
    {"parent", Element::kInt64, "BN", offsetof(vtx_tensors, parent), {6, 1u << 1}},
};
}  // namespace vitcop_parts
inline constexpr OpSchema vitcop = {"VtxViTCoP", "vitcop", Place::kEncoder, 1, -1, {6, 1u << 1}, sizeof(vtx_vitcop),
    kEncoderAxes, vitcop_parts::kAttributes, vitcop_parts::kInputs, vitcop_parts::kOutputs, vitcop_parts::kDiagnostics};
static_assert(sizeof(vtx_vitcop) <= kMostParameterBytes);

namespace nuwa_parts {
inline constexpr Word kVariant[] = {{"official", 0}, {"paper", 1}};
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS + 1, false, Bound::kNone, {}, kAlways},
    {"grid_rows", Kind::kInteger, true, true, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"grid_columns", Kind::kInteger, true, true, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"stages", Kind::kWord, false},
    {"top_n", Kind::kInteger, true, false, offsetof(vtx_nuwa, top_n), 1, 4, false, Bound::kNone, {}, kAlways},
    {"distance", Kind::kNumber, true, false, offsetof(vtx_nuwa, distance), 0, FLT_MAX, true, Bound::kNone, {}, kAlways},
    {"pillar_quantile", Kind::kNumber, true, false, offsetof(vtx_nuwa, pillar_quantile), 0, 1, false, Bound::kNone, {}, kAlways},
    {"variant", Kind::kWord, true, false, offsetof(vtx_nuwa, paper), 0, 0, false, Bound::kNone, List<Word>(kVariant), kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features), kAlways},
    {"scores", Element::kFloat32, "BT", offsetof(vtx_tensors, scores), kAlways},
    {"keys", Element::kFloat32, "BTHK", offsetof(vtx_tensors, keys), {9, 1u << 1}},
    {"similarity_features", Element::kFloat32, "BTD", offsetof(vtx_tensors, similarity_features), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features), kAlways},
    {"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices), kAlways},
    {"merged", Element::kBool, "BN", offsetof(vtx_tensors, merged), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"pillar_threshold", Element::kFloat32, "B", offsetof(vtx_tensors, pillar_threshold), kAlways},
};
}  // namespace nuwa_parts
inline constexpr OpSchema nuwa = {"VtxNuwa", "nuwa", Place::kEncoder, 1, -1, kAlways, sizeof(vtx_nuwa),
    kEncoderAxes, nuwa_parts::kAttributes, nuwa_parts::kInputs, nuwa_parts::kOutputs, nuwa_parts::kDiagnostics};
static_assert(sizeof(vtx_nuwa) <= kMostParameterBytes);

namespace divprune_parts {
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS + 1, false, Bound::kNone, {}, kAlways},
    {"space", Kind::kWord, false},
};
inline constexpr Tensor kInputs[] = {
    {"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features), kAlways},
    {"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"order", Element::kInt64, "BN", offsetof(vtx_tensors, order), kAlways},
};
}  // namespace divprune_parts
inline constexpr OpSchema divprune = {"VtxDivPrune", "divprune", Place::kEncoder, 1, -1, kNever, 0,
    kEncoderAxes, divprune_parts::kAttributes, divprune_parts::kInputs, divprune_parts::kOutputs, divprune_parts::kDiagnostics};

namespace cdpruner_parts {
inline constexpr Word kRelevance[] = {{"llm", VTX_RELEVANCE_LLM}, {"clip", VTX_RELEVANCE_CLIP}, {"none", VTX_RELEVANCE_NONE}};
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS + 1, false, Bound::kNone, {}, kAlways},
    {"relevance", Kind::kWord, true, false, offsetof(vtx_cdpruner, relevance_of), 0, 0, false, Bound::kNone, List<Word>(kRelevance), kAlways},
    {"negate", Kind::kFlag, true, false, offsetof(vtx_cdpruner, negate), 0, 1, false, Bound::kNone, {}, kAlways},
    {"theta", Kind::kNumber, true, false, offsetof(vtx_cdpruner, theta), 0, 0.95, false, Bound::kNone, {}, kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features), kAlways},
    {"text_embeds", Element::kFloat32, "BMD", offsetof(vtx_tensors, text_embeds), {3, 1u << 0}},
    {"image_embeds", Element::kFloat32, "BTE", offsetof(vtx_tensors, image_embeds), {3, 1u << 1}},
    {"text_embeds", Element::kFloat32, "BME", offsetof(vtx_tensors, text_embeds), {3, 1u << 1}},
};
inline constexpr Tensor kOutputs[] = {
    {"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features), kAlways},
    {"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"order", Element::kInt64, "BN", offsetof(vtx_tensors, order), kAlways},
    {"relevance", Element::kFloat32, "BT", offsetof(vtx_tensors, relevance), kAlways},
};
}  // namespace cdpruner_parts
inline constexpr OpSchema cdpruner = {"VtxCDPruner", "cdpruner", Place::kEncoder, 1, -1, kNever, sizeof(vtx_cdpruner),
    kEncoderAxes, cdpruner_parts::kAttributes, cdpruner_parts::kInputs, cdpruner_parts::kOutputs, cdpruner_parts::kDiagnostics};
static_assert(sizeof(vtx_cdpruner) <= kMostParameterBytes);

namespace cluster_merge_parts {
inline constexpr Word kMerge[] = {{"sum", 0}, {"mean", 1}};
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"visual_count", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kVisualCount, {}, kAlways},
    {"clusters", Kind::kInteger, true, false, offsetof(vtx_cluster_merge, clusters), 1, VTX_MOST_TOKENS, false, Bound::kVisualCount, {}, kAlways},
    {"merge", Kind::kWord, true, false, offsetof(vtx_cluster_merge, mean), 0, 0, false, Bound::kNone, List<Word>(kMerge), kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"hidden_states", Element::kFeatures, "1SW", offsetof(vtx_step_tensors, hidden_states), kAlways},
    {"visual_start", Element::kInt64, "1", offsetof(vtx_step_tensors, visual_start), kAlways},
    {"keys", Element::kFeatures, "1SGK", offsetof(vtx_step_tensors, keys), kAlways},
    {"labels", Element::kInt64, "1V", offsetof(vtx_step_tensors, labels), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"hidden_states_out", Element::kFeatures, "1UW", offsetof(vtx_step_tensors, hidden_states_out), kAlways},
    {"rows", Element::kInt64, "1U", offsetof(vtx_step_tensors, out_rows), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"saliency", Element::kFloat32, "1V", offsetof(vtx_step_tensors, saliency), kAlways},
    {"quotas", Element::kInt64, "1C", offsetof(vtx_step_tensors, quotas), kAlways},
};
}  // namespace cluster_merge_parts
inline constexpr OpSchema cluster_merge = {"VtxClusterMerge", "cluster_merge", Place::kLlm, 1, -1, kNever, sizeof(vtx_cluster_merge),
    kLlmAxes, cluster_merge_parts::kAttributes, cluster_merge_parts::kInputs, cluster_merge_parts::kOutputs, cluster_merge_parts::kDiagnostics};
static_assert(sizeof(vtx_cluster_merge) <= kMostParameterBytes);

namespace key_norm_topk_parts {
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"visual_count", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kVisualCount, {}, kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"hidden_states", Element::kFeatures, "1SW", offsetof(vtx_step_tensors, hidden_states), kAlways},
    {"visual_start", Element::kInt64, "1", offsetof(vtx_step_tensors, visual_start), kAlways},
    {"keys", Element::kFeatures, "1SGK", offsetof(vtx_step_tensors, keys), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"hidden_states_out", Element::kFeatures, "1UW", offsetof(vtx_step_tensors, hidden_states_out), kAlways},
    {"rows", Element::kInt64, "1U", offsetof(vtx_step_tensors, out_rows), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"saliency", Element::kFloat32, "1V", offsetof(vtx_step_tensors, saliency), kAlways},
};
}  // namespace key_norm_topk_parts
inline constexpr OpSchema key_norm_topk = {"VtxKeyNormTopK", "key_norm_topk", Place::kLlm, 1, -1, kNever, 0,
    kLlmAxes, key_norm_topk_parts::kAttributes, key_norm_topk_parts::kInputs, key_norm_topk_parts::kOutputs, key_norm_topk_parts::kDiagnostics};

namespace attention_topk_parts {
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"visual_count", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kVisualCount, {}, kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"hidden_states", Element::kFeatures, "1SW", offsetof(vtx_step_tensors, hidden_states), kAlways},
    {"visual_start", Element::kInt64, "1", offsetof(vtx_step_tensors, visual_start), kAlways},
    {"keys", Element::kFeatures, "1SGK", offsetof(vtx_step_tensors, keys), kAlways},
    {"query", Element::kFeatures, "1HK", offsetof(vtx_step_tensors, query), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"hidden_states_out", Element::kFeatures, "1UW", offsetof(vtx_step_tensors, hidden_states_out), kAlways},
    {"rows", Element::kInt64, "1U", offsetof(vtx_step_tensors, out_rows), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"saliency", Element::kFloat32, "1V", offsetof(vtx_step_tensors, saliency), kAlways},
};
}  // namespace attention_topk_parts
inline constexpr OpSchema attention_topk = {"VtxAttentionTopK", "attention_topk", Place::kLlm, 1, -1, kNever, 0,
    kLlmAxes, attention_topk_parts::kAttributes, attention_topk_parts::kInputs, attention_topk_parts::kOutputs, attention_topk_parts::kDiagnostics};

namespace text_similarity_topk_parts {
inline constexpr Attribute kAttributes[] = {
    {"plugin_namespace", Kind::kWord, false},
    {"plugin_version", Kind::kWord, false},
    {"visual_count", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kNone, {}, kAlways},
    {"keep", Kind::kInteger, true, false, kNowhere, 1, VTX_MOST_TOKENS, false, Bound::kVisualCount, {}, kAlways},
};
inline constexpr Tensor kInputs[] = {
    {"hidden_states", Element::kFeatures, "1SW", offsetof(vtx_step_tensors, hidden_states), kAlways},
    {"visual_start", Element::kInt64, "1", offsetof(vtx_step_tensors, visual_start), kAlways},
};
inline constexpr Tensor kOutputs[] = {
    {"hidden_states_out", Element::kFeatures, "1UW", offsetof(vtx_step_tensors, hidden_states_out), kAlways},
    {"rows", Element::kInt64, "1U", offsetof(vtx_step_tensors, out_rows), kAlways},
};
inline constexpr Tensor kDiagnostics[] = {
    {"saliency", Element::kFloat32, "1V", offsetof(vtx_step_tensors, saliency), kAlways},
};
}  // namespace text_similarity_topk_parts
inline constexpr OpSchema text_similarity_topk = {"VtxTextSimilarityTopK", "text_similarity_topk", Place::kLlm, 1, -1, kNever, 0,
    kLlmAxes, text_similarity_topk_parts::kAttributes, text_similarity_topk_parts::kInputs, text_similarity_topk_parts::kOutputs, text_similarity_topk_parts::kDiagnostics};

inline constexpr const OpSchema* kAll[] = {&prunesid, &svdprune, &vitcop, &nuwa, &divprune, &cdpruner, &cluster_merge, &key_norm_topk, &attention_topk, &text_similarity_topk};

}  // namespace ops
}  // namespace vtx

// Every op: WITH(function, sizes, tensors), or WITHOUT(...) where it has no parameters of its own.
#define VTX_EACH_OP(WITH, WITHOUT) \
  WITH(prunesid, vtx_sizes, vtx_tensors) \
  WITH(svdprune, vtx_sizes, vtx_tensors) \
  WITH(vitcop, vtx_sizes, vtx_tensors) \
  WITH(nuwa, vtx_sizes, vtx_tensors) \
  WITHOUT(divprune, vtx_sizes, vtx_tensors) \
  WITH(cdpruner, vtx_sizes, vtx_tensors) \
  WITH(cluster_merge, vtx_step_sizes, vtx_step_tensors) \
  WITHOUT(key_norm_topk, vtx_step_sizes, vtx_step_tensors) \
  WITHOUT(attention_topk, vtx_step_sizes, vtx_step_tensors) \
  WITHOUT(text_similarity_topk, vtx_step_sizes, vtx_step_tensors)

#endif
