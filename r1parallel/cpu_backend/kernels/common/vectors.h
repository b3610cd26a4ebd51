// SIMD vectors of the fused kernels, with exp and products of small matrices. They are g++'s vector extensions, as wide
// as the processor that it compiles for.
#ifndef R1PARALLEL_CPU_BACKEND_VECTORS_H_
#define R1PARALLEL_CPU_BACKEND_VECTORS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#define R1_INLINE_MEMBER inline __attribute__((always_inline))
#define R1_INLINE static R1_INLINE_MEMBER

namespace r1parallel {
// Numbers of a vector: a register of the processor, since g++ makes slow code of longer ones.
#if defined(__AVX512F__)
constexpr size_t kLane = 16;
#elif defined(__AVX__)
constexpr size_t kLane = 8;
#else
constexpr size_t kLane = 4;
#endif
typedef float Vector __attribute__((vector_size(kLane * sizeof(float))));
typedef int32_t Integers __attribute__((vector_size(kLane * sizeof(int32_t))));

constexpr size_t RoundUp(size_t count) { return (count + kLane - 1) / kLane * kLane; }

R1_INLINE Vector Load(const float *from) {
  Vector x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

R1_INLINE void Store(float *to, Vector x) { std::memcpy(to, &x, sizeof(x)); }

// Loading and storing all numbers of a vector.
struct AllLanes {
  R1_INLINE_MEMBER Vector Load(const float *from) const { return r1parallel::Load(from); }
  R1_INLINE_MEMBER void Store(float *to, Vector x) const { r1parallel::Store(to, x); }
};

// The first `count` numbers only; the others are loaded as zeros.
struct FirstLanes {
  size_t count;

  R1_INLINE_MEMBER Vector Load(const float *from) const {
    Vector x{};
    std::memcpy(&x, from, count * sizeof(float));
    return x;
  }
  R1_INLINE_MEMBER void Store(float *to, Vector x) const { std::memcpy(to, &x, count * sizeof(float)); }
};

R1_INLINE Vector All(float x) { return x - Vector{}; }

// The upper half of a vector is added to the lower one until four numbers are left.
R1_INLINE float Sum(Vector x) {
  typedef float Four __attribute__((vector_size(4 * sizeof(float))));
#ifdef __AVX512F__
  typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
  const Eight eight =
    __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX__)
  const Vector eight = x;
#endif
#ifdef __AVX__
  const Four four =
    __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#else
  const Four four = x;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// eˣ for x ≤ 0, to about one unit in the last place: 2ⁿ·e^r with |r| ≤ ln(2)/2 and the Taylor polynomial of degree 7.
R1_INLINE Vector Exp(Vector x) {
  x = x < All(-87.0f) ? All(-87.0f) : x;
  const Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounds: the sum has no bits after the point
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;    // ln 2 in two parts
  Vector sum = All(1.0f / 5040);
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return sum * scale;
}

// C (+)= A·B for kRows rows of A and C, kWide vectors of columns. A(i, k) stands at a[i·row + k·step].
template <size_t kRows, size_t kWide>
R1_INLINE void Tile(const float *a, size_t row, size_t step, const float *b, size_t ldb, float *c, size_t ldc,
                    size_t depth, bool add) {
  Vector sums[kRows][kWide];
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t j = 0; j < kWide; ++j) {
      sums[i][j] = add ? Load(c + i * ldc + j * kLane) : Vector{};
    }
  }
  for (size_t k = 0; k < depth; ++k) {
    Vector line[kWide];
    for (size_t j = 0; j < kWide; ++j) {
      line[j] = Load(b + k * ldb + j * kLane);
    }
    for (size_t i = 0; i < kRows; ++i) {
      const float factor = a[i * row + k * step];
      for (size_t j = 0; j < kWide; ++j) {
        sums[i][j] += factor * line[j];
      }
    }
  }
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t j = 0; j < kWide; ++j) {
      Store(c + i * ldc + j * kLane, sums[i][j]);
    }
  }
}

template <size_t kWide>
R1_INLINE void Band(const float *a, size_t row, size_t step, const float *b, size_t ldb, float *c, size_t ldc,
                    size_t rows, size_t depth, bool add) {
  constexpr size_t kRows = 4;
  size_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    Tile<kRows, kWide>(a + i * row, row, step, b, ldb, c + i * ldc, ldc, depth, add);
  }
  for (; i < rows; ++i) {
    Tile<1, kWide>(a + i * row, row, step, b, ldb, c + i * ldc, ldc, depth, add);
  }
}

// C (+)= A·B, [rows, depth]·[depth, columns]; columns is a multiple of kLane, B and C are row by row.
R1_INLINE void Multiply(const float *a, size_t row, size_t step, const float *b, size_t ldb, float *c, size_t ldc,
                        size_t rows, size_t depth, size_t columns, bool add) {
  size_t j = 0;
  for (; j + 2 * kLane <= columns; j += 2 * kLane) {
    Band<2>(a, row, step, b + j, ldb, c + j, ldc, rows, depth, add);
  }
  if (j < columns) {
    Band<1>(a, row, step, b + j, ldb, c + j, ldc, rows, depth, add);
  }
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_VECTORS_H_
