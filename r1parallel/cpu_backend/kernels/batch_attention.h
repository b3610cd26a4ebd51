// Attention over a batch: which masks belong to which rows, and how the threads share it. common/attention.h computes.
#ifndef R1PARALLEL_CPU_BACKEND_BATCH_ATTENTION_H_
#define R1PARALLEL_CPU_BACKEND_BATCH_ATTENTION_H_

#include <vector>

#include "common/attention.h"
#include "common/elementwise.h"
#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using ::r1parallel::AddUp;
using ::r1parallel::AttentionShape;
using ::r1parallel::QueryHead;
using ::r1parallel::QueryHeadGradient;
using ::r1parallel::QueryRange;

// The layout of an attention's tensors: [B, heads, S, D] or [B, S, heads·D].
struct Grid {
  AttentionShape shape;
  size_t rows, key_heads;
  size_t query_row, key_row, key_head;

  Grid(size_t rows, size_t queries, size_t keys, size_t heads, size_t key_heads, size_t size, float scale,
       bool heads_first)
      : rows(rows), key_heads(key_heads) {
    shape.queries = queries, shape.keys = keys, shape.size = size, shape.group = heads / key_heads;
    shape.query_token = heads_first ? shape.size : heads * shape.size;
    shape.query_head = heads_first ? shape.queries * shape.size : shape.size;
    shape.key_token = heads_first ? shape.size : key_heads * shape.size;
    shape.scale = scale;
    query_row = heads * shape.queries * shape.size;
    key_row = key_heads * shape.keys * shape.size;
    key_head = heads_first ? shape.keys * shape.size : shape.size;
  }

  // f(where its queries begin, where its statistics do) for each query head that shares a key head.
  template <typename F>
  void ForEachQueryHead(size_t row, size_t of_key_head, const F &f) const {
    for (size_t n = of_key_head * shape.group; n < (of_key_head + 1) * shape.group; ++n) {
      f(row * query_row + n * shape.query_head,
        (row * key_heads * shape.group + n) * shape.queries * ::r1parallel::kStatistics);
    }
  }
};

// The masks of the rows of a batch, [queries, keys] each, one and the same for all heads; no numbers: nothing is
// hidden.
struct Masks {
  const bool *numbers{nullptr};
  size_t step{0};  // from one row's to the next one's
};

// What an attention computes from and keeps, [B, heads, S, D] or [B, S, heads·D]; statistics [B, heads, S,
// kStatistics].
struct Attended {
  const float *query, *key, *value;
  float *max, *sum, *output;
};

struct AttendedGradient {
  const float *output;
  float *query, *key, *value;
};

// Where there are few key heads, their queries are done in halves: threads could not share them evenly.
inline size_t QueryParts(const Grid &grid) {
  constexpr size_t kManyHeads = 8, kManyQueries = 128;
  return grid.rows * grid.key_heads < kManyHeads && grid.shape.queries >= kManyQueries ? 2 : 1;
}

// f(row, key head, part of the queries), shared out over the threads.
template <typename F>
void ForEachKeyHead(const Fused &kernel, const Grid &grid, const F &f) {
  const size_t parts = QueryParts(grid);
  auto task = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      f(i / parts / grid.key_heads, i / parts % grid.key_heads, i % parts);
    }
  };
  kernel.ShareOut(grid.rows * grid.key_heads * parts, 1, task);
}

inline QueryRange Range(const Masks &masks, const Grid &grid, size_t row, size_t part) {
  const size_t parts = QueryParts(grid), queries = grid.shape.queries;
  const bool *hidden = masks.numbers == nullptr ? nullptr : masks.numbers + row * masks.step;
  return {queries * part / parts, queries * (part + 1) / parts, hidden};
}

inline Masks MakeMasks(const Fused &kernel, const KernelTensor *mask, const Grid &grid) {
  if (!Given(mask)) {
    return {};
  }
  kernel.Require(mask->dtype_id() == kNumberTypeBool, "takes a mask of bool only");
  const size_t one = grid.shape.queries * grid.shape.keys, many = mask->size() / one;
  kernel.Require(many == 1 || many == grid.rows, "takes one mask for all heads");
  return {static_cast<const bool *>(mask->device_ptr()), many == 1 ? 0 : one};
}

inline void Attend(const Fused &kernel, const Grid &grid, const Masks &masks, const Attended &of) {
  ForEachKeyHead(kernel, grid, [&](size_t row, size_t key_head, size_t part) {
    std::vector<QueryHead> heads;
    grid.ForEachQueryHead(row, key_head, [&](size_t at, size_t statistics) {
      heads.push_back({of.query + at, of.max + statistics, of.sum + statistics, of.output + at});
    });
    const size_t at = row * grid.key_row + key_head * grid.key_head;
    ::r1parallel::AttentionForward(grid.shape, Range(masks, grid, row, part), of.key + at, of.value + at, heads.data());
  });
}

inline void AttendBackward(const Fused &kernel, const Grid &grid, const Masks &masks, const Attended &of,
                           const AttendedGradient &gradient) {
  const size_t size = grid.rows * grid.key_row;
  std::vector<float> others(
    QueryParts(grid) == 1 ? 0 : 2 * size);  // of keys and values, from the second half of the queries
  ForEachKeyHead(kernel, grid, [&](size_t row, size_t key_head, size_t part) {
    std::vector<QueryHeadGradient> heads;
    grid.ForEachQueryHead(row, key_head, [&](size_t at, size_t statistics) {
      heads.push_back({of.query + at, of.output + at, gradient.output + at, of.max + statistics, of.sum + statistics,
                       gradient.query + at});
    });
    const size_t at = row * grid.key_row + key_head * grid.key_head;
    float *keys = part == 0 ? gradient.key : others.data();
    float *values = part == 0 ? gradient.value : others.data() + size;
    ::r1parallel::AttentionBackward(grid.shape, Range(masks, grid, row, part), of.key + at, of.value + at, heads.data(),
                                    keys + at, values + at);
  });
  if (!others.empty()) {
    AddUp(0, size, others.data(), gradient.key);
    AddUp(0, size, others.data() + size, gradient.value);
  }
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BATCH_ATTENTION_H_
