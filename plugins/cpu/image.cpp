#include "image.h"

#include <algorithm>
#include <cmath>

namespace vtx {
namespace {

constexpr size_t kGroup = 16;  // rows that are packed at a time

}  // namespace

Patches prepare(const Executor& executor, Memory& memory, const Rows& features, size_t tokens, Use use, Center center,
                const Panels<float>& panels) {
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
        inverse[first + row] = 1.0f / std::max(std::sqrt(squares[first + row]), 1e-15f);
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

}  // namespace vtx
