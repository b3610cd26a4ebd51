// Buffers that a thread keeps between calls.
#ifndef R1PARALLEL_CPU_BACKEND_SCRATCH_H_
#define R1PARALLEL_CPU_BACKEND_SCRATCH_H_

#include <cstddef>
#include <vector>

namespace r1parallel {
// Scratch memory of one thread; grows to the largest problem that it has seen.
class Scratch {
 public:
  float *Take(size_t count) {
    if (used_ == buffers_.size()) {
      buffers_.emplace_back();
    }
    auto &buffer = buffers_[used_++];
    if (buffer.size() < count) {
      buffer.resize(count);
    }
    return buffer.data();
  }
  void Restart() { used_ = 0; }

 private:
  std::vector<std::vector<float>> buffers_;
  size_t used_{0};
};

inline Scratch &ThisThreadsScratch() {
  static thread_local Scratch scratch;
  scratch.Restart();
  return scratch;
}
}  // namespace r1parallel
#endif  // R1PARALLEL_CPU_BACKEND_SCRATCH_H_
