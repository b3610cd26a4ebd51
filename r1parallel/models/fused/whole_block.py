"""A block over the tokens of a call, and its gradient, as one operator of the CPU backend each.

What MindSpore takes to compile a graph grows with its operators: a layer has some hundred of them with their gradients,
and with these two about thirty, most of which only pass a gradient on.
Shape letters: T tokens, in B rows of S; H hidden, N heads, M key/value heads, D head size, I inner size, W numbers that
are kept of a token.
"""

from typing import Any

from mindspore import Tensor, nn, ops
from mindspore.ops import PrimitiveWithInfer, prim_attr_register

from r1parallel.config.model import ModelConfig

# Of a block, as the kernels in `cpu_backend` number them.
WEIGHTS = (
    *("attention_norm", "wq", "bq", "wk", "bk", "wv", "bv", "wo"),
    *("ffn_norm", "w1", "w3", "w2"),
)
_GEOMETRY = ("cos_BS1D", "sin_BS1D", "hidden_B1SS")
_STATISTICS = 2 * 8  # of a token and head; `kStatistics` of cpu_backend/kernels/common/attention.h


def weights(block: nn.Cell) -> tuple[Tensor, ...]:
    """The Parameters of a `Block` in the order of `WEIGHTS`."""
    attention, ffn = block.attention, block.feed_forward
    return (
        *(block.attention_norm.weight, attention.wq.weight, attention.wq.bias, attention.wk.weight, attention.wk.bias),
        *(attention.wv.weight, attention.wv.bias, attention.wo.weight),
        *(block.ffn_norm.weight, ffn.w1.weight, ffn.w3.weight, ffn.w2.weight),
    )


class BlockForward(PrimitiveWithInfer):
    """x, geometry, weights → y_TH, and what the gradient needs, kept_TW."""

    @prim_attr_register
    def __init__(self, eps: float, kept: int):
        self.init_prim_io_names(inputs=["x_TH", *_GEOMETRY, *WEIGHTS], outputs=["y_TH", "kept_TW"])

    def infer_shape(self, x_TH: list[int], *others: Any) -> tuple[list[int], list[int]]:
        return x_TH, [x_TH[0], self.kept]

    def infer_dtype(self, x_TH: Any, *others: Any) -> tuple[Any, Any]:
        return x_TH, x_TH


class BlockBackward(PrimitiveWithInfer):
    """dy, what forward was given and kept → dx and the gradients of the weights."""

    @prim_attr_register
    def __init__(self, eps: float):
        self.init_prim_io_names(
            inputs=["dy_TH", "x_TH", "kept_TW", *_GEOMETRY, *WEIGHTS], outputs=["dx_TH", *(f"d_{w}" for w in WEIGHTS)]
        )

    def infer_shape(self, dy: Any, x: list[int], kept: Any, cos: Any, sin: Any, hidden: Any, *weights: Any) -> Any:
        return x, *weights

    def infer_dtype(self, dy: Any, x: Any, *others: Any) -> Any:
        return (x,) * (1 + len(WEIGHTS))


class WholeBlock(nn.Cell):
    """What `Block` computes with `Attention`, of its Parameters."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        kept = 3 * config.hidden_size + 2 * config.kv_size + 2 * config.intermediate_size
        self.forward = BlockForward(config.rms_norm_eps, kept + _STATISTICS * config.num_heads)
        self.backward = BlockBackward(config.rms_norm_eps)

    def construct(
        self, x_TH: Tensor, cos: Tensor, sin: Tensor, hidden: Tensor, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """→ y_TH, kept_TW."""
        return self.forward(x_TH, cos, sin, hidden, *weights)

    def bprop(
        self,
        x_TH: Tensor,
        cos: Tensor,
        sin: Tensor,
        hidden: Tensor,
        weights: tuple[Tensor, ...],
        out: tuple[Tensor, Tensor],
        dout: tuple[Tensor, Tensor],
    ) -> tuple[Any, ...]:
        """The gradient; angles and mask have none."""
        gradients = self.backward(dout[0], x_TH, out[1], cos, sin, hidden, *weights)
        return gradients[0], ops.zeros_like(cos), ops.zeros_like(sin), ops.zeros_like(hidden), gradients[1:]
