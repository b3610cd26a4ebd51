// The stages of a block over many tokens at once, each a product of large matrices for all of them.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCKS_STAGES_H_
#define R1PARALLEL_CPU_BACKEND_BLOCKS_STAGES_H_

#include "blocks/block.h"
#include "common/elementwise.h"
#include "common/sgemm.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Hands out buffers that lie one behind the other.
class Buffers {
 public:
  explicit Buffers(float *next) : next_(next) {}
  float *Next(size_t count) {
    float *buffer = next_;
    next_ += count;
    return buffer;
  }

 private:
  float *next_;
};

// `Base` is Block, or CachedBlock for a block that has a cache.
template <typename Base>
class Stages : public Base {
 protected:
  using Weight = typename Base::Weight;

  // [T, Y or H], before the rotary embedding.
  struct Projected {
    float *query, *key, *value;
  };

  // x + attention's output, [T, H]; the rest [T, I].
  struct FeedForward {
    float *middle, *gate, *up, *gated;
  };

  // A norm's output [T, H], and 1 / √… [T].
  struct Normed {
    float *inverse, *x;
  };

  template <typename F>
  void ForTokens(const F &f) const {
    constexpr size_t kLeastTokens = 8;
    this->ShareOut(tokens_, kLeastTokens, f);
  }

  // [T, columns]
  Matrix Tokens(const float *x, size_t columns) const { return {x, tokens_, columns}; }
  Matrix WeightMatrix(const Tensors &inputs, Weight i) const {
    const auto *weight = this->WeightOf(inputs, i);
    return {Numbers(weight), Size(weight, 0), Size(weight, 1)};
  }

  void Norm(const Tensors &inputs, Weight i, const float *x, const Normed &to) const {
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::NormForward(begin, end, this->hidden_, this->eps_, x, this->WeightData(inputs, i), to.x,
                                to.inverse);
    });
  }

  // y [T, out] = x·wᵀ
  void Linear(const Tensors &inputs, Weight i, const float *x, float *y) const {
    const Matrix weight = WeightMatrix(inputs, i);
    Product(*this, Tokens(x, weight.columns), weight.Transposed(), y);
  }

  void Project(const Tensors &inputs, const float *x, const Normed &normed, const Projected &to) const {
    const size_t hidden = this->hidden_, kv_width = this->kv_width_;
    Norm(inputs, Base::kAttentionNorm, x, normed);
    Linear(inputs, Base::kWq, normed.x, to.query);
    Linear(inputs, Base::kWk, normed.x, to.key);
    Linear(inputs, Base::kWv, normed.x, to.value);
    ForTokens([&](size_t begin, size_t end) {
      for (size_t token = begin; token < end; ++token) {
        ::r1parallel::AddUp(0, hidden, this->WeightData(inputs, Base::kBq), to.query + token * hidden);
        ::r1parallel::AddUp(0, kv_width, this->WeightData(inputs, Base::kBk), to.key + token * kv_width);
        ::r1parallel::AddUp(0, kv_width, this->WeightData(inputs, Base::kBv), to.value + token * kv_width);
      }
    });
  }

  // Everything after the attention; y [T, H].
  void FeedForwardStage(const Tensors &inputs, const float *x, const float *attended, const Normed &normed,
                        const FeedForward &to, float *y) const {
    const size_t hidden = this->hidden_, inner = this->inner_;
    Linear(inputs, Base::kWo, attended, to.middle);
    ForTokens([&](size_t begin, size_t end) { ::r1parallel::AddUp(begin * hidden, end * hidden, x, to.middle); });
    Norm(inputs, Base::kFfnNorm, to.middle, normed);
    Linear(inputs, Base::kGate, normed.x, to.gate);
    Linear(inputs, Base::kUp, normed.x, to.up);
    ForTokens([&](size_t begin, size_t end) {
      ::r1parallel::GateForward(begin * inner, end * inner, to.gate, to.up, to.gated);
    });
    Linear(inputs, Base::kDown, to.gated, y);
    ForTokens([&](size_t begin, size_t end) { ::r1parallel::AddUp(begin * hidden, end * hidden, to.middle, y); });
  }

  size_t tokens_{};
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCKS_STAGES_H_
