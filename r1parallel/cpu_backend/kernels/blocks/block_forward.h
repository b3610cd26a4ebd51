// A whole block of the model over the tokens of a call: what `Block` computes without a cache, in one operator. Its gradient
// is another one, in block_gradient.h; chunk_block.h has the block for tokens with a cache.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_BLOCK_H_

#include <cmath>
#include <vector>

#include "common/elementwise.h"
#include "flash.h"
#include "common/fused.h"
#include "common/sgemm.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using ::r1parallel::Vector;

// Letters: T tokens, in rows of S; H hidden, N query heads, M key heads, D head size, L = M·D, I inner size.
// See `models/whole_block.py`; weights are [out, in].
class WholeBlock : public Attention {
 public:
  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    eps_ = GetValue<float>(primitive_->GetAttr("eps"));
    return Attention::Init(inputs, outputs);
  }

 protected:
  // Of the weights, in the order of `models/whole_block.py`; gradients have the same.
  enum Weight : size_t { kAttentionNorm, kWq, kBq, kWk, kBk, kWv, kBv, kWo, kFfnNorm, kGate, kUp, kDown, kWeights };

  // One behind the other.
  class Pieces {
   public:
    explicit Pieces(float *at) : at_(at) {}
    float *Next(size_t count) {
      float *piece = at_;
      at_ += count;
      return piece;
    }

   private:
    float *at_;
  };

  // [T, L or H], of tokens that are not turned yet.
  struct Projected {
    float *query, *key, *value;
  };

  // x + what attention gives, [T, H]; the rest [T, I].
  struct Fed {
    float *middle, *gate, *up, *gated;
  };

  // A norm's output [T, H], and 1 / √… [T].
  struct Normed {
    float *inverse, *x;
  };

  void Measure(size_t hidden, size_t size, const Tensors &inputs, size_t first_weight) {
    hidden_ = hidden, size_ = size, first_weight_ = first_weight;
    line_ = Size(inputs[first_weight + kWk], 0), inner_ = Size(inputs[first_weight + kGate], 0);
  }

  const KernelTensor *Of(const Tensors &inputs, Weight i) const { return inputs[first_weight_ + i]; }

  template <typename F>
  void ForTokens(const F &f) const {
    constexpr size_t kLeastTokens = 8;
    ShareOut(tokens_, kLeastTokens, f);
  }

  // [T, columns]
  Matrix Tokens(const float *x, size_t columns) const { return {x, tokens_, columns}; }
  Matrix Stored(const Tensors &inputs, Weight i) const {
    const auto *weight = Of(inputs, i);
    return {Numbers(weight), Size(weight, 0), Size(weight, 1)};
  }

  void Norm(const Tensors &inputs, Weight i, const float *x, const Normed &normed) const {
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormForward(begin, end, hidden_, eps_, x, Numbers(Of(inputs, i)), normed.x, normed.inverse);
    });
  }

  // y [T, outs] = x·wᵀ
  void Times(const Tensors &inputs, Weight i, const float *x, float *y) const {
    const Matrix weight = Stored(inputs, i);
    Product(*this, Tokens(x, weight.columns), weight.Turned(), y);
  }

  void Project(const Tensors &inputs, const float *x, const Normed &normed, const Projected &to) const {
    Norm(inputs, kAttentionNorm, x, normed);
    Times(inputs, kWq, normed.x, to.query);
    Times(inputs, kWk, normed.x, to.key);
    Times(inputs, kWv, normed.x, to.value);
    ForTokens([&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; ++token) {
        AddUp(0, hidden_, Numbers(Of(inputs, kBq)), to.query + token * hidden_);
        AddUp(0, line_, Numbers(Of(inputs, kBk)), to.key + token * line_);
        AddUp(0, line_, Numbers(Of(inputs, kBv)), to.value + token * line_);
      }
    });
  }

  // Everything behind the attention; y [T, H].
  void Feed(const Tensors &inputs, const float *x, const float *attended, const Normed &normed, const Fed &fed,
            float *y) const {
    Times(inputs, kWo, attended, fed.middle);
    ForTokens([&](size_t begin, size_t end) { AddUp(begin * hidden_, end * hidden_, x, fed.middle); });
    Norm(inputs, kFfnNorm, fed.middle, normed);
    Times(inputs, kGate, normed.x, fed.gate);
    Times(inputs, kUp, normed.x, fed.up);
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::GateForward(begin * inner_, end * inner_, fed.gate, fed.up, fed.gated);
    });
    Times(inputs, kDown, fed.gated, y);
    ForTokens([&](size_t begin, size_t end) { AddUp(begin * hidden_, end * hidden_, fed.middle, y); });
  }

  size_t tokens_{}, hidden_{}, line_{}, inner_{}, size_{}, first_weight_{};
  float eps_{};
};

