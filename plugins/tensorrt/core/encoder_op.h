// Ops behind the vision tower: vtx_sizes, vtx_tensors and their kernels.
#pragma once

#include <utility>

#include "core/op.h"

namespace vtexport {

namespace encoder {
inline constexpr Tensor kFeatures{"features", Element::kFeatures, "BRD", offsetof(vtx_tensors, features)};
inline constexpr Tensor kScores{"scores", Element::kFloat32, "BT", offsetof(vtx_tensors, scores)};
inline constexpr Tensor kKeys{"keys", Element::kFloat32, "BTHK", offsetof(vtx_tensors, keys)};
inline constexpr Tensor kSimilarityFeatures{"similarity_features", Element::kFloat32, "BTD",
                                            offsetof(vtx_tensors, similarity_features)};
inline constexpr Tensor kImageEmbeds{"image_embeds", Element::kFloat32, "BTE", offsetof(vtx_tensors, image_embeds)};
inline constexpr Tensor kTextEmbeds{"text_embeds", Element::kFloat32, "BME", offsetof(vtx_tensors, text_embeds)};
inline constexpr Tensor kQuestionEmbeds{"text_embeds", Element::kFloat32, "BMD", offsetof(vtx_tensors, text_embeds)};

inline constexpr Tensor kKeptFeatures{"kept_features", Element::kFeatures, "BND", offsetof(vtx_tensors, kept_features)};
inline constexpr Tensor kKeepIndices{"keep_indices", Element::kInt64, "BN", offsetof(vtx_tensors, keep_indices)};
inline constexpr Tensor kMerged{"merged", Element::kBool, "BN", offsetof(vtx_tensors, merged)};
inline constexpr Tensor kLabels{"labels", Element::kInt64, "BN", offsetof(vtx_tensors, labels)};
inline constexpr Tensor kRank{"rank", Element::kInt64, "B", offsetof(vtx_tensors, rank)};
inline constexpr Tensor kEnergy{"energy", Element::kFloat32, "B", offsetof(vtx_tensors, energy)};
inline constexpr Tensor kCount{"count", Element::kInt64, "B", offsetof(vtx_tensors, count)};
inline constexpr Tensor kLeverage{"leverage", Element::kFloat32, "B", offsetof(vtx_tensors, leverage)};

// The attributes that every such op has, and those of a grid for ops that need one; without, T has to be a square.
std::vector<Attribute> with_keep(int64_t least, std::vector<Attribute> own = {});
Attribute grid_rows();
Attribute grid_columns();
}  // namespace encoder

template <class Parameters>
struct EncoderKernel {
  vtx_status (*workspace)(const vtx_sizes*, const Parameters*, size_t*);
  vtx_status (*run)(const vtx_sizes*, const Parameters*, const vtx_tensors*, void*, size_t, vtx_stream);
};

// What does not depend on the kind of parameters.
class AnyEncoderOp : public Op {
 protected:
  // `cls_rows` is c; with `has_grid` the table has grid_rows and grid_columns.
  AnyEncoderOp(const OpType& type, const Values& values, std::vector<Tensor> inputs, std::vector<Tensor> outputs,
               int32_t cls_rows, bool has_grid);

  vtx_sizes sizes(const Lengths& lengths, vtx_dtype dtype) const;
  vtx_tensors tensors(const void* const* inputs, void* const* outputs) const;

 private:
  void complete(Lengths& lengths) const override;
  void set_grid(vtx_sizes& sizes, int64_t patches) const;

  int32_t cls_rows_;
  bool has_grid_;
};

template <class Parameters>
class EncoderOp final : public AnyEncoderOp {
 public:
  EncoderOp(const OpType& type, const Values& values, std::vector<Tensor> inputs, std::vector<Tensor> outputs,
            int32_t cls_rows, bool has_grid, const Parameters& parameters, EncoderKernel<Parameters> kernel)
      : AnyEncoderOp(type, values, std::move(inputs), std::move(outputs), cls_rows, has_grid),
        parameters_(parameters),
        kernel_(kernel) {}

  size_t workspace(const Lengths& lengths, vtx_dtype dtype) const override {
    const vtx_sizes given = sizes(lengths, dtype);
    size_t bytes = 0;
    check(kernel_.workspace(&given, &parameters_, &bytes));
    return bytes;
  }

  void run(const Lengths& lengths, vtx_dtype dtype, const void* const* inputs, void* const* outputs, void* workspace,
           vtx_stream stream) const override {
    const vtx_sizes given = sizes(lengths, dtype);
    const vtx_tensors all = tensors(inputs, outputs);
    size_t bytes = 0;
    check(kernel_.workspace(&given, &parameters_, &bytes));
    check(kernel_.run(&given, &parameters_, &all, workspace, bytes, stream));
  }

 private:
  Parameters parameters_;
  EncoderKernel<Parameters> kernel_;
};

}  // namespace vtexport
