"""Lays completions out in the rows of the training graph: one in a row, or several packed into one.

Shape letters: N completions, P prompt slots, C completion slots, R graph rows, S tokens and K target slots of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from r1parallel.models.fused.packing import SegmentMap
from r1parallel.rl.experience.experience import Experience

_PADDING = -1  # segment of a slot that holds no token


@dataclass(frozen=True)
class GraphRows:
    """Rows of the training graph, and which token of which completion each target slot is.

    Attributes:
        tokens: int32 [R, S].
        row_data: int32, what the graph's log-probs take beside the tokens: a row's start, or its `SegmentMap`.
        sample: int [R, K], which of the N completions a target slot belongs to; −1: unused slot.
        token: int [R, K], which of that completion's tokens it is.
    """

    tokens: np.ndarray
    row_data: np.ndarray
    sample: np.ndarray
    token: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Bool [R, K]: target slots that hold a token of a completion."""
        return self.sample >= 0

    def take(self, values_NC: np.ndarray) -> np.ndarray:
        """Values of the completions' tokens → values of the target slots, [R, K]; 0 in unused slots."""
        return np.where(self.used, values_NC[self.sample, self.token], 0)

    def put(self, values_RK: np.ndarray, into_NC: np.ndarray) -> None:
        """The reverse of `take`: write the values of used target slots to their tokens."""
        used = self.used
        into_NC[self.sample[used], self.token[used]] = values_RK[used]

    def parts(self, count: int) -> Iterator["GraphRows"]:
        """`count` rows at a time, which divides their number."""
        assert len(self.tokens) % count == 0, (len(self.tokens), count)
        for first in range(0, len(self.tokens), count):
            part = slice(first, first + count)
            yield GraphRows(self.tokens[part], self.row_data[part], self.sample[part], self.token[part])


