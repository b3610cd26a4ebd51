// The base class of all fused kernels, and access to their tensors.
#ifndef R1PARALLEL_CPU_BACKEND_FUSED_H_
#define R1PARALLEL_CPU_BACKEND_FUSED_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "include/runtime/hardware_abstract/kernel_base/ms_factory.h"
#include "include/utils/thread_pool.h"
#include "kernel/cpu/cpu_kernel.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using Tensors = std::vector<KernelTensor *>;

inline float *Numbers(const KernelTensor *tensor) { return static_cast<float *>(tensor->device_ptr()); }
inline bool Given(const KernelTensor *tensor) { return tensor->dtype_id() != kMetaTypeNone; }
inline size_t Size(const KernelTensor *tensor, size_t dim) {
  return static_cast<size_t>(tensor->GetShapeVector()[dim]);
}

// A kernel for float32 tensors. MindSpore's check of types is skipped (an operator may have None among its inputs);
// `Init` checks instead.
class Fused : public NativeCpuKernelMod {
 public:
  std::vector<KernelAttr> GetOpSupport() override { return {KernelAttr().AddSkipCheckAttr(true)}; }

  bool Init(const Tensors &inputs, const Tensors &) override {
    for (const auto *input : inputs) {
      const auto type = input->dtype_id();
      Require(input->type_id() != kObjectTypeTensorType || type == kNumberTypeFloat32 || type == kNumberTypeBool,
              "computes in float32 only, with masks of bool");
    }
    return true;
  }

  // Splits 0 … count into ranges of at least `least`, one a thread of MindSpore's pool, and calls f(begin, end) for
  // each.
  template <typename F>
  void ShareOut(size_t count, size_t least, const F &f) const {
    const size_t threads = pool_ == nullptr ? 1 : pool_->GetKernelThreadNum();
    const size_t shares = std::max<size_t>(1, std::min(threads, count / least));
    if (shares == 1) {
      f(0, count);
      return;
    }
    (void)pool_->ParallelLaunch(
      [&](void *, int share, float, float) {
        f(count * share / shares, count * (share + 1) / shares);
        return 0;
      },
      nullptr, static_cast<int>(shares));
  }

  // Throws an error that names the operator. Not to be called from f above: threads may not throw.
  void Require(bool holds, const char *what) const {
    if (!holds) {
      MS_LOG(EXCEPTION) << kernel_name_ << " on CPU " << what;
    }
  }
};
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_FUSED_H_
