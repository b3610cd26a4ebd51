// Attention of one key head of one row of the batch, forward and backward, on contiguous scratch copies of its tensors.
//
// softmax(q·kᵀ·scale)·v over the keys that a mask shows, as in FlashAttention (Dao et al. 2022): the weights are never
// kept, and where a mask hides everything from a tile of queries nothing is done. All query heads that share the key
// head are done here.
#ifndef R1PARALLEL_CPU_BACKEND_ATTENTION_H_
#define R1PARALLEL_CPU_BACKEND_ATTENTION_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/products.h"
#include "common/runs.h"
#include "common/scratch.h"
#include "common/vectors.h"

namespace r1parallel {
constexpr size_t kQueryTile = 16;

// Sizes, and how far apart the elements of the tensors are. Query head n of token s begins at s·token + n·head.
struct AttentionShape {
  size_t queries, keys, size, group;  // tokens, tokens, numbers of a head, query heads of a key head
  size_t query_token, query_head, key_token;
  float scale;
};

// The queries that are done, and which keys are hidden from them: [queries, keys] of the whole row, or nullptr for
// none.
struct QueryRange {
  size_t begin, end;
  const bool *hidden;
};

// One query head of one row.
struct QueryHead {
  const float *query;
  float *max, *sum;  // [queries, kStatistics]
  float *output;
};

struct QueryHeadGradient {
  const float *query, *output, *output_gradient;
  const float *max, *sum;
  float *query_gradient;
};

constexpr size_t kStatistics = 8;  // the operator's interface repeats maximum and sum so often

// [tokens, size] → rows of `wide` numbers, or their transposition, filled up with zeros.
R1_INLINE void Gather(const float *from, size_t token, size_t tokens, size_t size, size_t wide, float *to) {
  for (size_t s = 0; s < tokens; ++s) {
    std::memcpy(to + s * wide, from + s * token, size * sizeof(float));
    std::memset(to + s * wide + size, 0, (wide - size) * sizeof(float));
  }
}

R1_INLINE void GatherTransposed(const float *from, size_t token, size_t tokens, size_t size, size_t wide, float *to) {
  for (size_t d = 0; d < size; ++d) {
    for (size_t s = 0; s < wide; ++s) {
      to[d * wide + s] = s < tokens ? from[s * token + d] : 0.0f;
    }
  }
}

// One token against a cache: keys and values are read where they are, once for all heads that share them.
inline void AttentionOfOneQuery(const AttentionShape &shape, const bool *hidden, const float *key, const float *value,
                                const QueryHead *heads) {
  constexpr size_t kKeys = 4;
  const size_t long_ = RoundUp(shape.keys);
  auto &scratch = ThisThreadsScratch();
  float *scores = scratch.Take(long_), *output = scratch.Take(shape.size);
  std::vector<Run> runs;
  SeenRuns(hidden, 1, shape.keys, &runs);
  for (size_t n = 0; n < shape.group; ++n) {
    const auto &head = heads[n];
    std::fill_n(output, shape.size, 0.0f);
    for (const auto &run : runs) {
      const size_t end = std::min(run.begin + run.count, shape.keys);
      size_t j = run.begin;
      for (; j + kKeys <= end; j += kKeys) {
        const float *keys = key + j * shape.key_token;
        Dots<kKeys>(head.query, keys, shape.key_token, shape.size, scores + j);
      }
      for (; j < end; ++j) {
        const float *keys = key + j * shape.key_token;
        Dots<1>(head.query, keys, shape.key_token, shape.size, scores + j);
      }
      for (j = run.begin; j < run.begin + run.count; j += kLane) {
        Store(scores + j, Load(scores + j) * shape.scale);
      }
    }
    float max;
    const float sum = Weights(runs, hidden, shape.keys, scores, &max);
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (const auto &run : runs) {
      const size_t count = std::min(run.count, shape.keys - run.begin);
      Multiply(scores + run.begin, 0, 1, value + run.begin * shape.key_token, shape.key_token, output, 0, 1, count,
               shape.size, true);
    }
    for (size_t d = 0; d < shape.size; ++d) {
      head.output[d] = output[d] * inverse;
    }
    std::fill_n(head.max, kStatistics, max);
    std::fill_n(head.sum, kStatistics, sum);
  }
}

// f(first query, number of them, their mask, what they see, query head) for all tiles of the range and heads of the
// group.
template <typename F>
R1_INLINE void ForEachTile(const AttentionShape &shape, const QueryRange &range, const F &f) {
  std::vector<Run> runs;
  for (size_t first = range.begin; first < range.end; first += kQueryTile) {
    const size_t count = std::min(kQueryTile, range.end - first);
    const bool *hidden = range.hidden == nullptr ? nullptr : range.hidden + first * shape.keys;
    SeenRuns(hidden, count, shape.keys, &runs);
    for (size_t n = 0; n < shape.group; ++n) {
      f(first, count, hidden, runs, n);
    }
  }
}

// Queries of a tile, times the scale of the scores.
R1_INLINE void GatherScaled(const AttentionShape &shape, const float *query, size_t first, size_t count, size_t wide,
                            float *to) {
  Gather(query + first * shape.query_token, shape.query_token, count, shape.size, wide, to);
  for (size_t i = 0; i < count * wide; i += kLane) {
    Store(to + i, Load(to + i) * shape.scale);
  }
}

inline void AttentionForward(const AttentionShape &shape, const QueryRange &range, const float *key, const float *value,
                             const QueryHead *heads) {
  if (shape.queries == 1 && shape.size % kLane == 0) {
    AttentionOfOneQuery(shape, range.hidden, key, value, heads);
    return;
  }
  const size_t wide = RoundUp(shape.size), long_ = RoundUp(shape.keys);
  auto &scratch = ThisThreadsScratch();
  float *keys = scratch.Take(shape.size * long_), *values = scratch.Take(long_ * wide);
  float *queries = scratch.Take(kQueryTile * wide), *scores = scratch.Take(kQueryTile * long_);
  float *outputs = scratch.Take(kQueryTile * wide), inverses[kQueryTile];
  GatherTransposed(key, shape.key_token, shape.keys, shape.size, long_, keys);
  Gather(value, shape.key_token, shape.keys, shape.size, wide, values);
  std::memset(values + shape.keys * wide, 0, (long_ - shape.keys) * wide * sizeof(float));
  ForEachTile(
    shape, range, [&](size_t first, size_t count, const bool *hidden, const std::vector<Run> &runs, size_t n) {
      const auto &head = heads[n];
      GatherScaled(shape, head.query, first, count, wide, queries);
      for (const auto &run : runs) {
        Multiply(queries, wide, 1, keys + run.begin, long_, scores + run.begin, long_, count, shape.size, run.count,
                 false);
      }
      for (size_t i = 0; i < count; ++i) {
        float *row = scores + i * long_;
        float max;
        const float sum = Weights(runs, hidden == nullptr ? nullptr : hidden + i * shape.keys, shape.keys, row, &max);
        inverses[i] = sum > 0.0f ? 1.0f / sum : 0.0f;  // a query that sees nothing gives zeros
        std::fill_n(head.max + (first + i) * kStatistics, kStatistics, max);
        std::fill_n(head.sum + (first + i) * kStatistics, kStatistics, sum);
      }
      std::fill_n(outputs, count * wide, 0.0f);
      for (const auto &run : runs) {
        Multiply(scores + run.begin, long_, 1, values + run.begin * wide, wide, outputs, wide, count, run.count, wide,
                 true);
      }
      for (size_t i = 0; i < count; ++i) {
        float *to = head.output + (first + i) * shape.query_token;
        for (size_t d = 0; d < shape.size; ++d) {
          to[d] = outputs[i * wide + d] * inverses[i];
        }
      }
    });
}

// Gradients of keys and values are what these queries alone add to them.
inline void AttentionBackward(const AttentionShape &shape, const QueryRange &range, const float *key,
                              const float *value, const QueryHeadGradient *heads, float *key_gradient,
                              float *value_gradient) {
  const size_t wide = RoundUp(shape.size), long_ = RoundUp(shape.keys);
  auto &scratch = ThisThreadsScratch();
  float *keys_t = scratch.Take(shape.size * long_), *values_t = scratch.Take(shape.size * long_);
  float *keys = scratch.Take(long_ * wide);
  float *key_sums = scratch.Take(long_ * wide), *value_sums = scratch.Take(long_ * wide);
  float *queries = scratch.Take(kQueryTile * wide), *given = scratch.Take(kQueryTile * wide);
  float *weights = scratch.Take(kQueryTile * long_), *slopes = scratch.Take(kQueryTile * long_);
  float *gradients = scratch.Take(kQueryTile * wide);
  GatherTransposed(key, shape.key_token, shape.keys, shape.size, long_, keys_t);
  GatherTransposed(value, shape.key_token, shape.keys, shape.size, long_, values_t);
  Gather(key, shape.key_token, shape.keys, shape.size, wide, keys);
  std::memset(keys + shape.keys * wide, 0, (long_ - shape.keys) * wide * sizeof(float));
  std::fill_n(key_sums, long_ * wide, 0.0f);
  std::fill_n(value_sums, long_ * wide, 0.0f);
  ForEachTile(
    shape, range, [&](size_t first, size_t count, const bool *hidden, const std::vector<Run> &runs, size_t n) {
      const auto &head = heads[n];
      GatherScaled(shape, head.query, first, count, wide, queries);
      Gather(head.output_gradient + first * shape.query_token, shape.query_token, count, shape.size, wide, given);
      for (const auto &run : runs) {
        Multiply(queries, wide, 1, keys_t + run.begin, long_, weights + run.begin, long_, count, shape.size, run.count,
                 false);
        Multiply(given, wide, 1, values_t + run.begin, long_, slopes + run.begin, long_, count, shape.size, run.count,
                 false);
      }
      for (size_t i = 0; i < count; ++i) {
        float *row = weights + i * long_, *slope = slopes + i * long_;
        const float max = head.max[(first + i) * kStatistics], sum = head.sum[(first + i) * kStatistics];
        const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
        const float *output = head.output + (first + i) * shape.query_token;
        const float *gradient = given + i * wide;
        float along = 0.0f;  // Σ gradient · output = Σ weight · slope
        for (size_t d = 0; d < shape.size; ++d) {
          along += gradient[d] * output[d];
        }
        Hide(hidden == nullptr ? nullptr : hidden + i * shape.keys, shape.keys, runs, row);
        for (const auto &run : runs) {
          for (size_t j = run.begin; j < run.begin + run.count; j += kLane) {
            const Vector weight = Weight(Load(row + j), max) * inverse;
            Store(row + j, weight);
            Store(slope + j, weight * (Load(slope + j) - along));
          }
        }
      }
      std::fill_n(gradients, count * wide, 0.0f);
      for (const auto &run : runs) {
        const size_t at = run.begin * wide;
        Multiply(slopes + run.begin, long_, 1, keys + at, wide, gradients, wide, count, run.count, wide, true);
        // The queries were scaled before, so this gradient is; the queries' own is scaled below.
        Multiply(slopes + run.begin, 1, long_, queries, wide, key_sums + at, wide, run.count, count, wide, true);
        Multiply(weights + run.begin, 1, long_, given, wide, value_sums + at, wide, run.count, count, wide, true);
      }
      for (size_t i = 0; i < count; ++i) {
        float *to = head.query_gradient + (first + i) * shape.query_token;
        for (size_t d = 0; d < shape.size; ++d) {
          to[d] = gradients[i * wide + d] * shape.scale;
        }
      }
    });
  for (size_t s = 0; s < shape.keys; ++s) {
    std::copy_n(key_sums + s * wide, shape.size, key_gradient + s * shape.key_token);
    std::copy_n(value_sums + s * wide, shape.size, value_gradient + s * shape.key_token);
  }
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_ATTENTION_H_
