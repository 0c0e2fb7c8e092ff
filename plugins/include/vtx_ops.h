/* The pruning ops of docs/ops.md as plain C: what every native form of them shares.
 *
 * A form is a set of functions of one prefix with the same structures: the CUDA kernels (vtx_cuda.h) and the C++ form
 * for ONNX Runtime's CPU provider (vtx_cpu.h). What the ops compute, the names of their parameters and the meaning of
 * their tensors are in docs/ops/; here are types, shapes and limits.
 *
 * All tensors are dense and row-major. B images, T patches in raster order, c = 1 if row 0 of the features is CLS,
 * width D, N kept tokens. No function keeps a pointer after it returns.
 */
#ifndef VTX_OPS_H
#define VTX_OPS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of these structures and functions; a library answers with its own (vtx_*_abi_version). */
#define VTX_ABI_VERSION 1

#define VTX_MOST_TOKENS 3840 /* T, as docs/ops.md has it */
#define VTX_MOST_WIDTH 65536 /* D, H * K and E */
#define VTX_MOST_BATCH 4096
#define VTX_MOST_TEXT 65536       /* M */
#define VTX_MOST_SEQUENCE 1048576 /* S, rows of a prompt */

typedef enum vtx_status {
  VTX_OK = 0,
  VTX_BAD_SIZE = 1,      /* a size is below 1 or above its limit, N > T + c, or grid_rows * grid_columns is not T */
  VTX_BAD_PARAMETER = 2, /* a parameter is outside what the op's page allows */
  VTX_NULL_POINTER = 3,  /* a tensor that the op reads or writes is missing */
  VTX_MISALIGNED = 4,    /* a tensor or the workspace is not aligned to its elements (workspace: 256 bytes) */
  VTX_SMALL_WORKSPACE = 5,
  VTX_DEVICE_ERROR = 6, /* a CUDA call failed; vtx_cuda_last_error says which */
  VTX_NO_MEMORY = 7     /* CPU form only: memory for intermediate values was not to be had */
} vtx_status;

/* A sentence for a status, never NULL. */
const char* vtx_status_text(vtx_status status);

typedef enum vtx_dtype { VTX_FLOAT32 = 0, VTX_FLOAT16 = 1, VTX_BFLOAT16 = 2 } vtx_dtype;

/* Sizes of one call of an op behind the vision tower. Those that an op does not have are ignored. */
typedef struct vtx_sizes {
  int32_t batch;     /* B */
  int32_t grid_rows; /* T = grid_rows * grid_columns */
  int32_t grid_columns;
  int32_t width;           /* D */
  int32_t keep;            /* N */
  int32_t heads;           /* H of `keys` */
  int32_t head_width;      /* K of `keys` */
  int32_t embedding_width; /* width of `text_embeds` and `image_embeds` */
  int32_t text_tokens;     /* M of `text_embeds` */
  vtx_dtype dtype;         /* of `features` and `kept_features` */
} vtx_sizes;

/* Tensors of one call. An op reads and writes those that its page names; the others are ignored and may be NULL.
 * "or NULL" marks outputs that are written only where a pointer is given. */
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

  /* Intermediate values for tests, each or NULL; see "Margins and diagnostics" of the op's page. */
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

/* VtxPruneSID: reads features, and scores with nms_score = VTX_CLS_ATTENTION; c = cls_slot.
 * Writes kept_features, keep_indices. */
typedef enum vtx_center { VTX_CENTER_TOKEN = 0, VTX_CENTER_FEATURE = 1, VTX_CENTER_NONE = 2 } vtx_center;
typedef enum vtx_nms_score { VTX_CLS_ATTENTION = 0, VTX_ABS_V = 1 } vtx_nms_score;
typedef enum vtx_order { VTX_ORDER_GROUP = 0, VTX_ORDER_RASTER = 1 } vtx_order;
typedef enum vtx_redundancy { VTX_PAIRS = 0, VTX_TRIANGLE = 1 } vtx_redundancy;
typedef enum vtx_shares { VTX_BOUNDED = 0, VTX_PROPORTIONAL = 1 } vtx_shares;

typedef struct vtx_prunesid {
  int32_t groups;        /* K, 1 to N - c */
  float threshold_scale; /* lambda, above 0 */
  vtx_center center;     /* token or feature */
  vtx_nms_score nms_score;
  vtx_order order;
  int32_t cls_slot; /* c, 0 or 1 */
  vtx_redundancy redundancy;
  vtx_shares shares;
} vtx_prunesid;

