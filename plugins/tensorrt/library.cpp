// What TensorRT looks for in a plugin library. It calls setLoggerFinder first.
#include <memory>
#include <string>
#include <vector>

#include "creator.h"
#include "log.h"
#include "ops_table.h"

#define VTX_EXPORT extern "C" __attribute__((visibility("default")))

VTX_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  count = 0;
  // The ONNX parser of TensorRT-RTX ends the process at a node of ours where it cannot open RTX by that name.
  if (vtx::is_loaded_by_rtx() && !vtx::rtx_opens_by_name()) {
    vtx::log_error("getCreators",
                   std::string(vtx::kRtxName) +
                       " does not open the TensorRT-RTX that is loaded, and its ONNX parser asks for that name at a "
                       "plugin's node; make a link of that name to the loaded file, in its folder or in one on "
                       "LD_LIBRARY_PATH");
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
