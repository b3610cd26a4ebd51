"""Where every token stands: positions, rotary angles and the attention mask, once for all layers.

A row is a prompt pushed to the right of its half, then the completion: `starts_B` is the slot of its first real
token. Masks come from these lengths alone, never from token ids, so any id may be used as padding.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from r1parallel.models.config import ModelConfig

# Added to the score of a key that must not be seen. Finite, so that a padding row, which sees no key at all, stays finite.
_MASKED = -1e9


class Geometry(nn.Cell):
    """Slots of the queries and starts of the rows → rotary cosines and sines, and the mask.

    Args:
        config: sizes of the model.
        num_keys: K, how many slots can be attended to.
    """

    def __init__(self, config: ModelConfig, num_keys: int):
        super().__init__()
        exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
        frequencies = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
        self.frequencies = Tensor(frequencies.reshape(1, 1, 1, -1))
        self.key_slots = Tensor(np.arange(num_keys, dtype=np.int32).reshape(1, 1, num_keys))
        self.sub, self.clip = ops.Sub(), ops.Maximum()
        self.cast, self.angle = ops.Cast(), ops.Mul()
        self.cos, self.sin = ops.Cos(), ops.Sin()
        self.after, self.before, self.both = ops.GreaterEqual(), ops.LessEqual(), ops.LogicalAnd()
        self.select = ops.Select()
        self.visible, self.hidden = Tensor(0.0, ms.float32), Tensor(_MASKED, ms.float32)
        self.reshape = ops.Reshape()

    def construct(self, slots_S: Tensor, starts_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """slots_S int32, starts_B int32 → cos_B1SD, sin_B1SD (D: half a head) and mask_B11SK, added to the scores."""
        rows, queries = starts_B.shape[0], slots_S.shape[0]
        starts_B1 = self.reshape(starts_B, (rows, 1))
        positions_BS = self.clip(self.sub(self.reshape(slots_S, (1, queries)), starts_B1), 0)
        positions_B1S1 = self.reshape(self.cast(positions_BS, ms.float32), (rows, 1, queries, 1))
        angles_B1SD = self.angle(positions_B1S1, self.frequencies)
        started_B1K = self.after(self.key_slots, self.reshape(starts_B, (rows, 1, 1)))
        causal_1SK = self.before(self.key_slots, self.reshape(slots_S, (1, queries, 1)))
        seen_BSK = self.both(started_B1K, causal_1SK)
        mask_BSK = self.select(seen_BSK, self.visible, self.hidden)
        return self.cos(angles_B1SD), self.sin(angles_B1SD), self.reshape(mask_BSK, (rows, 1, 1, queries, -1))
