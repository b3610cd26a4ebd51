// FlashAttentionScore and its gradient: what the operator is given, told apart and shared out. attention.h computes.
#ifndef R1PARALLEL_CPU_BACKEND_FLASH_H_
#define R1PARALLEL_CPU_BACKEND_FLASH_H_

#include <cstdint>
#include <vector>

#include "attention.h"
#include "common/elementwise.h"
#include "common/fused.h"
#include "op_enum.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using ::r1parallel::AddUp;
using ::r1parallel::AttentionShape;
using ::r1parallel::QueryHead;
using ::r1parallel::QueryHeadGradient;
using ::r1parallel::QueryRange;

// Where the tensors of an attention stand: [B, heads, S, D] or [B, S, heads·D].
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

// The masks of the rows of a batch, [queries, keys] each, one and the same for all heads; no numbers: nothing is hidden.
struct Masks {
  const bool *numbers{nullptr};
  size_t step{0};  // from one row's to the next one's
};

// What an attention computes from and keeps, [B, heads, S, D] or [B, S, heads·D]; statistics [B, heads, S, kStatistics].
struct Attended {
  const float *query, *key, *value;
  float *max, *sum, *output;
};

struct AttendedGradient {
  const float *output;
  float *query, *key, *value;
};

class Attention : public Fused {
 protected:
  Masks MakeMasks(const KernelTensor *mask, const Grid &grid) const {
    if (!Given(mask)) {
      return {};
    }
    Require(mask->dtype_id() == kNumberTypeBool, "takes a mask of bool only");
    const size_t one = grid.shape.queries * grid.shape.keys, many = mask->size() / one;
    Require(many == 1 || many == grid.rows, "takes one mask for all heads");
    return {static_cast<const bool *>(mask->device_ptr()), many == 1 ? 0 : one};
  }

  void Attend(const Grid &grid, const Masks &masks, const Attended &of) const {
    ForEachKeyHead(grid, [&](size_t row, size_t key_head, size_t part) {
      std::vector<QueryHead> heads;
      grid.ForEachQueryHead(row, key_head, [&](size_t at, size_t statistics) {
        heads.push_back({of.query + at, of.max + statistics, of.sum + statistics, of.output + at});
      });
      const size_t at = row * grid.key_row + key_head * grid.key_head;
      ::r1parallel::AttentionForward(grid.shape, Range(masks, grid, row, part), of.key + at, of.value + at,
                                     heads.data());
    });
  }

  void AttendBackward(const Grid &grid, const Masks &masks, const Attended &of, const AttendedGradient &gradient) const {
    const size_t size = grid.rows * grid.key_row;
    std::vector<float> others(Parts(grid) == 1 ? 0 : 2 * size);  // of keys and values, from the second half of the queries
    ForEachKeyHead(grid, [&](size_t row, size_t key_head, size_t part) {
      std::vector<QueryHeadGradient> heads;
      grid.ForEachQueryHead(row, key_head, [&](size_t at, size_t statistics) {
        heads.push_back({of.query + at, of.output + at, gradient.output + at, of.max + statistics, of.sum + statistics,
                         gradient.query + at});
      });
      const size_t at = row * grid.key_row + key_head * grid.key_head;
      float *keys = part == 0 ? gradient.key : others.data();
      float *values = part == 0 ? gradient.value : others.data() + size;
      ::r1parallel::AttentionBackward(grid.shape, Range(masks, grid, row, part), of.key + at, of.value + at,
                                      heads.data(), keys + at, values + at);
    });
    if (!others.empty()) {
      AddUp(0, size, others.data(), gradient.key);
      AddUp(0, size, others.data() + size, gradient.value);
    }
  }

 private:
  // Where there are few key heads, their queries are done in halves: threads could not share them evenly.
  static size_t Parts(const Grid &grid) {
    constexpr size_t kManyHeads = 8, kManyQueries = 128;
    return grid.rows * grid.key_heads < kManyHeads && grid.shape.queries >= kManyQueries ? 2 : 1;
  }

