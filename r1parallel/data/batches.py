"""Which rows make up a batch, a function of the step alone (resuming needs only its number), and how they stand."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from r1parallel.errors import UserError


class RowOrder:
    """Endless order of rows. Epoch e visits every row once, in a permutation drawn from (seed, e).

    Batches are cut from the epochs laid end to end: rows that do not fill a batch begin the next epoch's
    first one. So no row is dropped and every batch has `batch_size` rows; a batch that spans two epochs may
    hold a row twice.

    Raises:
        UserError: there is no row, or a batch is larger than the data set.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        if num_rows < 1:
            raise UserError("the data set has no rows")
        if not 1 <= batch_size <= num_rows:
            raise UserError(f"a batch of {batch_size} rows cannot be cut from a data set of {num_rows}")
        if seed < 0:
            raise UserError(f"seed is {seed}; it must not be negative")
        self.num_rows = num_rows
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch; the rows that are left over count towards the next."""
        return self.num_rows // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """Row numbers of batch `step` (from 0): int64 [batch_size]."""
        start = step * self.batch_size
        epoch, offset = divmod(start, self.num_rows)
        rows = _permutation(self.num_rows, self.seed, epoch)[offset : offset + self.batch_size]
        missing = self.batch_size - len(rows)
        if missing == 0:
            return rows.copy()
        return np.concatenate([rows, _permutation(self.num_rows, self.seed, epoch + 1)[:missing]])


@lru_cache(maxsize=4)
def _permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def right_aligned(prompts: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts pushed to the right end of `length` slots: tokens int32 [N, length] and first real slots int32 [N]."""
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    starts = np.array([length - len(prompt) for prompt in prompts], np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, starts[row] :] = prompt
    return tokens, starts
