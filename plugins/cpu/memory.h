// Memory for the intermediate values of one call.
#ifndef VTX_CPU_MEMORY_H
#define VTX_CPU_MEMORY_H

#include <cstddef>
#include <new>
#include <vector>

namespace vtx {

// Everything taken lives as long as this object.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (void* each : taken_) ::operator delete(each, std::align_val_t{kAlignment});
  }

  // Room for `count` numbers, not initialised. Throws std::bad_alloc.
  template <typename Number>
  Number* take(size_t count) {
    taken_.reserve(taken_.size() + 1);
    void* found = ::operator new(count * sizeof(Number) + kAlignment, std::align_val_t{kAlignment});
    taken_.push_back(found);
    return static_cast<Number*>(found);
  }

  template <typename Number>
  Number* zeros(size_t count) {
    Number* found = take<Number>(count);
    for (size_t i = 0; i < count; ++i) found[i] = Number(0);
    return found;
  }

 private:
  static constexpr size_t kAlignment = 64;
  std::vector<void*> taken_;
};

}  // namespace vtx

#endif
