#include "ops/list.h"

namespace vtexport {

const std::vector<const OpType*>& op_types() {
  static const std::vector<const OpType*> all{
      &ops::prunesid(),       &ops::svdprune(),
      &ops::vitcop(),         &ops::nuwa(),
      &ops::divprune(),       &ops::cdpruner(),
      &ops::cluster_merge(),  &ops::key_norm_topk(),
      &ops::attention_topk(), &ops::text_similarity_topk(),
  };
  return all;
}

}  // namespace vtexport
