// What TensorRT looks for in a plugin library. It calls setLoggerFinder first.
#include <memory>
#include <vector>

#include "creator.h"
#include "log.h"
#include "ops_table.h"

#define VTX_EXPORT extern "C" __attribute__((visibility("default")))

VTX_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = 0;
  // TensorRT-RTX loads plugin libraries, but its ONNX parser ends the process where it meets a creator for a node.
  if (vtx::is_loaded_by_rtx()) {
    vtx::log_error("getCreators", "these plugins are not for TensorRT-RTX, which runs the ops' functions; load none");
    return nullptr;
  }
  return vtx::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
    // Never destroyed: TensorRT's registry may ask them after this library's destructors have run.
    static const auto* const all = [] {
      auto* made = new std::vector<nvinfer1::IPluginCreatorInterface*>;
      for (const vtx::OpSchema* each : vtx::ops::kAll) made->push_back(new vtx::Creator(*each));
      return made;
    }();
    count = static_cast<int32_t>(all->size());
    return all->data();
  });
}

VTX_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { vtx::set_logger_finder(finder); }
