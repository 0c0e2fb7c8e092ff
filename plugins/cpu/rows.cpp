#include "rows.h"

#include <cmath>
#include <cstring>

#include "kernels.h"

namespace vtx {
namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

uint16_t to_half(float x) {
  const uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (magnitude < 0x38800000u) {                                               // below 2^-14: a whole number of 2^-24
    const float units = std::fabs(x) * 16777216.0f;
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(units)));
  }
  const uint32_t rebased = magnitude - 0x38000000u;
  return static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
}

uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

const float* as_float(const Rows& rows, size_t index, float* buffer) {
  const void* row = rows.row(index);
  if (rows.dtype == VTX_FLOAT32) return static_cast<const float*>(row);
  const uint16_t* halves = static_cast<const uint16_t*>(row);
  (rows.dtype == VTX_FLOAT16 ? kernels().from_half : kernels().from_bfloat16)(halves, rows.width, buffer);
  return buffer;
}

void gather(const Rows& rows, const int64_t* indices, size_t count, size_t offset, void* out) {
  char* to = static_cast<char*>(out);
  for (size_t n = 0; n < count; ++n) {
    const size_t row = static_cast<size_t>(indices[n] + static_cast<int64_t>(offset));
    std::memcpy(to + n * rows.row_bytes(), rows.row(row), rows.row_bytes());
  }
}

void store_rounded(const float* x, size_t width, vtx_dtype dtype, void* out) {
  if (dtype == VTX_FLOAT32) {
    std::memcpy(out, x, width * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(out);
  for (size_t i = 0; i < width; ++i) to[i] = dtype == VTX_FLOAT16 ? to_half(x[i]) : to_bfloat16(x[i]);
}

}  // namespace vtx
