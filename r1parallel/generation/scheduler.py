"""Which sample sits in which row of the cache: a row is given to the next sample as soon as its own is complete.

Every dp rank owns a section of the rows. Prompts are computed in chunks, each once for all rows of a section that want
it, and only from where a prompt differs from what its row holds of the one before. Shape letters: B rows, R rows of a
section, Q chunks of a launch, S tokens of a chunk, X = 1 + 3·R·S, K slots of a row.
"""

from collections import deque
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np

_FREE = -1


class Filling(NamedTuple):
    """What the graph that fills the cache is given, all int32. Rows and tokens are numbered in their section.

    Attributes:
        tokens_QS: chunks of prompts.
        places_QX: of every chunk a row that gets it, then the numbers of R·S tokens and the (row, slot) of each.
        first_Q: where its first token stands in the prompt.
    """

    tokens_QS: np.ndarray
    places_QX: np.ndarray
    first_Q: np.ndarray


class Seats:
    """The rows of a cache and who sits in them.

    Args:
        rows: B.
        sections: number of dp ranks.
        chunks: that a launch computes for each section.
        chunk_length: S.
        slots: K, more than any text needs.
        pad_id: fills unused slots of chunks.
        patience: free rows that are waited for, where as many samples wait: filling one may cost what filling all does.

    Attributes:
        sample: int [B], index of the sample in a row; −1: none.
        drawn: int [B], tokens that it has so far.
        token: int32 [B], the last of them, or of its prompt.
    """

    def __init__(
        self, rows: int, sections: int, chunks: int, chunk_length: int, slots: int, pad_id: int, patience: int
    ):
        self.sections, self.chunks, self.chunk_length, self.slots = sections, chunks, chunk_length, slots
        self.pad_id, self.patience, self.section_rows = pad_id, patience, rows // sections
        self.sample, self.drawn = np.full(rows, _FREE), np.zeros(rows, np.int64)
        self.token = np.zeros(rows, np.int32)
        # The last token of a prompt is the first that the other graph is given: it is not filled in.
        self._prompt: list[tuple[int, ...]] = [()] * rows  # without that
        self._held: list[tuple[int, ...]] = [()] * rows  # what stands in the first slots of a row

    @property
    def taken(self) -> np.ndarray:
        """Rows that hold a sample."""
        return np.flatnonzero(self.sample != _FREE)

    @property
    def unfilled(self) -> list[int]:
        """Rows whose prompt is not yet in the cache."""
        return [row for row, (prompt, held) in enumerate(zip(self._prompt, self._held, strict=True)) if prompt != held]

    def worth_seating(self, waiting: int) -> bool:
        """Whether so many waiting samples should take seats now."""
        return 0 < min(waiting, self.patience) <= len(self.sample) - len(self.taken)

    def seat(self, waiting: deque[int], prompts: Sequence[Sequence[int]]) -> None:
        """Seat samples from the head of the queue, as many as there are free rows, each in the emptiest section.

        Args:
            waiting: indices of samples; those that sit down leave it.
            prompts: of all samples.
        """
        together: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        while waiting and len(self.taken) < len(self.sample):
            *prompt, last = map(int, prompts[waiting[0]])
            row, text = self._row_for(prompt), tuple(prompt)
            self.sample[row], self.drawn[row], self.token[row] = waiting.popleft(), 0, last
            self._prompt[row] = text
            together.setdefault((row // self.section_rows, text), []).append(row)
        for (_, text), rows in together.items():  # who shares a prompt begins at the same place, and so shares chunks
            begin = min(_common(self._held[row], text) for row in rows)
            for row in rows:
                self._held[row] = text[:begin]

    def fill(self) -> Filling:
        """The next chunks of rows that are unfilled, as many as one launch computes."""
        filling = self._empty()
        for number in range(self.sections * self.chunks):
            section, own = divmod(number, self.chunks)
            mine = [row for row in self.unfilled if row // self.section_rows == section]
            if mine:
                self._write(filling, number, own, mine)
        return filling

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, slot) and position of each row's token, int32 [B, 2] and [B]. A free row's is not kept."""
        busy = self.sample != _FREE
        lengths = np.fromiter(map(len, self._prompt), np.int64, len(self._prompt))
        positions = np.where(busy, lengths + self.drawn, 0).astype(np.int32)
        rows = np.arange(len(busy)) % self.section_rows
        return _pairs(rows, np.where(busy, positions, self.slots - 1)), positions

    def leave(self, rows: np.ndarray) -> None:
        """These rows' samples are complete."""
        self.sample[rows] = _FREE

    def _row_for(self, prompt: Sequence[int]) -> int:
        """Of the emptiest section's free rows the one that holds most of the prompt."""
        free = [np.flatnonzero(part == _FREE) for part in np.split(self.sample, self.sections)]
        section = max(range(self.sections), key=lambda section: len(free[section]))
        rows = (section * self.section_rows + free[section]).tolist()
        return max(rows, key=lambda row: _common(self._held[row], prompt))

    def _empty(self) -> Filling:
        """Nothing to fill: whatever is computed goes to the rows' last slots."""
        chunks, offered = self.sections * self.chunks, self.section_rows * self.chunk_length
        spots = _pairs(np.repeat(np.arange(self.section_rows), self.chunk_length), np.full(offered, self.slots - 1))
        tokens = np.tile(np.arange(self.chunk_length, dtype=np.int32), self.section_rows)
        first_tokens = np.arange(chunks, dtype=np.int32) % self.chunks * self.chunk_length
        places = np.concatenate(
            [
                np.zeros((chunks, 1), np.int32),
                first_tokens[:, None] + tokens,
                np.tile(spots.reshape(1, -1), (chunks, 1)),
            ],
            axis=1,
        )
        return Filling(np.full((chunks, self.chunk_length), self.pad_id, np.int32), places, np.zeros(chunks, np.int32))

    def _write(self, filling: Filling, number: int, own: int, rows: list[int]) -> None:
        """The next chunk of the first of these rows, into all of them that want the very same."""
        prompt, begin = self._prompt[rows[0]], len(self._held[rows[0]])
        text = prompt[: begin + self.chunk_length]
        count = len(text) - begin
        filling.tokens_QS[number, :count] = text[begin:]
        filling.places_QX[number, 0] = rows[0] % self.section_rows
        filling.first_Q[number] = begin
        spots = filling.places_QX[number, 1 + self.section_rows * self.chunk_length :]
        spots = spots.reshape(self.section_rows, self.chunk_length, 2)
        for row in rows:
            if len(self._held[row]) == begin and self._prompt[row][: len(text)] == text:
                spots[row % self.section_rows, :count, 1] = np.arange(begin, len(text))
                self._held[row] = text


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _pairs(rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """int32 [N, 2]."""
    return np.stack([rows, slots], axis=1).astype(np.int32)
