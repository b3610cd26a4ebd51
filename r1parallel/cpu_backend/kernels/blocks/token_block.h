// A whole block of the model for one token of every row of a cache: what `Block` computes with `TokenAttention`, in one
// operator. A launch of the model is then as many operators as it has blocks, and time goes into reading the weights.
#ifndef R1PARALLEL_CPU_BACKEND_TOKEN_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_TOKEN_BLOCK_H_

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "attention.h"
#include "common/elementwise.h"
#include "common/fused.h"
#include "common/products.h"
#include "common/scratch.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Letters: B rows, H hidden, N query heads, M key heads, D head size, Y = M·D, I inner size, K slots of a row.
// See `models/cached_block.py`; weights are [out, in]. The caches are written in place.
class TokenBlock : public Fused {
 public:
  // The order of `models/cached_block.py`.
  enum Input : size_t {
    kX, kSpots, kCos, kSin,
    kAttentionNorm, kWq, kBq, kWk, kBk, kWv, kBv, kWo,
    kFfnNorm, kGate, kUp, kDown,
    kKeys, kValues, kInputs
  };

  bool Init(const Tensors &inputs, const Tensors &) override {
    for (size_t i = 0; i < kInputs; ++i) {
      Require(inputs[i]->dtype_id() == (i == kSpots ? kNumberTypeInt32 : kNumberTypeFloat32),
              "computes in float32 only, with places in int32");
    }
    eps_ = GetValue<float>(primitive_->GetAttr("eps"));
    return true;
  }

  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result != KRET_OK) {
      return result;
    }
    rows_ = Size(inputs[kX], 0), hidden_ = Size(inputs[kX], 1), inner_ = Size(inputs[kGate], 0);
    slots_ = Size(inputs[kKeys], 1), key_heads_ = Size(inputs[kKeys], 2), size_ = Size(inputs[kKeys], 3);
    Require(Size(inputs[kKeys], 0) == rows_, "takes a token of every row of the cache");
    const size_t line = key_heads_ * size_;
    for (auto *buffer : {&query_, &attended_, &middle_}) {
      buffer->resize(rows_ * hidden_);
    }
    for (auto *buffer : {&key_, &value_}) {
      buffer->resize(rows_ * line);
    }
    for (auto *buffer : {&gate_, &up_}) {
      buffer->resize(rows_ * inner_);
    }
    return KRET_OK;
  }

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const float *x = Numbers(inputs[kX]);
    for (size_t row = 0; row < rows_; ++row) {  // here and not where they are read, for threads may not throw
      const auto *spot = Spot(inputs, row);
      Require(Inside(spot[0], rows_) && Inside(spot[1], slots_), "was given a place outside of the cache");
    }
    const size_t line = key_heads_ * size_;
    Project(Normed{x, Numbers(inputs[kAttentionNorm])}, hidden_,
            {{Numbers(inputs[kWq]), Numbers(inputs[kBq]), hidden_, query_.data()},
             {Numbers(inputs[kWk]), Numbers(inputs[kBk]), line, key_.data()},
             {Numbers(inputs[kWv]), Numbers(inputs[kBv]), line, value_.data()}});
    ShareOut(rows_ * key_heads_, 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        Attend(inputs, i / key_heads_, i % key_heads_);
      }
    });
    Project(Normed{attended_.data(), nullptr}, hidden_, {{Numbers(inputs[kWo]), nullptr, hidden_, middle_.data(), x}});
    Project(Normed{middle_.data(), Numbers(inputs[kFfnNorm])}, hidden_,
            {{Numbers(inputs[kGate]), nullptr, inner_, gate_.data()}, {Numbers(inputs[kUp]), nullptr, inner_, up_.data()}});
    ShareOut(rows_ * inner_, kLeastGates, [&](size_t begin, size_t end) {
      ::r1parallel::GateForward(begin, end, gate_.data(), up_.data(), gate_.data());
    });
    Project(Normed{gate_.data(), nullptr}, inner_,
            {{Numbers(inputs[kDown]), nullptr, hidden_, Numbers(outputs[0]), middle_.data()}});
    return true;
  }

 private:
  static constexpr size_t kLeastOuts = 48, kLeastGates = 4096;

  struct Normed {
    const float *x, *weight;  // no weight: as it is
  };

  // One product of those that share their rows: y [B, outs] = x·wᵀ + bias + what is added.
  struct Projection {
    const float *w, *bias;
    size_t outs;
    float *y;
    const float *added{nullptr};
  };

  // Row and slot where a token's key and value are kept.
  static const int32_t *Spot(const Tensors &inputs, size_t row) {
    return static_cast<const int32_t *>(inputs[kSpots]->device_ptr()) + 2 * row;
  }
  static bool Inside(int32_t place, size_t end) { return place >= 0 && static_cast<size_t>(place) < end; }

  // All outs of all projections one behind the other, shared out over the threads.
  void Project(const Normed &from, size_t depth, std::initializer_list<Projection> projections) const {
    size_t all = 0;
    for (const auto &projection : projections) {
      all += projection.outs;
    }
    ShareOut(all, kLeastOuts, [&](size_t begin, size_t end) {
      for (size_t first = 0; first < rows_; first += ::r1parallel::kFewRows) {
        const size_t rows = std::min(::r1parallel::kFewRows, rows_ - first);
        const float *side = SideBySide(from, first, rows, depth);
        size_t before = 0;
        for (const auto &projection : projections) {
          const size_t from_out = std::clamp(begin, before, before + projection.outs) - before;
          const size_t to_out = std::clamp(end, before, before + projection.outs) - before;
          Part(projection, side, first, rows, depth, from_out, to_out);
          before += projection.outs;
        }
      }
    });
  }

  // Every thread makes them all for itself: fewer numbers than one of the weights' columns per out.
  const float *SideBySide(const Normed &from, size_t first, size_t rows, size_t depth) const {
    auto &scratch = ::r1parallel::ThisThreadsScratch();
    float *side = scratch.Take(depth * ::r1parallel::Side(rows));
    const float *x = from.x + first * depth;
    if (from.weight != nullptr) {
      float *normed = scratch.Take(rows * depth), factors[::r1parallel::kFewRows];
      ::r1parallel::NormForward(0, rows, depth, eps_, x, from.weight, normed, factors);
      x = normed;
    }
    ::r1parallel::SideBySide(x, rows, depth, ::r1parallel::Side(rows), side);
    return side;
  }

  static void Part(const Projection &projection, const float *side, size_t first, size_t rows, size_t depth,
                   size_t begin, size_t end) {
    float *y = projection.y + first * projection.outs;
    ::r1parallel::Products(begin, end, side, projection.w, rows, depth, projection.outs, y);
    for (size_t row = 0; row < rows; ++row) {
      float *to = y + row * projection.outs;
      const float *added = projection.added == nullptr ? nullptr : projection.added + (first + row) * projection.outs;
      for (size_t out = begin; out < end; ++out) {
        to[out] = (projection.bias == nullptr ? to[out] : to[out] + projection.bias[out]) +
                  (added == nullptr ? 0.0f : added[out]);
      }
    }
  }

  // Keeps key and value of a row's token, and attends with the query heads that share them.
  void Attend(const Tensors &inputs, size_t row, size_t key_head) {
    const size_t line = key_heads_ * size_, group = hidden_ / line, first = row * hidden_ + key_head * group * size_;
    const auto in_row = static_cast<size_t>(Spot(inputs, row)[0]), slot = static_cast<size_t>(Spot(inputs, row)[1]);
    const size_t seen = slot + 1 == slots_ ? slot : 0;  // a free row's token has nothing before it
    const size_t cached = (in_row * slots_ + seen) * line + key_head * size_, own = cached + (slot - seen) * line;
    Turn(inputs, row, 1, key_.data() + row * line + key_head * size_, Numbers(inputs[kKeys]) + own);
    std::copy_n(value_.data() + row * line + key_head * size_, size_, Numbers(inputs[kValues]) + own);
    std::vector<float> queries(group * size_);
    Turn(inputs, row, group, query_.data() + first, queries.data());
    float max[::r1parallel::kStatistics], sum[::r1parallel::kStatistics];
    std::vector<::r1parallel::QueryHead> heads;
    for (size_t n = 0; n < group; ++n) {
      heads.push_back({queries.data() + n * size_, max, sum, attended_.data() + first + n * size_});
    }
    ::r1parallel::AttentionShape shape{};
    shape.queries = 1, shape.keys = slot - seen + 1;
    shape.size = size_, shape.group = group, shape.key_token = line;
    shape.query_token = shape.query_head = size_;
    shape.scale = 1.0f / std::sqrt(static_cast<float>(size_));
    ::r1parallel::AttentionForward(shape, {0, 1, nullptr}, Numbers(inputs[kKeys]) + cached,
                                   Numbers(inputs[kValues]) + cached, heads.data());
  }

  // Rotary embedding of heads of one row.
  void Turn(const Tensors &inputs, size_t row, size_t heads, const float *from, float *to) const {
    const ::r1parallel::RotaryShape shape{{1, 1, heads}, {0, 0, 0}, size_};
    ::r1parallel::Rotate(0, heads, shape, false, from, Numbers(inputs[kCos]) + row * size_,
                         Numbers(inputs[kSin]) + row * size_, to);
  }

  size_t rows_{}, hidden_{}, inner_{}, slots_{}, key_heads_{}, size_{};
  float eps_{};
  std::vector<float> query_, key_, value_, attended_, middle_, gate_, up_;
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_TOKEN_BLOCK_H_
