"""Which sample sits in which row of the cache: a row is given to the next sample as soon as its own is complete.

Every dp rank owns a section of the rows; a prompt is computed once for all samples of it that sit down in a section
together. Shape letters: B rows, Q prompts of a launch, P slots of a prompt, X = 1 + 2·P, K slots of a row.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_FREE = -1


class Filling(NamedTuple):
    """What the graph that fills the cache is given, all int32.

    Attributes:
        tokens_QP: prompts without their last token, which is the first that the other graph is given.
        targets_BX: of every row the prompt that it gets, then (row, slot) of its tokens; numbers of its section.
        lengths_Q: tokens of these prompts, at least 1.
    """

    tokens_QP: np.ndarray
    targets_BX: np.ndarray
    lengths_Q: np.ndarray


class Seats:
    """The rows of a cache and who sits in them.

    Args:
        rows: B.
        sections: number of dp ranks.
        prompts: that a launch computes for each section.
        prompt_length: P.
        slots: K, more than any text needs.
        pad_id: fills unused slots of prompts.

    Attributes:
        sample: int [B], index of the sample in a row; −1: none.
        drawn: int [B], tokens that it has so far.
        token: int32 [B], the last of them, or of its prompt.
    """

    def __init__(self, rows: int, sections: int, prompts: int, prompt_length: int, slots: int, pad_id: int):
        self.sections, self.prompts, self.prompt_length, self.slots = sections, prompts, prompt_length, slots
        self.pad_id, self.patience = pad_id, max(1, rows // 4)
        self.sample, self.drawn = np.full(rows, _FREE), np.zeros(rows, np.int64)
        self.token, self._prompt = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
        self._row = (np.arange(rows) % (rows // sections)).astype(np.int32)  # its number in its section

    @property
    def taken(self) -> np.ndarray:
        """Rows that hold a sample."""
        return np.flatnonzero(self.sample != _FREE)

    def worth_filling(self, waiting: int) -> bool:
        """Whether so many waiting samples should take seats now: filling one row costs what filling several does."""
        return 0 < min(waiting, self.patience) <= len(self.sample) - len(self.taken)

    def fill(self, waiting: deque[int], prompts: Sequence[Sequence[int]]) -> Filling:
        """Seat samples from the head of the queue, as many as there is room for in one launch.

        Args:
            waiting: indices of samples; those that sit down leave it.
            prompts: of all samples.
        """
        filling = self._empty()
        here: list[list[tuple[int, ...]]] = [[] for _ in range(self.sections)]
        while waiting:
            prompt = tuple(prompts[waiting[0]])
            row = self._row_for(prompt, here)
            if row is None:
                break
            section = row * self.sections // len(self.sample)
            if prompt not in here[section]:
                here[section].append(prompt)
                self._write(filling, section * self.prompts + len(here[section]) - 1, prompt[:-1])
            filling.targets_BX[row, 0] = here[section].index(prompt)
            spots = self._spots(self._row[row], np.arange(len(prompt) - 1)).reshape(-1)
            filling.targets_BX[row, 1 : 1 + len(spots)] = spots
            self.sample[row], self.drawn[row] = waiting.popleft(), 0
            self.token[row], self._prompt[row] = prompt[-1], len(prompt)
        return filling

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, slot) and position of each row's token, int32 [B, 2] and [B]. A free row's is not kept."""
        busy = self.sample != _FREE
        positions = np.where(busy, self._prompt - 1 + self.drawn, 0).astype(np.int32)
        return self._spots(self._row, np.where(busy, positions, self.slots - 1)), positions

    def leave(self, rows: np.ndarray) -> None:
        """These rows' samples are complete."""
        self.sample[rows] = _FREE

    def _empty(self) -> Filling:
        """Nothing to fill: whatever is computed goes to the rows' last slots."""
        rows, prompts = len(self.sample), self.sections * self.prompts
        last = self._spots(self._row, np.full(rows, self.slots - 1)).reshape(rows, -1)
        targets = np.concatenate([np.zeros((rows, 1), np.int32), np.tile(last, (1, self.prompt_length))], axis=1)
        tokens = np.full((prompts, self.prompt_length), self.pad_id, np.int32)
        return Filling(tokens, targets, np.ones(prompts, np.int32))

    def _spots(self, rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Pairs of them, int32 [N, 2]."""
        return np.stack(np.broadcast_arrays(rows, slots), axis=1).astype(np.int32)

    def _write(self, filling: Filling, number: int, tokens: tuple[int, ...]) -> None:
        filling.tokens_QP[number, : len(tokens)] = tokens
        filling.lengths_Q[number] = max(1, len(tokens))

    def _row_for(self, prompt: tuple[int, ...], here: list[list[tuple[int, ...]]]) -> int | None:
        """A free row in the emptiest section that may compute this prompt."""
        free = [np.flatnonzero(part == _FREE) for part in np.split(self.sample, self.sections)]
        possible = [
            section
            for section in range(self.sections)
            if len(free[section]) and (prompt in here[section] or len(here[section]) < self.prompts)
        ]
        if not possible:
            return None
        section = max(possible, key=lambda section: len(free[section]))
        return section * (len(self.sample) // self.sections) + int(free[section][0])
