"""Where every token stands: positions, rotary angles and the attention mask, once for all layers.

Masks come from slots and lengths alone, never from token ids, so any id may be used as padding.
"""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.config.model import ModelConfig

# Added to the score of a key that must not be seen. Finite: a padding row, which sees no key at all, must stay finite.
_MASKED = -1e9


class PaddedRows(nn.Cell):
    """Rows of one prompt, pushed to the right of its half, and one completion. `starts_B` is the first token's slot.

    A token sees the real ones that are not behind it. Padding before them sees itself, so that its numbers stay finite.
    `fused/packing.py` and `kv_cache.py` have other kinds of rows.

    Args:
        num_keys: K, how many slots can be attended to.
    """

    def __init__(self, num_keys: int):
        super().__init__()
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.sub, self.clip = ops.Sub(), ops.Maximum()
        self.after, self.before, self.same = ops.GreaterEqual(), ops.LessEqual(), ops.Equal()
        self.either, self.both = ops.LogicalOr(), ops.LogicalAnd()
        self.reshape = ops.Reshape()

    def construct(self, slots_S: Tensor, starts_B: Tensor) -> tuple[Tensor, Tensor]:
        """slots_S int32, starts_B int32 → positions int32 [B, S]; whether a query sees a key, bool [B, S, K]."""
        rows, queries = starts_B.shape[0], slots_S.shape[0]
        starts_B1 = self.reshape(starts_B, (rows, 1))
        positions_BS = self.clip(self.sub(self.reshape(slots_S, (1, queries)), starts_B1), 0)
        started_B1K = self.after(self.key_slots, self.reshape(starts_B, (rows, 1, 1)))
        slots_1S1 = self.reshape(slots_S, (1, queries, 1))
        seen_BSK = self.both(started_B1K, self.before(self.key_slots, slots_1S1))
        return positions_BS, self.either(seen_BSK, self.same(self.key_slots, slots_1S1))


class Positions(nn.Cell):
    """What every geometry is made from: rotary angles, and which keys a query sees.

    Args:
        config: sizes of the model: N heads, M key/value heads, G = N / M, head size 2D.
        num_keys: K, how many slots can be attended to.
        rows: makes the Cell that knows how rows are filled, of K: (slots, row_data) → positions_BS, seen_BSK.
    """

    def __init__(self, config: ModelConfig, num_keys: int, rows: Callable[[int], nn.Cell] = PaddedRows):
        super().__init__()
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequencies = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
        self.frequencies = Tensor(frequencies.reshape(1, 1, 1, -1))
        self.rows = rows(num_keys)
        self.cast, self.angle = ops.Cast(), ops.Mul()
        self.cos, self.sin = ops.Cos(), ops.Sin()
        self.reshape = ops.Reshape()

    def angles(self, positions_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions, fp32 [B, 1, S, D]."""
        rows, queries = positions_BS.shape
        positions_B1S1 = self.reshape(self.cast(positions_BS, ms.float32), (rows, 1, queries, 1))
        angles_B1SD = self.angle(positions_B1S1, self.frequencies)
        return self.cos(angles_B1SD), self.sin(angles_B1SD)


class Geometry(Positions):
    """Where the queries stand → rotary cosines and sines, and the mask.

    All are tiled over the heads here, once for all layers; see layers.py for why no layer may broadcast them.
    """

    def __init__(self, config: ModelConfig, num_keys: int, rows: Callable[[int], nn.Cell] = PaddedRows):
        super().__init__(config, num_keys, rows)
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.group = config.num_heads // config.num_kv_heads
        self.seen, self.hide = ops.Sub(), ops.Mul()
        self.tile_heads, self.tile_mask = ops.Tile(), ops.Tile()

    def construct(self, slots: Tensor, row_data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the model was given → cos and sin [B, N, S, D] for queries, [B, M, S, D] for keys, mask.

        The mask, [B, M, G·S, K], is added to the scores.
        """
        positions_BS, seen_BSK = self.rows(slots, row_data)
        rows, queries = positions_BS.shape
        cos_B1SD, sin_B1SD = self.angles(positions_BS)
        mask_BSK = self.hide(self.seen(1.0, self.cast(seen_BSK, ms.float32)), _MASKED)
        mask_B1SK = self.reshape(mask_BSK, (rows, 1, queries, -1))
        return (
            self.tile_heads(cos_B1SD, (1, self.num_heads, 1, 1)),
            self.tile_heads(sin_B1SD, (1, self.num_heads, 1, 1)),
            self.tile_heads(cos_B1SD, (1, self.num_kv_heads, 1, 1)),
            self.tile_heads(sin_B1SD, (1, self.num_kv_heads, 1, 1)),
            self.tile_mask(mask_B1SK, (1, self.num_kv_heads, self.group, 1)),
        )
