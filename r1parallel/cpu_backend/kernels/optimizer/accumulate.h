// What an update does with the gradient sums: adds up their squares, moves the parameters, clears them.
#ifndef R1PARALLEL_CPU_BACKEND_GRADIENTS_H_
#define R1PARALLEL_CPU_BACKEND_GRADIENTS_H_

#include <cmath>
#include <cstring>
#include <vector>

#include "common/elementwise.h"
#include "common/replacement.h"

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

// Stretches of several tensors, that threads share out evenly.
struct Stretch {
  size_t tensor, begin, end;
};

inline std::vector<Stretch> Stretches(const Tensors &tensors, size_t first, size_t count, size_t length) {
  std::vector<Stretch> all;
  for (size_t i = 0; i < count; ++i) {
    const size_t size = tensors[first + i]->size() / sizeof(float);
    for (size_t begin = 0; begin < size; begin += length) {
      all.push_back({i, begin, std::min(begin + length, size)});
    }
  }
  return all;
}

// x_1 … x_P → Σ x² of each.
class SquareSums : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const auto stretches = Stretches(inputs, 0, inputs.size(), kLeast);
    std::vector<double> parts(stretches.size()), sums(inputs.size());  // the same ones for any number of threads
    ShareOut(stretches.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const float *x = Numbers(inputs[stretches[i].tensor]);
        for (size_t at = stretches[i].begin; at < stretches[i].end; at += kLine) {
          parts[i] += ::r1parallel::Dot(x + at, x + at, nullptr, std::min(kLine, stretches[i].end - at));
        }
      }
    });
    for (size_t i = 0; i < parts.size(); ++i) {
      sums[stretches[i].tensor] += parts[i];
    }
    std::copy(sums.begin(), sums.end(), Numbers(outputs[0]));
    return true;
  }

 private:
  static constexpr size_t kLine = 1 << 10;  // numbers that are added up in float32
};

// See `training/at_once.py`. Every number is read and written once.
class AdamOfAll : public Fused {
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
    const auto stretches = Stretches(inputs, kScalars, count, kLeast);
    ShareOut(stretches.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const auto [tensor, from, to] = stretches[i];
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

inline void AddToSum(size_t begin, size_t end, const float *x, float *sum) {
  ::r1parallel::Own(sum + begin, end - begin);
  ::r1parallel::AddUp(begin, end, x, sum);
}

// sum_1 … sum_P, x_1 … x_P: each sum becomes sum + x.
class AddToAll : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const size_t count = inputs.size() / 2;
    const auto stretches = Stretches(inputs, 0, count, kLeast);
    ShareOut(stretches.size(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const auto [tensor, from, to] = stretches[i];
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
    ShareOut(inputs[0]->size() / sizeof(float), kLeast, [&](size_t begin, size_t end) {
      AddToSum(begin, end, x, sum);
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