  // f(row, key head, part of the queries), shared out over the threads.
  template <typename F>
  void ForEachKeyHead(const Grid &grid, const F &f) const {
    const size_t parts = Parts(grid);
    auto task = [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        f(i / parts / grid.key_heads, i / parts % grid.key_heads, i % parts);
      }
    };
    ShareOut(grid.rows * grid.key_heads * parts, 1, task);
  }

  static QueryRange Range(const Masks &masks, const Grid &grid, size_t row, size_t part) {
    const size_t parts = Parts(grid), queries = grid.shape.queries;
    const bool *hidden = masks.numbers == nullptr ? nullptr : masks.numbers + row * masks.step;
    return {queries * part / parts, queries * (part + 1) / parts, hidden};
  }
};

// Numbers of the inputs, which forward and backward have in another order.
struct AttentionInputs {
  size_t mask, unused_begin, unused_end, heads, keep, scale, layout, sparse;
};

// The operators; what they have and is not done here is refused.
class FlashAttention : public Attention {
 protected:
  Grid MakeGrid(const Tensors &inputs, const AttentionInputs &at) const {
    Require(inputs[at.keep]->GetValueWithCheck<float>() == 1.0f, "has no dropout");
    Require(inputs[at.sparse]->GetValueWithCheck<int64_t>() == 0, "has sparse_mode 0 only");
    for (size_t i : {at.scale + 1, at.scale + 2}) {  // pre_tokens and next_tokens
      Require(inputs[i]->GetValueWithCheck<int64_t>() == INT32_MAX, "has no window of keys");
    }
    Require(inputs[1]->GetShapeVector() == inputs[2]->GetShapeVector(), "takes keys and values of one shape");
    for (size_t i = at.unused_begin; i < at.unused_end; ++i) {
      Require(!Given(inputs[i]), "takes a mask and nothing else");
    }
    const int64_t layout = inputs[at.layout]->GetValueWithCheck<int64_t>();
    Require(layout == ops::BSH || layout == ops::BNSD || layout == ops::BSND, "has the layouts BSH, BSND and BNSD only");
    const bool heads_first = layout == ops::BNSD;
    const auto heads = static_cast<size_t>(inputs[at.heads]->GetValueWithCheck<int64_t>());
    const size_t rows = Size(inputs[0], 0), queries = Size(inputs[0], heads_first ? 2 : 1);
    const size_t keys = Size(inputs[1], heads_first ? 2 : 1);
    const size_t size = inputs[0]->size() / sizeof(float) / (rows * queries * heads);
    const size_t key_heads = inputs[1]->size() / sizeof(float) / (rows * keys * size);
    return Grid(rows, queries, keys, heads, key_heads, size, inputs[at.scale]->GetValueWithCheck<float>(), heads_first);
  }
};

class FlashAttentionForward : public FlashAttention {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const Grid grid = MakeGrid(inputs, kAt);
    Attend(grid, MakeMasks(inputs[kAt.mask], grid),
           {Numbers(inputs[0]), Numbers(inputs[1]), Numbers(inputs[2]), Numbers(outputs[0]), Numbers(outputs[1]),
            Numbers(outputs[3])});
    return true;
  }

 private:
  // query, key, value, shift, dropout, padding, mask, prefix, lengths of queries and keys, heads, keep, scale, …
  static constexpr AttentionInputs kAt{6, 3, 6, 10, 11, 12, 16, 17};
};

class FlashAttentionBackward : public FlashAttention {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const Grid grid = MakeGrid(inputs, kAt);
    AttendBackward(grid, MakeMasks(inputs[kAt.mask], grid),
                   {Numbers(inputs[0]), Numbers(inputs[1]), Numbers(inputs[2]), Numbers(inputs[8]), Numbers(inputs[9]),
                    Numbers(inputs[11])},
                   {Numbers(inputs[3]), Numbers(outputs[0]), Numbers(outputs[1]), Numbers(outputs[2])});
    return true;
  }

 private:
  // query, key, value, dy, shift, dropout, padding, mask, max, sum, softmax, output, prefix, lengths, heads, keep, …
  static constexpr AttentionInputs kAt{7, 4, 7, 15, 16, 17, 21, 22};
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_FLASH_H_
