// Collectives of MindSpore's CPU target that the wheel lacks, or offers for few types and for the world group only.
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "include/runtime/hardware_abstract/kernel_base/ms_factory.h"
#include "kernel/cpu/cpu_kernel.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
using Tensors = std::vector<KernelTensor *>;

const std::vector<TypeId> kMoved = {kNumberTypeFloat32, kNumberTypeFloat16, kNumberTypeBFloat16, kNumberTypeInt32};
const std::vector<TypeId> kReduced = {kNumberTypeFloat32, kNumberTypeFloat16, kNumberTypeInt32};

char *Data(const KernelTensor *tensor) { return static_cast<char *>(tensor->device_ptr()); }
size_t Item(const KernelTensor *tensor) { return GetTypeByte(TypeIdToType(tensor->dtype_id())); }

class Collective : public NativeCpuKernelMod {
 public:
  bool Init(const Tensors &, const Tensors &) override {
    group_ = Attribute<std::string>("group");
    return true;
  }

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    Run(Group(group_), inputs, outputs);
    return true;
  }

  std::vector<KernelAttr> GetOpSupport() override { return SameType(kMoved); }

 protected:
  virtual void Run(const Group &group, const Tensors &inputs, const Tensors &outputs) const = 0;

  template <typename T>
  T Attribute(const std::string &name) const {
    return GetValue<T>(primitive_->GetAttr(name));
  }

  // Any number of inputs and as many outputs, all of one type.
  static std::vector<KernelAttr> SameType(const std::vector<TypeId> &types) {
    std::vector<KernelAttr> support;
    for (auto type : types) {
      support.push_back(KernelAttr().AddAllSameAttr(true).AddInputAttr(type).AddOutputAttr(type));
    }
    return support;
  }

 private:
  std::string group_;
};

class Reducing : public Collective {
 public:
  bool Init(const Tensors &inputs, const Tensors &outputs) override {
    op_ = Attribute<std::string>("op");
    if (op_ != "sum" && op_ != "max" && op_ != "min") {
      MS_LOG(EXCEPTION) << kernel_name_ << " on CPU reduces with sum, max and min, not with " << op_;
    }
    return Collective::Init(inputs, outputs);
  }

  std::vector<KernelAttr> GetOpSupport() override { return SameType(kReduced); }

 protected:
  std::string op_;
};

class AllReduce : public Reducing {
 protected:
  void Run(const Group &group, const Tensors &inputs, const Tensors &outputs) const override {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const size_t item = Item(inputs[i]);
      const auto begins = Shares(inputs[i]->size() / item, group.size());
      char *whole = Data(outputs[i]);
      char *own = whole + begins[group.rank()] * item;
      ReduceShares(group, inputs[i]->dtype_id(), op_, Data(inputs[i]), item, begins, own);
      GatherShares(group, whole, item, begins);
    }
  }
};

class ReduceScatter : public Reducing {
 protected:
  void Run(const Group &group, const Tensors &inputs, const Tensors &outputs) const override {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const size_t item = Item(inputs[i]);
      const auto begins = Shares(inputs[i]->size() / item, group.size());
      ReduceShares(group, inputs[i]->dtype_id(), op_, Data(inputs[i]), item, begins, Data(outputs[i]));
    }
  }
};

class AllGather : public Collective {
 protected:
  void Run(const Group &group, const Tensors &inputs, const Tensors &outputs) const override {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const auto begins = Shares(outputs[i]->size(), group.size());
      std::memcpy(Data(outputs[i]) + begins[group.rank()], Data(inputs[i]), inputs[i]->size());
      GatherShares(group, Data(outputs[i]), 1, begins);
    }
  }
};

class Broadcast : public Collective {
 protected:
  void Run(const Group &group, const Tensors &inputs, const Tensors &outputs) const override {
    const auto root = group.FromWorld(static_cast<uint32_t>(Attribute<int64_t>("root_rank")));
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (group.rank() != root) {
        group.Receive(Data(outputs[i]), outputs[i]->size(), root);
        continue;
      }
      group.ForEachPair([&](size_t to, size_t) { group.Send(Data(inputs[i]), inputs[i]->size(), to); });
      std::memcpy(Data(outputs[i]), Data(inputs[i]), inputs[i]->size());
    }
  }
};

