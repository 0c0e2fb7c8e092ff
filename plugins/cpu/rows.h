// Rows of features in any of the three types, and copies of them.
#ifndef VTX_CPU_ROWS_H
#define VTX_CPU_ROWS_H

#include <cstdint>

#include "vtx_ops.h"

namespace vtx {

// [count, width] of a type, dense.
struct Rows {
  const void* data;
  vtx_dtype dtype;
  size_t width;

  size_t row_bytes() const { return width * (dtype == VTX_FLOAT32 ? 4 : 2); }
  const void* row(size_t index) const { return static_cast<const char*>(data) + index * row_bytes(); }
  Rows from(size_t index) const { return {row(index), dtype, width}; }
};

// Row `index` as float32: itself where it is of that type, else written to `buffer` [width].
const float* as_float(const Rows& rows, size_t index, float* buffer);

// out[n] = rows[indices[n] + offset], bits unchanged.
void gather(const Rows& rows, const int64_t* indices, size_t count, size_t offset, void* out);

// Rounds `width` numbers to the type, to nearest with ties to even.
void store_rounded(const float* x, size_t width, vtx_dtype dtype, void* out);

}  // namespace vtx

#endif
