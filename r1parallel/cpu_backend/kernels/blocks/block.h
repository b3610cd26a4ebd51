// What every kernel of a whole transformer block has: its weights, its sizes, and what it does with a KV cache.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/attention.h"
#include "common/elementwise.h"
#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Letters: T tokens, H hidden, N query heads, M key/value heads, D head size, Y = M·D, I inner size. Weights are [out,
// in].
class Block : public Fused {
 protected:
  // The order of `WEIGHTS` in `models/fused/whole_block.py`; gradients have the same.
  enum Weight : size_t { kAttentionNorm, kWq, kBq, kWk, kBk, kWv, kBv, kWo, kFfnNorm, kGate, kUp, kDown, kWeights };

  void ReadEps() { eps_ = GetValue<float>(primitive_->GetAttr("eps")); }

  void SetSizes(size_t hidden, size_t head_size, const Tensors &inputs, size_t first_weight) {
    hidden_ = hidden, head_size_ = head_size, first_weight_ = first_weight;
    kv_width_ = Size(inputs[first_weight + kWk], 0), inner_ = Size(inputs[first_weight + kGate], 0);
  }

  const KernelTensor *WeightOf(const Tensors &inputs, Weight i) const { return inputs[first_weight_ + i]; }
  const float *WeightData(const Tensors &inputs, Weight i) const { return Numbers(WeightOf(inputs, i)); }

  size_t QueryHeads() const { return hidden_ / head_size_; }
  size_t KeyHeads() const { return kv_width_ / head_size_; }
  float ScoreScale() const { return 1.0f / std::sqrt(static_cast<float>(head_size_)); }

  size_t hidden_{}, kv_width_{}, inner_{}, head_size_{}, first_weight_{};
  float eps_{};
};

// A block that reads and writes a KV cache, [B, K, M, D] each for keys and values: B rows of K slots, of which the last
// is for tokens that nobody keeps. Inputs as `models/decoding/chunk_block.py` lists them.
class CachedBlock : public Block {
 public:
  bool Init(const Tensors &inputs, const Tensors &) override {
    for (size_t i = 0; i < kInputs; ++i) {
      Require(inputs[i]->dtype_id() == (i == kSlots ? kNumberTypeInt32 : kNumberTypeFloat32),
              "computes in float32 only, with slots in int32");
    }
    ReadEps();
    return true;
  }

 protected:
  enum Input : size_t { kX, kSlots, kCos, kSin, kFirstWeight, kKeys = kFirstWeight + kWeights, kValues, kInputs };

  void SetCachedSizes(const Tensors &inputs) {
    SetSizes(Size(inputs[kX], 1), Size(inputs[kKeys], 3), inputs, kFirstWeight);
    cache_rows_ = Size(inputs[kKeys], 0), cache_slots_ = Size(inputs[kKeys], 1);
  }

  // Checked before threads start, for they may not throw.
  size_t Inside(int32_t index, size_t end) const {
    Require(index >= 0 && static_cast<size_t>(index) < end, "was given a place outside of the cache");
    return static_cast<size_t>(index);
  }

  // Where the keys or values of a slot begin in the cache.
  size_t CacheOffset(size_t row, size_t slot) const { return (row * cache_slots_ + slot) * kv_width_; }

  // Rotary embedding of some heads of one token, by its number among those of cos and sin.
  void RotateToken(const Tensors &inputs, size_t token, size_t heads, const float *from, float *to) const {
    const ::r1parallel::RotaryShape shape{{1, 1, heads}, {0, 0, 0}, head_size_};
    const size_t offset = token * head_size_;
    ::r1parallel::Rotate(0, heads, shape, false, from, Numbers(inputs[kCos]) + offset, Numbers(inputs[kSin]) + offset,
                         to);
  }

  // Queries of the query heads that share a key head, and what they attend to: `keys` slots of one row of the cache.
  struct CachedQueries {
    const float *query;  // of the first of these heads; tokens are H apart, heads D, as in the output
    float *output;
    size_t queries, key_head;
    size_t row, first_slot, keys;
    const bool *hidden;  // [queries, keys], or nullptr
  };

  void AttendToCache(const Tensors &inputs, const CachedQueries &of) const {
    ::r1parallel::AttentionShape shape{};
    shape.queries = of.queries, shape.keys = of.keys, shape.size = head_size_, shape.group = hidden_ / kv_width_;
    shape.query_token = hidden_, shape.query_head = head_size_, shape.key_token = kv_width_;
    shape.scale = ScoreScale();
    const size_t count = of.queries * ::r1parallel::kStatistics;
    std::vector<float> statistics(2 * count);  // nobody reads them: all heads may write to the same
    std::vector<::r1parallel::QueryHead> heads;
    for (size_t n = 0; n < shape.group; ++n) {
      const size_t offset = n * head_size_;
      heads.push_back({of.query + offset, statistics.data(), statistics.data() + count, of.output + offset});
    }
    const size_t offset = CacheOffset(of.row, of.first_slot) + of.key_head * head_size_;
    ::r1parallel::AttentionForward(shape, {0, of.queries, of.hidden}, Numbers(inputs[kKeys]) + offset,
                                   Numbers(inputs[kValues]) + offset, heads.data());
  }

  size_t cache_rows_{}, cache_slots_{};
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCKS_BLOCK_H_
