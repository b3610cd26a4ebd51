// Gradient accumulation: gradients are added to their sums, and a sum is cleared.
#ifndef R1PARALLEL_CPU_BACKEND_OPTIMIZER_ACCUMULATE_H_
#define R1PARALLEL_CPU_BACKEND_OPTIMIZER_ACCUMULATE_H_

#include <cstring>
#include <vector>

#include "common/adam.h"
#include "common/elementwise.h"
#include "common/replacement.h"
#include "optimizer/spans.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
inline void AddToSum(size_t begin, size_t end, const float *x, float *sum) {
  ::r1parallel::Own(sum + begin, end - begin);
  ::r1parallel::AddUp(begin, end, x, sum);
}

// sum_1 … sum_P, x_1 … x_P: each sum becomes sum + x.
class MultiTensorAdd : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const size_t count = inputs.size() / 2;
    const auto spans = Spans(inputs, 0, count, kSpan);
    ShareOut(spans.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const auto [tensor, from, to] = spans[i];
        AddToSum(from, to, Numbers(inputs[count + tensor]), Numbers(inputs[tensor]));
      }
    });
    *Numbers(outputs[0]) = 0.0f;
    return true;
  }
};

// sum, x → sum + x, which takes its place. MindSpore's kernel does so on one thread.
class AddTo : public Replacement {
 public:
  using Replacement::Replacement;

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    const bool in_place = inputs[0]->device_ptr() == outputs[0]->device_ptr();
    if (!in_place || inputs[0]->dtype_id() != kNumberTypeFloat32) {
      return Replacement::Launch(inputs, workspace, outputs, stream);
    }
    float *sum = Numbers(inputs[0]);
    const float *x = Numbers(inputs[1]);
    ShareOut(inputs[0]->size() / sizeof(float), kSpan, [&](size_t begin, size_t end) { AddToSum(begin, end, x, sum); });
    return true;
  }
};

// x → zeros, in place.
class Clear : public Fused {
 public:
  std::vector<KernelAttr> GetOpSupport() override { return {KernelAttr().AddSkipCheckAttr(true).AddOutInRef(0, 0)}; }

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    Require(inputs[0]->device_ptr() == outputs[0]->device_ptr(), "works in place only");
    float *x = Numbers(inputs[0]);
    ShareOut(inputs[0]->size() / sizeof(float), kSpan,
             [&](size_t begin, size_t end) { std::memset(x + begin, 0, (end - begin) * sizeof(float)); });
    return true;
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_OPTIMIZER_ACCUMULATE_H_
