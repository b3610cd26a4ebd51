// A whole block of the model over the tokens of a call, and its gradient: what `Block` computes without a cache, each in
// one operator. A graph is then a few operators a layer, and fewer numbers are kept for the gradient.
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

  // What forward keeps for backward.
  struct Kept {
    float *query, *key, *value, *max, *sum, *attended, *middle, *gate, *up;
  };

  void Measure(const KernelTensor *x, const KernelTensor *cos, const Tensors &inputs, size_t weights) {
    tokens_ = Size(x, 0), hidden_ = Size(x, 1), length_ = Size(cos, 1), size_ = Size(cos, 3);
    line_ = Size(inputs[weights + kWk], 0), inner_ = Size(inputs[weights + kGate], 0);
    Require(tokens_ == Size(cos, 0) * length_, "takes as many tokens as angles");
  }

  size_t Statistics() const { return tokens_ * (hidden_ / size_) * ::r1parallel::kStatistics; }

  Kept Parts(float *kept) const {
    Pieces pieces(kept);
    return {pieces.Next(tokens_ * hidden_), pieces.Next(tokens_ * line_),   pieces.Next(tokens_ * line_),
            pieces.Next(Statistics()),      pieces.Next(Statistics()),      pieces.Next(tokens_ * hidden_),
            pieces.Next(tokens_ * hidden_), pieces.Next(tokens_ * inner_),  pieces.Next(tokens_ * inner_)};
  }

  void RequireKept(const KernelTensor *kept) const {
    const size_t all = tokens_ * (3 * hidden_ + 2 * line_ + 2 * inner_) + 2 * Statistics();
    Require(kept->size() == all * sizeof(float), "keeps another number of numbers");
  }

  Grid MakeGrid() const {
    return Grid(tokens_ / length_, length_, length_, hidden_ / size_, line_ / size_, size_,
                1.0f / std::sqrt(static_cast<float>(size_)), false);
  }

  // Rotary embedding of tokens begin … end; `width` numbers of heads each.
  void Turn(size_t begin, size_t end, size_t width, bool backward, const float *from, const KernelTensor *cos,
            const KernelTensor *sin, float *to) const {
    const size_t heads = width / size_;
    const ::r1parallel::RotaryShape shape{{1, tokens_, heads}, {0, 1, 0}, size_};
    ::r1parallel::Rotate(begin * heads, end * heads, shape, backward, from, Numbers(cos), Numbers(sin), to);
  }

  template <typename F>
  void ForTokens(const F &f) const {
    constexpr size_t kLeastTokens = 8;
    ShareOut(tokens_, kLeastTokens, f);
  }

  // [T, columns]
  Matrix Tokens(const float *x, size_t columns) const { return {x, tokens_, columns}; }
  static Matrix Stored(const KernelTensor *weight) { return {Numbers(weight), Size(weight, 0), Size(weight, 1)}; }

  static void Sum(size_t begin, size_t end, const float *x, float *to) {
    ForEachVector(begin, end, x, to, to, [](Vector one, Vector other) { return one + other; });
  }

  size_t tokens_{}, length_{}, hidden_{}, line_{}, inner_{}, size_{};
  float eps_{};
};

// x, cos, sin, mask, weights → y, kept
class BlockForward : public WholeBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      Measure(inputs[kX], inputs[kCos], inputs, kFirstWeight);
      RequireKept(outputs[1]);
      const size_t a_token = std::max(2 * hidden_ + line_, inner_) + 1;
      SetWorkspaceSizeList({tokens_ * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    const float *x = Numbers(inputs[kX]);
    float *y = Numbers(outputs[0]);
    const Kept kept = Parts(Numbers(outputs[1]));
    const auto weight = [&](Weight i) { return Numbers(inputs[kFirstWeight + i]); };
    const auto product = [&](const float *from, size_t columns, Weight i, float *to) {
      Product(*this, Tokens(from, columns), Stored(inputs[kFirstWeight + i]).Turned(), to);
    };
    Pieces scratch(Numbers(workspace[0]));
    float *inverse = scratch.Next(tokens_), *gated = scratch.Next(0);
    float *normed = scratch.Next(tokens_ * hidden_), *query = scratch.Next(tokens_ * hidden_);
    float *key = scratch.Next(tokens_ * line_);
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormForward(begin, end, hidden_, eps_, x, weight(kAttentionNorm), normed, inverse);
    });
    product(normed, hidden_, kWq, query);
    product(normed, hidden_, kWk, key);
    product(normed, hidden_, kWv, kept.value);
    ForTokens([&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; ++token) {
        Sum(0, hidden_, weight(kBq), query + token * hidden_);
        Sum(0, line_, weight(kBk), key + token * line_);
        Sum(0, line_, weight(kBv), kept.value + token * line_);
      }
      Turn(begin, end, hidden_, false, query, inputs[kCos], inputs[kSin], kept.query);
      Turn(begin, end, line_, false, key, inputs[kCos], inputs[kSin], kept.key);
    });
    const Grid grid = MakeGrid();
    Attend(grid, MakeMasks(inputs[kMask], grid), {kept.query, kept.key, kept.value, kept.max, kept.sum, kept.attended});
    product(kept.attended, hidden_, kWo, kept.middle);
    ForTokens([&](size_t begin, size_t end) {
      Sum(begin * hidden_, end * hidden_, x, kept.middle);
      ::r1parallel::NormForward(begin, end, hidden_, eps_, kept.middle, weight(kFfnNorm), normed, inverse);
    });
    product(normed, hidden_, kGate, kept.gate);
    product(normed, hidden_, kUp, kept.up);
    ForTokens([&](size_t begin, size_t end) {
      ForEachVector(begin * inner_, end * inner_, kept.gate, kept.up, gated,
                    [](Vector gate, Vector up) { return gate * ::r1parallel::Sigmoid(gate) * up; });
    });
    product(gated, inner_, kDown, y);
    ForTokens([&](size_t begin, size_t end) { Sum(begin * hidden_, end * hidden_, kept.middle, y); });
    return true;
  }

 private:
  enum Input : size_t { kX, kCos, kSin, kMask, kFirstWeight };
};

