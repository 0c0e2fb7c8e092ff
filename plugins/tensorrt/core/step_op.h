// Ops inside the language model: vtx_step_sizes, vtx_step_tensors and their kernels.
#pragma once

#include <utility>

#include "core/op.h"

namespace vtexport {

namespace step {
inline constexpr Tensor kHiddenStates{"hidden_states", Element::kFeatures, "1SW",
                                      offsetof(vtx_step_tensors, hidden_states)};
inline constexpr Tensor kVisualStart{"visual_start", Element::kInt64, "1", offsetof(vtx_step_tensors, visual_start)};
inline constexpr Tensor kKeys{"keys", Element::kFeatures, "1SGK", offsetof(vtx_step_tensors, keys)};
inline constexpr Tensor kQuery{"query", Element::kFeatures, "1HK", offsetof(vtx_step_tensors, query)};
inline constexpr Tensor kLabels{"labels", Element::kInt64, "1V", offsetof(vtx_step_tensors, labels)};

inline constexpr Tensor kHiddenStatesOut{"hidden_states_out", Element::kFeatures, "1UW",
                                         offsetof(vtx_step_tensors, hidden_states_out)};
inline constexpr Tensor kRows{"rows", Element::kInt64, "1U", offsetof(vtx_step_tensors, out_rows)};

// The attributes that every such op has.
std::vector<Attribute> with_counts(std::vector<Attribute> own = {});
}  // namespace step
template <class Parameters>
struct StepKernel {
  vtx_status (*workspace)(const vtx_step_sizes*, const Parameters*, size_t*);
  vtx_status (*run)(const vtx_step_sizes*, const Parameters*, const vtx_step_tensors*, void*, size_t, vtx_stream);
};

// What does not depend on the kind of parameters.
class AnyStepOp : public Op {
 public:
  int64_t dropped() const override { return fixed_['V'] - keep_; }

 protected:
  AnyStepOp(const OpType& type, const Values& values, std::vector<Tensor> inputs);

  vtx_step_sizes sizes(const Lengths& lengths, vtx_dtype dtype) const;
  vtx_step_tensors tensors(const void* const* inputs, void* const* outputs) const;

 private:
  void complete(Lengths& lengths) const override;

  int64_t keep_;
};

template <class Parameters>
class StepOp final : public AnyStepOp {
 public:
  StepOp(const OpType& type, const Values& values, std::vector<Tensor> inputs, const Parameters& parameters,
         StepKernel<Parameters> kernel)
      : AnyStepOp(type, values, std::move(inputs)), parameters_(parameters), kernel_(kernel) {}

  size_t workspace(const Lengths& lengths, vtx_dtype dtype) const override {
    const vtx_step_sizes given = sizes(lengths, dtype);
    size_t bytes = 0;
    check(kernel_.workspace(&given, &parameters_, &bytes));
    return bytes;
  }

  void run(const Lengths& lengths, vtx_dtype dtype, const void* const* inputs, void* const* outputs, void* workspace,
           vtx_stream stream) const override {
    const vtx_step_sizes given = sizes(lengths, dtype);
    const vtx_step_tensors all = tensors(inputs, outputs);
    size_t bytes = 0;
    check(kernel_.workspace(&given, &parameters_, &bytes));
    check(kernel_.run(&given, &parameters_, &all, workspace, bytes, stream));
  }

 private:
  Parameters parameters_;
  StepKernel<Parameters> kernel_;
};

}  // namespace vtexport
