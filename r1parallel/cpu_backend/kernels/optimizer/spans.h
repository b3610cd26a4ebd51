// Spans of several tensors, which threads share evenly whatever the sizes of the tensors.
#ifndef R1PARALLEL_CPU_BACKEND_OPTIMIZER_SPANS_H_
#define R1PARALLEL_CPU_BACKEND_OPTIMIZER_SPANS_H_

#include <algorithm>
#include <vector>

#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
constexpr size_t kSpan = 1 << 16;  // numbers that are worth a thread

struct Span {
  size_t tensor, begin, end;
};

inline std::vector<Span> Spans(const Tensors &tensors, size_t first, size_t count, size_t length) {
  std::vector<Span> all;
  for (size_t i = 0; i < count; ++i) {
    const size_t size = tensors[first + i]->size() / sizeof(float);
    for (size_t begin = 0; begin < size; begin += length) {
      all.push_back({i, begin, std::min(begin + length, size)});
    }
  }
  return all;
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_OPTIMIZER_SPANS_H_
