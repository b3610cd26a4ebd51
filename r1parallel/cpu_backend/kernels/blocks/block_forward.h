// A whole block of the model over the tokens of a call, without a cache, in one operator. block_backward.h has its
// gradient, chunk_block.h and token_block.h the block with a cache.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_FORWARD_H_
#define R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_FORWARD_H_

#include <algorithm>

#include "batch_attention.h"
#include "blocks/stages.h"
#include "common/elementwise.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// A block without a cache: T tokens in rows of S, which attend to each other within a row as the mask says.
class RowsBlock : public Stages<Block> {
 public:
  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    ReadEps();
    return Block::Init(inputs, outputs);
  }

 protected:
  // What forward keeps for backward.
  struct Kept {
    float *query, *key, *value, *max, *sum, *attended, *middle, *gate, *up;
  };

  void SetRowSizes(const KernelTensor *x, const KernelTensor *cos, const Tensors &inputs, size_t first_weight) {
    SetSizes(Size(x, 1), Size(cos, 3), inputs, first_weight);
    tokens_ = Size(x, 0), row_length_ = Size(cos, 1);
    Require(tokens_ == Size(cos, 0) * row_length_, "takes as many tokens as angles");
  }

  size_t Statistics() const { return tokens_ * (QueryHeads()) * ::r1parallel::kStatistics; }

  Kept Parts(float *kept) const {
    Buffers buffers(kept);
    return {buffers.Next(tokens_ * hidden_), buffers.Next(tokens_ * kv_width_), buffers.Next(tokens_ * kv_width_),
            buffers.Next(Statistics()),      buffers.Next(Statistics()),        buffers.Next(tokens_ * hidden_),
            buffers.Next(tokens_ * hidden_), buffers.Next(tokens_ * inner_),    buffers.Next(tokens_ * inner_)};
  }

  void RequireKept(const KernelTensor *kept) const {
    const size_t all = tokens_ * (3 * hidden_ + 2 * kv_width_ + 2 * inner_) + 2 * Statistics();
    Require(kept->size() == all * sizeof(float), "keeps another number of numbers");
  }

  Grid MakeGrid() const {
    return Grid(tokens_ / row_length_, row_length_, row_length_, QueryHeads(), KeyHeads(), head_size_, ScoreScale(),
                false);
  }

  // Rotary embedding of all tokens, [T, width].
  void RotateTokens(size_t width, bool backward, const float *from, const KernelTensor *cos, const KernelTensor *sin,
                    float *to) const {
    const size_t heads = width / head_size_;
    const ::r1parallel::RotaryShape shape{{1, tokens_, heads}, {0, 1, 0}, head_size_};
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::Rotate(begin * heads, end * heads, shape, backward, from, Numbers(cos), Numbers(sin), to);
    });
  }

  size_t row_length_{};
};

// x, cos, sin, mask, weights → y, kept
class BlockForward : public RowsBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      SetRowSizes(inputs[kX], inputs[kCos], inputs, kFirstWeight);
      RequireKept(outputs[1]);
      const size_t a_token = std::max(2 * hidden_ + kv_width_, inner_) + 1;
      SetWorkspaceSizeList({tokens_ * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    const float *x = Numbers(inputs[kX]);
    const Kept kept = Parts(Numbers(outputs[1]));
    Buffers scratch(Numbers(workspace[0]));
    float *inverse = scratch.Next(tokens_), *gated = scratch.Next(0);  // overwrites what is no longer needed
    const Normed normed{inverse, scratch.Next(tokens_ * hidden_)};
    const Projected projected{scratch.Next(tokens_ * hidden_), scratch.Next(tokens_ * kv_width_), kept.value};
    Project(inputs, x, normed, projected);
    RotateTokens(hidden_, false, projected.query, inputs[kCos], inputs[kSin], kept.query);
    RotateTokens(kv_width_, false, projected.key, inputs[kCos], inputs[kSin], kept.key);
    const Grid grid = MakeGrid();
    Attend(*this, grid, MakeMasks(*this, inputs[kMask], grid),
           {kept.query, kept.key, kept.value, kept.max, kept.sum, kept.attended});
    FeedForwardStage(inputs, x, kept.attended, normed, {kept.middle, kept.gate, kept.up, gated}, Numbers(outputs[0]));
    return true;
  }

 private:
  enum Input : size_t { kX, kCos, kSin, kMask, kFirstWeight };
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_FORWARD_H_
