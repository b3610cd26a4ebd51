// A whole block of the model for chunks of prompts, which fill a cache: what `Block` computes with `PromptAttention`, in
// one operator. Only tokens that some row keeps are computed, so that a launch may offer many chunks and fill few.
#ifndef R1PARALLEL_CPU_BACKEND_CHUNK_BLOCK_H_
#define R1PARALLEL_CPU_BACKEND_CHUNK_BLOCK_H_

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "blocks/block.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Letters as in block.h; Q chunks of S tokens, K slots of a row. x [Q·S, H], places [Q, X] as `Cache.put_chunks` has them,
// cos, sin [Q, S, 1, D], weights, caches [B, K, M, D] → y [Q·S, H], zeros where a token is not kept. See
// `models/cached_block.py`. The caches are written in place.
class ChunkBlock : public WholeBlock {
 public:
  bool Init(const Tensors &inputs, const Tensors &) override {
    for (size_t i = 0; i < kInputs; ++i) {
      Require(inputs[i]->dtype_id() == (i == kPlaces ? kNumberTypeInt32 : kNumberTypeFloat32),
              "computes in float32 only, with places in int32");
    }
    eps_ = GetValue<float>(primitive_->GetAttr("eps"));
    return true;
  }

  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int result = Fused::Resize(inputs, outputs);
    if (result == KRET_OK) {
      Measure(Size(inputs[kX], 1), Size(inputs[kKeys], 3), inputs, kFirstWeight);
      slots_ = Size(inputs[kKeys], 1);
      const size_t a_token = 7 * hidden_ + 3 * line_ + 3 * inner_ + 1;
      SetWorkspaceSizeList({Size(inputs[kX], 0) * a_token * sizeof(float)});
    }
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs) override {
    std::fill_n(Numbers(outputs[0]), outputs[0]->size() / sizeof(float), 0.0f);
    Look(inputs);
    if (tokens_ == 0) {
      return true;
    }
    Pieces scratch(Numbers(workspace[0]));
    const auto next = [&](size_t width) { return scratch.Next(tokens_ * width); };
    float *x = next(hidden_), *query = next(hidden_), *attended = next(hidden_), *y = next(hidden_);
    const Normed normed{next(1), next(hidden_)};
    const Projected projected{next(hidden_), next(line_), next(line_)};
    float *key = next(line_);
    const Fed fed{next(hidden_), next(inner_), next(inner_), next(inner_)};
    for (size_t i = 0; i < tokens_; ++i) {
      std::copy_n(Numbers(inputs[kX]) + kept_[i].number * hidden_, hidden_, x + i * hidden_);
    }
    Project(inputs, x, normed, projected);
    ForTokens([&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        Turn(inputs, i, hidden_, projected.query, query);
        Turn(inputs, i, line_, projected.key, key);
      }
    });
    for (const auto &spot : spots_) {
      const size_t at = (spot.row * slots_ + kept_[spot.token].slot) * line_;
      std::copy_n(key + spot.token * line_, line_, Numbers(inputs[kKeys]) + at);
      std::copy_n(projected.value + spot.token * line_, line_, Numbers(inputs[kValues]) + at);
    }
    const size_t heads = line_ / size_;
    ShareOut(chunks_.size() * heads, 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        Attend(inputs, chunks_[i / heads], i % heads, query, attended);
      }
    });
    Feed(inputs, x, attended, normed, fed, y);
    for (size_t i = 0; i < tokens_; ++i) {
      std::copy_n(y + i * hidden_, hidden_, Numbers(outputs[0]) + kept_[i].number * hidden_);
    }
    return true;
  }

 private:
  enum Input : size_t {
    kX, kPlaces, kCos, kSin,
    kFirstWeight, kKeys = kFirstWeight + kWeights, kValues, kInputs
  };

  // A token that some row keeps: its number among all that are offered, its slot.
  struct Token {
    size_t number, slot;
  };

  // A row that keeps one of them.
  struct Spot {
    size_t token, row;
  };

  // Those of one chunk, the row that holds what is before them, and what each of them does not see, [end − begin, keys].
  struct Chunk {
    size_t begin, end, row, keys;
    std::unique_ptr<bool[]> hidden;
  };

  // Which tokens are kept, by whom. The last slot of a row is where nothing is kept.
  void Look(const Tensors &inputs) {
    const size_t chunks = Size(inputs[kPlaces], 0), width = Size(inputs[kPlaces], 1), offered = (width - 1) / 3;
    const size_t rows = Size(inputs[kKeys], 0), all = Size(inputs[kX], 0), length = all / chunks;
    const auto *places = static_cast<const int32_t *>(inputs[kPlaces]->device_ptr());
    std::vector<size_t> slots(all, slots_);
    spots_.clear(), kept_.clear(), chunks_.clear();
    for (size_t chunk = 0; chunk < chunks; ++chunk, places += width) {
      for (size_t i = 0; i < offered; ++i) {
        const auto *spot = places + 1 + offered + 2 * i;
        const size_t number = Inside(places[1 + i], all), row = Inside(spot[0], rows), slot = Inside(spot[1], slots_);
        if (slot + 1 < slots_) {
          slots[number] = slot;
          spots_.push_back({number, row});
        }
      }
      const size_t begin = kept_.size(), row = Inside(places[0], rows);
      for (size_t number = chunk * length; number < (chunk + 1) * length; ++number) {
        if (slots[number] < slots_) {
          kept_.push_back({number, slots[number]});
        }
      }
      if (begin < kept_.size()) {
        chunks_.push_back({begin, kept_.size(), row, kept_.back().slot + 1, nullptr});
        Hide(&chunks_.back());
      }
    }
    tokens_ = kept_.size();
    std::vector<size_t> place(all);
    for (size_t i = 0; i < tokens_; ++i) {
      place[kept_[i].number] = i;
    }
    for (auto &spot : spots_) {
      spot.token = place[spot.token];
    }
  }

  // Checked here and not where it is used, for threads may not throw.
  size_t Inside(int32_t place, size_t end) const {
    Require(place >= 0 && static_cast<size_t>(place) < end, "was given a place outside of the cache");
    return static_cast<size_t>(place);
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

  // Rotary embedding of one token; `width` numbers of heads.
  void Turn(const Tensors &inputs, size_t i, size_t width, const float *from, float *to) const {
    const ::r1parallel::RotaryShape shape{{1, 1, width / size_}, {0, 0, 0}, size_};
    const size_t line = kept_[i].number * size_;
    ::r1parallel::Rotate(0, width / size_, shape, false, from + i * width, Numbers(inputs[kCos]) + line,
                         Numbers(inputs[kSin]) + line, to + i * width);
  }

  // The query heads of a chunk that share a key head.
  void Attend(const Tensors &inputs, const Chunk &chunk, size_t key_head, const float *query, float *attended) const {
    ::r1parallel::AttentionShape shape{};
    shape.queries = chunk.end - chunk.begin, shape.keys = chunk.keys;
    shape.size = size_, shape.group = hidden_ / line_;
    shape.query_token = hidden_, shape.query_head = size_, shape.key_token = line_;
    shape.scale = 1.0f / std::sqrt(static_cast<float>(size_));
    std::vector<float> statistics(2 * shape.group * shape.queries * ::r1parallel::kStatistics);
    std::vector<QueryHead> heads;
    for (size_t n = 0; n < shape.group; ++n) {
      const size_t at = chunk.begin * hidden_ + (key_head * shape.group + n) * size_;
      float *max = statistics.data() + 2 * n * shape.queries * ::r1parallel::kStatistics;
      heads.push_back({query + at, max, max + shape.queries * ::r1parallel::kStatistics, attended + at});
    }
    const size_t cached = chunk.row * slots_ * line_ + key_head * size_;
    ::r1parallel::AttentionForward(shape, {0, shape.queries, chunk.hidden.get()}, Numbers(inputs[kKeys]) + cached,
                                   Numbers(inputs[kValues]) + cached, heads.data());
  }

  size_t slots_{};
  std::vector<Token> kept_;
  std::vector<Spot> spots_;
  std::vector<Chunk> chunks_;
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_CHUNK_BLOCK_H_
