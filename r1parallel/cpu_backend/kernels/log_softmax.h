// log softmax of rows and its gradient. MindSpore's kernels add up a row's powers one after another in float32: with a
// vocabulary of 50 000 the log-probs are off by 2e-5.
#ifndef R1PARALLEL_CPU_BACKEND_SOFTMAX_H_
#define R1PARALLEL_CPU_BACKEND_SOFTMAX_H_

#include <algorithm>
#include <cmath>

#include "common/elementwise.h"
#include "common/replacement.h"

namespace r1parallel {
constexpr size_t kBlock = 1 << 10;  // numbers that are added up in float32

// Σ f(vector) over a row; past its end f is given `fill`, for which it has to be 0.
template <typename F>
R1_INLINE double SumOf(const float *x, size_t size, float fill, const F &f) {
  double total = 0.0;
  size_t i = 0;
  while (i + kLane <= size) {
    const size_t end = std::min(size, i + kBlock);
    Vector sums{};
    for (; i + kLane <= end; i += kLane) {
      sums += f(Load(x + i));
    }
    total += Sum(sums);
  }
  if (i < size) {
    float rest[kLane];
    std::fill_n(std::copy(x + i, x + size, rest), kLane - (size - i), fill);
    total += Sum(f(Load(rest)));
  }
  return total;
}

// y = x − max − log Σ e^(x − max). What is far below the maximum counts as nothing.
inline void LogSoftmaxForward(size_t begin, size_t end, size_t size, const float *x, float *y) {
  for (size_t row = begin; row < end; ++row) {
    const float *from = x + row * size;
    const float max = Largest(from, size);
    const double sum = SumOf(from, size, -INFINITY, [max](Vector a) { return Exp(a - max); });
    const double shift = max + std::log(sum);
    const float high = static_cast<float>(shift), low = static_cast<float>(shift - high);
    ForEachVector(0, size, from, from, y + row * size, [=](Vector a, Vector) { return (a - high) - low; });
  }
}

// dx = dy − e^y·Σ dy
inline void LogSoftmaxBackward(size_t begin, size_t end, size_t size, const float *y, const float *dy, float *dx) {
  for (size_t row = begin; row < end; ++row) {
    const float *slope = dy + row * size;
    const float sum = static_cast<float>(SumOf(slope, size, 0.0f, [](Vector a) { return a; }));
    ForEachVector(0, size, y + row * size, slope, dx + row * size,
                  [sum](Vector logp, Vector a) { return a - Exp(logp) * sum; });
  }
}
}  // namespace r1parallel

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Of rows in float32; everything else is MindSpore's.
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
  size_t axis_;  // its place among the inputs
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
#endif  // R1PARALLEL_CPU_BACKEND_SOFTMAX_H_
