// Loops over the caller's threads.
#ifndef VTX_CPU_PARALLEL_H
#define VTX_CPU_PARALLEL_H

#include "vtx_cpu.h"

namespace vtx {

class Executor {
 public:
  explicit Executor(const vtx_parallel* threads)
      : threads_(threads && threads->run && threads->threads > 1 ? threads : nullptr) {}

  // task(index) for every index below `count`. A task must not throw, and writes nothing that another one touches: then
  // results cannot depend on the number of threads.
  template <typename Task>
  void each(size_t count, const Task& task) const {
    if (!threads_ || count < 2) {
      for (size_t index = 0; index < count; ++index) task(index);
      return;
    }
    threads_->run(
        threads_->context, count, [](void* argument, size_t index) { (*static_cast<const Task*>(argument))(index); },
        const_cast<Task*>(&task));
  }

 private:
  const vtx_parallel* threads_;
};

}  // namespace vtx

#endif