// Copies part `index` of `parts` along `axis` of a tensor, between the tensor and a buffer that holds the part alone.
class AxisPart {
 public:
  AxisPart(const KernelTensor *tensor, int64_t axis, size_t parts) {
    const auto &shape = tensor->GetShapeVector();
    const auto at = shape.begin() + (axis < 0 ? axis + static_cast<int64_t>(shape.size()) : axis);
    rows_ = std::accumulate(shape.begin(), at, size_t{1}, std::multiplies<size_t>());
    row_ = tensor->size() / rows_;
    run_ = row_ / parts;
  }

  size_t bytes() const { return rows_ * run_; }

  void Take(const char *tensor, size_t index, char *part) const {
    for (size_t row = 0; row < rows_; ++row) {
      std::memcpy(part + row * run_, tensor + row * row_ + index * run_, run_);
    }
  }

  void Put(const char *part, size_t index, char *tensor) const {
    for (size_t row = 0; row < rows_; ++row) {
      std::memcpy(tensor + row * row_ + index * run_, part + row * run_, run_);
    }
  }

 private:
  size_t rows_;  // how often the axis repeats
  size_t row_;   // bytes of the whole axis and what lies within
  size_t run_;   // bytes of one part of it
};

class AlltoAll : public Collective {
 protected:
  void Run(const Group &group, const Tensors &inputs, const Tensors &outputs) const override {
    const AxisPart split(inputs[0], Attribute<int64_t>("split_dim"), group.size());
    const AxisPart concat(outputs[0], Attribute<int64_t>("concat_dim"), group.size());
    std::vector<char> part(split.bytes());
    split.Take(Data(inputs[0]), group.rank(), part.data());
    concat.Put(part.data(), group.rank(), Data(outputs[0]));
    group.ForEachPair([&](size_t to, size_t from) {
      split.Take(Data(inputs[0]), to, part.data());
      group.Send(part.data(), part.size(), to);
      group.Receive(part.data(), part.size(), from);
      concat.Put(part.data(), from, Data(outputs[0]));
    });
  }
};

class Send : public Collective {
 protected:
  void Run(const Group &group, const Tensors &inputs, const Tensors &) const override {
    group.Send(Data(inputs[0]), inputs[0]->size(), static_cast<size_t>(Attribute<int64_t>("dest_rank")));
  }
};

class Receive : public Collective {
 public:
  // The input only orders the operators. Its type has nothing to do with the type of what is received.
  std::vector<KernelAttr> GetOpSupport() override {
    std::vector<KernelAttr> support;
    for (auto input : kMoved) {
      for (auto output : kMoved) {
        support.push_back(KernelAttr().AddInputAttr(input).AddOutputAttr(output));
      }
    }
    return support;
  }

 protected:
  void Run(const Group &group, const Tensors &, const Tensors &outputs) const override {
    group.Receive(Data(outputs[0]), outputs[0]->size(), static_cast<size_t>(Attribute<int64_t>("src_rank")));
  }
};

template <typename Kernel>
void Replace(const std::string &name) {
  auto &factory = Factory<NativeCpuKernelMod>::Instance();
  factory.UnRegister(name);
  factory.Register(name, [] { return std::make_shared<Kernel>(); });
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore

// Called once through ctypes, before the first graph is compiled.
extern "C" void r1parallel_register_collectives() {
  using namespace mindspore::kernel::r1parallel;
  Replace<AllReduce>("AllReduce");
  Replace<ReduceScatter>("ReduceScatter");
  Replace<AllGather>("AllGather");
  Replace<Broadcast>("Broadcast");
  Replace<AlltoAll>("AlltoAll");
  Replace<Send>("Send");
  Replace<Receive>("Receive");
}
