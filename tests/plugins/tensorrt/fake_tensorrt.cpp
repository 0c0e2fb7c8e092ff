#include "fake_tensorrt.h"

namespace fake {
namespace {

int32_t version = NV_TENSORRT_VERSION;
bool finds_by_thread = true;
std::string lines;

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    lines += severity == Severity::kERROR ? text : "(not an error)";
    lines += '\n';
  }
};

Logger logger;

class Finder : public nvinfer1::ILoggerFinder {
 public:
  nvinfer1::ILogger* findLogger() override { return finds_by_thread ? &logger : nullptr; }
};

}  // namespace

std::string logged() {
  std::string found;
  found.swap(lines);
  return found;
}

nvinfer1::ILoggerFinder* finder() {
  static Finder one;
  return &one;
}

void set_version(int32_t given) { version = given; }
void set_finds_by_thread(bool by_thread) { finds_by_thread = by_thread; }

std::string shown(const nvinfer1::IDimensionExpr* length) {
  if (!length) return "nothing";
  const std::string& text = static_cast<const Length*>(length)->text();
  return text.empty() ? std::to_string(length->getConstantValue()) : text;
}

std::string shown(const nvinfer1::DimsExprs& shape) {
  std::string all = "[";
  for (int32_t axis = 0; axis < shape.nbDims; ++axis) all += (axis ? ", " : "") + shown(shape.d[axis]);
  return all + "]";
}

}  // namespace fake

extern "C" {
__attribute__((visibility("default"))) int32_t getInferLibVersion() noexcept { return fake::version; }
__attribute__((visibility("default"))) nvinfer1::ILogger* getLogger() noexcept { return &fake::logger; }
}
