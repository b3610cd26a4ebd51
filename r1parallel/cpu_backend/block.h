// A whole block of the model over the tokens of a call, and its gradient: what `Block` computes without a cache, each in
// one operator. A graph is then a few operators a layer, and fewer numbers are kept for the gradient. See also
// chunk_block.h, for tokens with a cache.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_BLOCK_H_

#include <cmath>
#include <vector>

#include "elementwise.h"
#include "flash.h"
#include "fused.h"
#include "sgemm.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using ::r1parallel::ForEachVector;
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

  static void Sum(size_t begin, size_t end, const float *x, float *to) {
    ForEachVector(begin, end, x, to, to, [](Vector one, Vector other) { return one + other; });
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
        Sum(0, hidden_, Numbers(Of(inputs, kBq)), to.query + token * hidden_);
        Sum(0, line_, Numbers(Of(inputs, kBk)), to.key + token * line_);
        Sum(0, line_, Numbers(Of(inputs, kBv)), to.value + token * line_);
      }
    });
  }

  // Everything behind the attention; y [T, H].
  void Feed(const Tensors &inputs, const float *x, const float *attended, const Normed &normed, const Fed &fed,
            float *y) const {
    Times(inputs, kWo, attended, fed.middle);
    ForTokens([&](size_t begin, size_t end) { Sum(begin * hidden_, end * hidden_, x, fed.middle); });
    Norm(inputs, kFfnNorm, fed.middle, normed);
    Times(inputs, kGate, normed.x, fed.gate);
    Times(inputs, kUp, normed.x, fed.up);
    ForTokens([&](size_t begin, size_t end) {
      ForEachVector(begin * inner_, end * inner_, fed.gate, fed.up, fed.gated,
                    [](Vector gate, Vector up) { return gate * ::r1parallel::Sigmoid(gate) * up; });
    });
    Times(inputs, kDown, fed.gated, y);
    ForTokens([&](size_t begin, size_t end) { Sum(begin * hidden_, end * hidden_, fed.middle, y); });
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

// dy, x, kept, cos, sin, mask, weights → dx, gradients of the weights
class BlockBackward : public RowsBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      MeasureRows(inputs[kX], inputs[kCos], inputs, kFirstWeight);
      RequireKept(inputs[kKept]);
      const size_t a_token = 3 * hidden_ + std::max(3 * inner_, 2 * (hidden_ + line_) + line_) + 1;
      SetWorkspaceSizeList({tokens_ * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    const Kept kept = Parts(Numbers(inputs[kKept]));
    Pieces scratch(Numbers(workspace[0]));
    float *inverse = scratch.Next(tokens_), *normed = scratch.Next(tokens_ * hidden_);
    const Scratch of{{inverse, normed}, scratch.Next(tokens_ * hidden_), scratch.Next(tokens_ * hidden_), scratch.Next(0)};
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
    const Matrix weight = Stored(inputs, i);
    Product(*this, Tokens(slope, weight.rows).Turned(), Tokens(x, weight.columns), Gradient(outputs, i));
  }

  // Gradient of the weight's inputs.
  void OfInputs(const Tensors &inputs, Weight i, const float *slope, float *to, bool add = false) const {
    const Matrix weight = Stored(inputs, i);
    Product(*this, Tokens(slope, weight.rows), weight, to, add);
  }

  void OfBias(const Tensors &outputs, Weight i, const float *slope, size_t width) const {
    constexpr size_t kLeastColumns = 64;
    float *to = Gradient(outputs, i);
    ShareOut(width, kLeastColumns, [&](size_t begin, size_t end) {
      std::fill(to + begin, to + end, 0.0f);
      for (size_t token = 0; token < tokens_; ++token) {
        Sum(begin, end, slope + token * width, to);
      }
    });
  }

  // Of a norm's input, to which what went past it is added; and of its weight.
  void OfNorm(const Tensors &inputs, const Tensors &outputs, Weight i, const float *x, const float *past,
              const Scratch &of, float *to) const {
    constexpr size_t kLeastColumns = 64;
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormBackward(begin, end, hidden_, of.slope, x, of.normed.inverse, Numbers(Of(inputs, i)), to);
      Sum(begin * hidden_, end * hidden_, past, to);
    });
    ShareOut(hidden_, kLeastColumns, [&](size_t begin, size_t end) {
      ::r1parallel::NormWeightGradient(begin, end, tokens_, hidden_, of.slope, x, of.normed.inverse, Gradient(outputs, i));
    });
  }

  void OfFeedForward(const Tensors &inputs, const Tensors &outputs, const Kept &kept, const Scratch &of) const {
    const float *y = Numbers(inputs[kY]);
    Pieces scratch(of.rest);
    float *gated = scratch.Next(tokens_ * inner_), *gate = scratch.Next(tokens_ * inner_);
    float *up = scratch.Next(tokens_ * inner_);
    OfInputs(inputs, kDown, y, up);
    ForTokens([&](size_t begin, size_t end) {
      for (size_t i = begin * inner_; i < end * inner_; i += ::r1parallel::kLane) {
        Gate(std::min(::r1parallel::kLane, end * inner_ - i), kept.gate + i, kept.up + i, gated + i, gate + i, up + i);
      }
    });
    OfWeight(inputs, outputs, kDown, y, gated);
    Norm(inputs, kFfnNorm, kept.middle, of.normed);
    OfWeight(inputs, outputs, kGate, gate, of.normed.x);
    OfWeight(inputs, outputs, kUp, up, of.normed.x);
    OfInputs(inputs, kGate, gate, of.slope);
    OfInputs(inputs, kUp, up, of.slope, true);
    OfNorm(inputs, outputs, kFfnNorm, kept.middle, y, of, of.middle);
  }

  // Of at most a vector of numbers: silu(gate)·up again; its gradient, which stands in `up_slope`, becomes those of both.
  static void Gate(size_t count, const float *gate, const float *up, float *gated, float *gate_slope, float *up_slope) {
    const Vector x = Some(gate, count), other = Some(up, count), slope = Some(up_slope, count);
    const Vector s = ::r1parallel::Sigmoid(x);
    Put(x * s * other, count, gated);
    Put(slope * other * s * (1.0f + x * (1.0f - s)), count, gate_slope);
    Put(slope * x * s, count, up_slope);
  }

  static Vector Some(const float *from, size_t count) {
    if (count == ::r1parallel::kLane) {
      return ::r1parallel::Load(from);
    }
    Vector some{};
    std::memcpy(&some, from, count * sizeof(float));
    return some;
  }

  static void Put(const Vector &x, size_t count, float *to) { std::memcpy(to, &x, count * sizeof(float)); }

  void OfAttention(const Tensors &inputs, const Tensors &outputs, const Kept &kept, const Scratch &of) const {
    Pieces scratch(of.rest);
    float *query = scratch.Next(tokens_ * hidden_), *key = scratch.Next(tokens_ * line_);
    float *value = scratch.Next(tokens_ * line_);
    float *turned_query = scratch.Next(tokens_ * hidden_), *turned_key = scratch.Next(tokens_ * line_);
    OfWeight(inputs, outputs, kWo, of.middle, kept.attended);
    OfInputs(inputs, kWo, of.middle, of.slope);
    const Grid grid = MakeGrid();
    AttendBackward(grid, MakeMasks(inputs[kMask], grid),
                   {kept.query, kept.key, kept.value, kept.max, kept.sum, kept.attended},
                   {of.slope, turned_query, turned_key, value});
    Turn(hidden_, true, turned_query, inputs[kCos], inputs[kSin], query);
    Turn(line_, true, turned_key, inputs[kCos], inputs[kSin], key);
    Norm(inputs, kAttentionNorm, Numbers(inputs[kX]), of.normed);
    OfProjection(inputs, outputs, kWq, kBq, query, of, false);
    OfProjection(inputs, outputs, kWk, kBk, key, of, true);
    OfProjection(inputs, outputs, kWv, kBv, value, of, true);
    OfNorm(inputs, outputs, kAttentionNorm, Numbers(inputs[kX]), of.middle, of, Numbers(outputs[0]));
  }

  void OfProjection(const Tensors &inputs, const Tensors &outputs, Weight weight, Weight bias, const float *slope,
                    const Scratch &of, bool add) const {
    OfWeight(inputs, outputs, weight, slope, of.normed.x);
    OfBias(outputs, bias, slope, Size(Of(inputs, weight), 0));
    OfInputs(inputs, weight, slope, of.slope, add);
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCK_H_