/* VtxSVDPrune: reads features. Writes kept_features, keep_indices, rank, energy; in mode leverage also count, leverage.
 */
typedef enum vtx_svd_mode { VTX_MODE_BUDGET = 0, VTX_MODE_LEVERAGE = 1 } vtx_svd_mode;

typedef struct vtx_svdprune {
  float energy;       /* above 0, at most 1 */
  int32_t rank;       /* 0 to T; 0 takes it from energy */
  int32_t rank_bound; /* 1 to T; equal to rank where that is not 0 */
  vtx_center center;  /* none, or feature for feature-mean */
  vtx_svd_mode mode;
  float leverage; /* above 0, at most 1 */
} vtx_svdprune;

/* VtxViTCoP: reads features, scores, and with clusters keys. Writes kept_features, keep_indices, with clusters labels.
 */
typedef enum vtx_clustering { VTX_CLUSTERING_OFFICIAL = 0, VTX_CLUSTERING_FIXED = 1 } vtx_clustering;

typedef struct vtx_vitcop {
  int32_t clusters; /* 0 or 1 */
  vtx_clustering clustering;
  int32_t cluster_count; /* C, 1 to N */
  float cutoff;          /* d_c, above 0 */
  float radius;          /* kappa, above 0, in image sides */
  int32_t counts_itself; /* 1 in variant official, 0 in paper */
} vtx_vitcop;

/* VtxNuwa: reads features, scores, similarity_features, and in variant paper keys. Writes kept_features, keep_indices,
 * merged. */
typedef struct vtx_nuwa {
  int32_t top_n;         /* 1 to 4, with enough candidates for N */
  float distance;        /* above 0; square of the reach in patches */
  float pillar_quantile; /* 0 to 1 */
  int32_t paper;         /* 1 in variant paper, else 0 */
} vtx_nuwa;

/* VtxDivPrune: reads features. Writes kept_features, keep_indices. It has no parameters beside N. */

/* VtxCDPruner: reads features, and text_embeds with relevance llm (E = D), text_embeds and image_embeds with clip.
 * Writes kept_features, keep_indices. */
typedef enum vtx_relevance { VTX_RELEVANCE_LLM = 0, VTX_RELEVANCE_CLIP = 1, VTX_RELEVANCE_NONE = 2 } vtx_relevance;

typedef struct vtx_cdpruner {
  vtx_relevance relevance_of;
  int32_t negate; /* 0 or 1 */
  float theta;    /* 0 to 0.95 */
} vtx_cdpruner;

/* Ops inside the language model (docs/ops/llm.md). Batch 1. hidden_states_out and rows have S - n + n' rows. */
typedef struct vtx_step_sizes {
  int32_t rows;         /* S */
  int32_t width;        /* W */
  int32_t visual_count; /* n */
  int32_t keep;         /* n', 1 to n */
  int32_t key_heads;    /* H_kv */
  int32_t head_width;   /* D */
  int32_t query_heads;  /* H, a multiple of key_heads */
  vtx_dtype dtype;      /* of hidden_states, keys, query */
} vtx_step_sizes;

typedef struct vtx_step_tensors {
  const void* hidden_states;   /* [S, W] of dtype */
  const int64_t* visual_start; /* [1]; values outside 0 to S - n are clipped */
  const void* keys;            /* [S, H_kv, D] of dtype */
  const void* query;           /* [H, D] of dtype */
  const int64_t* labels;       /* [n] */
  void* hidden_states_out;     /* [S - n + n', W] of dtype */
  int64_t* out_rows;           /* [S - n + n'] */
  float* saliency;             /* [n], or NULL: l of key norms, r of attention */
  int64_t* quotas;             /* [clusters + 1], by cluster, -1 first; or NULL */
} vtx_step_tensors;

typedef struct vtx_cluster_merge {
  int32_t clusters; /* labels run from 0 to clusters - 1, and -1; from 1 to n */
  int32_t mean;     /* merge: 1 for mean, 0 for sum */
} vtx_cluster_merge;

/* VtxClusterMerge reads hidden_states, visual_start, keys, labels. VtxKeyNormTopK reads hidden_states, visual_start,
 * keys. VtxAttentionTopK reads those and query; VtxTextSimilarityTopK reads hidden_states and visual_start alone. */

#ifdef __cplusplus
}
#endif
#endif
