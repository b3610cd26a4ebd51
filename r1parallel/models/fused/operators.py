"""What a model is made of: the plain Cells, or these, with Ascend's fused operators, which our CPU backend has too.

The Cells here have the Parameters of those that they stand in for, under the same names. On Ascend they compute in
bf16: statistics of norms, rotary embedding, softmax and logits are fp32, everything else has the compute type.
Shape letters: B rows, S queries, K keys, T = B·S, N heads, M key/value heads, D head size, H hidden, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import FlashAttentionScore, RmsNorm, RotaryPositionEmbedding

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.models.fused.whole_block import WholeBlock
from r1parallel.models.layers.attention import Attention
from r1parallel.models.layers.geometry import Geometry, PaddedRows, Positions
from r1parallel.models.layers.kv_cache import PromptAttention, TokenAttention
from r1parallel.models.layers.layers import Embedding, Linear, RMSNorm, TiedHead
from r1parallel.parallel.device import has_fused_kernels

_HEAD_SIZES = 16  # on Ascend the fused attention takes multiples of this


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


class FusedRotate(nn.Cell):
    """Rotary embedding as one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.rotate = RotaryPositionEmbedding()

    def construct(self, x_BSND: Tensor, cos_BS1D: Tensor, sin_BS1D: Tensor) -> Tensor:
        return self.rotate(x_BSND, cos_BS1D, sin_BS1D, 0)


class WideRotate(nn.Cell):
    """The same of plain operators, in fp32; the result has the input's type."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = ops.Split(-1, 2), ops.Concat(-1)
        self.mul, self.add, self.negate, self.cast = ops.Mul(), ops.Add(), ops.Neg(), ops.Cast()

    def construct(self, x_BSND: Tensor, cos_BS1D: Tensor, sin_BS1D: Tensor) -> Tensor:
        wide_BSND = self.cast(x_BSND, ms.float32)
        left, right = self.split(wide_BSND)
        turned_BSND = self.join((self.negate(right), left))
        rotated_BSND = self.add(self.mul(wide_BSND, cos_BS1D), self.mul(turned_BSND, sin_BS1D))
        return self.cast(rotated_BSND, x_BSND.dtype)


class FlashCore(nn.Cell):
    """Attention as one operator, which knows grouped heads: query head n reads key head n // (N / M).

    Args:
        config: sizes of the model.
        sizes: head sizes are multiples of it.

    Raises:
        UserError: the operator does not take heads of this size.
    """

    def __init__(self, config: ModelConfig, sizes: int = 1):
        super().__init__()
        if config.head_dim % sizes:
            raise UserError(
                f"the model's head size is {config.head_dim}; FlashAttentionScore takes multiples of {sizes} "
                "only: set context.compute_dtype to float32"
            )
        scale = 1.0 / math.sqrt(config.head_dim)
        self.flash = FlashAttentionScore(config.num_heads, scale_value=scale, input_layout="BSND")

    def construct(self, q_BSND: Tensor, k_BKMD: Tensor, v_BKMD: Tensor, hidden_B1SK: Tensor) -> Tensor:
        """True in the mask hides a key; → [B, S, N, D]."""
        return self.flash(q_BSND, k_BKMD, v_BKMD, None, None, None, hidden_B1SK)[3]


class FlashGeometry(Positions):
    """Geometry for all heads at once, and a mask that says which keys are hidden."""

    def __init__(self, config: ModelConfig, num_keys: int, rows: Callable[[int], nn.Cell] = PaddedRows):
        super().__init__(config, num_keys, rows)
        self.join, self.invert = ops.Concat(-1), ops.LogicalNot()

    def construct(self, slots: Tensor, row_data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `Geometry`, but cos and sin [B, S, 1, D], each half the same, and a bool mask [B, 1, S, K]."""
        positions_BS, seen_BSK = self.rows(slots, row_data)
        rows, queries = positions_BS.shape
        cos, sin = self.angles(positions_BS)
        # Without stopping it the operator's gradient would also be asked for that of the angles.
        cos_BS1D = self.reshape(ops.stop_gradient(self.join((cos, cos))), (rows, queries, 1, -1))
        sin_BS1D = self.reshape(ops.stop_gradient(self.join((sin, sin))), (rows, queries, 1, -1))
        hidden_B1SK = self.reshape(self.invert(seen_BSK), (rows, 1, queries, -1))
        return cos_BS1D, sin_BS1D, cos_BS1D, sin_BS1D, hidden_B1SK


@dataclass(frozen=True)
class Operators:
    """Makers of the Cells that a model is built from; the defaults are the plain ones, in fp32.

    Where no layout splits the model, `whole_block` makes the one operator that a block may be, and with
    `whole_kv_cache_blocks` those of models with a cache are others.
    """

    linear: Callable[..., Linear] = Linear
    embedding: Callable[[int, int], Embedding] = Embedding
    norm: Callable[[int, float], nn.Cell] = RMSNorm
    geometry: Callable[..., Positions] = Geometry
    attention: Callable[..., Attention] = Attention
    token_attention: Callable[..., TokenAttention] = TokenAttention
    prompt_attention: Callable[..., PromptAttention] = PromptAttention
    head: Callable[[int, int], Linear] = Linear
    tied_head: Callable[[], TiedHead] = TiedHead
    whole_block: Callable[[ModelConfig], nn.Cell] | None = None
    whole_kv_cache_blocks: bool = False


PLAIN = Operators()


def _flash(rotate: Callable[[], nn.Cell], core: Callable[[ModelConfig], nn.Cell], transposed: bool) -> Operators:
    made_of: dict[str, Any] = {"rotate": rotate, "core": core, "heads_first": False}
    cached = made_of | {"transposed": transposed}
    return Operators(
        norm=FusedRMSNorm,
        geometry=FlashGeometry,
        attention=partial(Attention, **made_of),
        token_attention=partial(TokenAttention, **cached),
        prompt_attention=partial(PromptAttention, **cached),
    )


# In fp32. The backend's product of few rows wants weights as [out, in].
FUSED = replace(_flash(FusedRotate, FlashCore, transposed=False), whole_block=WholeBlock, whole_kv_cache_blocks=True)


def fused(dtype: Any, kept: Any) -> Operators:
    """The Cells of this module for Ascend.

    Args:
        dtype: what is computed in.
        kept: type of the projections' and the embedding's Parameters.
    """
    linear = partial(CastLinear, dtype=dtype, kept=kept)
    flash = _flash(WideRotate, partial(FlashCore, sizes=_HEAD_SIZES), transposed=True)
    return replace(
        flash,
        linear=linear,
        embedding=partial(CastEmbedding, dtype=dtype, kept=kept),
        attention=partial(flash.attention, linear=linear),
        token_attention=partial(flash.token_attention, dtype=dtype, linear=linear),
        prompt_attention=partial(flash.prompt_attention, dtype=dtype, linear=linear),
        head=partial(linear, wide=True),
        tied_head=partial(CastTiedHead, dtype),
    )


def choose_operators(compute_dtype: str, trained: bool) -> Operators:
    """What `context.compute_dtype` asks for, on the device that was set up.

    Args:
        compute_dtype: "float32": fused operators on a CPU with kernels for them, else plain ones, which every device
            has; "bfloat16": fused ones for Ascend.
        trained: the optimizer works on the Parameters, so they stay fp32; else bfloat16 is their type too.
    """
    if compute_dtype == "float32":
        return FUSED if has_fused_kernels() else PLAIN
    return fused(ms.bfloat16, ms.float32 if trained else ms.bfloat16)