// Without a cache: all tokens of a row attend to each other as the mask says.
class RowsBlock : public WholeBlock {
 protected:
  // What forward keeps for backward.
  struct Kept {
    float *query, *key, *value, *max, *sum, *attended, *middle, *gate, *up;
  };

  void MeasureRows(const KernelTensor *x, const KernelTensor *cos, const Tensors &inputs, size_t first_weight) {
    Measure(Size(x, 1), Size(cos, 3), inputs, first_weight);
    tokens_ = Size(x, 0), length_ = Size(cos, 1);
    Require(tokens_ == Size(cos, 0) * length_, "takes as many tokens as angles");
  }

  size_t Statistics() const { return tokens_ * (hidden_ / size_) * ::r1parallel::kStatistics; }

  Kept Parts(float *kept) const {
    Pieces pieces(kept);
    return {pieces.Next(tokens_ * hidden_), pieces.Next(tokens_ * line_),  pieces.Next(tokens_ * line_),
            pieces.Next(Statistics()),      pieces.Next(Statistics()),     pieces.Next(tokens_ * hidden_),
            pieces.Next(tokens_ * hidden_), pieces.Next(tokens_ * inner_), pieces.Next(tokens_ * inner_)};
  }

  void RequireKept(const KernelTensor *kept) const {
    const size_t all = tokens_ * (3 * hidden_ + 2 * line_ + 2 * inner_) + 2 * Statistics();
    Require(kept->size() == all * sizeof(float), "keeps another number of numbers");
  }

  Grid MakeGrid() const {
    return Grid(tokens_ / length_, length_, length_, hidden_ / size_, line_ / size_, size_,
                1.0f / std::sqrt(static_cast<float>(size_)), false);
  }

  // Rotary embedding; `width` numbers of heads for each token.
  void Turn(size_t width, bool backward, const float *from, const KernelTensor *cos, const KernelTensor *sin,
            float *to) const {
    const size_t heads = width / size_;
    const ::r1parallel::RotaryShape shape{{1, tokens_, heads}, {0, 1, 0}, size_};
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::Rotate(begin * heads, end * heads, shape, backward, from, Numbers(cos), Numbers(sin), to);
    });
  }

  size_t length_{};
};

// x, cos, sin, mask, weights → y, kept
class BlockForward : public RowsBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      MeasureRows(inputs[kX], inputs[kCos], inputs, kFirstWeight);
      RequireKept(outputs[1]);
      const size_t a_token = std::max(2 * hidden_ + line_, inner_) + 1;
      SetWorkspaceSizeList({tokens_ * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    const float *x = Numbers(inputs[kX]);
    const Kept kept = Parts(Numbers(outputs[1]));
    Pieces scratch(Numbers(workspace[0]));
    float *inverse = scratch.Next(tokens_), *gated = scratch.Next(0);  // in the place of what is not needed any more
    const Normed normed{inverse, scratch.Next(tokens_ * hidden_)};
    const Projected projected{scratch.Next(tokens_ * hidden_), scratch.Next(tokens_ * line_), kept.value};
    Project(inputs, x, normed, projected);
    Turn(hidden_, false, projected.query, inputs[kCos], inputs[kSin], kept.query);
    Turn(line_, false, projected.key, inputs[kCos], inputs[kSin], kept.key);
    const Grid grid = MakeGrid();
    Attend(grid, MakeMasks(inputs[kMask], grid), {kept.query, kept.key, kept.value, kept.max, kept.sum, kept.attended});
    Feed(inputs, x, kept.attended, normed, {kept.middle, kept.gate, kept.up, gated}, Numbers(outputs[0]));
    return true;
  }

 private:
  enum Input : size_t { kX, kCos, kSin, kMask, kFirstWeight };
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCK_H_
