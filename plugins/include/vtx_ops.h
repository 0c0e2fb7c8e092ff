/* The pruning ops of docs/ops.md as plain C: what every native form of them shares.
 *
 * A form is a set of functions of one prefix with the same structures: the CUDA kernels (vtx_cuda.h) and the C++ form
 * for ONNX Runtime's CPU provider (vtx_cpu.h). What the ops compute, the names of their parameters and the meaning of
 * their tensors are in docs/ops/; here and in vtx_structures.h are types, shapes and limits.
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

/* Sizes and tensors of a call, and every op's parameters. */
#include "vtx_structures.h"

#ifdef __cplusplus
}
#endif
#endif
