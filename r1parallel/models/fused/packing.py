"""Several texts in one row of a graph: where each of their tokens stands, and what it sees.

Every text is a segment of its row. A segment may have a parent, all of which its tokens see too: a prompt that stands
in a row once and has several completions.
Shape letters: B rows, T slots of a row, K targets of a row, X = 3·T + 2·K.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.models.fused.operators import Operators


class SegmentMap(NamedTuple):
    """How packed rows are filled, all int32.

    Attributes:
        positions_BT: of a token in its text, from 0.
        segments_BT: which text of its row a token is part of, from 0; −1: padding.
        parents_BT: the other segment that a token sees; its own where there is none; −1: padding.
        sources_BK: slot of the hidden state that predicts a target; 0 where there is no target.
        targets_BK: token ids to score; 0 where there is no target.
    """

    positions_BT: np.ndarray
    segments_BT: np.ndarray
    parents_BT: np.ndarray
    sources_BK: np.ndarray
    targets_BK: np.ndarray

    def concatenated(self) -> np.ndarray:
        """What a graph takes: all of them side by side, int32 [B, X]."""
        assert all(part.dtype == np.int32 for part in self), [part.dtype for part in self]
        return np.concatenate(self, axis=1)


class PackedRows(nn.Cell):
    """As `PaddedRows`, for packed ones: a token sees what is not behind it, of its own segment and of its parent.

    Padding sees the padding before it and itself, so that its numbers stay finite; nothing else sees padding.

    Args:
        num_keys: T.
    """

    def __init__(self, num_keys: int):
        super().__init__()
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.part, self.reshape = ops.StridedSlice(), ops.Reshape()
        # Tiled, not broadcast: see layers.py.
        self.tile_keys, self.tile_queries, self.tile_causal = ops.Tile(), ops.Tile(), ops.Tile()
        self.own, self.of_parent, self.before = ops.Equal(), ops.Equal(), ops.LessEqual()
        self.either, self.both = ops.LogicalOr(), ops.LogicalAnd()

    def construct(self, slots_T: Tensor, segment_map_BX: Tensor) -> tuple[Tensor, Tensor]:
        """slots_T int32, `SegmentMap.concatenated()` → positions int32 [B, T]; visible keys, bool [B, T, T]."""
        rows, size = segment_map_BX.shape[0], slots_T.shape[0]
        positions_BT = self.part(segment_map_BX, (0, 0), (rows, size), (1, 1))
        segments_BT = self.part(segment_map_BX, (0, size), (rows, 2 * size), (1, 1))
        parents_BT = self.part(segment_map_BX, (0, 2 * size), (rows, 3 * size), (1, 1))
        keys_BTT = self.tile_keys(self.reshape(segments_BT, (rows, 1, size)), (1, size, 1))
        segments_BTT = self.tile_queries(self.reshape(segments_BT, (rows, size, 1)), (1, 1, size))
        parents_BTT = self.tile_queries(self.reshape(parents_BT, (rows, size, 1)), (1, 1, size))
        causal_1TT = self.before(self.key_slots, self.reshape(slots_T, (1, size, 1)))
        related_BTT = self.either(self.own(keys_BTT, segments_BTT), self.of_parent(keys_BTT, parents_BTT))
        return positions_BT, self.both(related_BTT, self.tile_causal(causal_1TT, (rows, 1, 1)))


def packed(operators: Operators) -> Operators:
    """The same operators for a model of packed rows without a cache: it takes segment_map_BX, not starts_B."""
    return replace(operators, geometry=partial(operators.geometry, rows=PackedRows))
