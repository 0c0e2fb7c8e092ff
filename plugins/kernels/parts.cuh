// What the ops are put together from. Every function enqueues kernels on `stream`; arrays are device memory, and a
// leading B stands for the images of a batch, each independent of the others.
#pragma once

#include "device.cuh"

namespace vtx {

// ------------------------------------------------------------------------------------------------ rows.cu

// Rows of a tensor [B, skip + rows, width], of which the first `skip` of every image are left out.
struct Rows {
  const void* data;
  vtx_dtype type;
  int batch, skip, rows, width;
};

// unit [B, rows, width]: the rows at norm 1 (norms floored at 1e-15, so zero rows stay zero).
vtx_status unit_rows(const Rows& rows, float* unit, vtx_stream stream);

// y [B, rows, width] = sigmoid, less each row's mean over the width where `center_rows`; and unit rows.
vtx_status sigmoid_and_unit_rows(const Rows& rows, bool center_rows, float* y, float* unit, vtx_stream stream);

// Rows as float, y [B, rows, width]; where `chosen` [B, rows] is given, the row of that number in the tensor.
vtx_status float_rows(const Rows& rows, const int* chosen, int source_rows, float* y, vtx_stream stream);

// Takes each column's mean over the rows off, in place; `sums` [B, width].
vtx_status center_columns(float* y, int batch, int rows, int width, float* sums, vtx_stream stream);

// means [B, width] of the columns of y [B, rows, width].
vtx_status column_means(const float* y, int batch, int rows, int width, float* means, vtx_stream stream);

// ------------------------------------------------------------------------------------------------ gram.cu

constexpr int kTile = 64;  // rows and columns of a tile of a product

// Tiles on and above the diagonal of a matrix of `rows` rows, and into how many parts of `width` their sums are cut.
int gram_tiles(int rows);
int gram_splits(int rows, int width);
size_t gram_partial_count(int batch, int rows, int width);  // floats

// gram [B, rows, rows] = y yᵀ of y [B, rows, width], symmetric to the last bit, in float32. `partial` holds
// gram_partial_count floats. `tile_sums`, where given, is [B, tiles]: the sum of each tile's entries above the
// diagonal.
vtx_status gram(const float* y, int batch, int rows, int width, float* partial, float* gram, double* tile_sums,
                vtx_stream stream);

// c [B, m, n] = a bᵀ: a [B, m, width] is row list `a_rows` [B, m] of b [B, n, width].
size_t product_partial_count(int batch, int m, int n, int width);
vtx_status product_of_rows(const float* b, const int* a_rows, int batch, int m, int n, int width, float* partial,
                           float* c, vtx_stream stream);
// c [B, m, width] = a b of a [B, m, n] and the rows b (as float).
vtx_status product_with_rows(const float* a, const Rows& b, int m, float* partial, float* c, vtx_stream stream);

// ------------------------------------------------------------------------------------------------ eigen.cu

// The leading eigenvectors of symmetric positive semi-definite matrices.
struct Eigen {
  int batch, tokens, count;
  int block;        // vectors iterated, a multiple of 16
  int members;      // blocks of threads that work on one image
  float* vectors;   // [B, tokens, block]: eigenvectors are the first `count` columns, by descending eigenvalue
  float* values;    // [B, block]: eigenvalues over the trace
  float* trace;     // [B]
  float* residual;  // [B]: worst |G v - e v| of the wanted ones, over the largest eigenvalue
  float *image_, *first_, *second_, *third_;  // [B, tokens, block]
  float* partial_;                            // [B, members, 3, block, block]
  float* small_;                              // [B, 4, block, block]: rotation, and what does not fit in shared memory
  float* squares_;                            // [B, members, block]
  unsigned* arrived_;                         // [B]
  float* coefficients_;                       // [B x members, 4, block]; null where they fit in shared memory
};

// Sizes of the problem, with arrays from the workspace.
Eigen plan_eigen(Workspace& workspace, int batch, int tokens, int count);
vtx_status leading_eigenvectors(const Eigen& plan, const float* gram, vtx_stream stream);

// ------------------------------------------------------------------------------------------------ select.cu

// rank [B, count]: how many of the image's keys are smaller. Keys are different from each other.
vtx_status ranks(const uint64_t* keys, int batch, int count, int* rank, vtx_stream stream);

// order [B, count]: the keys' numbers, by ascending key.
vtx_status order_by_keys(const uint64_t* keys, int batch, int count, int* order, vtx_stream stream);

// keys [B, count] of values by descending value, then ascending index; NaN last.
vtx_status best_first_keys(const float* values, int batch, int count, uint64_t* keys, vtx_stream stream);

// The numbers with rank below `keep`, ascending: chosen [B, keep].
vtx_status chosen_ascending(const int* rank, int batch, int count, int keep, int* chosen, vtx_stream stream);

// kept [B, keep, width] = rows `chosen` [B, keep] of features [B, source_rows, width], bits unchanged, and
// indices [B, keep] = chosen - skip.
vtx_status gather_rows(const void* features, vtx_dtype type, int batch, int source_rows, int width, const int* chosen,
                       int keep, int skip, void* kept, int64_t* indices, vtx_stream stream);

// to [count] = from, where `to` is given: intermediate values that a caller asks for.
vtx_status report(const float* from, int count, float* to, vtx_stream stream);
vtx_status report(const int* from, int count, int64_t* to, vtx_stream stream);
vtx_status report(const int64_t* from, int count, int64_t* to, vtx_stream stream);

#define VTX_TRY(call)                            \
  do {                                           \
    const vtx_status vtx_result = (call);        \
    if (vtx_result != VTX_OK) return vtx_result; \
  } while (0)

}  // namespace vtx
