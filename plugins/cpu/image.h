// What several ops do first with the patch rows of an image.
#ifndef VTX_CPU_IMAGE_H
#define VTX_CPU_IMAGE_H

#include "matrix.h"
#include "rows.h"

namespace vtx {

inline size_t tokens_of(const vtx_sizes& sizes) { return static_cast<size_t>(sizes.grid_rows) * sizes.grid_columns; }

// The rows of image `index` of the features, CLS in front if there is one.
inline Rows rows_of(const vtx_sizes& sizes, const vtx_tensors& tensors, size_t index, size_t cls_rows = 0) {
  const Rows all = {tensors.features, sizes.dtype, static_cast<size_t>(sizes.width)};
  return all.from(index * (cls_rows + tokens_of(sizes)));
}

// The address of image `index` of an output [B, count], or NULL where the output is not wanted.
template <typename Number>
Number* image_of(Number* tensor, size_t index, size_t count) {
  return tensor ? tensor + index * count : nullptr;
}

// kept_features of image `index`: the rows that its keep_indices name, bits unchanged.
inline void write_kept_rows(const vtx_sizes& sizes, const vtx_tensors& tensors, size_t index, size_t cls_rows = 0) {
  const size_t keep = sizes.keep;
  const Rows rows = rows_of(sizes, tensors, index, cls_rows);
  void* out = static_cast<char*>(tensors.kept_features) + index * keep * rows.row_bytes();
  gather(rows, tensors.keep_indices + index * keep, keep, cls_rows, out);
}

// Rows of an image as float32 with their norms; scaled by a power of two where the longest is out of range (ties.h).
struct Patches {
  const float* rows;     // [T][D]
  const float* inverse;  // [T], 1 / |row|, the norm floored at 1e-15
  const float* squares;  // [T], |row|²
};

enum class Use { kUnit, kPlain, kSigmoid };
enum class Center { kNone, kToken, kFeature };

// The power of two that takes the largest number of the rows into [1, 2) where the longest row is out of range
// (ties.h); else 1, also where there are numbers that are not finite.
float range_scale(const Rows& rows, size_t count);

// Reads the rows once: as float32, norms, and packed for the Gram matrix of what `use` and `center` say: unit rows, the
// rows themselves or their sigmoid, less each token's or each feature's mean.
Patches prepare(const Executor& executor, Memory& memory, const Rows& features, size_t tokens, Use use, Center center,
                const Panels<float>& panels);

}  // namespace vtx

#endif
