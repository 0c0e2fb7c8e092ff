// One entry for each file beside this one.
#pragma once

#include "core/op.h"

namespace vtexport::ops {

const OpType& prunesid();
const OpType& svdprune();
const OpType& vitcop();
const OpType& nuwa();
const OpType& divprune();
const OpType& cdpruner();
const OpType& cluster_merge();
const OpType& key_norm_topk();
const OpType& attention_topk();
const OpType& text_similarity_topk();

}  // namespace vtexport::ops
