/* A part of vtx_ops.h, which includes it.
 * Generated from plugins/schema/ops.toml by plugins/schema/generate.py. Not to be edited. */
/* clang-format off */
#ifndef VTX_STRUCTURES_H
#define VTX_STRUCTURES_H

/* Version of the structures and functions; a library answers with its own (vtx_*_abi_version). */
#define VTX_ABI_VERSION 1

/* Sizes of one call of an op behind the vision tower. Those that an op does not have are ignored. */
typedef struct vtx_sizes {
  int32_t batch;           /* B */
  int32_t grid_rows;       /* T = grid_rows * grid_columns */
  int32_t grid_columns;
  int32_t width;           /* D */
  int32_t keep;            /* N */
  int32_t heads;           /* H of `keys` */
  int32_t head_dim;        /* K of `keys` */
  int32_t embedding_width; /* E, width of `text_embeds` and `image_embeds` */
  int32_t text_tokens;     /* M of `text_embeds` */
  vtx_dtype dtype;         /* of `features` and `kept_features` */
} vtx_sizes;

/* Tensors of one call. An op reads and writes those that its page names; the others are ignored and may be NULL. */
typedef struct vtx_tensors {
  const void* features;             /* [B, c + T, D] of dtype */
  const float* scores;              /* [B, T] */
  const float* keys;                /* [B, T, H, K] */
  const float* similarity_features; /* [B, T, D] */
  const float* text_embeds;         /* [B, M, E] */
  const float* image_embeds;        /* [B, T, E] */

  void* kept_features;   /* [B, N, D] of dtype */
  int64_t* keep_indices; /* [B, N], -1 for CLS */
  uint8_t* merged;       /* [B, N], 0 or 1 */
  int64_t* labels;       /* [B, N] */
  int64_t* rank;         /* [B] */
  float* energy;         /* [B] */
  int64_t* count;        /* [B] */
  float* leverage;       /* [B] */

  /* Intermediate values for tests, each or NULL: "Margins and diagnostics" of the op's page. */
  int64_t* groups;         /* [B, T] */
  int64_t* sizes;          /* [B, groups] */
  int64_t* survivors;      /* [B, groups] */
  int64_t* taken;          /* [B, groups] */
  float* rho;              /* [B] */
  float* tau;              /* [B] */
  float* residual;         /* [B] */
  float* leverages;        /* [B, T] */
  int64_t* centers;        /* [B, C] */
  float* density;          /* [B, N] */
  float* delta;            /* [B, N] */
  int64_t* parent;         /* [B, N] */
  float* pillar_threshold; /* [B] */
  int64_t* order;          /* [B, N] */
  float* relevance;        /* [B, T] */
} vtx_tensors;

/* VtxPruneSID reads features, scores (with nms_score = cls_attention). It writes kept_features, keep_indices. */
typedef enum vtx_center { VTX_CENTER_TOKEN = 0, VTX_CENTER_FEATURE = 1, VTX_CENTER_NONE = 2 } vtx_center;
typedef enum vtx_nms_score { VTX_CLS_ATTENTION = 0, VTX_ABS_V = 1 } vtx_nms_score;
typedef enum vtx_order { VTX_ORDER_GROUP = 0, VTX_ORDER_RASTER = 1 } vtx_order;
typedef enum vtx_redundancy { VTX_PAIRS = 0, VTX_TRIANGLE = 1 } vtx_redundancy;
typedef enum vtx_shares { VTX_BOUNDED = 0, VTX_PROPORTIONAL = 1 } vtx_shares;
typedef struct vtx_prunesid {
  int32_t groups;            /* 1 to N - c; K, the number of components */
  float threshold_scale;     /* above 0; lambda, threshold over mean cosine */
  vtx_center center;         /* VTX_CENTER_TOKEN for token, VTX_CENTER_FEATURE for feature */
  vtx_nms_score nms_score;   /* VTX_CLS_ATTENTION for cls_attention, VTX_ABS_V for abs_v */
  vtx_order order;           /* VTX_ORDER_GROUP for group, VTX_ORDER_RASTER for raster */
  int32_t cls_slot;          /* 0 or 1; c: `features` has a CLS row, and it is kept as output row 0 */
  vtx_redundancy redundancy; /* VTX_PAIRS for pairs, VTX_TRIANGLE for triangle */
  vtx_shares shares;         /* VTX_BOUNDED for bounded, VTX_PROPORTIONAL for proportional */
} vtx_prunesid;

/* VtxSVDPrune reads features. It writes kept_features, keep_indices, rank, energy, count (with mode = leverage),
 * leverage (with mode = leverage). */
typedef enum vtx_svd_mode { VTX_MODE_BUDGET = 0, VTX_MODE_LEVERAGE = 1 } vtx_svd_mode;
typedef struct vtx_svdprune {
  float energy;       /* above 0, at most 1; share of the variance (uncentred: of the energy) that the rank has to reach */
  int32_t rank;       /* 0 to T; fixed rank; 0 takes it from `energy` (give one of the two) */
  int32_t rank_bound; /* 1 to T; how many directions are computed; equal to `rank` where that is not 0 */
  vtx_center center;  /* VTX_CENTER_NONE for none, VTX_CENTER_FEATURE for feature-mean */
  vtx_svd_mode mode;  /* VTX_MODE_BUDGET for budget, VTX_MODE_LEVERAGE for leverage */
  float leverage;     /* above 0, at most 1; p, the summed leverage of the set in mode `leverage` */
} vtx_svdprune;

