// y = x·wᵀ for few rows of x: every weight is read once, while x stays in the cache.
#ifndef R1PARALLEL_CPU_BACKEND_PRODUCTS_H_
#define R1PARALLEL_CPU_BACKEND_PRODUCTS_H_

#include <algorithm>

#include "common/vectors.h"

namespace r1parallel {
constexpr size_t kLine = 16;  // numbers of a cache line

// Dot products of one row with kOuts rows of w, which are w_row apart.
template <size_t kOuts>
R1_INLINE void Dots(const float *x, const float *w, size_t w_row, size_t depth, float *y) {
  Vector sums[kOuts] = {};
  size_t k = 0;
  for (; k + kLane <= depth; k += kLane) {
    const Vector left = Load(x + k);
    for (size_t j = 0; j < kOuts; ++j) {
      sums[j] += left * Load(w + j * w_row + k);
    }
  }
  for (size_t j = 0; j < kOuts; ++j) {
    y[j] = Sum(sums[j]);
    for (size_t rest = k; rest < depth; ++rest) {
      y[j] += x[rest] * w[j * w_row + rest];
    }
  }
}

// x [rows, depth] → [depth, wide], wide ≥ rows: the rows stand side by side, filled up with zeros.
inline void SideBySide(const float *x, size_t rows, size_t depth, size_t wide, float *to) {
  std::fill_n(to, depth * wide, 0.0f);
  constexpr size_t kBlock = 8;  // lines of x are read whole
  for (size_t first = 0; first < depth; first += kBlock) {
    const size_t end = std::min(first + kBlock, depth);
    for (size_t i = 0; i < rows; ++i) {
      for (size_t k = first; k < end; ++k) {
        to[k * wide + i] = x[i * depth + k];
      }
    }
  }
}

// kOuts rows of w times the rows that stand side by side in kWide vectors. Each sum is made in the order of k, so that
// no row depends on the others. The kOuts rows of w that come next are fetched meanwhile.
template <size_t kWide, size_t kOuts>
R1_INLINE void OutsTile(const float *x, const float *w, size_t rows, size_t depth, float *y, size_t outs) {
  constexpr size_t wide = kWide * kLane;
  Vector sums[kOuts][kWide] = {};
  for (size_t first = 0; first < depth; first += kLine) {
    for (size_t j = 0; j < kOuts; ++j) {
      __builtin_prefetch(w + (kOuts + j) * depth + first, 0, 2);
    }
    const size_t end = std::min(first + kLine, depth);
    for (size_t k = first; k < end; ++k) {
      Vector line[kWide];
      for (size_t v = 0; v < kWide; ++v) {
        line[v] = Load(x + k * wide + v * kLane);
      }
      for (size_t j = 0; j < kOuts; ++j) {
        const float factor = w[j * depth + k];
        for (size_t v = 0; v < kWide; ++v) {
          sums[j][v] += factor * line[v];
        }
      }
    }
  }
  float results[kOuts][wide];
  for (size_t j = 0; j < kOuts; ++j) {
    for (size_t v = 0; v < kWide; ++v) {
      Store(&results[j][v * kLane], sums[j][v]);
    }
  }
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < kOuts; ++j) {
      y[i * outs + j] = results[j][i];
    }
  }
}

template <size_t kWide>
R1_INLINE void OutsBand(size_t begin, size_t end, const float *x, const float *w, size_t rows, size_t depth,
                        size_t outs, float *y) {
  constexpr size_t kOuts = kWide < 4 ? 12 / kWide : 2;  // sums; more than multiplications that are under way at once
  size_t j = begin;
  for (; j + kOuts <= end; j += kOuts) {
    OutsTile<kWide, kOuts>(x, w + j * depth, rows, depth, y + j, outs);
  }
  for (; j < end; ++j) {
    OutsTile<kWide, 1>(x, w + j * depth, rows, depth, y + j, outs);
  }
}

constexpr size_t kFewRows = 32;
// Numbers of a line of `SideBySide`, for at most kFewRows rows.
constexpr size_t Side(size_t rows) { return rows <= kFewRows / 2 ? kFewRows / 2 : kFewRows; }

// Columns begin … end of y [rows, outs] = x [rows, depth] · w [outs, depth]ᵀ; `side` is x, side by side.
inline void Products(size_t begin, size_t end, const float *side, const float *w, size_t rows, size_t depth,
                     size_t outs, float *y) {
  if (rows <= kFewRows / 2) {
    OutsBand<kFewRows / 2 / kLane>(begin, end, side, w, rows, depth, outs, y);
  } else {
    OutsBand<kFewRows / kLane>(begin, end, side, w, rows, depth, outs, y);
  }
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_PRODUCTS_H_