@dataclass(frozen=True)
class RowShape:
    """Sizes of a graph row.

    Attributes:
        prompt: P.
        completion: C.
        pack_length: tokens of a packed row, at least P + C; 0: one completion in a row.
        group: completions of a prompt, which stands once in a packed row for all of them that are in it.
    """

    prompt: int
    completion: int
    pack_length: int = 0
    group: int = 1

    @property
    def length(self) -> int:
        """S."""
        return self.pack_length or self.prompt + self.completion

    @property
    def targets(self) -> int:
        """K: C, or the share of a packed row that completions have in one of full length, with their prompt."""
        if not self.pack_length:
            return self.completion
        together = max(1, min(self.group, (self.pack_length - self.prompt) // self.completion)) * self.completion
        return -(-self.pack_length * together // (self.prompt + together))

    @property
    def row_data_shape(self) -> tuple[int, ...]:
        """Shape of one row of `GraphRows.row_data`."""
        return (3 * self.length + 2 * self.targets,) if self.pack_length else ()

    def rows(self, experience: Experience, samples: np.ndarray, multiple: int) -> GraphRows:
        """Rows of the completions in `samples`, in this order, padded with unused rows.

        Args:
            experience: holds them.
            samples: int [n], which of the N.
            multiple: the number of rows is a multiple of it.
        """
        make = _packed if self.pack_length else _padded
        return make(self, experience, samples, multiple)


def _padded(shape: RowShape, experience: Experience, samples: np.ndarray, multiple: int) -> GraphRows:
    """One completion in a row. An unused row repeats the tokens of the first."""
    rows = -(-len(samples) // multiple) * multiple
    chosen = np.concatenate([samples, np.full(rows - len(samples), samples[0])])
    used = (np.arange(rows) < len(samples))[:, None] & experience.inside[chosen]
    return GraphRows(
        experience.tokens[chosen],
        experience.starts[chosen],
        np.where(used, chosen[:, None], -1),
        np.broadcast_to(np.arange(shape.completion), used.shape),
    )


def _packed(shape: RowShape, experience: Experience, samples: np.ndarray, multiple: int) -> GraphRows:
    """As many prompts as fit into a row, each once, followed by its completions."""
    begin = experience.starts[samples]
    prompts = [tuple(experience.tokens[n, start : shape.prompt]) for n, start in zip(samples, begin, strict=True)]
    bins = first_fit(prompts, experience.lengths[samples], shape.length, shape.targets)
    packed = _RowPacker(shape, -(-len(bins) // multiple) * multiple)
    for row, members in enumerate(bins):
        for prompt in dict.fromkeys(prompts[member] for member in members):
            named = [samples[member] for member in members if prompts[member] == prompt]
            texts = [experience.tokens[n, shape.prompt : shape.prompt + experience.lengths[n]] for n in named]
            packed.add(row, prompt, named, texts)
    return packed.done()


class _RowPacker:
    """Rows that are being filled. The letter T is S here, as in `models/packing.py`."""

    def __init__(self, shape: RowShape, rows: int):
        whole, wanted = (rows, shape.length), (rows, shape.targets)
        self.tokens, self.positions = np.zeros(whole, np.int32), np.zeros(whole, np.int32)
        self.segments, self.parents = np.full(whole, _PADDING, np.int32), np.full(whole, _PADDING, np.int32)
        self.sources, self.targets = np.zeros(wanted, np.int32), np.zeros(wanted, np.int32)
        self.sample, self.token = np.full(wanted, -1), np.zeros(wanted, np.int64)
        self.slots, self.filled = np.zeros(rows, np.int64), np.zeros(rows, np.int64)  # slots and targets in use
        self.texts = np.zeros(rows, np.int32)

    def add(self, row: int, prompt: Sequence[int], names: Sequence[int], completions: Sequence[np.ndarray]) -> None:
        """A prompt and the completions of it that `names` names."""
        parent = self._segment(row, prompt, 0, None)
        last = int(self.slots[row]) - 1
        for name, completion in zip(names, completions, strict=True):
            size, slot = len(completion), int(self.slots[row])
            self._segment(row, completion, len(prompt), parent)
            there = slice(self.filled[row], self.filled[row] + size)
            # The state before a token predicts it; before the first one that is the prompt's last.
            self.sources[row, there] = np.concatenate([[last], slot + np.arange(size - 1)])
            self.targets[row, there] = completion
            self.sample[row, there], self.token[row, there] = name, np.arange(size)
            self.filled[row] += size

    def _segment(self, row: int, text: Sequence[int] | np.ndarray, position: int, parent: int | None) -> int:
        """A text whose first token has this position; → its number in the row."""
        number, here = int(self.texts[row]), slice(self.slots[row], self.slots[row] + len(text))
        self.tokens[row, here], self.positions[row, here] = text, position + np.arange(len(text))
        self.segments[row, here], self.parents[row, here] = number, number if parent is None else parent
        self.slots[row] += len(text)
        self.texts[row] += 1
        return number

    def done(self) -> GraphRows:
        segment_map = SegmentMap(self.positions, self.segments, self.parents, self.sources, self.targets)
        return GraphRows(self.tokens, segment_map.concatenated(), self.sample, self.token)


def first_fit(
    prompts: Sequence[Sequence[int]], completions: Sequence[int], length: int, targets: int
) -> list[list[int]]:
    """Which completions share a row: longest first (Johnson 1973), each into the first row with room.

    Completions of one prompt follow each other, and a row that holds their prompt already is tried first: in it only
    the completion takes room.

    Args:
        prompts: the prompt of each completion.
        completions: tokens of each.
        length: tokens that a row holds.
        targets: tokens of completions that a row holds.

    Returns:
        The members of each row, in the order given.
    """
    sizes = {prompt: len(prompt) for prompt in prompts}
    for prompt, completion in zip(prompts, completions, strict=True):
        sizes[prompt] += int(completion)
    number = {prompt: i for i, prompt in enumerate(sizes)}
    order = sorted(range(len(prompts)), key=lambda i: (-sizes[prompts[i]], number[prompts[i]], -int(completions[i]), i))
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for member in order:
        prompt, wanted = prompts[member], int(completions[member])
        assert len(prompt) + wanted <= length and wanted <= targets, (len(prompt), wanted)
        holding = [row for row, members in enumerate(rows) if any(prompts[i] == prompt for i in members)]
        tried = [(row, wanted) for row in holding]
        tried += [(row, len(prompt) + wanted) for row in range(len(rows)) if row not in holding]
        fitting = ((row, size) for row, size in tried if size <= room[row][0] and wanted <= room[row][1])
        row, size = next(fitting, (len(rows), len(prompt) + wanted))
        if row == len(rows):
            rows.append([])
            room.append((length, targets))
        rows[row].append(member)
        room[row] = (room[row][0] - size, room[row][1] - wanted)
    return [sorted(members) for members in rows]
