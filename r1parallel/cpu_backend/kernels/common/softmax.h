// log softmax of rows and its gradient.
#ifndef R1PARALLEL_CPU_BACKEND_COMMON_SOFTMAX_H_
#define R1PARALLEL_CPU_BACKEND_COMMON_SOFTMAX_H_

#include <algorithm>
#include <cmath>

#include "common/elementwise.h"

namespace r1parallel {
constexpr size_t kSumBlock = 1 << 10;  // how many numbers are summed in float32

// Σ f(vector) over a row; past its end f is given `fill`, for which it has to be 0.
template <typename F>
R1_INLINE double SumOf(const float *x, size_t size, float fill, const F &f) {
  double total = 0.0;
  size_t i = 0;
  while (i + kLane <= size) {
    const size_t end = std::min(size, i + kSumBlock);
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
    float *to = y + row * size;
    ForEachVector(0, size, [=](size_t i, auto lanes) { lanes.Store(to + i, (lanes.Load(from + i) - high) - low); });
  }
}

// dx = dy − e^y·Σ dy
inline void LogSoftmaxBackward(size_t begin, size_t end, size_t size, const float *y, const float *dy, float *dx) {
  for (size_t row = begin; row < end; ++row) {
    const float *slope = dy + row * size;
    const float sum = static_cast<float>(SumOf(slope, size, 0.0f, [](Vector a) { return a; }));
    const float *logp = y + row * size;
    float *to = dx + row * size;
    ForEachVector(0, size, [=](size_t i, auto lanes) {
      lanes.Store(to + i, lanes.Load(slope + i) - Exp(lanes.Load(logp + i)) * sum);
    });
  }
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_COMMON_SOFTMAX_H_
