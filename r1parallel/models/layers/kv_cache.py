"""Attention over keys and values of earlier calls, kept in a static cache.

The cache has K slots in each of its rows: the tokens of a text stand in slots 0, 1, 2 …, and no text reaches the last
one, which is where a call writes what it does not want to keep. Two kinds of models share weights and cache: one runs
chunks of prompts through and only fills the cache, the other adds one token to every row and attends to all of them.
Shape letters: B rows of the cache, Q chunks, S tokens of a chunk, T = Q·S, R rows that may take a chunk,
X = 1 + 3·R·S, K slots of a row, M key/value heads, D head size, Y = M·D.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from r1parallel.config.model import ModelConfig
from r1parallel.models.layers.attention import Attention


class KVCache(nn.Cell):
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
        self.write, self.pick, self.look = ops.ScatterNdUpdate(), ops.Gather(), ops.Gather()
        self.reshape, self.part = ops.Reshape(), ops.StridedSlice()

    def put(self, k_NMD: Tensor, v_NMD: Tensor, row_slots_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Write tokens where row_slots_N2 says, (row, slot) of each; → all keys and values, [B, K, M, D] each."""
        return self.write(self.key_cache, row_slots_N2, k_NMD), self.write(self.value_cache, row_slots_N2, v_NMD)

    def put_tokens(self, k: Tensor, v: Tensor, row_slots_N2: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one token of every row."""
        shape = (self.rows, self.heads, self.size)
        return self.put(self.reshape(k, shape), self.reshape(v, shape), row_slots_N2)

    def put_chunks(self, k_TY: Tensor, v_TY: Tensor, slots_QX: Tensor) -> tuple[Tensor, Tensor]:
        """Write chunks into rows; → all keys and values of a row for each of them, [Q, K, M, D].

        slots_QX holds for every chunk: a row that gets it; the numbers of R·S tokens; the (row, slot) of each of them.
        So a chunk attends to all that its row holds, other chunks of the same prompt in the same call included.
        """
        chunks, width = slots_QX.shape
        row_slots = 1 + (width - 1) // 3
        rows_Q, tokens_N = (
            self.reshape(self.part(slots_QX, (0, first), (chunks, end), (1, 1)), (-1,))
            for first, end in ((0, 1), (1, row_slots))
        )
        row_slots_N2 = self.reshape(self.part(slots_QX, (0, row_slots), (chunks, width), (1, 1)), (-1, 2))
        k_NMD, v_NMD = (
            self.pick(self.reshape(x_TY, (-1, self.heads, self.size)), tokens_N, 0) for x_TY in (k_TY, v_TY)
        )
        keys, values = self.put(k_NMD, v_NMD, row_slots_N2)
        return self.look(keys, rows_Q, 0), self.look(values, rows_Q, 0)


class TokenRows(nn.Cell):
    """One query in every row, which sees the slots up to its own.

    Args:
        num_keys: K.
    """

    def __init__(self, num_keys: int):
        super().__init__()
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.until, self.reshape = ops.LessEqual(), ops.Reshape()

    def construct(self, row_slots_N2: Tensor, positions_B: Tensor) -> tuple[Tensor, Tensor]:
        """positions_B int32 → the same [B, 1]; whether the query sees a key, bool [B, 1, K]."""
        rows = positions_B.shape[0]
        return self.reshape(positions_B, (rows, 1)), self.until(self.key_slots, self.reshape(positions_B, (rows, 1, 1)))


class ChunkRows(nn.Cell):
    """Rows that hold the tokens before a chunk and its own. A token sees what is not behind it; so does padding.

    Args:
        length: S.
        num_keys: K.
    """

    def __init__(self, length: int, num_keys: int):
        super().__init__()
        self.slots = Tensor(np.arange(length, dtype=np.int32).reshape(1, length))
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.add, self.until, self.reshape = ops.Add(), ops.LessEqual(), ops.Reshape()

    def construct(self, slots_QX: Tensor, first_Q: Tensor) -> tuple[Tensor, Tensor]:
        """The position of each chunk's first token, int32 → positions int32 [Q, S]; what is seen, bool [Q, S, K]."""
        positions_QS = self.add(self.reshape(first_Q, (first_Q.shape[0], 1)), self.slots)
        return positions_QS, self.until(self.key_slots, self.reshape(positions_QS, (*positions_QS.shape, 1)))


class KVCacheAttention(Attention):
    """What both kinds have in common.

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
        self.cache = KVCache(rows, slots, config.num_kv_heads, config.head_dim, dtype)

    def turned(self, cached: Tensor) -> Tensor:
        """[B, K, M, D] → the order that the core takes."""
        return self.to_heads(cached, (0, 2, 1, 3)) if self.heads_first else cached


class TokenAttention(KVCacheAttention):
    """Of a model that is given one token of every row of the cache: adds its key and value, attends to all slots."""

    def keys_values(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.put_tokens(k, v, slots)
        return self.turned(keys), self.turned(values)


class PromptAttention(KVCacheAttention):
    """Of a model that is given chunks of prompts: fills the cache, and attends to what is of the same prompt there."""

    def keys_values(self, k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.num_kv_heads
        keys, values = self.cache.put_chunks(self.flat(k, heads), self.flat(v, heads), slots)
        return self.turned(keys), self.turned(values)
