// A whole block of the model for one token of every row of a cache: what `Block` computes with `TokenAttention`, in one
// operator. A launch of the model is then as many operators as it has blocks, and time goes into reading the weights.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCKS_TOKEN_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_BLOCKS_TOKEN_BLOCK_H_

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "blocks/block.h"
#include "common/elementwise.h"
#include "common/products.h"
#include "common/scratch.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Letters as in block.h. x [B, H], slots [B, 2] as `TokenRows` lays them out, cos, sin [B, 1, 1, D], weights, caches
// → y [B, H]. The caches are written in place.
class TokenBlock : public CachedBlock {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result != KRET_OK) {
      return result;
    }
    SetCachedSizes(inputs);
    rows_ = Size(inputs[kX], 0);
    Require(cache_rows_ == rows_, "takes a token of every row of the cache");
    for (auto *buffer : {&query_, &attended_, &middle_}) {
      buffer->resize(rows_ * hidden_);
    }
    for (auto *buffer : {&key_, &value_}) {
      buffer->resize(rows_ * kv_width_);
    }
    for (auto *buffer : {&gate_, &up_}) {
      buffer->resize(rows_ * inner_);
    }
    return KRET_OK;
  }

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const float *x = Numbers(inputs[kX]);
    for (size_t row = 0; row < rows_; ++row) {
      const auto *pair = RowAndSlot(inputs, row);
      Inside(pair[0], rows_), Inside(pair[1], cache_slots_);
    }
    const auto weight = [&](Weight i) { return WeightData(inputs, i); };
    Project(Rows{x, weight(kAttentionNorm)}, hidden_,
            {{weight(kWq), weight(kBq), hidden_, query_.data()},
             {weight(kWk), weight(kBk), kv_width_, key_.data()},
             {weight(kWv), weight(kBv), kv_width_, value_.data()}});
    const size_t key_heads = KeyHeads();
    ShareOut(rows_ * key_heads, 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        Attend(inputs, i / key_heads, i % key_heads);
      }
    });
    Project(Rows{attended_.data(), nullptr}, hidden_, {{weight(kWo), nullptr, hidden_, middle_.data(), x}});
    Project(Rows{middle_.data(), weight(kFfnNorm)}, hidden_,
            {{weight(kGate), nullptr, inner_, gate_.data()}, {weight(kUp), nullptr, inner_, up_.data()}});
    ShareOut(rows_ * inner_, kLeastGates, [&](size_t begin, size_t end) {
      ::r1parallel::GateForward(begin, end, gate_.data(), up_.data(), gate_.data());
    });
    Project(Rows{gate_.data(), nullptr}, inner_,
            {{weight(kDown), nullptr, hidden_, Numbers(outputs[0]), middle_.data()}});
    return true;
  }

 private:
  static constexpr size_t kLeastOuts = 48, kLeastGates = 4096;

  // [B, …], and the weight of the norm that is applied to them first, or nullptr.
  struct Rows {
    const float *x, *norm_weight;
  };

  // One of the products of the same rows: y [B, outs] = x·wᵀ + bias + added.
  struct Projection {
    const float *w, *bias;
    size_t outs;
    float *y;
    const float *added{nullptr};
  };

  // Row and slot in which a token's key and value are kept.
  static const int32_t *RowAndSlot(const Tensors &inputs, size_t row) {
    return static_cast<const int32_t *>(inputs[kSlots]->device_ptr()) + 2 * row;
  }

  // The outs of all projections, one behind the other, are shared out over the threads.
  void Project(const Rows &from, size_t depth, std::initializer_list<Projection> projections) const {
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

  // Every thread makes its own: these are fewer numbers than the weights that it reads.
  const float *SideBySide(const Rows &from, size_t first, size_t rows, size_t depth) const {
    auto &scratch = ::r1parallel::ThisThreadsScratch();
    float *side = scratch.Take(depth * ::r1parallel::Side(rows));
    const float *x = from.x + first * depth;
    if (from.norm_weight != nullptr) {
      float *normed = scratch.Take(rows * depth), factors[::r1parallel::kFewRows];
      ::r1parallel::NormForward(0, rows, depth, eps_, x, from.norm_weight, normed, factors);
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

  // Writes the key and value of a row's token into the cache, then attends with the query heads that share them.
  void Attend(const Tensors &inputs, size_t token, size_t key_head) {
    const size_t group = hidden_ / kv_width_, first = token * hidden_ + key_head * group * head_size_;
    const auto row = static_cast<size_t>(RowAndSlot(inputs, token)[0]);
    const auto slot = static_cast<size_t>(RowAndSlot(inputs, token)[1]);
    const size_t first_slot = slot + 1 == cache_slots_ ? slot : 0;  // a token that nobody keeps sees itself only
    const size_t own = CacheOffset(row, slot) + key_head * head_size_;
    const size_t head = token * kv_width_ + key_head * head_size_;
    RotateToken(inputs, token, 1, key_.data() + head, Numbers(inputs[kKeys]) + own);
    std::copy_n(value_.data() + head, head_size_, Numbers(inputs[kValues]) + own);
    std::vector<float> queries(group * head_size_);
    RotateToken(inputs, token, group, query_.data() + first, queries.data());
    AttendToCache(
      inputs, {queries.data(), attended_.data() + first, 1, key_head, row, first_slot, slot - first_slot + 1, nullptr});
  }

  size_t rows_{};
  std::vector<float> query_, key_, value_, attended_, middle_, gate_, up_;
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCKS_TOKEN_BLOCK_H_
