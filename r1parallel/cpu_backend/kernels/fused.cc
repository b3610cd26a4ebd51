// CPU kernels for fp32: of operators that MindSpore has for Ascend only (RmsNorm, RotaryPositionEmbedding, SiLU,
// FlashAttentionScore and their gradients), of our own operators, and those that take the places of MindSpore's. What each
// does is documented with its operator; what is not done here is refused.
#include <memory>
#include <string>

#include "blocks/block.h"
#include "blocks/block_gradient.h"
#include "blocks/chunk_block.h"
#include "common/elementwise.h"
#include "flash.h"
#include "common/fused.h"
#include "gradients.h"
#include "matmul.h"
#include "scatter.h"
#include "softmax.h"
#include "blocks/token_block.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
constexpr size_t kLeastNumbers = 8192;  // of a thread

// x [rows, size], weight [size], eps → y, 1 / √(mean(x²) + eps) [rows].
class RmsNorm : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    Require(inputs[1]->GetShapeVector().size() == 1, "has a weight of one dimension only");
    const size_t size = Size(inputs[1], 0), rows = inputs[0]->size() / sizeof(float) / size;
    const float eps = inputs[2]->GetValueWithCheck<float>();
    auto task = [&](size_t begin, size_t end) {
      ::r1parallel::NormForward(begin, end, size, eps, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(outputs[0]),
                                Numbers(outputs[1]));
    };
    ShareOut(rows, 16, task);
    return true;
  }
};

// dy, x, 1 / √…, weight → dx, gradient of the weight.
class RmsNormGrad : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    const size_t size = Size(inputs[3], 0), rows = inputs[0]->size() / sizeof(float) / size;
    auto by_row = [&](size_t begin, size_t end) {
      ::r1parallel::NormBackward(begin, end, size, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(inputs[2]),
                                 Numbers(inputs[3]), Numbers(outputs[0]));
    };
    auto by_column = [&](size_t begin, size_t end) {
      ::r1parallel::NormWeightGradient(begin, end, rows, size, Numbers(inputs[0]), Numbers(inputs[1]),
                                       Numbers(inputs[2]), Numbers(outputs[1]));
    };
    ShareOut(rows, 16, by_row);
    ShareOut(size, 64, by_column);
    return true;
  }
};

// x [A, B, C, D], cos and sin [A or 1, B or 1, C or 1, D] → x·cos + turned(x)·sin; the halves of D form the pairs.
class Rotary : public Fused {
 public:
  explicit Rotary(bool backward) : backward_(backward) {}

  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    constexpr size_t kMode = 3, kGradientMode = 4;
    Require(inputs[backward_ ? kGradientMode : kMode]->GetValueWithCheck<int64_t>() == 0, "has mode 0 only");
    Require(!backward_ || !Given(inputs[3]), "gives no gradient of cos and sin");
    const auto &shape = inputs[0]->GetShapeVector(), &angles = inputs[1]->GetShapeVector();
    Require(shape[3] % 2 == 0, "turns pairs: the last dimension has to be even");
    ::r1parallel::RotaryShape sizes{};
    size_t step = 1;
    for (size_t dim = 3; dim-- > 0;) {
      sizes.count[dim] = static_cast<size_t>(shape[dim]);
      sizes.step[dim] = angles[dim] == 1 ? 0 : step;
      step *= static_cast<size_t>(angles[dim]);
    }
    sizes.size = static_cast<size_t>(shape[3]);
    auto task = [&](size_t begin, size_t end) {
      ::r1parallel::Rotate(begin, end, sizes, backward_, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(inputs[2]),
                           Numbers(outputs[0]));
    };
    ShareOut(sizes.count[0] * sizes.count[1] * sizes.count[2], 64, task);
    return true;
  }

 private:
  bool backward_;
};

class RotaryForward : public Rotary {
 public:
  RotaryForward() : Rotary(false) {}
};

class RotaryBackward : public Rotary {
 public:
  RotaryBackward() : Rotary(true) {}
};

// x·sigmoid(x)
class Silu : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    ShareOut(outputs[0]->size() / sizeof(float), kLeastNumbers, [&](size_t begin, size_t end) {
      ::r1parallel::SiluForward(begin, end, Numbers(inputs[0]), Numbers(outputs[0]));
    });
    return true;
  }
};

// dy, x → dx
class SiluGrad : public Fused {
 public:
  bool Launch(const Tensors &inputs, const Tensors &, const Tensors &outputs) override {
    ShareOut(outputs[0]->size() / sizeof(float), kLeastNumbers, [&](size_t begin, size_t end) {
      ::r1parallel::SiluBackward(begin, end, Numbers(inputs[0]), Numbers(inputs[1]), Numbers(outputs[0]));
    });
    return true;
  }
};

template <typename Kernel>
void Add(const std::string &name) {
  Factory<NativeCpuKernelMod>::Instance().Register(name, [] { return std::make_shared<Kernel>(); });
}
}  // namespace r1parallel
}  // namespace kernel
}  // namespace mindspore

// Called once through ctypes, before the first graph is compiled.
extern "C" void r1parallel_register_fused() {
  using namespace mindspore::kernel::r1parallel;
  Add<RmsNorm>("RmsNorm");
  Add<RmsNormGrad>("RmsNormGrad");
  Add<RotaryForward>("RotaryPositionEmbedding");
  Add<RotaryBackward>("RotaryPositionEmbeddingGrad");
  Add<Silu>("SiLU");
  Add<SiluGrad>("SiLUGrad");
  Add<FlashAttentionForward>("FlashAttentionScore");
  Add<FlashAttentionBackward>("FlashAttentionScoreGrad");
  Add<Clear>("InplaceZero");
  Add<SquareSums>("SquareSums");
  Add<AddToAll>("AddToAll");
  Add<AdamOfAll>("AdamOfAll");
  Add<BlockForward>("BlockForward");
  Add<BlockBackward>("BlockBackward");
  Add<ChunkBlock>("ChunkBlock");
  Add<TokenBlock>("TokenBlock");
  Replace<AddTo>("AssignAdd");
  Replace<LogSoftmaxForward>("LogSoftmax");
  Replace<LogSoftmaxBackward>("LogSoftmaxGrad");
  Replace<MatMul>("MatMul");
  Replace<ScatterUpdate>("ScatterNdUpdate");
}
