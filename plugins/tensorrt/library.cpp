// What TensorRT looks for in a plugin library. It calls setLoggerFinder first.
#include <memory>
#include <vector>

#include "creator.h"
#include "log.h"

#define VTX_EXPORT extern "C" __attribute__((visibility("default")))

VTX_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = 0;
  // TensorRT-RTX loads plugin libraries, but its ONNX parser ends the process where it meets a creator for a node.
  if (vtexport::is_loaded_by_rtx()) {
    vtexport::log_error("getCreators",
                        "these plugins are not for TensorRT-RTX, which runs the ops' functions; load none");
    return nullptr;
  }
  return vtexport::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
    // Never destroyed: TensorRT's registry may ask them after this library's destructors have run.
    static const auto* const all = [] {
      auto* made = new std::vector<nvinfer1::IPluginCreatorInterface*>;
      for (const vtexport::OpType* each : vtexport::op_types()) made->push_back(new vtexport::Creator(*each));
      return made;
    }();
    count = static_cast<int32_t>(all->size());
    return all->data();
  });
}

VTX_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { vtexport::set_logger_finder(finder); }
