// AdamW of all parameters, which also clears the gradient sums.
#ifndef R1PARALLEL_CPU_BACKEND_OPTIMIZER_ADAM_H_
#define R1PARALLEL_CPU_BACKEND_OPTIMIZER_ADAM_H_

#include <cstring>
#include <vector>

#include "common/adam.h"
#include "optimizer/spans.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// See `training/multi_tensor.py`. Every number is read and written once.
class MultiTensorAdamW : public Fused {
 public:
  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    beta1_ = GetValue<float>(primitive_->GetAttr("beta1"));
    beta2_ = GetValue<float>(primitive_->GetAttr("beta2"));
    decays_ = GetValue<std::vector<float>>(primitive_->GetAttr("decays"));
    return Fused::Init(inputs, outputs);
  }

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const size_t count = decays_.size();
    const float divisor = *Numbers(inputs[0]), lr = *Numbers(inputs[1]), per_lr = *Numbers(inputs[2]);
    const float eps = *Numbers(inputs[3]);
    const auto spans = Spans(inputs, kScalars, count, kSpan);
    ShareOut(spans.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const auto [tensor, from, to] = spans[i];
        float *of[4];
        for (size_t kind = 0; kind < 4; ++kind) {
          of[kind] = Numbers(inputs[kScalars + kind * count + tensor]) + from;
        }
        const ::r1parallel::AdamNumbers by{lr, beta1_, beta2_, eps, decays_[tensor] * per_lr, 1.0f / divisor};
        ::r1parallel::Adam(to - from, by, of[1], of[0], of[2], of[3]);
        std::memset(of[1], 0, (to - from) * sizeof(float));
      }
    });
    *Numbers(outputs[0]) = lr;
    return true;
  }

 private:
  static constexpr size_t kScalars = 4;
  float beta1_{}, beta2_{};
  std::vector<float> decays_;
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_OPTIMIZER_ADAM_H_
