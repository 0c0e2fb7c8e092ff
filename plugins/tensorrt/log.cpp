#include "log.h"

#include <atomic>
#include <cstdio>

namespace vtexport {
namespace logging {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

}  // namespace logging

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logging::finder = finder; }

void log_error(const char* op, const std::string& sentence) noexcept {
  try {
    const std::string line = std::string(op) + ": " + sentence;
    nvinfer1::ILoggerFinder* finder = logging::finder;
    nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
    if (logger) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
    } else {
      std::fprintf(stderr, "vtexport: %s\n", line.c_str());
    }
  } catch (...) {  // no memory for the line
    std::fprintf(stderr, "vtexport: %s failed\n", op);
  }
}

}  // namespace vtexport
