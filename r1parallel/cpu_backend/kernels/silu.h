// SiLU and its gradient.
#ifndef R1PARALLEL_CPU_BACKEND_SILU_H_
#define R1PARALLEL_CPU_BACKEND_SILU_H_

#include "common/elementwise.h"
#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
constexpr size_t kLeastNumbers = 8192;  // that are worth a thread

// x·sigmoid(x)
class Silu : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    ShareOut(outputs[0]->size() / sizeof(float), kLeastNumbers, [&](size_t begin, size_t end) {
      ::r1parallel::SiluForward(begin, end, Numbers(inputs[0]), Numbers(outputs[0]));
    });
    return true;
  }
};

// dy, x → dx
class SiluGrad : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    ShareOut(outputs[0]->size() / sizeof(float), kLeastNumbers, [&](size_t begin, size_t end) {
      ::r1parallel::SiluBackward(begin, end, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(outputs[0]));
    });
    return true;
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_SILU_H_
