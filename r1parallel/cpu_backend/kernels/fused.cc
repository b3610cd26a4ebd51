// The table of our CPU kernels for float32: of operators that MindSpore has for Ascend only, of our own operators, and
// of those whose CPU kernel in MindSpore we replace. What an operator does is documented with its kernel.
#include <memory>
#include <string>

#include "blocks/block_backward.h"
#include "blocks/block_forward.h"
#include "blocks/chunk_block.h"
#include "blocks/token_block.h"
#include "common/fused.h"
#include "common/replacement.h"
#include "flash_attention.h"
#include "log_softmax.h"
#include "matmul.h"
#include "optimizer/accumulate.h"
#include "optimizer/adam.h"
#include "optimizer/square_sums.h"
#include "rms_norm.h"
#include "rotary.h"
#include "scatter.h"
#include "silu.h"

namespace mindspore {
namespace kernel {
namespace r1parallel {
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
  Add<MultiTensorSquareSum>("MultiTensorSquareSum");
  Add<MultiTensorAdd>("MultiTensorAdd");
  Add<MultiTensorAdamW>("MultiTensorAdamW");
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
