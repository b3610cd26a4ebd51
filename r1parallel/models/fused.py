"""What a model is made of: the plain Cells in fp32, or these, which compute in bf16 with Ascend's fused operators.

The Cells here have the Parameters of those that they stand in for, under the same names. Statistics of norms, rotary
embedding, softmax and logits are fp32; everything else has the compute type.
Shape letters: B rows, S queries, K keys, T = B·S, N heads, M key/value heads, D head size, H hidden, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import FlashAttentionScore, InplaceIndexAddExt, RmsNorm

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.models.attention import Attention, CachedAttention, Rotate
from r1parallel.models.geometry import Geometry, PaddedRows, Positions
from r1parallel.models.layers import Embedding, Linear, RMSNorm, TiedHead

_HEAD_SIZES = 16  # the fused attention takes multiples of this


class CastLinear(Linear):
    """A projection that computes in `dtype`; its Parameters have the type `kept`. With `wide` it gives fp32: logits."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        has_bias: bool = False,
        transposed: bool = False,
        *,
        dtype: Any,
        kept: Any,
        wide: bool = False,
    ):
        super().__init__(in_size, out_size, has_bias, transposed, kept)
        self.cast, self.dtype, self.wide = ops.Cast(), dtype, wide

    def construct(self, x_TI: Tensor) -> Tensor:
        y_TO = self.matmul(x_TI, self.cast(self.weight, self.dtype))
        if self.has_bias:
            y_TO = self.add(y_TO, self.cast(self.bias, self.dtype))
        return self.cast(y_TO, ms.float32) if self.wide else y_TO


class CastTiedHead(TiedHead):
    """A tied head that computes in `dtype` and gives fp32."""

    def __init__(self, dtype: Any):
        super().__init__()
        self.cast, self.dtype = ops.Cast(), dtype

    def construct(self, hidden_TH: Tensor, embedding_weight_VH: Tensor) -> Tensor:
        return self.cast(self.matmul(hidden_TH, self.cast(embedding_weight_VH, self.dtype)), ms.float32)


class CastEmbedding(Embedding):
    """Rows of embedding_weight_VH in `dtype`; the Parameter has the type `kept`."""

    def __init__(self, vocab_size: int, size: int, *, dtype: Any, kept: Any):
        super().__init__(vocab_size, size, kept)
        self.cast, self.dtype = ops.Cast(), dtype

    def construct(self, ids_T: Tensor) -> Tensor:
        return self.cast(self.gather(self.embedding_weight, ids_T, 0), self.dtype)


class FusedRMSNorm(nn.Cell):
    """`RMSNorm` as one operator, which wants input and weight of one type: fp32. The result has the input's type."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = Parameter(initializer("ones", (size,), ms.float32), name="weight")
        self.norm, self.cast = RmsNorm(eps), ops.Cast()

    def construct(self, x_TH: Tensor) -> Tensor:
        y_TH, _ = self.norm(self.cast(x_TH, ms.float32), self.weight)
        return self.cast(y_TH, x_TH.dtype)


class WideRotate(Rotate):
    """Rotary embedding in fp32 whose factors are the same for all heads; the result has the input's type."""

    def __init__(self) -> None:
        super().__init__()
        self.cast = ops.Cast()

    def construct(self, x_BNSD: Tensor, cos_B1SD: Tensor, sin_B1SD: Tensor) -> Tensor:
        left, right = self.split(self.cast(x_BNSD, ms.float32))
        rotated_BNSD = self.join(
            (
                self.sub(self.mul(left, cos_B1SD), self.mul(right, sin_B1SD)),
                self.add(self.mul(right, cos_B1SD), self.mul(left, sin_B1SD)),
            )
        )
        return self.cast(rotated_BNSD, x_BNSD.dtype)


