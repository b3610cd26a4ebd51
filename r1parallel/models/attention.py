"""Grouped-query attention with rotary embedding, without and with a static cache.

Shape letters: B rows, S queries, K keys, N heads, M key/value heads, G = N / M, D head size, T = B·S, H = N·D.
"""

import math
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from r1parallel.config.model import ModelConfig
from r1parallel.models.layers import Linear


class Rotate(nn.Cell):
    """Rotary embedding (Su et al. 2021) in Hugging Face's order: the two halves of a head form the pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.split = ops.Split(-1, 2)
        self.mul, self.sub, self.add = ops.Mul(), ops.Sub(), ops.Add()
        self.join = ops.Concat(-1)

    def construct(self, x_BNSD: Tensor, cos_BNSD: Tensor, sin_BNSD: Tensor) -> Tensor:
        left, right = self.split(x_BNSD)
        return self.join(
            (
                self.sub(self.mul(left, cos_BNSD), self.mul(right, sin_BNSD)),
                self.add(self.mul(right, cos_BNSD), self.mul(left, sin_BNSD)),
            )
        )


class SoftmaxCore(nn.Cell):
    """Softmax(q·kᵀ/√D + mask)·v."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.group = config.num_heads // config.num_kv_heads
        self.reshape = ops.Reshape()
        self.scale = ops.Mul()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.add_mask = ops.Add()
        self.softmax = ops.Softmax(-1)
        self.weighted_sum = ops.BatchMatMul()
        self.factor = 1.0 / math.sqrt(config.head_dim)

    def construct(self, q_BNSD: Tensor, k_BMKD: Tensor, v_BMKD: Tensor, mask: Tensor) -> Tensor:
        """The mask, [B, M, G·S, K], is added to the scores; → [B, N, S, D]."""
        rows, _, queries, _ = q_BNSD.shape
        # The G query heads of one key head stand one below the other: no copy of k and v is made.
        q = self.reshape(
            self.scale(q_BNSD, self.factor), (rows, self.num_kv_heads, self.group * queries, self.head_dim)
        )
        weights = self.softmax(self.add_mask(self.scores(q, k_BMKD), mask))
        return self.reshape(self.weighted_sum(weights, v_BMKD), (rows, self.num_heads, queries, self.head_dim))


class Attention(nn.Cell):
    """Attention over the keys of this very call.

    Args:
        config: sizes of the model.
        transposed: as in `Linear`.
        linear: makes the projections.
        rotate: makes the rotary embedding.
        core: makes what is between the projections: (q_BNSD, k_BMKD, v_BMKD, mask) → [B, N, S, D].
    """

    def __init__(
        self,
        config: ModelConfig,
        transposed: bool = False,
        linear: Callable[..., Linear] = Linear,
        rotate: Callable[[], nn.Cell] = Rotate,
        core: Callable[[ModelConfig], nn.Cell] = SoftmaxCore,
    ):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.wq = linear(config.hidden_size, config.hidden_size, has_bias=True, transposed=transposed)
        self.wk = linear(config.hidden_size, config.kv_size, has_bias=True, transposed=transposed)
        self.wv = linear(config.hidden_size, config.kv_size, has_bias=True, transposed=transposed)
        self.wo = linear(config.hidden_size, config.hidden_size, transposed=transposed)
        self.rotate, self.core = rotate(), core(config)
        self.reshape = ops.Reshape()
        self.to_heads, self.from_heads = ops.Transpose(), ops.Transpose()

    def heads(self, x_TX: Tensor, num_heads: int, rows: int, queries: int) -> Tensor:
        """[T, num_heads·D] → [B, num_heads, S, D]."""
        if queries == 1:
            return self.reshape(x_TX, (rows, num_heads, 1, self.head_dim))
        return self.to_heads(self.reshape(x_TX, (rows, queries, num_heads, self.head_dim)), (0, 2, 1, 3))

    def keys_values(self, k_BMSD: Tensor, v_BMSD: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to, [B, M, K, D] each."""
        return k_BMSD, v_BMSD

    def construct(self, x_TH: Tensor, geometry: tuple[Tensor, ...], slots_S: Tensor) -> Tensor:
        """x_TH, what `Geometry` made, slots_S → [T, H]."""
        cos_q, sin_q, cos_k, sin_k, mask = geometry
        rows, queries = cos_q.shape[0], cos_q.shape[2]
        q = self.rotate(self.heads(self.wq(x_TH), self.num_heads, rows, queries), cos_q, sin_q)
        k = self.rotate(self.heads(self.wk(x_TH), self.num_kv_heads, rows, queries), cos_k, sin_k)
        v = self.heads(self.wv(x_TH), self.num_kv_heads, rows, queries)
        k_BMKD, v_BMKD = self.keys_values(k, v, slots_S)
        mixed_BSND = self.from_heads(self.core(q, k_BMKD, v_BMKD, mask), (0, 2, 1, 3))
        return self.wo(self.reshape(mixed_BSND, (rows * queries, self.num_heads * self.head_dim)))


class CachedAttention(Attention):
    """The same over a static cache, all slots of which are read.

    A call with several queries is a prompt: it fills slots 0 … S - 1 and clears the others. One with a single query
    adds its key and value to an empty slot.

    Args:
        config: sizes of the model.
        rows: B, rows of the cache.
        num_keys: K, slots of the cache.
        dtype: of the cache.
        linear: as in `Attention`, and so are `rotate` and `core`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        num_keys: int,
        dtype: Any = ms.float32,
        linear: Callable[..., Linear] = Linear,
        rotate: Callable[[], nn.Cell] = Rotate,
        core: Callable[[ModelConfig], nn.Cell] = SoftmaxCore,
    ):
        super().__init__(config, True, linear, rotate, core)
        # Slots behind heads: a head's keys are read without transposition, and heads can be split over ranks. Only an
        # addition writes along an inner dimension in place.
        shape = (rows, config.num_kv_heads, num_keys, config.head_dim)
        self.key_cache = Parameter(initializer("zeros", shape, dtype), requires_grad=False)
        self.value_cache = Parameter(initializer("zeros", shape, dtype), requires_grad=False)
        self.num_keys = num_keys
        self.pad, self.fill, self.write = ops.PadV3(), ops.Assign(), ops.IndexAdd(2)

    def put(self, cache_BMKD: Parameter, slots_S: Tensor, x_BMSD: Tensor) -> Tensor:
        """The cache with something in an empty slot."""
        return self.write(cache_BMKD, slots_S, x_BMSD)

    def keys_values(self, k_BMSD: Tensor, v_BMSD: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        queries = k_BMSD.shape[2]
        if queries == 1:
            return self.put(self.key_cache, slots_S, k_BMSD), self.put(self.value_cache, slots_S, v_BMSD)
        empty = (0, 0, 0, self.num_keys - queries)  # none before and behind D and before K
        keys, values = self.pad(k_BMSD, empty, 0.0), self.pad(v_BMSD, empty, 0.0)
        self.fill(self.key_cache, keys)
        self.fill(self.value_cache, values)
        return keys, values
