// A whole block of the model for chunks of prompts, which fill a cache: what `Block` computes with `PromptAttention`,
// in one operator. Only tokens that some row keeps are computed, so that a launch may offer many chunks and fill few.
#ifndef R1PARALLEL_CPU_BACKEND_BLOCKS_CHUNK_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_BLOCKS_CHUNK_BLOCK_H_

#include <algorithm>
#include <memory>
#include <vector>

#include "blocks/stages.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Letters as in block.h; Q chunks of S tokens. x [Q·S, H], slots [Q, X] as `ChunkRows` lays them out, cos, sin [Q, S,
// 1, D], weights, caches → y [Q·S, H], zeros where no row keeps the token. The caches are written in place.
class ChunkBlock : public Stages<CachedBlock> {
 public:
  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      SetCachedSizes(inputs);
      const size_t a_token = 7 * hidden_ + 3 * kv_width_ + 3 * inner_ + 1;
      SetWorkspaceSizeList({Size(inputs[kX], 0) * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    std::fill_n(Numbers(outputs[0]), outputs[0]->size() / sizeof(float), 0.0f);
    FindKept(inputs);
    if (tokens_ == 0) {
      return true;
    }
    Buffers scratch(Numbers(workspace[0]));
    const auto next = [&](size_t width) { return scratch.Next(tokens_ * width); };
    float *x = next(hidden_), *query = next(hidden_), *attended = next(hidden_), *y = next(hidden_);
    const Normed normed{next(1), next(hidden_)};
    const Projected projected{next(hidden_), next(kv_width_), next(kv_width_)};
    float *key = next(kv_width_);
    const FeedForward fed{next(hidden_), next(inner_), next(inner_), next(inner_)};
    for (size_t i = 0; i < tokens_; ++i) {
      std::copy_n(Numbers(inputs[kX]) + kept_[i].number * hidden_, hidden_, x + i * hidden_);
    }
    Project(inputs, x, normed, projected);
    ForTokens([&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        RotateToken(inputs, kept_[i].number, QueryHeads(), projected.query + i * hidden_, query + i * hidden_);
        RotateToken(inputs, kept_[i].number, KeyHeads(), projected.key + i * kv_width_, key + i * kv_width_);
      }
    });
    for (const auto &copy : copies_) {
      const size_t offset = CacheOffset(copy.row, kept_[copy.token].slot);
      std::copy_n(key + copy.token * kv_width_, kv_width_, Numbers(inputs[kKeys]) + offset);
      std::copy_n(projected.value + copy.token * kv_width_, kv_width_, Numbers(inputs[kValues]) + offset);
    }
    ShareOut(chunks_.size() * KeyHeads(), 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        Attend(inputs, chunks_[i / KeyHeads()], i % KeyHeads(), query, attended);
      }
    });
    FeedForwardStage(inputs, x, attended, normed, fed, y);
    for (size_t i = 0; i < tokens_; ++i) {
      std::copy_n(y + i * hidden_, hidden_, Numbers(outputs[0]) + kept_[i].number * hidden_);
    }
    return true;
  }

 private:
  // A token that some row keeps: its number among all that are offered, its slot.
  struct Token {
    size_t number, slot;
  };

  // A row of the cache that keeps a token.
  struct Copy {
    size_t token, row;
  };

  // The kept tokens of a chunk, the row that holds the ones before them, and what each does not see, [end − begin,
  // keys].
  struct Chunk {
    size_t begin, end, row, keys;
    std::unique_ptr<bool[]> hidden;
  };

  // Reads which tokens are kept, and by which rows.
  void FindKept(const Tensors &inputs) {
    const size_t chunks = Size(inputs[kSlots], 0), width = Size(inputs[kSlots], 1), offered = (width - 1) / 3;
    const size_t all = Size(inputs[kX], 0), length = all / chunks;
    const auto *indices = static_cast<const int32_t *>(inputs[kSlots]->device_ptr());
    std::vector<size_t> slots(all, cache_slots_);  // of each token; none yet
    copies_.clear(), kept_.clear(), chunks_.clear();
    for (size_t chunk = 0; chunk < chunks; ++chunk, indices += width) {
      for (size_t i = 0; i < offered; ++i) {
        const auto *pair = indices + 1 + offered + 2 * i;
        const size_t number = Inside(indices[1 + i], all);
        const size_t row = Inside(pair[0], cache_rows_), slot = Inside(pair[1], cache_slots_);
        if (slot + 1 < cache_slots_) {
          slots[number] = slot;
          copies_.push_back({number, row});
        }
      }
      const size_t begin = kept_.size(), row = Inside(indices[0], cache_rows_);
      for (size_t number = chunk * length; number < (chunk + 1) * length; ++number) {
        if (slots[number] < cache_slots_) {
          kept_.push_back({number, slots[number]});
        }
      }
      if (begin < kept_.size()) {
        chunks_.push_back({begin, kept_.size(), row, kept_.back().slot + 1, nullptr});
        Hide(&chunks_.back());
      }
    }
    tokens_ = kept_.size();
    std::vector<size_t> kept_of(all);
    for (size_t i = 0; i < tokens_; ++i) {
      kept_of[kept_[i].number] = i;
    }
    for (auto &copy : copies_) {
      copy.token = kept_of[copy.token];
    }
  }

  void Hide(Chunk *chunk) const {
    const size_t keys = chunk->keys;
    chunk->hidden.reset(new bool[(chunk->end - chunk->begin) * keys]);
    bool *to = chunk->hidden.get();
    for (size_t i = chunk->begin; i < chunk->end; ++i, to += keys) {
      std::fill(to, to + kept_[i].slot + 1, false);
      std::fill(to + kept_[i].slot + 1, to + keys, true);
    }
  }

  // The query heads of a chunk that share a key head.
  void Attend(const Tensors &inputs, const Chunk &chunk, size_t key_head, const float *query, float *attended) const {
    const size_t offset = chunk.begin * hidden_ + key_head * (hidden_ / kv_width_) * head_size_;
    AttendToCache(inputs, {query + offset, attended + offset, chunk.end - chunk.begin, key_head, chunk.row, 0,
                           chunk.keys, chunk.hidden.get()});
  }

  std::vector<Token> kept_;
  std::vector<Copy> copies_;
  std::vector<Chunk> chunks_;
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_BLOCKS_CHUNK_BLOCK_H_
