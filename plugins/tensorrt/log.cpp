#include "log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace vtx {
namespace logging {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

// The loaded library at an address, for dlsym; NULL where that is no library. dlclose gives it back.
void* library_at(const void* address) {
  Dl_info found{};
  return address && dladdr(address, &found) && found.dli_fname ? dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD)
                                                               : nullptr;
}

// A C function of the TensorRT that loaded this library. None may be linked, because the library would then need one
// certain TensorRT. It is asked of the library that the finder's class is in, since processes may hold TensorRT where a
// search through all libraries does not find it, as Python's bindings do.
template <class Function>
Function* find(const char* name) {
  nvinfer1::ILoggerFinder* known = finder;
  // The first word of the finder is the address of its class's table of virtual functions.
  void* library = known ? library_at(*reinterpret_cast<void* const*>(known)) : nullptr;
  // Without a finder it is the library of a function that no other has; an application may well have a getLogger.
  if (!library) library = library_at(dlsym(RTLD_DEFAULT, "getInferLibVersion"));
  void* symbol = library ? dlsym(library, name) : nullptr;
  if (library) dlclose(library);  // which stays loaded: RTLD_NOLOAD only counted once more
  return reinterpret_cast<Function*>(symbol);
}

// The version as TensorRT writes it, 100300 for 10.3 and 10701 for TensorRT-RTX 1.7.1. 0 where it cannot be told.
int32_t version() {
  auto* told = find<int32_t()>("getInferLibVersion");
  return told ? told() : 0;
}

// TensorRT 8.6 and older wrote 8601; TensorRT-RTX counts from 1.0, which is 10000.
bool is_rtx(int32_t version) { return version >= 10000 && version < 80000; }

// The TensorRT whose loggers' table of virtual functions this one has; 0 where it is not known.
int32_t major_of_loggers(int32_t version) {
  if (!is_rtx(version)) return version / 10000;
  return version / 100 == 107 ? 11 : 0;  // TensorRT-RTX 1.7 has that of 11; others have not been looked at
}

nvinfer1::ILogger* find_logger() {
  // The loggers' tables of virtual functions are others in TensorRT 11 than in 10. Plugins work across the two; a call
  // of a logger would reach another function.
  if (major_of_loggers(version()) != NV_TENSORRT_MAJOR) return nullptr;
  nvinfer1::ILoggerFinder* known = finder;
  nvinfer1::ILogger* logger = known ? known->findLogger() : nullptr;
  if (logger) return logger;
  auto* global = find<nvinfer1::ILogger*()>("getLogger");
  return global ? global() : nullptr;
}

}  // namespace logging

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logging::finder = finder; }

bool is_loaded_by_rtx() noexcept { return logging::is_rtx(logging::version()); }

bool rtx_opens_by_name() noexcept {
  try {
    Dl_info found{};
    auto* of_rtx = logging::find<int32_t()>("getInferLibVersion");
    if (!of_rtx || !dladdr(reinterpret_cast<void*>(of_rtx), &found) || !found.dli_fname) return false;
    void* loaded = dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!loaded) return false;
    dlclose(loaded);  // which stays loaded
    const std::string path = found.dli_fname;
    // By the system's search, LD_LIBRARY_PATH included, and in RTX's own folder, where its parser looks too. A copy of
    // the file is another library, which is not loaded.
    for (const std::string& name : {std::string(kRtxName), path.substr(0, path.rfind('/') + 1) + kRtxName}) {
      void* opened = dlopen(name.c_str(), RTLD_LAZY | RTLD_NOLOAD);
      if (opened) dlclose(opened);
      if (opened == loaded) return true;
    }
  } catch (...) {  // no memory for a name
  }
  return false;
}

void log_error(const char* op, const std::string& sentence) noexcept {
  try {
    const std::string line = std::string(op) + ": " + sentence;
    if (nvinfer1::ILogger* logger = logging::find_logger()) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
    } else {
      std::fprintf(stderr, "vtexport: %s\n", line.c_str());
    }
  } catch (...) {  // no memory for the line
    std::fprintf(stderr, "vtexport: %s failed\n", op);
  }
}

}  // namespace vtx
