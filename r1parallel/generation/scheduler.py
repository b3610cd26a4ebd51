"""Which sample is in which row of the KV cache: a row goes to the next sample as soon as its own is complete.

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


class Prefill(NamedTuple):
    """What the graph that fills the cache is given, all int32. Rows and tokens are numbered in their section.

    Attributes:
        tokens_QS: chunks of prompts.
        slots_QX: of every chunk a row that gets it, then the numbers of R·S tokens and the (row, slot) of each.
        first_Q: where its first token stands in the prompt.
    """

    tokens_QS: np.ndarray
    slots_QX: np.ndarray
    first_Q: np.ndarray


class RowScheduler:
    """Assigns samples to the rows of a KV cache and prefills their prompts.

    Args:
        rows: B.
        sections: number of dp ranks.
        chunks: that a launch computes for each section.
        chunk_length: S.
        slots: K, more than any text needs.
        pad_id: fills unused slots of chunks.
        patience: free rows to wait for while as many samples wait: prefilling one may cost as much as prefilling all.

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
    def active_rows(self) -> np.ndarray:
        """Rows that hold a sample."""
        return np.flatnonzero(self.sample != _FREE)

    @property
    def pending_rows(self) -> list[int]:
        """Rows whose prompt is not yet in the cache."""
        return [row for row, (prompt, held) in enumerate(zip(self._prompt, self._held, strict=True)) if prompt != held]

    def should_admit(self, waiting: int) -> bool:
        """Whether so many waiting samples should be admitted now."""
        return 0 < min(waiting, self.patience) <= len(self.sample) - len(self.active_rows)

    def admit(self, waiting: deque[int], prompts: Sequence[Sequence[int]]) -> None:
        """Admit samples from the head of the queue, as many as there are free rows, each to the emptiest section.

        Args:
            waiting: indices of samples; those that are admitted leave it.
            prompts: of all samples.
        """
        together: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        while waiting and len(self.active_rows) < len(self.sample):
            *prompt, last = map(int, prompts[waiting[0]])
            row, text = self._row_for(prompt), tuple(prompt)
            self.sample[row], self.drawn[row], self.token[row] = waiting.popleft(), 0, last
            self._prompt[row] = text
            together.setdefault((row // self.section_rows, text), []).append(row)
        for (_, text), rows in together.items():  # who shares a prompt begins at the same place, and so shares chunks
            begin = min(_common(self._held[row], text) for row in rows)
            for row in rows:
                self._held[row] = text[:begin]

    def next_prefill(self) -> Prefill:
        """The next chunks of pending rows, as many as one launch computes."""
        prefill = self._empty()
        for number in range(self.sections * self.chunks):
            section, own = divmod(number, self.chunks)
            mine = [row for row in self.pending_rows if row // self.section_rows == section]
            if mine:
                self._write(prefill, number, own, mine)
        return prefill

    def token_slots(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, slot) and position of each row's token, int32 [B, 2] and [B]. A free row's is not kept."""
        busy = self.sample != _FREE
        lengths = np.fromiter(map(len, self._prompt), np.int64, len(self._prompt))
        positions = np.where(busy, lengths + self.drawn, 0).astype(np.int32)
        rows = np.arange(len(busy)) % self.section_rows
        return _pairs(rows, np.where(busy, positions, self.slots - 1)), positions

    def release(self, rows: np.ndarray) -> None:
        """Free these rows: their samples are complete."""
        self.sample[rows] = _FREE

    def _row_for(self, prompt: Sequence[int]) -> int:
        """Of the emptiest section's free rows the one that holds most of the prompt."""
        free = [np.flatnonzero(part == _FREE) for part in np.split(self.sample, self.sections)]
        section = max(range(self.sections), key=lambda section: len(free[section]))
        rows = (section * self.section_rows + free[section]).tolist()
        return max(rows, key=lambda row: _common(self._held[row], prompt))

    def _empty(self) -> Prefill:
        """Nothing to fill: whatever is computed goes to the rows' last slots."""
        chunks, offered = self.sections * self.chunks, self.section_rows * self.chunk_length
        row_slots = _pairs(np.repeat(np.arange(self.section_rows), self.chunk_length), np.full(offered, self.slots - 1))
        tokens = np.tile(np.arange(self.chunk_length, dtype=np.int32), self.section_rows)
        first_tokens = np.arange(chunks, dtype=np.int32) % self.chunks * self.chunk_length
        slots = np.concatenate(
            [
                np.zeros((chunks, 1), np.int32),
                first_tokens[:, None] + tokens,
                np.tile(row_slots.reshape(1, -1), (chunks, 1)),
            ],
            axis=1,
        )
        return Prefill(np.full((chunks, self.chunk_length), self.pad_id, np.int32), slots, np.zeros(chunks, np.int32))

    def _write(self, prefill: Prefill, number: int, own: int, rows: list[int]) -> None:
        """The next chunk of the first of these rows, into all of them that want the very same."""
        prompt, begin = self._prompt[rows[0]], len(self._held[rows[0]])
        text = prompt[: begin + self.chunk_length]
        count = len(text) - begin
        prefill.tokens_QS[number, :count] = text[begin:]
        prefill.slots_QX[number, 0] = rows[0] % self.section_rows
        prefill.first_Q[number] = begin
        row_slots = prefill.slots_QX[number, 1 + self.section_rows * self.chunk_length :]
        row_slots = row_slots.reshape(self.section_rows, self.chunk_length, 2)
        for row in rows:
            if len(self._held[row]) == begin and self._prompt[row][: len(text)] == text:
                row_slots[row % self.section_rows, :count, 1] = np.arange(begin, len(text))
                self._held[row] = text


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _pairs(rows: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """int32 [N, 2]."""
    return np.stack([rows, slots], axis=1).astype(np.int32)
