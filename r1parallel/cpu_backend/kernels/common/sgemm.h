// Products of large float32 matrices by oneDNN, each thread computes a part of the result.
#ifndef R1PARALLEL_CPU_BACKEND_SGEMM_H_
#define R1PARALLEL_CPU_BACKEND_SGEMM_H_

#include <algorithm>
#include <atomic>

#include "common/fused.h"

// Of oneDNN, which is a part of the wheel: C [m, n] = alpha·op(A) [m, k]·op(B) [k, n] + beta·C, row by row.
extern "C" int dnnl_sgemm(char op_a, char op_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                          int64_t row_of_a, const float *b, int64_t row_of_b, float beta, float *c, int64_t row_of_c);

namespace mindspore {
namespace kernel {
namespace r1parallel {
// A matrix as it stands in memory, row by row; `transposed`: its transposition is meant.
struct Matrix {
  const float *numbers;
  size_t rows, columns;
  bool transposed{false};

  Matrix Transposed() const { return {numbers, rows, columns, !transposed}; }
  size_t Rows() const { return transposed ? columns : rows; }
  size_t Columns() const { return transposed ? rows : columns; }
  const float *Row(size_t i) const { return numbers + i * (transposed ? 1 : columns); }
  const float *Column(size_t j) const { return numbers + j * (transposed ? columns : 1); }
  char Operation() const { return transposed ? 'T' : 'N'; }
};

// c [a.Rows(), b.Columns()] = a·b, or with `add` c + a·b.
inline void Product(const Fused &kernel, const Matrix &a, const Matrix &b, float *c, bool add = false) {
  constexpr size_t kPart = 48;
  const size_t rows = a.Rows(), columns = b.Columns();
  const bool by_row = rows > columns;
  const size_t shared = by_row ? rows : columns;
  std::atomic<bool> done{true};
  kernel.ShareOut((shared + kPart - 1) / kPart, 1, [&](size_t begin, size_t end) {
    begin *= kPart;
    end = std::min(end * kPart, shared);
    const size_t row = by_row ? begin : 0, column = by_row ? 0 : begin;
    const size_t height = by_row ? end - begin : rows, width = by_row ? columns : end - begin;
    if (dnnl_sgemm(a.Operation(), b.Operation(), height, width, a.Columns(), 1.0f, a.Row(row), a.columns,
                   b.Column(column), b.columns, add ? 1.0f : 0.0f, c + row * columns + column, columns) != 0) {
      done = false;
    }
  });
  kernel.Require(done, "got an error from oneDNN");
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_SGEMM_H_
