// Replacing one of MindSpore's kernels by ours, which falls back to the original for cases that it does not handle.
#ifndef R1PARALLEL_CPU_BACKEND_REPLACEMENT_H_
#define R1PARALLEL_CPU_BACKEND_REPLACEMENT_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/fused.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
// Does what the original does. A subclass overrides `Launch` and calls this one for what it leaves to the original.
class Replacement : public Fused {
 public:
  explicit Replacement(std::shared_ptr<NativeCpuKernelMod> original) : original_(std::move(original)) {}

  std::vector<KernelAttr> GetOpSupport() override { return original_->GetOpSupport(); }

  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    original_->SetThreadPool(pool_);
    return original_->Init(primitive_, inputs, outputs);
  }

  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int own = NativeCpuKernelMod::Resize(inputs, outputs);
    const int result = own == KRET_OK ? original_->Resize(inputs, outputs) : own;
    SetWorkspaceSizeList(original_->GetWorkspaceSizeList());
    return result;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    return original_->Launch(inputs, workspace, outputs, stream);
  }

 private:
  std::shared_ptr<NativeCpuKernelMod> original_;
};

// The factory's table of creators is private. An explicit template instantiation may name private members, so this one
// hands it out.
using Creators = std::map<std::string, std::function<std::shared_ptr<NativeCpuKernelMod>()>>;
Creators &CreatorsOf(Factory<NativeCpuKernelMod> *factory);
template <Creators Factory<NativeCpuKernelMod>::*member>
struct Access {
  friend Creators &CreatorsOf(Factory<NativeCpuKernelMod> *factory) { return factory->*member; }
};
template struct Access<&Factory<NativeCpuKernelMod>::kernel_mod_creators_>;

template <typename Kernel>
void Replace(const std::string &name) {
  auto &creator = CreatorsOf(&Factory<NativeCpuKernelMod>::Instance())[name];
  creator = [original = creator] { return std::make_shared<Kernel>(original()); };
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_REPLACEMENT_H_
