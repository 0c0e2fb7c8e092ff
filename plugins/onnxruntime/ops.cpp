#include "ops.h"

#include "check.h"

namespace vtx {
namespace {

#define AT(field) offsetof(vtx_tensors, field)
#define STEP_AT(field) offsetof(vtx_step_tensors, field)

const Tensor kFeatures = {"features", "BRD", Tensor::kOfFeatures, AT(features)};
const Tensor kScores = {"scores", "BT", Tensor::kReal, AT(scores)};
const Tensor kKeys = {"keys", "BTHK", Tensor::kReal, AT(keys)};
const Tensor kSimilar = {"similarity_features", "BTD", Tensor::kReal, AT(similarity_features)};
const Tensor kText = {"text_embeds", "BME", Tensor::kReal, AT(text_embeds)};
const Tensor kImages = {"image_embeds", "BTE", Tensor::kReal, AT(image_embeds)};
const Tensor kKept = {"kept_features", "BND", Tensor::kOfFeatures, AT(kept_features)};
const Tensor kIndices = {"keep_indices", "BN", Tensor::kWhole, AT(keep_indices)};

const Tensor kRank = {"rank", "B", Tensor::kWhole, AT(rank)};
const Tensor kEnergy = {"energy", "B", Tensor::kReal, AT(energy)};
const Tensor kCount = {"count", "B", Tensor::kWhole, AT(count)};
const Tensor kLeverage = {"leverage", "B", Tensor::kReal, AT(leverage)};
const Tensor kLabels = {"labels", "BN", Tensor::kWhole, AT(labels)};
const Tensor kMerged = {"merged", "BN", Tensor::kTruth, AT(merged)};

const Tensor kHidden = {"hidden_states", "1SW", Tensor::kOfFeatures, STEP_AT(hidden_states)};
const Tensor kStart = {"visual_start", "1", Tensor::kWhole, STEP_AT(visual_start)};
const Tensor kStepKeys = {"keys", "1SGK", Tensor::kOfFeatures, STEP_AT(keys)};
const Tensor kQuery = {"query", "1QK", Tensor::kOfFeatures, STEP_AT(query)};
const Tensor kStepLabels = {"labels", "1V", Tensor::kWhole, STEP_AT(labels)};
const Tensor kHiddenOut = {"hidden_states_out", "1OW", Tensor::kOfFeatures, STEP_AT(hidden_states_out)};
const Tensor kRows = {"rows", "1O", Tensor::kWhole, STEP_AT(out_rows)};

void read_prunesid(Attributes& a, Settings& s) {
  vtx_prunesid& p = s.prunesid;
  p.groups = a.whole("groups");
  p.threshold_scale = a.real("threshold_scale");
  p.center = static_cast<vtx_center>(a.word("center", {"token", "feature"}));
  p.nms_score = static_cast<vtx_nms_score>(a.word("nms_score", {"cls_attention", "abs_v"}));
  p.order = static_cast<vtx_order>(a.word("order", {"group", "raster"}));
  p.cls_slot = s.cls_rows = a.flag("cls_slot");
  p.redundancy = static_cast<vtx_redundancy>(a.word("redundancy", {"pairs", "triangle"}));
  p.shares = static_cast<vtx_shares>(a.word("shares", {"bounded", "proportional"}));
  s.inputs = {kFeatures};
  if (p.nms_score == VTX_CLS_ATTENTION) s.inputs.push_back(kScores);
  s.outputs = {kKept, kIndices};
}

void read_svdprune(Attributes& a, Settings& s) {
  vtx_svdprune& p = s.svdprune;
  p.energy = a.real("energy");
  p.rank = a.whole("rank");
  p.rank_bound = a.whole("rank_bound");
  p.center = a.word("center", {"none", "feature-mean"}) ? VTX_CENTER_FEATURE : VTX_CENTER_NONE;
  p.mode = static_cast<vtx_svd_mode>(a.word("mode", {"budget", "leverage"}));
  p.leverage = a.real("leverage");
  s.inputs = {kFeatures};
  s.outputs = {kKept, kIndices, kRank, kEnergy};
  if (p.mode == VTX_MODE_LEVERAGE) s.outputs.insert(s.outputs.end(), {kCount, kLeverage});
}

void read_vitcop(Attributes& a, Settings& s) {
  vtx_vitcop& p = s.vitcop;
  p.clusters = a.flag("clusters");
  p.clustering = static_cast<vtx_clustering>(a.word("clustering", {"official", "fixed"}));
  p.cluster_count = a.whole("cluster_count");
  p.cutoff = a.real("cutoff");
  p.radius = a.real("radius");
  p.counts_itself = a.word("variant", {"official", "paper"}) == 0;
  s.inputs = {kFeatures, kScores};
  s.outputs = {kKept, kIndices};
  if (p.clusters) {
    s.inputs.push_back(kKeys);
    s.outputs.push_back(kLabels);
  }
}

void read_nuwa(Attributes& a, Settings& s) {
  vtx_nuwa& p = s.nuwa;
  p.top_n = a.whole("top_n");
  p.distance = a.real("distance");
  p.pillar_quantile = a.real("pillar_quantile");
  p.paper = a.word("variant", {"official", "paper"});
  s.inputs = {kFeatures, kScores};
  if (p.paper) s.inputs.push_back(kKeys);
  s.inputs.push_back(kSimilar);
  s.outputs = {kKept, kIndices, kMerged};
}

void read_divprune(Attributes&, Settings& s) {
  s.inputs = {kFeatures};
  s.outputs = {kKept, kIndices};
}

void read_cdpruner(Attributes& a, Settings& s) {
  vtx_cdpruner& p = s.cdpruner;
  p.relevance_of = static_cast<vtx_relevance>(a.word("relevance", {"llm", "clip", "none"}));
  p.negate = a.flag("negate");
  p.theta = a.real("theta");
  s.inputs = {kFeatures};
  if (p.relevance_of == VTX_RELEVANCE_CLIP) s.inputs.push_back(kImages);
  if (p.relevance_of != VTX_RELEVANCE_NONE) s.inputs.push_back(kText);
  s.outputs = {kKept, kIndices};
}

void read_cluster_merge(Attributes& a, Settings& s) {
  s.cluster_merge.clusters = a.whole("clusters");
  s.cluster_merge.mean = a.word("merge", {"sum", "mean"});
  s.inputs = {kHidden, kStart, kStepKeys, kStepLabels};
  s.outputs = {kHiddenOut, kRows};
}

void read_topk(Settings& s, std::initializer_list<Tensor> further) {
  s.inputs = {kHidden, kStart};
  s.inputs.insert(s.inputs.end(), further);
  s.outputs = {kHiddenOut, kRows};
}

void read_key_norm(Attributes&, Settings& s) { read_topk(s, {kStepKeys}); }
void read_attention(Attributes&, Settings& s) { read_topk(s, {kStepKeys, kQuery}); }
void read_text_similarity(Attributes&, Settings& s) { read_topk(s, {}); }

// The functions of the C API behind one signature; without tensors, the check of sizes and parameters alone.
template <typename Parameters, Parameters Settings::* Which,
          vtx_status (*Check)(const vtx_sizes*, const Parameters*, const vtx_tensors*),
          vtx_status (*Run)(const vtx_sizes*, const Parameters*, const vtx_tensors*, const vtx_parallel*)>
vtx_status run(const vtx_sizes& sizes, const Settings& s, const vtx_tensors* tensors, const vtx_parallel* threads) {
  return tensors ? Run(&sizes, &(s.*Which), tensors, threads) : Check(&sizes, &(s.*Which), nullptr);
}

vtx_status run_divprune(const vtx_sizes& sizes, const Settings&, const vtx_tensors* tensors,
                        const vtx_parallel* threads) {
  return tensors ? vtx_cpu_divprune(&sizes, tensors, threads) : check_divprune(&sizes, nullptr);
}

vtx_status run_cluster_merge(const vtx_step_sizes& sizes, const Settings& s, const vtx_step_tensors* tensors,
                             const vtx_parallel* threads) {
  return tensors ? vtx_cpu_cluster_merge(&sizes, &s.cluster_merge, tensors, threads)
                 : check_cluster_merge(&sizes, &s.cluster_merge, nullptr);
}

template <vtx_status (*Check)(const vtx_step_sizes*, const vtx_step_tensors*),
          vtx_status (*Run)(const vtx_step_sizes*, const vtx_step_tensors*, const vtx_parallel*)>
vtx_status run_topk(const vtx_step_sizes& sizes, const Settings&, const vtx_step_tensors* tensors,
                    const vtx_parallel* threads) {
  return tensors ? Run(&sizes, tensors, threads) : Check(&sizes, nullptr);
}

std::vector<Op> make_ops() {
  const std::vector<Tensor> kept = {kKept, kIndices}, step = {kHiddenOut, kRows};
  return {
      {"VtxPruneSID",
       false,
       1,
       2,
       {kFeatures, kScores},
       kept,
       read_prunesid,
       run<vtx_prunesid, &Settings::prunesid, check_prunesid, vtx_cpu_prunesid>,
       nullptr},
      {"VtxSVDPrune",
       false,
       1,
       4,
       {kFeatures},
       {kKept, kIndices, kRank, kEnergy, kCount, kLeverage},
       read_svdprune,
       run<vtx_svdprune, &Settings::svdprune, check_svdprune, vtx_cpu_svdprune>,
       nullptr},
      {"VtxViTCoP",
       false,
       2,
       2,
       {kFeatures, kScores, kKeys},
       {kKept, kIndices, kLabels},
       read_vitcop,
       run<vtx_vitcop, &Settings::vitcop, check_vitcop, vtx_cpu_vitcop>,
       nullptr},
      {"VtxNuwa",
       false,
       3,
       3,
       {kFeatures, kScores, kKeys, kSimilar},
       {kKept, kIndices, kMerged},
       read_nuwa,
       run<vtx_nuwa, &Settings::nuwa, check_nuwa, vtx_cpu_nuwa>,
       nullptr},
      {"VtxDivPrune", false, 1, 2, {kFeatures}, kept, read_divprune, run_divprune, nullptr},
      {"VtxCDPruner",
       false,
       1,
       2,
       {kFeatures, kText, kImages},
       kept,
       read_cdpruner,
       run<vtx_cdpruner, &Settings::cdpruner, check_cdpruner, vtx_cpu_cdpruner>,
       nullptr},
      {"VtxClusterMerge",
       true,
       4,
       2,
       {kHidden, kStart, kStepKeys, kStepLabels},
       step,
       read_cluster_merge,
       nullptr,
       run_cluster_merge},
      {"VtxKeyNormTopK",
       true,
       3,
       2,
       {kHidden, kStart, kStepKeys},
       step,
       read_key_norm,
       nullptr,
       run_topk<check_key_norm_topk, vtx_cpu_key_norm_topk>},
      {"VtxAttentionTopK",
       true,
       4,
       2,
       {kHidden, kStart, kStepKeys, kQuery},
       step,
       read_attention,
       nullptr,
       run_topk<check_attention_topk, vtx_cpu_attention_topk>},
      {"VtxTextSimilarityTopK",
       true,
       2,
       2,
       {kHidden, kStart},
       step,
       read_text_similarity,
       nullptr,
       run_topk<check_text_similarity_topk, vtx_cpu_text_similarity_topk>},
  };
}

}  // namespace

int32_t Attributes::whole(const char* name) {
  int64_t value = 0;
  if (!has_int(name, &value)) {
    fail(std::string("attribute ") + name + " is missing or no whole number");
    return 0;
  }
  if (value < INT32_MIN || value > INT32_MAX) {
    fail(std::string("attribute ") + name + " is out of range: " + std::to_string(value));
    return 0;
  }
  return static_cast<int32_t>(value);
}

int32_t Attributes::whole_or_zero(const char* name) {
  int64_t value = 0;
  return has_int(name, &value) ? whole(name) : 0;
}

int32_t Attributes::flag(const char* name) {
  const int32_t value = whole(name);
  if (value == 0 || value == 1) return value;
  fail(std::string("attribute ") + name + " is " + std::to_string(value) + "; allowed are 0 and 1");
  return 0;
}

float Attributes::real(const char* name) {
  float value = 0;
  if (!has_float(name, &value)) fail(std::string("attribute ") + name + " is missing or no number");
  return value;
}

int Attributes::word(const char* name, std::initializer_list<const char*> words) {
  std::string value;
  if (!has_string(name, &value)) {
    fail(std::string("attribute ") + name + " is missing or no text");
    return 0;
  }
  int number = 0;
  std::string allowed;
  for (const char* each : words) {
    if (value == each) return number;
    allowed += (number++ ? ", " : "") + std::string(each);
  }
  fail(std::string("attribute ") + name + " is '" + value + "'; allowed are " + allowed);
  return 0;
}

const std::vector<Op>& ops() {
  static const std::vector<Op> all = make_ops();
  return all;
}

}  // namespace vtx
