// Orders of tokens, as every op has them: ties to the lower index, NaN last.
#ifndef VTX_CPU_SELECT_H
#define VTX_CPU_SELECT_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>

#include "memory.h"

namespace vtx {

// `value` with NaN as the lowest finite number.
template <typename Number>
Number without_nan(Number value) {
  return std::isnan(value) ? std::numeric_limits<Number>::lowest() : value;
}

// out[count]: the tokens of largest score, best first. Scores hold no NaN.
template <typename Number>
void best_first(const Number* scores, size_t tokens, size_t count, int64_t* out, Memory& memory) {
  int64_t* order = memory.take<int64_t>(tokens);
  std::iota(order, order + tokens, int64_t(0));
  const auto is_better = [scores](int64_t a, int64_t b) {
    return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
  };
  if (count < tokens) std::nth_element(order, order + count, order + tokens, is_better);
  std::sort(order, order + count, is_better);
  std::copy_n(order, count, out);
}

// numerator / denominator rounded; an exact half goes to the even neighbour. Both are at least 0, the second above.
inline int64_t rounded_quotient(int64_t numerator, int64_t denominator) {
  const int64_t quotient = numerator / denominator, rest = numerator % denominator;
  return quotient + (2 * rest > denominator || (2 * rest == denominator && quotient % 2 == 1));
}

}  // namespace vtx

#endif
