// Norm, rotary embedding and SiLU over a part of a tensor.
#ifndef R1PARALLEL_CPU_BACKEND_ELEMENTWISE_H_
#define R1PARALLEL_CPU_BACKEND_ELEMENTWISE_H_

#include <algorithm>
#include <cmath>

#include "common/vectors.h"

namespace r1parallel {
// Σ a·b·c, the last of which may be missing, always in the same order.
R1_INLINE float Dot(const float *a, const float *b, const float *c, size_t size) {
  Vector sums{};
  size_t i = 0;
  for (; i + kLane <= size; i += kLane) {
    const Vector product = Load(a + i) * Load(b + i);
    sums += c == nullptr ? product : product * Load(c + i);
  }
  float sum = Sum(sums);
  for (; i < size; ++i) {
    sum += c == nullptr ? a[i] * b[i] : a[i] * b[i] * c[i];
  }
  return sum;
}

// −∞ where there are none.
R1_INLINE float Largest(const float *x, size_t size) {
  Vector largest = All(-INFINITY);
  size_t i = 0;
  for (; i + kLane <= size; i += kLane) {
    const Vector next = Load(x + i);
    largest = next > largest ? next : largest;
  }
  float max = -INFINITY;
  for (size_t lane = 0; lane < kLane; ++lane) {
    max = std::max(max, largest[lane]);
  }
  for (; i < size; ++i) {
    max = std::max(max, x[i]);
  }
  return max;
}

inline void NormForward(size_t begin, size_t end, size_t size, float eps, const float *x, const float *weight, float *y,
                        float *inverse) {
  for (size_t row = begin; row < end; ++row) {
    const float *from = x + row * size;
    float *to = y + row * size;
    const float factor = 1.0f / std::sqrt(Dot(from, from, nullptr, size) / size + eps);
    for (size_t i = 0; i < size; ++i) {
      to[i] = from[i] * factor * weight[i];
    }
    inverse[row] = factor;
  }
}

// dx = factor · (dy·weight − x · factor² · mean(dy·weight·x))
inline void NormBackward(size_t begin, size_t end, size_t size, const float *dy, const float *x, const float *inverse,
                         const float *weight, float *dx) {
  for (size_t row = begin; row < end; ++row) {
    const float *slope = dy + row * size, *from = x + row * size;
    float *to = dx + row * size;
    const float factor = inverse[row];
    const float along = Dot(slope, weight, from, size) / size * factor * factor;
    for (size_t i = 0; i < size; ++i) {
      to[i] = factor * (slope[i] * weight[i] - from[i] * along);
    }
  }
}

// Columns begin … end of Σ dy·x·factor over the rows, which are added up in order.
inline void NormWeightGradient(size_t begin, size_t end, size_t rows, size_t size, const float *dy, const float *x,
                               const float *inverse, float *gradient) {
  for (size_t i = begin; i < end; ++i) {
    gradient[i] = 0.0f;
  }
  for (size_t row = 0; row < rows; ++row) {
    const float *slope = dy + row * size, *from = x + row * size;
    const float factor = inverse[row];
    for (size_t i = begin; i < end; ++i) {
      gradient[i] += slope[i] * from[i] * factor;
    }
  }
}

// 1 / (1 + e^−x)
R1_INLINE Vector Sigmoid(Vector x) {
  const Vector small = Exp(x < 0.0f ? x : -x);  // of the two powers the one that cannot overflow
  return (x < 0.0f ? small : All(1.0f)) / (small + 1.0f);
}

// f(i, lanes) for the vectors of begin ≤ i < end, of which `lanes` loads and stores all, or at the end as many as are
// left.
template <typename F>
R1_INLINE void ForEachVector(size_t begin, size_t end, const F &f) {
  size_t i = begin;
  for (; i + kLane <= end; i += kLane) {
    f(i, AllLanes{});
  }
  if (i < end) {
    f(i, FirstLanes{end - i});
  }
}

// Elements begin … end of x are added to those of `to`.
inline void AddUp(size_t begin, size_t end, const float *x, float *to) {
  ForEachVector(begin, end, [=](size_t i, auto lanes) { lanes.Store(to + i, lanes.Load(x + i) + lanes.Load(to + i)); });
}

// gate·sigmoid(gate)·up; the result may overwrite the gate
inline void GateForward(size_t begin, size_t end, const float *gate, const float *up, float *to) {
  ForEachVector(begin, end, [=](size_t i, auto lanes) {
    const Vector x = lanes.Load(gate + i);
    lanes.Store(to + i, x * Sigmoid(x) * lanes.Load(up + i));
  });
}

// x·sigmoid(x)
inline void SiluForward(size_t begin, size_t end, const float *x, float *y) {
  ForEachVector(begin, end, [=](size_t i, auto lanes) {
    const Vector a = lanes.Load(x + i);
    lanes.Store(y + i, a * Sigmoid(a));
  });
}

// dy·s·(1 + x·(1 − s)), s = sigmoid(x)
R1_INLINE Vector SiluGradient(Vector dy, Vector x, Vector s) { return dy * s * (1.0f + x * (1.0f - s)); }

inline void SiluBackward(size_t begin, size_t end, const float *dy, const float *x, float *dx) {
  ForEachVector(begin, end, [=](size_t i, auto lanes) {
    const Vector a = lanes.Load(x + i);
    lanes.Store(dx + i, SiluGradient(lanes.Load(dy + i), a, Sigmoid(a)));
  });
}

// silu(gate)·up once more; `up_gradient`, which holds the gradient of that, becomes the one of up.
inline void GateBackward(size_t begin, size_t end, const float *gate, const float *up, float *gated,
                         float *gate_gradient, float *up_gradient) {
  ForEachVector(begin, end, [=](size_t i, auto lanes) {
    const Vector x = lanes.Load(gate + i), other = lanes.Load(up + i), dy = lanes.Load(up_gradient + i);
    const Vector s = Sigmoid(x);
    lanes.Store(gated + i, x * s * other);
    lanes.Store(gate_gradient + i, SiluGradient(dy * other, x, s));
    lanes.Store(up_gradient + i, dy * x * s);
  });
}

struct RotaryShape {
  size_t count[3];  // heads' numbers, in the order of their dimensions
  size_t step[3];   // from one line of cos and sin to the next along each; 0: the same line
  size_t size;
};

// Heads begin … end. With the halves (a, b) of a head: (a·cos − b·sin, b·cos + a·sin); backward the transposition.
inline void Rotate(size_t begin, size_t end, const RotaryShape &shape, bool backward, const float *x, const float *cos,
                   const float *sin, float *y) {
  const size_t half = shape.size / 2;
  for (size_t head = begin; head < end; ++head) {
    const size_t c = head % shape.count[2], b = head / shape.count[2] % shape.count[1];
    const size_t a = head / shape.count[2] / shape.count[1];
    const size_t line = (a * shape.step[0] + b * shape.step[1] + c * shape.step[2]) * shape.size;
    const float *left = x + head * shape.size, *right = left + half;
    const float *cos_left = cos + line, *cos_right = cos_left + half;
    const float *sin_left = sin + line, *sin_right = sin_left + half;
    float *to = y + head * shape.size;
    if (backward) {
      for (size_t i = 0; i < half; ++i) {
        to[i] = left[i] * cos_left[i] + right[i] * sin_right[i];
        to[half + i] = right[i] * cos_right[i] - left[i] * sin_left[i];
      }
    } else {
      for (size_t i = 0; i < half; ++i) {
        to[i] = left[i] * cos_left[i] - right[i] * sin_left[i];
        to[half + i] = right[i] * cos_right[i] + left[i] * sin_right[i];
      }
    }
  }
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_ELEMENTWISE_H_
