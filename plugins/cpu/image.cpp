#include "image.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ties.h"

namespace vtx {
namespace {

constexpr size_t kGroup = 16;  // rows that are packed at a time

bool is_in_range(float longest) { return longest > kShortest && longest < kLongest; }

Patches prepare_as_they_are(const Executor& executor, Memory& memory, const Rows& features, size_t tokens, Use use,
                            Center center, const Panels<float>& panels) {
  const size_t width = features.width;
  float* inverse = memory.take<float>(tokens);
  float* squares = memory.take<float>(tokens);
  float* converted = features.dtype == VTX_FLOAT32 ? nullptr : memory.take<float>(tokens * width);
  const float* rows = converted ? converted : static_cast<const float*>(features.data);
  const bool is_changed = use == Use::kSigmoid || center != Center::kNone;
  const bool by_feature = center == Center::kFeature;
  // By feature, all rows have to be there before the first is packed; else a few rows at a time pass through.
  float* changed = is_changed ? memory.take<float>((by_feature ? tokens : panels.count() * kGroup) * width) : nullptr;
  double* sums = by_feature ? memory.zeros<double>(panels.count() * width) : nullptr;
  float* mean = by_feature ? memory.take<float>(width) : nullptr;

  executor.each(panels.count(), [&](size_t index) {
    for (size_t start = 0; start < panels.rows_of(index); start += kGroup) {
      const size_t count = std::min(kGroup, panels.rows_of(index) - start), first = index * kPanel + start;
      float* group = is_changed ? changed + (by_feature ? first : index * kGroup) * width : nullptr;
      for (size_t row = 0; row < count; ++row) {
        const float* x = as_float(features, first + row, converted ? converted + (first + row) * width : nullptr);
        kernels().dots(x, &x, 1, width, squares + first + row);
        const double norm = std::sqrt(static_cast<double>(squares[first + row]));
        inverse[first + row] = static_cast<float>(1 / std::max(norm, 1e-15));
        if (!is_changed) continue;
        float* y = group + row * width;
        if (use == Use::kSigmoid) {
          kernels().sigmoid(x, width, y);
        } else {
          std::copy_n(x, width, y);
        }
        if (center == Center::kToken) kernels().shift(y, kernels().sum(y, width) / static_cast<float>(width), width);
        if (by_feature) kernels().accumulate(sums + index * width, 1.0f, y, width);
      }
      if (by_feature) continue;
      const float* scale = use == Use::kUnit ? inverse + first : nullptr;
      kernels().transpose(is_changed ? group : rows + first * width, width, count, width, scale,
                          panels.panel(index) + start);
    }
    if (!by_feature) panels.fill_up(index);
  });
  if (by_feature) {
    for (size_t k = 0; k < width; ++k) {
      double sum = 0;
      for (size_t index = 0; index < panels.count(); ++index) sum += sums[index * width + k];
      mean[k] = static_cast<float>(sum / static_cast<double>(tokens));
    }
    executor.each(panels.count(), [&](size_t index) {
      for (size_t start = 0; start < panels.rows_of(index); start += kGroup) {
        const size_t count = std::min(kGroup, panels.rows_of(index) - start), first = index * kPanel + start;
        for (size_t row = 0; row < count; ++row) kernels().subtract(changed + (first + row) * width, mean, width);
        kernels().transpose(changed + first * width, width, count, width, nullptr, panels.panel(index) + start);
      }
      panels.fill_up(index);
    });
  }
  return {rows, inverse, squares};
}

// All rows as float32, times `scale`.
const float* scaled(const Executor& executor, Memory& memory, const float* rows, size_t tokens, size_t width,
                    float scale) {
  float* out = memory.take<float>(tokens * width);
  executor.each(tokens, [&](size_t token) {
    for (size_t k = token * width; k < (token + 1) * width; ++k) out[k] = rows[k] * scale;
  });
  return out;
}

}  // namespace

float range_scale(const Rows& rows, size_t count) {
  std::vector<float> buffer(rows.width);
  // Nearly always the longest row is in range, and that is seen sooner by sums of floats.
  float quick = 0;
  for (size_t row = 0; row < count && std::isfinite(quick); ++row) {
    const float* x = as_float(rows, row, buffer.data());
    float square = 0;
    kernels().dots(x, &x, 1, rows.width, &square);
    quick = square <= quick ? quick : square;  // NaN stays
  }
  if (is_in_range(quick)) return 1.0f;
  double longest = 0;
  float largest = 0;
  for (size_t row = 0; row < count; ++row) {
    const float* x = as_float(rows, row, buffer.data());
    double square = 0;
    for (size_t k = 0; k < rows.width; ++k) {
      if (!std::isfinite(x[k])) return 1.0f;
      square += static_cast<double>(x[k]) * static_cast<double>(x[k]);
      largest = std::max(largest, std::fabs(x[k]));
    }
    longest = std::max(longest, square);
  }
  const bool is_fine = longest > static_cast<double>(kShortest) && longest < static_cast<double>(kLongest);
  if (is_fine || largest == 0) return 1.0f;
  return std::ldexp(1.0f, -std::clamp(std::ilogb(largest), -126, 126));
}

Patches prepare(const Executor& executor, Memory& memory, const Rows& features, size_t tokens, Use use, Center center,
                const Panels<float>& panels) {
  Patches found = prepare_as_they_are(executor, memory, features, tokens, use, center, panels);
  float longest = 0;
  for (size_t token = 0; token < tokens; ++token) longest = std::max(longest, found.squares[token]);
  if (is_in_range(longest)) return found;
  const float scale = range_scale(features, tokens);
  if (scale == 1.0f) return found;
  const Rows rows = {scaled(executor, memory, found.rows, tokens, features.width, scale), VTX_FLOAT32, features.width};
  if (use != Use::kSigmoid) return prepare_as_they_are(executor, memory, rows, tokens, use, center, panels);
  // The sigmoids, in the panels already, are of the rows as they are.
  const Panels<float> unused(memory, tokens, features.width);
  return prepare_as_they_are(executor, memory, rows, tokens, Use::kPlain, Center::kNone, unused);
}

}  // namespace vtx
