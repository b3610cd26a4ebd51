"""The plain layers. Shape letters: T rows (batch × sequence), H hidden, I in, O out, V vocabulary.

On the CPU an elementwise operator that broadcasts keeps index tables of 16 bytes for every element of its output, for
as long as the graph lives. So nothing here broadcasts: biases are added by BiasAdd, smaller factors are tiled first.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import SiLU  # the primitive; `ops` has the function only


def _weight(shape: tuple[int, ...], init: str = "zeros", dtype: Any = ms.float32) -> Parameter:
    return Parameter(initializer(init, shape, dtype), name="weight")


class Linear(nn.Cell):
    """y_TO = x_TI · weight_OIᵀ + bias_O.

    Args:
        in_size: I.
        out_size: O.
        has_bias: add a bias.
        transposed: keep the weight as [I, O], which makes products of few rows two to three times faster on CPU.
            `parameters.py` transposes on the way in and out; everywhere else a weight is [O, I].
        dtype: of the Parameters.
    """

    def __init__(
        self, in_size: int, out_size: int, has_bias: bool = False, transposed: bool = False, dtype: Any = ms.float32
    ):
        super().__init__()
        self.weight = _weight((in_size, out_size) if transposed else (out_size, in_size), dtype=dtype)
        self.transposed = transposed
        self.matmul = ops.MatMul(transpose_b=not transposed)
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(initializer("zeros", (out_size,), dtype), name="bias")
            self.add = ops.BiasAdd()

    def construct(self, x_TI: Tensor) -> Tensor:
        y_TO = self.matmul(x_TI, self.weight)
        return self.add(y_TO, self.bias) if self.has_bias else y_TO


class RMSNorm(nn.Cell):
    """y = x / √(mean(x²) + eps) · weight (Zhang and Sennrich 2019), x_TH."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = _weight((size,), "ones")
        self.eps, self.size = eps, size
        self.square = ops.Square()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.add = ops.Add()
        self.rsqrt = ops.Rsqrt()
        self.expand, self.tile_inverse, self.tile_weight = ops.ExpandDims(), ops.Tile(), ops.Tile()
        self.normalize = ops.Mul()
        self.scale = ops.Mul()

    def construct(self, x_TH: Tensor) -> Tensor:
        inverse_T1 = self.rsqrt(self.add(self.mean(self.square(x_TH), -1), self.eps))
        weight_TH = self.tile_weight(self.expand(self.weight, 0), (x_TH.shape[0], 1))
        return self.scale(self.normalize(x_TH, self.tile_inverse(inverse_T1, (1, self.size))), weight_TH)


class Embedding(nn.Cell):
    """Rows of embedding_weight_VH; `dtype` is the Parameter's."""

    def __init__(self, vocab_size: int, size: int, dtype: Any = ms.float32):
        super().__init__()
        self.embedding_weight = Parameter(initializer("zeros", (vocab_size, size), dtype))
        self.gather = ops.Gather()

    def construct(self, ids_T: Tensor) -> Tensor:
        return self.gather(self.embedding_weight, ids_T, 0)


class FeedForward(nn.Cell):
    """SwiGLU (Shazeer 2020): w2(silu(w1 x) · w3 x). `linear` makes its projections."""

    def __init__(self, size: int, inner_size: int, transposed: bool = False, linear: Callable[..., Linear] = Linear):
        super().__init__()
        self.w1 = linear(size, inner_size, transposed=transposed)
        self.w2 = linear(inner_size, size, transposed=transposed)
        self.w3 = linear(size, inner_size, transposed=transposed)
        self.silu = SiLU()
        self.gate = ops.Mul()

    def construct(self, x_TH: Tensor) -> Tensor:
        return self.w2(self.gate(self.silu(self.w1(x_TH)), self.w3(x_TH)))


class TiedHead(nn.Cell):
    """logits = hidden · embeddingᵀ, with the embedding's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)

    def construct(self, hidden_TH: Tensor, embedding_weight_VH: Tensor) -> Tensor:
        return self.matmul(hidden_TH, embedding_weight_VH)
