// FlashAttentionScore and its gradient: reads the operator's many inputs and refuses what is not done here.
#ifndef R1PARALLEL_CPU_BACKEND_FLASH_ATTENTION_H_
#define R1PARALLEL_CPU_BACKEND_FLASH_ATTENTION_H_

#include <cstdint>

#include "batch_attention.h"
#include "op_enum.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Indices of the inputs, whose order differs between forward and backward.
struct AttentionInputs {
  size_t mask, unused_begin, unused_end, heads, keep, scale, layout, sparse;
};

class FlashAttention : public Fused {
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
    Require(layout == ops::BSH || layout == ops::BNSD || layout == ops::BSND,
            "has the layouts BSH, BSND and BNSD only");
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
    Attend(*this, grid, MakeMasks(*this, inputs[kAt.mask], grid),
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
    AttendBackward(*this, grid, MakeMasks(*this, inputs[kAt.mask], grid),
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
#endif  // R1PARALLEL_CPU_BACKEND_FLASH_ATTENTION_H_
