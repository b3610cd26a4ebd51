// ScatterNdUpdate in place, as for a cache. MindSpore's kernel copies the whole tensor even then.
#ifndef R1PARALLEL_CPU_BACKEND_SCATTER_H_
#define R1PARALLEL_CPU_BACKEND_SCATTER_H_

#include <cstring>

#include "common/replacement.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// x [A, B, …], pairs [N, 2], updates [N, …] → x with update i at pair i.
class ScatterUpdate : public Replacement {
 public:
  using Replacement::Replacement;

  std::vector<KernelAttr> GetOpSupport() override {
    auto support = Replacement::GetOpSupport();
    for (auto &attributes : support) {
      (void)attributes.AddOutInRef(0, 0);
    }
    return support;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    const bool in_place = inputs[0]->device_ptr() == outputs[0]->device_ptr();
    if (!in_place || inputs[1]->dtype_id() != kNumberTypeInt32 || inputs[1]->GetShapeVector().back() != 2) {
      return Replacement::Launch(inputs, workspace, outputs, stream);
    }
    const size_t rows = Size(inputs[0], 0), slots = Size(inputs[0], 1), line = inputs[0]->size() / rows / slots;
    const auto *pairs = static_cast<const int32_t *>(inputs[1]->device_ptr());
    const auto *updates = static_cast<const char *>(inputs[2]->device_ptr());
    auto *to = static_cast<char *>(outputs[0]->device_ptr());
    for (size_t i = 0; i < inputs[1]->size() / sizeof(int32_t) / 2; ++i) {
      const auto row = static_cast<size_t>(pairs[2 * i]), slot = static_cast<size_t>(pairs[2 * i + 1]);
      Require(row < rows && slot < slots, "was given an index outside of the tensor");
      std::memcpy(to + (row * slots + slot) * line, updates + i * line, line);
    }
    return true;
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_SCATTER_H_
