// LogSoftmax and its gradient. MindSpore's kernels sum the exponentials of a row one after another in float32: with a
// vocabulary of 50 000 the log-probs are off by 2e-5.
#ifndef R1PARALLEL_CPU_BACKEND_LOG_SOFTMAX_H_
#define R1PARALLEL_CPU_BACKEND_LOG_SOFTMAX_H_

#include <memory>
#include <utility>

#include "common/replacement.h"
#include "common/softmax.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Rows in float32; everything else is left to MindSpore's kernel.
class LogSoftmax : public Replacement {
 public:
  LogSoftmax(std::shared_ptr<NativeCpuKernelMod> other, size_t axis) : Replacement(std::move(other)), axis_(axis) {}

  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    const int64_t axis = inputs[axis_]->GetValueWithCheck<int64_t>();
    const auto last = static_cast<int64_t>(inputs[0]->GetShapeVector().size()) - 1;
    ours_ = inputs[0]->dtype_id() == kNumberTypeFloat32 && (axis == -1 || axis == last);
    return Replacement::Init(inputs, outputs);
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    if (!ours_) {
      return Replacement::Launch(inputs, workspace, outputs, stream);
    }
    const size_t size = static_cast<size_t>(inputs[0]->GetShapeVector().back());
    ShareOut(inputs[0]->size() / sizeof(float) / size, 1,
             [&](size_t begin, size_t end) { Rows(begin, end, size, inputs, outputs); });
    return true;
  }

 protected:
  // Rows begin … end, of `size` numbers each.
  virtual void Rows(size_t begin, size_t end, size_t size, const Tensors &inputs, const Tensors &outputs) const = 0;

 private:
  size_t axis_;  // index of that input
  bool ours_{false};
};

// x, axis → y
class LogSoftmaxForward : public LogSoftmax {
 public:
  explicit LogSoftmaxForward(std::shared_ptr<NativeCpuKernelMod> other) : LogSoftmax(std::move(other), 1) {}

 protected:
  void Rows(size_t begin, size_t end, size_t size, const Tensors &inputs, const Tensors &outputs) const override {
    ::r1parallel::LogSoftmaxForward(begin, end, size, Numbers(inputs[0]), Numbers(outputs[0]));
  }
};

// y, dy, axis → dx
class LogSoftmaxBackward : public LogSoftmax {
 public:
  explicit LogSoftmaxBackward(std::shared_ptr<NativeCpuKernelMod> other) : LogSoftmax(std::move(other), 2) {}

 protected:
  void Rows(size_t begin, size_t end, size_t size, const Tensors &inputs, const Tensors &outputs) const override {
    ::r1parallel::LogSoftmaxBackward(begin, end, size, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(outputs[0]));
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_LOG_SOFTMAX_H_
