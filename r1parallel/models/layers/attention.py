"""Grouped-query attention with rotary embedding, without and with a static cache.

Shape letters: B rows, S queries, K keys, N heads, M key/value heads, G = N / M, D head size, T = B·S, H = N·D.
"""

import math
from collections.abc import Callable

from mindspore import Tensor, nn, ops

from r1parallel.config.model import ModelConfig
from r1parallel.models.layers.layers import Linear


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
        heads_first: rotary embedding and core take [B, N, S, D], else [B, S, N, D], which is no work to make.
    """

    def __init__(
        self,
        config: ModelConfig,
        transposed: bool = False,
        linear: Callable[..., Linear] = Linear,
        rotate: Callable[[], nn.Cell] = Rotate,
        core: Callable[[ModelConfig], nn.Cell] = SoftmaxCore,
        heads_first: bool = True,
    ):
        super().__init__()
        self.heads_first = heads_first
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.wq = linear(config.hidden_size, config.hidden_size, has_bias=True, transposed=transposed)
        self.wk = linear(config.hidden_size, config.kv_size, has_bias=True, transposed=transposed)
        self.wv = linear(config.hidden_size, config.kv_size, has_bias=True, transposed=transposed)
        self.wo = linear(config.hidden_size, config.hidden_size, transposed=transposed)
        self.rotate, self.core = rotate(), core(config)
        self.reshape = ops.Reshape()
        self.to_heads, self.from_heads = ops.Transpose(), ops.Transpose()

    def heads(self, x_TX: Tensor, num_heads: int, rows: int) -> Tensor:
        """[T, num_heads·D] → [B, num_heads, S, D], or [B, S, num_heads, D]."""
        x_BSXD = self.reshape(x_TX, (rows, -1, num_heads, self.head_dim))
        if not self.heads_first:
            return x_BSXD
        if x_BSXD.shape[1] == 1:
            return self.reshape(x_TX, (rows, num_heads, 1, self.head_dim))
        return self.to_heads(x_BSXD, (0, 2, 1, 3))

    def flat(self, x: Tensor, num_heads: int) -> Tensor:
        """The reverse of `heads`."""
        if self.heads_first and x.shape[2] > 1:
            x = self.from_heads(x, (0, 2, 1, 3))
        return self.reshape(x, (-1, num_heads * self.head_dim))

    def keys_values(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to: here those of the call, as `heads` gives them."""
        return k, v

    def construct(self, x_TH: Tensor, geometry: tuple[Tensor, ...], slots: Tensor) -> Tensor:
        """x_TH, what the model's geometry made, where this call's tokens stand → [T, H]."""
        cos_q, sin_q, cos_k, sin_k, mask = geometry
        rows = cos_q.shape[0]
        q = self.rotate(self.heads(self.wq(x_TH), self.num_heads, rows), cos_q, sin_q)
        k = self.rotate(self.heads(self.wk(x_TH), self.num_kv_heads, rows), cos_k, sin_k)
        v = self.heads(self.wv(x_TH), self.num_kv_heads, rows)
        keys, values = self.keys_values(k, v, slots)
        return self.wo(self.flat(self.core(q, keys, values, mask), self.num_heads))
