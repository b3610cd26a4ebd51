"""How completions stand in the rows of the training graph: one in a row, or several packed into one.

Shape letters: N completions, P prompt slots, C completion slots, R graph rows, S tokens and K target slots of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from r1parallel.models.packing import Places
from r1parallel.rl.experience import Experience

_PADDING = -1  # segment of a slot that holds no token


@dataclass(frozen=True)
class GraphRows:
    """Rows of the training graph and what their target slots mean.

    Attributes:
        tokens: int32 [R, S].
        places: int32, where the tokens stand, as the graph's log-probs take it.
        sample: int [R, K], which of the N completions a target slot belongs to; −1: it has no meaning.
        token: int [R, K], which of that completion's tokens it is.
    """

    tokens: np.ndarray
    places: np.ndarray
    sample: np.ndarray
    token: np.ndarray

    @property
    def used(self) -> np.ndarray:
        """Bool [R, K]: target slots that mean something."""
        return self.sample >= 0

    def take(self, values_NC: np.ndarray) -> np.ndarray:
        """A number for each token of each completion → the numbers of the target slots, [R, K]; 0 without meaning."""
        return np.where(self.used, values_NC[self.sample, self.token], 0)

    def put(self, values_RK: np.ndarray, into_NC: np.ndarray) -> None:
        """The reverse: writes the numbers of target slots to where they belong."""
        used = self.used
        into_NC[self.sample[used], self.token[used]] = values_RK[used]

    def parts(self, count: int) -> Iterator["GraphRows"]:
        """`count` rows at a time, which divides their number."""
        assert len(self.tokens) % count == 0, (len(self.tokens), count)
        for first in range(0, len(self.tokens), count):
            part = slice(first, first + count)
            yield GraphRows(self.tokens[part], self.places[part], self.sample[part], self.token[part])


@dataclass(frozen=True)
class RowShape:
    """Sizes of a graph row.

    Attributes:
        prompt: P.
        completion: C.
        pack_length: tokens of a packed row, at least P + C; 0: one completion in a row.
    """

    prompt: int
    completion: int
    pack_length: int = 0

    @property
    def length(self) -> int:
        """S."""
        return self.pack_length or self.prompt + self.completion

    @property
    def targets(self) -> int:
        """K: C, or the share of a packed row that completions have in a full one."""
        if not self.pack_length:
            return self.completion
        return -(-self.pack_length * self.completion // (self.prompt + self.completion))

    @property
    def places(self) -> tuple[int, ...]:
        """Shape of one row of `GraphRows.places`."""
        return (3 * self.length + 2 * self.targets,) if self.pack_length else ()

    def rows(self, experience: Experience, samples: np.ndarray, multiple: int) -> GraphRows:
        """The completions that `samples` names, in this order; filled up with rows without meaning.

        Args:
            experience: holds them.
            samples: int [n], which of the N.
            multiple: the number of rows is a multiple of it.
        """
        make = _packed if self.pack_length else _padded
        return make(self, experience, samples, multiple)


def _padded(shape: RowShape, experience: Experience, samples: np.ndarray, multiple: int) -> GraphRows:
    """One completion in a row. A row without meaning repeats the first one's tokens."""
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
    """Prompt and completion, one behind the other, so many as a row holds."""
    prompts = shape.prompt - experience.starts[samples]
    completions = experience.lengths[samples]
    bins = first_fit(prompts, completions, shape.length, shape.targets)
    rows = -(-len(bins) // multiple) * multiple
    tokens = np.zeros((rows, shape.length), np.int32)
    whole, wanted = (rows, shape.length), (rows, shape.targets)
    positions, segments = np.zeros(whole, np.int32), np.full(whole, _PADDING, np.int32)
    sources, targets = np.zeros(wanted, np.int32), np.zeros(wanted, np.int32)
    sample, token = np.full(wanted, -1), np.zeros(wanted, np.int64)
    for row, members in enumerate(bins):
        slot, target = 0, 0
        for segment, member in enumerate(members):
            name, prompt, completion = samples[member], prompts[member], completions[member]
            here, there = slice(slot, slot + prompt + completion), slice(target, target + completion)
            start = experience.starts[name]
            tokens[row, here] = experience.tokens[name, start : shape.prompt + completion]
            positions[row, here] = np.arange(prompt + completion)
            segments[row, here] = segment
            # The state at slot i predicts the token at slot i + 1.
            sources[row, there] = slot + prompt - 1 + np.arange(completion)
            targets[row, there] = tokens[row, slot + prompt : here.stop]
            sample[row, there], token[row, there] = name, np.arange(completion)
            slot, target = here.stop, there.stop
    places = Places(positions, segments, segments, sources, targets)
    return GraphRows(tokens, places.joined(), sample, token)


def first_fit(prompts: Sequence[int], completions: Sequence[int], length: int, targets: int) -> list[list[int]]:
    """Which completions share a row: longest first, each into the first row with room (Johnson 1973).

    Args:
        prompts: tokens of each prompt.
        completions: tokens of each completion.
        length: tokens that a row holds.
        targets: tokens of completions that a row holds.

    Returns:
        The members of each row, in the order given.
    """
    sizes = np.asarray(prompts) + np.asarray(completions)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for member in np.argsort(-sizes, kind="stable"):
        size, wanted = int(sizes[member]), int(completions[member])
        assert size <= length and wanted <= targets, (size, wanted)
        fitting = (row for row, (free, open_) in enumerate(room) if size <= free and wanted <= open_)
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            room.append((length, targets))
        rows[row].append(int(member))
        room[row] = (room[row][0] - size, room[row][1] - wanted)
    return [sorted(members) for members in rows]
