// A kernel in the place of one of MindSpore's, which it keeps, for whatever it does not do itself.
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
class Replacement : public Fused {
 public:
  explicit Replacement(std::shared_ptr<NativeCpuKernelMod> other) : other_(std::move(other)) {}

  std::vector<KernelAttr> GetOpSupport() override { return other_->GetOpSupport(); }

  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    other_->SetThreadPool(pool_);
    return other_->Init(primitive_, inputs, outputs);
  }

  int Resize(const Tensors &inputs, const Tensors &outputs) override {
    const int own = NativeCpuKernelMod::Resize(inputs, outputs);
    const int others = own == KRET_OK ? other_->Resize(inputs, outputs) : own;
    SetWorkspaceSizeList(other_->GetWorkspaceSizeList());
    return others;
  }

  bool Launch(const Tensors &inputs, const Tensors &workspace, const Tensors &outputs, void *stream) override {
    return other_->Launch(inputs, workspace, outputs, stream);
  }

 private:
  std::shared_ptr<NativeCpuKernelMod> other_;
};

// The factory's table of creators, which has no public way in. C++ lets an explicit instantiation name a private member.
using Creators = std::map<std::string, std::function<std::shared_ptr<NativeCpuKernelMod>()>>;
Creators &CreatorsOf(Factory<NativeCpuKernelMod> *factory);
template <Creators Factory<NativeCpuKernelMod>::*member>
struct Opened {
  friend Creators &CreatorsOf(Factory<NativeCpuKernelMod> *factory) { return factory->*member; }
};
template struct Opened<&Factory<NativeCpuKernelMod>::kernel_mod_creators_>;

template <typename Kernel>
void Replace(const std::string &name) {
  auto &creator = CreatorsOf(&Factory<NativeCpuKernelMod>::Instance())[name];
  creator = [other = creator] { return std::make_shared<Kernel>(other()); };
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore
#endif  // R1PARALLEL_CPU_BACKEND_REPLACEMENT_H_