// dy, x, kept, cos, sin, mask, weights → dx, gradients of the weights
class BlockBackward : public WholeBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      Measure(inputs[kX], inputs[kCos], inputs, kFirstWeight);
      RequireKept(inputs[kKept]);
      const size_t a_token = 3 * hidden_ + std::max(3 * inner_, 2 * (hidden_ + line_) + line_) + 1;
      SetWorkspaceSizeList({tokens_ * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    const Kept kept = Parts(Numbers(inputs[kKept]));
    Pieces scratch(Numbers(workspace[0]));
    const Scratch of{scratch.Next(tokens_), scratch.Next(tokens_ * hidden_), scratch.Next(tokens_ * hidden_),
                     scratch.Next(tokens_ * hidden_), scratch.Next(0)};
    OfFeedForward(inputs, outputs, kept, of);
    OfAttention(inputs, outputs, kept, of);
    return true;
  }

 private:
  enum Input : size_t { kY, kX, kKept, kCos, kSin, kMask, kFirstWeight };

  // inverse [T], the others [T, H]: a norm's output, its gradient, the gradient of what stands between the two halves.
  struct Scratch {
    float *inverse, *normed, *slope, *middle, *rest;
  };

  static float *Gradient(const Tensors &outputs, Weight i) { return Numbers(outputs[1 + i]); }

  // Gradient of a weight [out, in], from the gradient of its outputs and its inputs.
  void OfWeight(const Tensors &inputs, const Tensors &outputs, Weight i, const float *slope, const float *x) const {
    const Matrix weight = Stored(inputs[kFirstWeight + i]);
    Product(*this, Tokens(slope, weight.rows).Turned(), Tokens(x, weight.columns), Gradient(outputs, i));
  }

  // Gradient of the weight's inputs.
  void OfInputs(const Tensors &inputs, Weight i, const float *slope, float *to, bool add = false) const {
    const Matrix weight = Stored(inputs[kFirstWeight + i]);
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

  // A norm's output again.
  void Again(const Tensors &inputs, Weight i, const float *x, const Scratch &of) const {
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormForward(begin, end, hidden_, eps_, x, Numbers(inputs[kFirstWeight + i]), of.normed, of.inverse);
    });
  }

  // Of a norm's input, to which what went past it is added; and of its weight.
  void OfNorm(const Tensors &inputs, const Tensors &outputs, Weight i, const float *x, const float *past,
              const Scratch &of, float *to) const {
    constexpr size_t kLeastColumns = 64;
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormBackward(begin, end, hidden_, of.slope, x, of.inverse, Numbers(inputs[kFirstWeight + i]), to);
      Sum(begin * hidden_, end * hidden_, past, to);
    });
    ShareOut(hidden_, kLeastColumns, [&](size_t begin, size_t end) {
      ::r1parallel::NormWeightGradient(begin, end, tokens_, hidden_, of.slope, x, of.inverse, Gradient(outputs, i));
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
    Again(inputs, kFfnNorm, kept.middle, of);
    OfWeight(inputs, outputs, kGate, gate, of.normed);
    OfWeight(inputs, outputs, kUp, up, of.normed);
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
    ForTokens([&](size_t begin, size_t end) {
      Turn(begin, end, hidden_, true, turned_query, inputs[kCos], inputs[kSin], query);
      Turn(begin, end, line_, true, turned_key, inputs[kCos], inputs[kSin], key);
    });
    Again(inputs, kAttentionNorm, Numbers(inputs[kX]), of);
    OfProjection(inputs, outputs, kWq, kBq, query, of, false);
    OfProjection(inputs, outputs, kWk, kBk, key, of, true);
    OfProjection(inputs, outputs, kWv, kBv, value, of, true);
    OfNorm(inputs, outputs, kAttentionNorm, Numbers(inputs[kX]), of.middle, of, Numbers(outputs[0]));
  }

  void OfProjection(const Tensors &inputs, const Tensors &outputs, Weight weight, Weight bias, const float *slope,
                    const Scratch &of, bool add) const {
    OfWeight(inputs, outputs, weight, slope, of.normed);
    OfBias(outputs, bias, slope, Size(inputs[kFirstWeight + weight], 0));
    OfInputs(inputs, weight, slope, of.slope, add);
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCK_H_