class FlashCore(nn.Cell):
    """Attention as one operator, which knows grouped heads: query head n reads key head n // (N / M).

    Raises:
        UserError: the operator does not take heads of this size.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.head_dim % _HEAD_SIZES:
            raise UserError(
                f"the model's head size is {config.head_dim}; FlashAttentionScore takes multiples of {_HEAD_SIZES} "
                "only: set context.compute_dtype to float32"
            )
        scale = 1.0 / math.sqrt(config.head_dim)
        self.flash = FlashAttentionScore(config.num_heads, scale_value=scale, input_layout="BNSD")

    def construct(self, q_BNSD: Tensor, k_BMKD: Tensor, v_BMKD: Tensor, hidden_B1SK: Tensor) -> Tensor:
        """True in the mask hides a key; → [B, N, S, D]."""
        return self.flash(q_BNSD, k_BMKD, v_BMKD, None, None, None, hidden_B1SK)[3]


class FlashGeometry(Positions):
    """Geometry for all heads at once, and a mask that says which keys are hidden.

    A padding query sees its own key, where the plain mask hides all: what the fused operator makes of a query that sees
    nothing is not documented to be finite. No real query ever sees a padding key, so no other number changes.
    """

    def __init__(self, config: ModelConfig, num_keys: int, rows: Callable[[int], nn.Cell] = PaddedRows):
        super().__init__(config, num_keys, rows)
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.same, self.either, self.invert = ops.Equal(), ops.LogicalOr(), ops.LogicalNot()

    def construct(self, slots_S: Tensor, starts_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `Geometry`, but cos and sin [B, 1, S, D] and a bool mask [B, 1, S, K]."""
        positions_BS, seen_BSK = self.rows(slots_S, starts_B)
        rows, queries = positions_BS.shape
        cos_B1SD, sin_B1SD = self.angles(positions_BS)
        own_1SK = self.same(self.key_slots, self.reshape(slots_S, (1, queries, 1)))
        hidden_B1SK = self.reshape(self.invert(self.either(seen_BSK, own_1SK)), (rows, 1, queries, -1))
        return cos_B1SD, sin_B1SD, cos_B1SD, sin_B1SD, hidden_B1SK


class FusedCachedAttention(CachedAttention):
    """The same over a cache in `dtype`. IndexAdd refuses bf16; the operator of `Tensor.index_add_` takes it."""

    def __init__(self, config: ModelConfig, rows: int, num_keys: int, dtype: Any, linear: Callable[..., Linear]):
        super().__init__(config, rows, num_keys, dtype, linear, WideRotate, FlashCore)
        self.write = InplaceIndexAddExt()

    def put(self, cache_BMKD: Parameter, slots_S: Tensor, x_BMSD: Tensor) -> Tensor:
        return self.write(cache_BMKD, 2, slots_S, x_BMSD)


@dataclass(frozen=True)
class Operators:
    """Makers of the Cells that a model is built from; the defaults are the plain ones, in fp32."""

    linear: Callable[..., Linear] = Linear
    embedding: Callable[[int, int], Embedding] = Embedding
    norm: Callable[[int, float], nn.Cell] = RMSNorm
    geometry: Callable[..., Positions] = Geometry
    attention: Callable[[ModelConfig], Attention] = Attention
    cached_attention: Callable[[ModelConfig, int, int], CachedAttention] = CachedAttention
    head: Callable[[int, int], Linear] = Linear
    tied_head: Callable[[], TiedHead] = TiedHead


PLAIN = Operators()


def fused(dtype: Any, kept: Any) -> Operators:
    """The Cells of this module, with operators that only Ascend has.

    Args:
        dtype: what is computed in.
        kept: type of the projections' and the embedding's Parameters.
    """
    linear = partial(CastLinear, dtype=dtype, kept=kept)
    return Operators(
        linear=linear,
        embedding=partial(CastEmbedding, dtype=dtype, kept=kept),
        norm=FusedRMSNorm,
        geometry=FlashGeometry,
        attention=partial(Attention, linear=linear, rotate=WideRotate, core=FlashCore),
        cached_attention=partial(FusedCachedAttention, dtype=dtype, linear=linear),
        head=partial(linear, wide=True),
        tied_head=partial(CastTiedHead, dtype),
    )


def choose_operators(compute_dtype: str, trained: bool) -> Operators:
    """What `context.compute_dtype` asks for.

    Args:
        compute_dtype: "float32": plain operators, which every device has; "bfloat16": those of this module.
        trained: the optimizer works on the Parameters, so they stay fp32; else bfloat16 is their type too.
    """
    if compute_dtype == "float32":
        return PLAIN
    return fused(ms.bfloat16, ms.float32 if trained else ms.bfloat16)
