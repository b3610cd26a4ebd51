// RmsNorm and its gradient.
#ifndef R1PARALLEL_CPU_BACKEND_RMS_NORM_H_
#define R1PARALLEL_CPU_BACKEND_RMS_NORM_H_

#include "common/elementwise.h"
#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// x [rows, size], weight [size], eps → y, 1 / √(mean(x²) + eps) [rows].
class RmsNorm : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    Require(inputs[1]->GetShapeVector().size() == 1, "has a weight of one dimension only");
    const size_t size = Size(inputs[1], 0), rows = inputs[0]->size() / sizeof(float) / size;
    const float eps = inputs[2]->GetValueWithCheck<float>();
    auto task = [&](size_t begin, size_t end) {
      ::r1parallel::NormForward(begin, end, size, eps, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(outputs[0]),
                                Numbers(outputs[1]));
    };
    ShareOut(rows, 16, task);
    return true;
  }
};

// dy, x, 1 / √…, weight → dx, gradient of the weight.
class RmsNormGrad : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const size_t size = Size(inputs[3], 0), rows = inputs[0]->size() / sizeof(float) / size;
    auto by_row = [&](size_t begin, size_t end) {
      ::r1parallel::NormBackward(begin, end, size, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(inputs[2]),
                                 Numbers(inputs[3]), Numbers(outputs[0]));
    };
    auto by_column = [&](size_t begin, size_t end) {
      ::r1parallel::NormWeightGradient(begin, end, rows, size, Numbers(inputs[0]), Numbers(inputs[1]),
                                       Numbers(inputs[2]), Numbers(outputs[1]));
    };
    ShareOut(rows, 16, by_row);
    ShareOut(size, 64, by_column);
    return true;
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_RMS_NORM_H_
