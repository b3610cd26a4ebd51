// What an update does with the gradient sums: adds up their squares, moves the parameters, clears them.
#ifndef R1PARALLEL_CPU_BACKEND_GRADIENTS_H_
#define R1PARALLEL_CPU_BACKEND_GRADIENTS_H_

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "elementwise.h"
#include "replacement.h"

namespace r1parallel {
// To be called before memory is read that is written next: of memory that nobody has used yet a page that is read first
// costs two faults, for the system shows a page of zeros until it is written.
inline void Own(float *x, size_t count) {
  constexpr size_t kPage = 4096 / sizeof(float);
  for (size_t i = 0; i < count; i += kPage) {
    (void)__atomic_fetch_add(reinterpret_cast<uint32_t *>(x + i), 0, __ATOMIC_RELAXED);
  }
}

struct AdamNumbers {
  float lr, beta1, beta2, eps, decay, scale;
};

// m, v ← moments of scale·gradient;  p ← p − lr·(m / (√v + eps) + decay·p). A function of its own, for g++ makes vectors
// where it knows from the arguments that no two tensors are one.
__attribute__((noinline)) inline void Adam(size_t count, AdamNumbers by, const float *__restrict gradient,
                                           float *__restrict p, float *__restrict m, float *__restrict v) {
  Own(m, count);
  Own(v, count);
  for (size_t i = 0; i < count; ++i) {
    const float g = gradient[i] * by.scale;
    m[i] += (g - m[i]) * (1.0f - by.beta1);
    v[i] += (g * g - v[i]) * (1.0f - by.beta2);
    p[i] -= by.lr * (m[i] / (std::sqrt(v[i]) + by.eps) + by.decay * p[i]);
  }
}
}  // namespace r1parallel

namespace mindspore {
namespace kernel {
namespace r1parallel {
constexpr size_t kLeast = 1 << 16;  // numbers that are worth a thread

// x → Σ x² / 2. MindSpore's kernel adds up number by number in float32, which loses digits, and on one thread.
class HalfSquares : public Replacement {
 public:
  using Replacement::Replacement;

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    if (inputs[0]->dtype_id() != kNumberTypeFloat32) {
      return Replacement::Launch(inputs, workspace, outputs, stream);
    }
    const float *x = Numbers(inputs[0]);
    const size_t count = inputs[0]->size() / sizeof(float);
    std::vector<double> parts((count + kPart - 1) / kPart);  // the same ones for any number of threads
    ShareOut(parts.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin * kPart; i < std::min(end * kPart, count); i += kLine) {
        parts[i / kPart] += ::r1parallel::Dot(x + i, x + i, nullptr, std::min(kLine, count - i));
      }
    });
    *Numbers(outputs[0]) = static_cast<float>(std::accumulate(parts.begin(), parts.end(), 0.0) / 2);
    return true;
  }

 private:
  static constexpr size_t kPart = 1 << 16, kLine = 1 << 10;  // numbers; a line is added up in float32
};

// parameter, m, v, lr, β1, β2, eps, decay, gradient, divisor of the gradient; the first three are changed.
// MindSpore's kernel does so too, number by number.
class AdamUpdate : public Replacement {
 public:
  using Replacement::Replacement;

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    constexpr size_t kGradient = 8;
    if (inputs[0]->dtype_id() != kNumberTypeFloat32 || inputs[kGradient]->dtype_id() != kNumberTypeFloat32) {
      return Replacement::Launch(inputs, workspace, outputs, stream);
    }
    const float *gradient = Numbers(inputs[kGradient]);
    const ::r1parallel::AdamNumbers by{*Numbers(inputs[3]), *Numbers(inputs[4]), *Numbers(inputs[5]),
                                       *Numbers(inputs[6]), *Numbers(inputs[7]), 1.0f / *Numbers(inputs[9])};
    ShareOut(inputs[0]->size() / sizeof(float), kLeast, [&](size_t begin, size_t end) {
      ::r1parallel::Adam(end - begin, by, gradient + begin, Numbers(inputs[0]) + begin, Numbers(inputs[1]) + begin,
                         Numbers(inputs[2]) + begin);
    });
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
    ShareOut(inputs[0]->size() / sizeof(float), kLeast, [&](size_t begin, size_t end) {
      ::r1parallel::Own(sum + begin, end - begin);
      ::r1parallel::ForEachVector(begin, end, sum, x, sum, [](auto one, auto other) { return one + other; });
    });
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
    ShareOut(inputs[0]->size() / sizeof(float), kLeast,
             [&](size_t begin, size_t end) { std::memset(x + begin, 0, (end - begin) * sizeof(float)); });
    return true;
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_GRADIENTS_H_
