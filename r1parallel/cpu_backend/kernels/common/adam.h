// AdamW of one tensor.
#ifndef R1PARALLEL_CPU_BACKEND_COMMON_ADAM_H_
#define R1PARALLEL_CPU_BACKEND_COMMON_ADAM_H_

#include <cmath>
#include <cstddef>
#include <cstdint>

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

// m, v ← moments of scale·gradient;  p ← p − lr·(m / (√v + eps) + decay·p). A function of its own, for g++ makes
// vectors where it knows from the arguments that no two tensors are one.
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
#endif  // R1PARALLEL_CPU_BACKEND_COMMON_ADAM_H_
