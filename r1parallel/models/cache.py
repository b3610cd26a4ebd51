"""Attention over keys and values of earlier calls, kept in a static cache.

The cache has K slots in each of its rows: the tokens of a text stand in slots 0, 1, 2 …, and no text reaches the last
one, which is where a call writes what it does not want to keep. Two kinds of models share weights and cache: one runs
prompts through and only fills the cache, the other adds one token to every row and attends to all of them.
Shape letters: B rows of the cache, Q prompts, P slots of a prompt, X = 1 + 2·P, K slots of a row, M key/value
heads, D head size, Y = M·D.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from r1parallel.config.model import ModelConfig
from r1parallel.models.attention import Attention


class Cache(nn.Cell):
    """Keys and values of one layer, [B, K, M, D] each: an operator that changed their shape would copy them.

    Args:
        rows: B.
        slots: K.
        heads: M.
        size: D.
        dtype: of both.
    """

    def __init__(self, rows: int, slots: int, heads: int, size: int, dtype: Any):
        super().__init__()
        self.rows, self.slots, self.heads, self.size = rows, slots, heads, size
        shape = (rows, slots, heads, size)
        self.key_cache = Parameter(initializer("zeros", shape, dtype), requires_grad=False)
        self.value_cache = Parameter(initializer("zeros", shape, dtype), requires_grad=False)
        self.write, self.pick, self.reshape = ops.ScatterNdUpdate(), ops.Gather(), ops.Reshape()
        self.part = ops.StridedSlice()

    def put(self, k_NMD: Tensor, v_NMD: Tensor, spots_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens where spots_N2 says, (row, slot) of each; → all keys and values, [B, K, M, D] each."""
        return self.write(self.key_cache, spots_N2, k_NMD), self.write(self.value_cache, spots_N2, v_NMD)

    def put_tokens(self, k: Tensor, v: Tensor, spots_N2: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one token of every row."""
        shape = (self.rows, self.heads, self.size)
        return self.put(self.reshape(k, shape), self.reshape(v, shape), spots_N2)

    def put_prompts(self, k_TY: Tensor, v_TY: Tensor, prompts: int, targets_BX: Tensor) -> None:
        """Write prompts into rows; targets_BX says which prompt, then the spot of each of its tokens."""
        width = targets_BX.shape[1]
        source_B = self.reshape(self.part(targets_BX, (0, 0), (self.rows, 1), (1, 1)), (-1,))
        spots_N2 = self.reshape(self.part(targets_BX, (0, 1), (self.rows, width), (1, 1)), (-1, 2))
        k_BPMD, v_BPMD = (
            self.pick(self.reshape(x_TY, (prompts, -1, self.heads, self.size)), source_B, 0) for x_TY in (k_TY, v_TY)
        )
        shape = (-1, self.heads, self.size)
        self.put(self.reshape(k_BPMD, shape), self.reshape(v_BPMD, shape), spots_N2)


class TokenRows(nn.Cell):
    """One query in every row, which sees the slots up to its own.

    Args:
        num_keys: K.
    """

    def __init__(self, num_keys: int):
        super().__init__()
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.until, self.reshape = ops.LessEqual(), ops.Reshape()

    def construct(self, spots_N2: Tensor, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """positions_B int32 → the same [B, 1]; whether the query sees a key, bool [B, 1, K]."""
        rows = positions_B.shape[0]
        return self.reshape(positions_B, (rows, 1)), self.until(self.key_slots, self.reshape(positions_B, (rows, 1, 1)))


class PromptRows(nn.Cell):
    """Rows that begin with a prompt. A token sees what is not behind it, of the prompt; padding sees it too.

    Args:
        num_keys: P.
    """

    def __init__(self, num_keys: int):
        super().__init__()
        slots = np.arange(num_keys, dtype=np.int32)
        self.slots = Tensor(slots.reshape(1, -1))
        self.key_slots, self.query_slots = Tensor(slots.reshape(1, 1, -1)), Tensor(slots.reshape(1, -1, 1))
        self.before, self.inside, self.both, self.tile = ops.LessEqual(), ops.Less(), ops.LogicalAnd(), ops.Tile()
        self.reshape = ops.Reshape()

    def construct(self, targets_BX: Tensor, lengths_Q: Tensor) -> tuple[Tensor, Tensor]:
        """lengths_Q int32 → positions int32 [Q, P]; whether a query sees a key, bool [Q, P, P]."""
        rows = lengths_Q.shape[0]
        inside_Q1P = self.inside(self.key_slots, self.reshape(lengths_Q, (rows, 1, 1)))
        causal_1PP = self.before(self.key_slots, self.query_slots)
        return self.tile(self.slots, (rows, 1)), self.both(inside_Q1P, causal_1PP)


class TokenAttention(Attention):
    """Of a model that is given one token of every row of the cache: adds its key and value, attends to all slots.

    Args:
        config: sizes of the model.
        rows: B.
        slots: K.
        dtype: of the cache.
        transposed: as in `Linear`.
        options: of `Attention`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        slots: int,
        dtype: Any = ms.float32,
        transposed: bool = True,
        **options: Any,
    ):
        super().__init__(config, transposed, **options)
        self.cache = Cache(rows, slots, config.num_kv_heads, config.head_dim, dtype)

    def keys_values(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.put_tokens(k, v, slots)
        if self.heads_first:
            keys, values = self.to_heads(keys, (0, 2, 1, 3)), self.to_heads(values, (0, 2, 1, 3))
        return keys, values


class PromptAttention(Attention):
    """Of a model that is given prompts: fills the cache with their keys and values, which it attends to itself.

    Args:
        config: sizes of the model.
        rows: B.
        slots: K.
        dtype: of the cache.
        transposed: as in `Linear`.
        options: of `Attention`.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        slots: int,
        dtype: Any = ms.float32,
        transposed: bool = True,
        **options: Any,
    ):
        super().__init__(config, transposed, **options)
        self.cache = Cache(rows, slots, config.num_kv_heads, config.head_dim, dtype)

    def keys_values(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.num_kv_heads
        self.cache.put_prompts(self.flat(k, heads), self.flat(v, heads), k.shape[0], slots)
        return k, v
