// The gradient of a whole block; block_forward.h has what it goes back through.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_BACKWARD_H_
#define R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_BACKWARD_H_

#include <algorithm>

#include "blocks/block_forward.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// dy, x, kept, cos, sin, mask, weights → dx, gradients of the weights
class BlockBackward : public RowsBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      SetRowSizes(inputs[kX], inputs[kCos], inputs, kFirstWeight);
      RequireKept(inputs[kKept]);
      const size_t a_token = 3 * hidden_ + std::max(3 * inner_, 2 * (hidden_ + kv_width_) + kv_width_) + 1;
      SetWorkspaceSizeList({tokens_ * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    const Kept kept = Parts(Numbers(inputs[kKept]));
    Buffers scratch(Numbers(workspace[0]));
    float *inverse = scratch.Next(tokens_), *normed = scratch.Next(tokens_ * hidden_);
    const Scratch of{
      {inverse, normed}, scratch.Next(tokens_ * hidden_), scratch.Next(tokens_ * hidden_), scratch.Next(0)};
    OfFeedForward(inputs, outputs, kept, of);
    OfAttention(inputs, outputs, kept, of);
    return true;
  }

 private:
  enum Input : size_t { kY, kX, kKept, kCos, kSin, kMask, kFirstWeight };

  // The gradients of a norm's output and of what stands between the two halves of the block, [T, H].
  struct Scratch {
    Normed normed;
    float *slope, *middle, *rest;
  };

  static float *Gradient(const Tensors &outputs, Weight i) { return Numbers(outputs[1 + i]); }

  // Gradient of a weight [out, in], from the gradient of its outputs and its inputs.
  void OfWeight(const Tensors &inputs, const Tensors &outputs, Weight i, const float *slope, const float *x) const {
    const Matrix weight = WeightMatrix(inputs, i);
    Product(*this, Tokens(slope, weight.rows).Transposed(), Tokens(x, weight.columns), Gradient(outputs, i));
  }

  // Gradient of the weight's inputs.
  void OfInputs(const Tensors &inputs, Weight i, const float *slope, float *to, bool add = false) const {
    const Matrix weight = WeightMatrix(inputs, i);
    Product(*this, Tokens(slope, weight.rows), weight, to, add);
  }

  void OfBias(const Tensors &outputs, Weight i, const float *slope, size_t width) const {
    constexpr size_t kLeastColumns = 64;
    float *to = Gradient(outputs, i);
    ShareOut(width, kLeastColumns, [&](size_t begin, size_t end) {
      std::fill(to + begin, to + end, 0.0f);
      for (size_t token = 0; token < tokens_; ++token) {
        ::r1parallel::AddUp(begin, end, slope + token * width, to);
      }
    });
  }

  // Of a norm's input, to which what went past it is added; and of its weight.
  void OfNorm(const Tensors &inputs, const Tensors &outputs, Weight i, const float *x, const float *past,
              const Scratch &of, float *to) const {
    constexpr size_t kLeastColumns = 64;
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormBackward(begin, end, hidden_, of.slope, x, of.normed.inverse, WeightData(inputs, i), to);
      ::r1parallel::AddUp(begin * hidden_, end * hidden_, past, to);
    });
    ShareOut(hidden_, kLeastColumns, [&](size_t begin, size_t end) {
      ::r1parallel::NormWeightGradient(begin, end, tokens_, hidden_, of.slope, x, of.normed.inverse,
                                       Gradient(outputs, i));
    });
  }

  void OfFeedForward(const Tensors &inputs, const Tensors &outputs, const Kept &kept, const Scratch &of) const {
    const float *y = Numbers(inputs[kY]);
    Buffers scratch(of.rest);
    float *gated = scratch.Next(tokens_ * inner_), *gate = scratch.Next(tokens_ * inner_);
    float *up = scratch.Next(tokens_ * inner_);
    OfInputs(inputs, kDown, y, up);
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::GateBackward(begin * inner_, end * inner_, kept.gate, kept.up, gated, gate, up);
    });
    OfWeight(inputs, outputs, kDown, y, gated);
    Norm(inputs, kFfnNorm, kept.middle, of.normed);
    OfWeight(inputs, outputs, kGate, gate, of.normed.x);
    OfWeight(inputs, outputs, kUp, up, of.normed.x);
    OfInputs(inputs, kGate, gate, of.slope);
    OfInputs(inputs, kUp, up, of.slope, true);
    OfNorm(inputs, outputs, kFfnNorm, kept.middle, y, of, of.middle);
  }

  void OfAttention(const Tensors &inputs, const Tensors &outputs, const Kept &kept, const Scratch &of) const {
    Buffers scratch(of.rest);
    float *query = scratch.Next(tokens_ * hidden_), *key = scratch.Next(tokens_ * kv_width_);
    float *value = scratch.Next(tokens_ * kv_width_);
    float *turned_query = scratch.Next(tokens_ * hidden_), *turned_key = scratch.Next(tokens_ * kv_width_);
    OfWeight(inputs, outputs, kWo, of.middle, kept.attended);
    OfInputs(inputs, kWo, of.middle, of.slope);
    const Grid grid = MakeGrid();
    AttendBackward(*this, grid, MakeMasks(*this, inputs[kMask], grid),
                   {kept.query, kept.key, kept.value, kept.max, kept.sum, kept.attended},
                   {of.slope, turned_query, turned_key, value});
    RotateTokens(hidden_, true, turned_query, inputs[kCos], inputs[kSin], query);
    RotateTokens(kv_width_, true, turned_key, inputs[kCos], inputs[kSin], key);
    Norm(inputs, kAttentionNorm, Numbers(inputs[kX]), of.normed);
    OfProjection(inputs, outputs, kWq, kBq, query, of, false);
    OfProjection(inputs, outputs, kWk, kBk, key, of, true);
    OfProjection(inputs, outputs, kWv, kBv, value, of, true);
    OfNorm(inputs, outputs, kAttentionNorm, Numbers(inputs[kX]), of.middle, of, Numbers(outputs[0]));
  }

  void OfProjection(const Tensors &inputs, const Tensors &outputs, Weight weight, Weight bias, const float *slope,
                    const Scratch &of, bool add) const {
    OfWeight(inputs, outputs, weight, slope, of.normed.x);
    OfBias(outputs, bias, slope, Size(WeightOf(inputs, weight), 0));
    OfInputs(inputs, weight, slope, of.slope, add);
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_BACKWARD_H_
