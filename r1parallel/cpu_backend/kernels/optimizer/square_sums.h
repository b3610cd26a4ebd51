// Squares of gradient sums, for their norm.
#ifndef R1PARALLEL_CPU_BACKEND_OPTIMIZER_SQUARE_SUMS_H_
#define R1PARALLEL_CPU_BACKEND_OPTIMIZER_SQUARE_SUMS_H_

#include <algorithm>
#include <vector>

#include "common/elementwise.h"
#include "optimizer/spans.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// x_1 … x_P → Σ x² of each.
class MultiTensorSquareSum : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const auto spans = Spans(inputs, 0, inputs.size(), kSpan);
    std::vector<double> parts(spans.size()), sums(inputs.size());  // the same ones for any number of threads
    ShareOut(spans.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const float *x = Numbers(inputs[spans[i].tensor]);
        for (size_t at = spans[i].begin; at < spans[i].end; at += kSumBlock) {
          parts[i] += ::r1parallel::Dot(x + at, x + at, nullptr, std::min(kSumBlock, spans[i].end - at));
        }
      }
    });
    for (size_t i = 0; i < parts.size(); ++i) {
      sums[spans[i].tensor] += parts[i];
    }
    std::copy(sums.begin(), sums.end(), Numbers(outputs[0]));
    return true;
  }

 private:
  static constexpr size_t kSumBlock = 1 << 10;  // how many numbers are summed in float32
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_OPTIMIZER_SQUARE_SUMS_H_