/* VtxViTCoP reads features, scores, keys (with clusters = 1). It writes kept_features, keep_indices, labels (with
 * clusters = 1). */
typedef enum vtx_clustering { VTX_CLUSTERING_OFFICIAL = 0, VTX_CLUSTERING_FIXED = 1 } vtx_clustering;
typedef struct vtx_vitcop {
  int32_t clusters;          /* 0 or 1; with output `labels` and input `keys` */
  vtx_clustering clustering; /* VTX_CLUSTERING_OFFICIAL for official, VTX_CLUSTERING_FIXED for fixed (with clusters = 1) */
  int32_t cluster_count;     /* 1 to N (with clusters = 1); C, what the op goes by */
  float cutoff;              /* above 0 (with clusters = 1); d_c */
  float radius;              /* above 0 (with clusters = 1); κ, in image sides */
  int32_t counts_itself;     /* 1 for official, 0 for paper (with clusters = 1) */
} vtx_vitcop;

/* VtxNuwa reads features, scores, keys (with variant = paper), similarity_features. It writes kept_features,
 * keep_indices, merged. */
typedef struct vtx_nuwa {
  int32_t top_n;         /* 1 to 4; n, candidates of a region */
  float distance;        /* above 0; square of the reach r, in patches */
  float pillar_quantile; /* 0 to 1; q */
  int32_t paper;         /* 0 for official, 1 for paper */
} vtx_nuwa;

/* VtxDivPrune reads features. It writes kept_features, keep_indices. It has no parameters beside its counts. */

/* VtxCDPruner reads features, text_embeds (with relevance = llm), image_embeds (with relevance = clip), text_embeds
 * (with relevance = clip). It writes kept_features, keep_indices. */
typedef enum vtx_relevance { VTX_RELEVANCE_LLM = 0, VTX_RELEVANCE_CLIP = 1, VTX_RELEVANCE_NONE = 2 } vtx_relevance;
typedef struct vtx_cdpruner {
  vtx_relevance relevance_of; /* VTX_RELEVANCE_LLM for llm, VTX_RELEVANCE_CLIP for clip, VTX_RELEVANCE_NONE for none */
  int32_t negate;             /* 0 or 1; the least similar tokens are the most relevant */
  float theta;                /* 0 to 0.95; weight of relevance against diversity; 0 leaves r as it is */
} vtx_cdpruner;

/* Ops inside the language model (docs/ops/llm.md). Batch 1. hidden_states_out and rows have S - n + n' rows. */
typedef struct vtx_step_sizes {
  int32_t rows;         /* S */
  int32_t width;        /* W */
  int32_t visual_count; /* n */
  int32_t keep;         /* n', 1 to n */
  int32_t key_heads;    /* H_kv */
  int32_t head_dim;     /* D */
  int32_t query_heads;  /* H, a multiple of key_heads */
  vtx_dtype dtype;      /* of hidden_states, keys, query */
} vtx_step_sizes;

/* Tensors of one call of these ops; batch 1 is no axis here. */
typedef struct vtx_step_tensors {
  const void* hidden_states;   /* [S, W] of dtype */
  const int64_t* visual_start; /* [1], values outside 0 to S - n are clipped */
  const void* keys;            /* [S, H_kv, D] of dtype */
  const void* query;           /* [H, D] of dtype */
  const int64_t* labels;       /* [n] */

  void* hidden_states_out; /* [S - n + n', W] of dtype */
  int64_t* out_rows;       /* [S - n + n'] */

  /* Intermediate values for tests, each or NULL: "Margins and diagnostics" of the op's page. */
  float* saliency; /* [n], l of key norms, r of attention and of cosines */
  int64_t* quotas; /* [clusters + 1], by cluster, -1 first */
} vtx_step_tensors;

/* VtxClusterMerge reads hidden_states, visual_start, keys, labels. It writes hidden_states_out, out_rows. */
typedef struct vtx_cluster_merge {
  int32_t clusters; /* 1 to n; labels run from 0 to `clusters` - 1, and -1 is one more cluster, in front of them; others are clipped */
  int32_t mean;     /* 0 for sum, 1 for mean */
} vtx_cluster_merge;

/* VtxKeyNormTopK reads hidden_states, visual_start, keys. It writes hidden_states_out, out_rows. It has no parameters
 * beside its counts. */

/* VtxAttentionTopK reads hidden_states, visual_start, keys, query. It writes hidden_states_out, out_rows. It has no
 * parameters beside its counts. */

/* VtxTextSimilarityTopK reads hidden_states, visual_start. It writes hidden_states_out, out_rows. It has no parameters
 * beside its counts. */

#endif
