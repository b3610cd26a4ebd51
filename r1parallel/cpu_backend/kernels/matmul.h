// MatMul in float32. MindSpore's kernel uses half of two cores, or less.
#ifndef R1PARALLEL_CPU_BACKEND_MATMUL_H_
#define R1PARALLEL_CPU_BACKEND_MATMUL_H_

#include "common/products.h"
#include "common/replacement.h"
#include "common/scratch.h"
#include "common/sgemm.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// x·wᵀ with few rows of x, as in decoding, is made by `Products` where the attribute "few_rows" asks for it: rounding
// may not depend on the number of rows anywhere else.
class MatMul : public Replacement {
 public:
  using Replacement::Replacement;

  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    turned_[0] = inputs[2]->GetValueWithCheck<bool>();
    turned_[1] = inputs[3]->GetValueWithCheck<bool>();
    few_rows_ = primitive_->HasAttr("few_rows") && !turned_[0] && turned_[1];
    return Replacement::Init(inputs, outputs);
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    if (inputs[0]->dtype_id() != kNumberTypeFloat32) {
      return Replacement::Launch(inputs, workspace, outputs, stream);
    }
    const size_t rows = Size(outputs[0], 0), outs = Size(outputs[0], 1);
    if (few_rows_ && rows <= ::r1parallel::kFewRows) {
      const size_t depth = Size(inputs[0], 1), wide = ::r1parallel::Side(rows);
      float *side = ::r1parallel::ThisThreadsScratch().Take(depth * wide);
      ::r1parallel::SideBySide(Numbers(inputs[0]), rows, depth, wide, side);
      ShareOut(outs, kLeastOuts, [&](size_t begin, size_t end) {
        ::r1parallel::Products(begin, end, side, Numbers(inputs[1]), rows, depth, outs, Numbers(outputs[0]));
      });
      return true;
    }
    Product(*this, Operand(inputs, 0), Operand(inputs, 1), Numbers(outputs[0]));
    return true;
  }

 private:
  static constexpr size_t kLeastOuts = 48;

  Matrix Operand(const Tensors &inputs, size_t i) const {
    return {Numbers(inputs[i]), Size(inputs[i], 0), Size(inputs[i], 1), turned_[i]};
  }

  bool turned_[2]{}, few_rows_{false};
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_MATMUL_H_
