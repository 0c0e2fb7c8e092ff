// What the plugins meet of a loading TensorRT, as a library of its own: a logger that keeps its lines, the functions by
// which it is found, and expressions of lengths.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

namespace fake {

// Lines that the plugins logged since the last call.
std::string logged();

nvinfer1::ILoggerFinder* finder();
void set_version(int32_t version);         // that getInferLibVersion answers; at first that of the headers
void set_finds_by_thread(bool by_thread);  // whether the finder has a logger; getLogger always has

// A length: a number, or one that is known when the engine runs.
class Length : public nvinfer1::IDimensionExpr {
 public:
  explicit Length(int64_t value, std::string text = "") : implementation_(value, std::move(text)) {
    mImpl = &implementation_;
  }
  const std::string& text() const { return implementation_.text; }

 private:
  struct Implementation : nvinfer1::apiv::VDimensionExpr {
    Implementation(int64_t value_, std::string text_) : value(value_), text(std::move(text_)) {}
    bool isConstant() const override { return text.empty(); }
    int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
    int64_t value;
    std::string text;
  };
  Implementation implementation_;
};

// Text of an expression: "64", "S", "(S - 512)".
std::string shown(const nvinfer1::IDimensionExpr* length);
std::string shown(const nvinfer1::DimsExprs& shape);

class Builder : public nvinfer1::IExprBuilder {
 public:
  Builder() { mImpl = &implementation_; }
  const nvinfer1::IDimensionExpr* length(int64_t value) { return implementation_.constant(value); }
  const nvinfer1::IDimensionExpr* unknown(const std::string& name) { return implementation_.make(0, name); }
  nvinfer1::DimsExprs shape(const std::vector<const nvinfer1::IDimensionExpr*>& lengths) {
    nvinfer1::DimsExprs made{};
    for (const auto* each : lengths) made.d[made.nbDims++] = each;
    return made;
  }

 private:
  struct Implementation : nvinfer1::apiv::VExprBuilder {
    const nvinfer1::IDimensionExpr* make(int64_t value, std::string text) {
      return (kept.emplace_back(std::make_unique<Length>(value, std::move(text)))).get();
    }
    const nvinfer1::IDimensionExpr* constant(int64_t value) override { return make(value, ""); }
    const nvinfer1::IDimensionExpr* operation(nvinfer1::DimensionOperation operation,
                                              const nvinfer1::IDimensionExpr& first,
                                              const nvinfer1::IDimensionExpr& second) override {
      if (operation != nvinfer1::DimensionOperation::kSUB) return nullptr;  // the only one that the plugins need
      return make(0, "(" + shown(&first) + " - " + shown(&second) + ")");
    }
    const nvinfer1::IDimensionExpr* declareSizeTensor(int32_t, const nvinfer1::IDimensionExpr&,
                                                      const nvinfer1::IDimensionExpr&) override {
      return nullptr;
    }
    std::vector<std::unique_ptr<Length>> kept;
  };
  Implementation implementation_;
};

}  // namespace fake
