// Sentences for TensorRT's log, and which TensorRT it is.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace vtx {

// What TensorRT hands a library when it loads it; NULL is allowed.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Whether it was TensorRT-RTX that handed over the finder.
bool is_loaded_by_rtx() noexcept;

// The name by which the ONNX parser of TensorRT-RTX opens RTX when it meets a plugin's node. NVIDIA's Python packages
// have the file as libtensorrt_rtx.so.1 alone.
constexpr const char* kRtxName = "libtensorrt_rtx.so";

// Whether that name opens the RTX that is loaded.
bool rtx_opens_by_name() noexcept;

// To the logger that TensorRT finds for the calling thread, else to its global one, else to stderr, so that no sentence
// is lost. The finder knows a logger while an engine works; TensorRT's ONNX parser calls a creator without one.
void log_error(const char* op, const std::string& sentence) noexcept;

// Runs `action`; an exception becomes a sentence in the log and the result `otherwise`. TensorRT's interfaces are
// noexcept, so whatever left them would end the process.
template <class Result, class Action>
Result guarded(const char* op, Result otherwise, Action action) noexcept {
  try {
    return action();
  } catch (const std::exception& error) {
    log_error(op, error.what());
  } catch (...) {
    log_error(op, "an unknown error");
  }
  return otherwise;
}

}  // namespace vtx
