// Which keys a tile of queries sees, and the attention weights of those.
#ifndef R1PARALLEL_CPU_BACKEND_RUNS_H_
#define R1PARALLEL_CPU_BACKEND_RUNS_H_

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/elementwise.h"

namespace r1parallel {
// A run of consecutive keys, in whole vectors. At least one key of each vector is seen by a query of the tile.
struct Run {
  size_t begin, count;
};

// All runs that these queries see, in order. hidden: [queries, keys], or nullptr if nothing is.
R1_INLINE void SeenRuns(const bool *hidden, size_t queries, size_t keys, std::vector<Run> *runs) {
  runs->clear();
  for (size_t first = 0; first < keys; first += kLane) {
    const size_t count = std::min(kLane, keys - first);
    bool seen = hidden == nullptr;
    for (size_t i = 0; i < queries && !seen; ++i) {
      seen = std::memchr(hidden + i * keys + first, 0, count) != nullptr;
    }
    if (seen && !runs->empty() && runs->back().begin + runs->back().count == first) {
      runs->back().count += kLane;
    } else if (seen) {
      runs->push_back({first, kLane});
    }
  }
}

// Sets the scores of hidden keys, and of those past the last key, to −∞.
R1_INLINE void Hide(const bool *hidden, size_t keys, const std::vector<Run> &runs, float *scores) {
  for (const auto &run : runs) {
    const size_t end = std::min(run.begin + run.count, keys);
    if (hidden != nullptr) {
      for (size_t j = run.begin; j < end; ++j) {
        scores[j] = hidden[j] ? -INFINITY : scores[j];
      }
    }
    std::fill(scores + end, scores + run.begin + run.count, -INFINITY);
  }
}

R1_INLINE float Largest(const std::vector<Run> &runs, const float *scores) {
  float max = -INFINITY;
  for (const auto &run : runs) {
    max = std::max(max, Largest(scores + run.begin, run.count));
  }
  return max;
}

// exp(score − max), 0 for hidden keys.
R1_INLINE Vector Weight(Vector scores, float max) { return scores == All(-INFINITY) ? Vector{} : Exp(scores - max); }

// Turns the scores of the runs into unnormalized weights. Returns their sum; `max` becomes the largest score.
R1_INLINE float Weights(const std::vector<Run> &runs, const bool *hidden, size_t keys, float *scores, float *max) {
  Hide(hidden, keys, runs, scores);
  *max = Largest(runs, scores);
  Vector sums{};
  for (const auto &run : runs) {
    for (size_t j = run.begin; j < run.begin + run.count; j += kLane) {
      const Vector weight = Weight(Load(scores + j), *max);
      Store(scores + j, weight);
      sums += weight;
    }
  }
  return Sum(sums);
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_RUNS_H_
