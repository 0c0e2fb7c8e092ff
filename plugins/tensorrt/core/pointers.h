// Pointers of tensors, put into their places in vtx_tensors or vtx_step_tensors.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "core/op.h"

namespace vtexport {

// The members have several pointer types, all of one representation, so they are set by offset.
template <class Tensors, class Pointer>
void set_pointers(Tensors& all, const std::vector<Tensor>& table, Pointer const* pointers) {
  static_assert(std::is_standard_layout_v<Tensors> && sizeof(Pointer) == sizeof(void*));
  if (!pointers) return;  // the kernel then says which are missing
  for (size_t place = 0; place < table.size(); ++place) {
    std::memcpy(reinterpret_cast<char*>(&all) + table[place].slot, &pointers[place], sizeof(void*));
  }
}

}  // namespace vtexport
