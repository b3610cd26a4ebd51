"""Blocks of the two models that share a cache, as one operator of the CPU backend each.

A token of few rows is little work for each operator of `Block`, so that most of the time would pass between them. Of
chunks of prompts the operator computes what is kept and nothing else, where `Block` computes all that are offered.
"""

from typing import Any

from mindspore import Tensor
from mindspore.ops import PrimitiveWithInfer, prim_attr_register, signature

from r1parallel.config.model import ModelConfig
from r1parallel.models.fused.operators import Operators
from r1parallel.models.fused.whole_block import WEIGHTS, weights
from r1parallel.models.layers.attention import Attention
from r1parallel.models.qwen2_5 import Block

_READ = ("x_TH", "slots", "cos_BS1D", "sin_BS1D", *WEIGHTS)
_WRITTEN = ("key_cache", "value_cache")


class _KVCacheBlock(PrimitiveWithInfer):
    """x, where its tokens stand, angles, weights, caches → y_TH. The kernels list their inputs in the same order."""

    __mindspore_signature__ = (
        *(signature.make_sig(name) for name in _READ),
        *(signature.make_sig(name, signature.sig_rw.RW_WRITE) for name in _WRITTEN),
    )

    @prim_attr_register
    def __init__(self, eps: float):
        self.init_prim_io_names(inputs=[*_READ, *_WRITTEN], outputs=["y_TH"])
        self.add_prim_attr("side_effect_mem", True)

    def infer_shape(self, x_TH: list[int], *others: Any) -> list[int]:
        return x_TH

    def infer_dtype(self, x_TH: Any, *others: Any) -> Any:
        return x_TH


class TokenBlock(_KVCacheBlock):
    """For a token of every row: `cpu_backend/kernels/blocks/token_block.h`. Its slots are those of `TokenRows`."""


class ChunkBlock(_KVCacheBlock):
    """For chunks of prompts: `cpu_backend/kernels/blocks/chunk_block.h`. Its slots are those of `ChunkRows`."""


class WholeKVCacheBlock(Block):
    """`Block` with a cache: the same Parameters in the same Cells, whose operators are not used."""

    operator: type[_KVCacheBlock]

    def __init__(self, config: ModelConfig, operators: Operators, attention: Attention):
        super().__init__(config, operators, attention)
        self.fused_block = self.operator(config.rms_norm_eps)

    def construct(self, x_TH: Tensor, geometry: tuple[Tensor, ...], slots: Tensor) -> Tensor:
        """As `Block`."""
        cos, sin, _, _, _ = geometry
        cache = self.attention.cache
        return self.fused_block(x_TH, slots, cos, sin, *weights(self), cache.key_cache, cache.value_cache)


class WholeTokenBlock(WholeKVCacheBlock):
    """With a `TokenAttention`."""

    operator = TokenBlock


class WholeChunkBlock(WholeKVCacheBlock):
    """With a `PromptAttention`. Tokens that no row keeps come out as zeros."""

    operator = ChunkBlock
