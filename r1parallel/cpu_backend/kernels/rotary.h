// RotaryPositionEmbedding and its gradient.
#ifndef R1PARALLEL_CPU_BACKEND_ROTARY_H_
#define R1PARALLEL_CPU_BACKEND_ROTARY_H_

#include "common/elementwise.h"
#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// x [A, B, C, D], cos and sin [A or 1, B or 1, C or 1, D] → x·cos + rotated(x)·sin; the two halves of D form the pairs.
class Rotary : public Fused {
 public:
  explicit Rotary(bool backward) : backward_(backward) {}

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    constexpr size_t kMode = 3, kGradientMode = 4;
    Require(inputs[backward_ ? kGradientMode : kMode]->GetValueWithCheck<int64_t>() == 0, "has mode 0 only");
    Require(!backward_ || !Given(inputs[3]), "gives no gradient of cos and sin");
    const auto &shape = inputs[0]->GetShapeVector(), &angles = inputs[1]->GetShapeVector();
    Require(shape[3] % 2 == 0, "turns pairs: the last dimension has to be even");
    ::r1parallel::RotaryShape sizes{};
    size_t step = 1;
    for (size_t dim = 3; dim-- > 0;) {
      sizes.count[dim] = static_cast<size_t>(shape[dim]);
      sizes.step[dim] = angles[dim] == 1 ? 0 : step;
      step *= static_cast<size_t>(angles[dim]);
    }
    sizes.size = static_cast<size_t>(shape[3]);
    auto task = [&](size_t begin, size_t end) {
      ::r1parallel::Rotate(begin, end, sizes, backward_, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(inputs[2]),
                           Numbers(outputs[0]));
    };
    ShareOut(sizes.count[0] * sizes.count[1] * sizes.count[2], 64, task);
    return true;
  }

 private:
  bool backward_;
};

class RotaryForward : public Rotary {
 public:
  RotaryForward() : Rotary(false) {}
};

class RotaryBackward : public Rotary {
 public:
  RotaryBackward() : Rotary(true) {}
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_ROTARY_H_
