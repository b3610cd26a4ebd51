// In the place of MindSpore's product of matrices, in float32: its kernel uses half of two cores, or less.
#ifndef R1PARALLEL_CPU_BACKEND_MATMUL_H_
#define R1PARALLEL_CPU_BACKEND_MATMUL_H_

#include <algorithm>
#include <atomic>

#include "products.h"
#include "replacement.h"
#include "scratch.h"

// Of oneDNN, which is a part of the wheel: C [m, n] = alpha·op(A) [m, k]·op(B) [k, n] + beta·C, row by row.
extern "C" int dnnl_sgemm(char op_a, char op_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                          int64_t row_of_a, const float *b, int64_t row_of_b, float beta, float *c, int64_t row_of_c);

namespace mindspore {
namespace kernel {
namespace r1parallel {
// x·wᵀ with few rows of x, as in decoding, is made by `Products` where the attribute "few_rows" asks for it: rounding may
// not depend on the number of rows anywhere else. All other products are oneDNN's, a part of them for each thread.
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
    const size_t rows = Size(outputs[0], 0), outs = Size(outputs[0], 1), depth = Size(inputs[0], turned_[0] ? 0 : 1);
    if (few_rows_ && rows <= ::r1parallel::kFewRows) {
      const size_t wide = ::r1parallel::Side(rows);
      float *side = ::r1parallel::ThisThreadsScratch().Take(depth * wide);
      ::r1parallel::SideBySide(Numbers(inputs[0]), rows, depth, wide, side);
      ShareOut(outs, kLeastOuts, [&](size_t begin, size_t end) {
        ::r1parallel::Products(begin, end, side, Numbers(inputs[1]), rows, depth, outs, Numbers(outputs[0]));
      });
      return true;
    }
    const bool by_row = rows > outs;
    std::atomic<bool> done{true};
    ShareOut(((by_row ? rows : outs) + kPart - 1) / kPart, 1, [&](size_t begin, size_t end) {
      begin *= kPart;
      end = std::min(end * kPart, by_row ? rows : outs);
      const bool well = by_row ? Part(inputs, outputs, begin, end, 0, outs) : Part(inputs, outputs, 0, rows, begin, end);
      if (!well) {
        done = false;
      }
    });
    Require(done, "got an error from oneDNN");
    return true;
  }

 private:
  static constexpr size_t kLeastOuts = 48, kPart = 48;

  // Rows and outs of the result.
  bool Part(const Tensors &inputs, const Tensors &outputs, size_t row, size_t last_row, size_t out,
            size_t last_out) const {
    const size_t row_of_x = Size(inputs[0], 1), row_of_w = Size(inputs[1], 1), row_of_y = Size(outputs[0], 1);
    const size_t depth = Size(inputs[0], turned_[0] ? 0 : 1);
    const float *x = Numbers(inputs[0]) + row * (turned_[0] ? 1 : row_of_x);
    const float *w = Numbers(inputs[1]) + out * (turned_[1] ? row_of_w : 1);
    return dnnl_sgemm(turned_[0] ? 'T' : 'N', turned_[1] ? 'T' : 'N', last_row - row, last_out - out, depth, 1.0f, x,
                      row_of_x, w, row_of_w, 0.0f, Numbers(outputs[0]) + row * row_of_y + out, row_of_y) == 0;
  }

  bool turned_[2]{}, few_rows_{false};
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_MATMUL_H_
