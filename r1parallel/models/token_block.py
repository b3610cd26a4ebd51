"""A block for one token of every row of the cache, as one operator of the CPU backend.

A token of few rows is little work for each operator of `Block`, so that most of the time would pass between them.
"""

from typing import Any

from mindspore import Tensor
from mindspore.ops import PrimitiveWithInfer, prim_attr_register, signature

from r1parallel.config.model import ModelConfig
from r1parallel.models.attention import Attention
from r1parallel.models.fused import Operators
from r1parallel.models.qwen2_5 import Block
from r1parallel.models.whole_block import WEIGHTS, weights

_READ = ("x_BH", "spots_B2", "cos_B11D", "sin_B11D", *WEIGHTS)
_WRITTEN = ("key_cache", "value_cache")


class TokenBlock(PrimitiveWithInfer):
    """The operator; `cpu_backend/token_block.h` is its kernel, and lists its inputs in the same order."""

    __mindspore_signature__ = (
        *(signature.make_sig(name) for name in _READ),
        *(signature.make_sig(name, signature.sig_rw.RW_WRITE) for name in _WRITTEN),
    )

    @prim_attr_register
    def __init__(self, eps: float):
        self.init_prim_io_names(inputs=[*_READ, *_WRITTEN], outputs=["y_BH"])
        self.add_prim_attr("side_effect_mem", True)

    def infer_shape(self, x_BH: list[int], *others: Any) -> list[int]:
        return x_BH

    def infer_dtype(self, x_BH: Any, *others: Any) -> Any:
        return x_BH


class WholeTokenBlock(Block):
    """`Block` with a `TokenAttention`; the same Parameters in the same Cells, whose operators are not used."""

    def __init__(self, config: ModelConfig, operators: Operators, attention: Attention):
        super().__init__(config, operators, attention)
        self.at_once = TokenBlock(config.rms_norm_eps)

    def construct(self, x_TH: Tensor, geometry: tuple[Tensor, ...], slots: Tensor) -> Tensor:
        """As `Block`; slots as in `TokenRows`."""
        cos, sin, _, _, _ = geometry
        cache = self.attention.cache
        return self.at_once(x_TH, slots, cos, sin, *weights(self), cache.key_cache, cache.value_cache)
