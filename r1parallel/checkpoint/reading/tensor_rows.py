"""Tensors that are read window by window of rows: as they are stored, cast, several put together, one taken out.

A window is a region of the full tensor. Within one `Streams`, windows of one tensor are read in order of rows, so that
what lies in a file is read once, in order, and can be compared with its hash. Elements are raw words: `u2` for F16 and
BF16, `u4` for F32.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Protocol

import numpy as np

from r1parallel.checkpoint.formats.dtypes import DTYPES, cast
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry, as_bytes
from r1parallel.checkpoint.reading.streams import Streams
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Bounds, Region, from_bounds, overlap, within


class TensorRows(Protocol):
    """A tensor of which any region can be read.

    Attributes:
        shape: of the full tensor.
        dtype: safetensors' name.
        row_step: windows had better begin and end at multiples of this.
        row_bytes: memory that reading takes, for each row of a window.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def row_step(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    def read(self, region: Region, out: np.ndarray, streams: Streams) -> None:
        """Fill `out`, words in the shape of the region."""


def words(dtype: str) -> np.dtype:
    """The unsigned integers that stand for elements while they are only moved."""
    return np.dtype(f"u{DTYPES[dtype].itemsize}")


@dataclass(frozen=True)
class ArrayRows:
    """A tensor in memory."""

    array: np.ndarray
    dtype: str
    row_step: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def row_bytes(self) -> int:
        return _row_bytes(self.shape, self.dtype)

    def read(self, region: Region, out: np.ndarray, streams: Streams) -> None:
        out[...] = self.array[region].view(words(self.dtype)) if self.shape else self.array.view(words(self.dtype))


@dataclass(frozen=True)
class StoredRows:
    """A tensor in files, whole or cut. `pieces`: where each lies in the full tensor → the ranks' copies of it."""

    shape: tuple[int, ...]
    dtype: str
    pieces: dict[Bounds, list[TensorEntry]]
    row_step: int = 1

    @property
    def row_bytes(self) -> int:
        return _row_bytes(self.shape, self.dtype)

    def first_copies(self) -> "StoredRows":
        """The same tensor, of which only the first of several copies is ever read."""
        return replace(self, pieces={bounds: copies[:1] for bounds, copies in self.pieces.items()})

    def read(self, region: Region, out: np.ndarray, streams: Streams) -> None:
        """Fill `out`. Copies of a piece are read too, and must be equal.

        Raises:
            UserError: a file cannot be read, is not what its manifest says, or two copies differ.
        """
        if not self.shape:
            self._fill(out.reshape(1), next(iter(self.pieces.values())), (), (), streams)
            return
        for bounds, copies in self.pieces.items():
            piece = from_bounds(bounds)
            if (both := overlap(piece, region)) is not None:
                self._fill(out[within(both, region)], copies, copies[0].shape, within(both, piece), streams)

    def _fill(
        self, target: np.ndarray, copies: list[TensorEntry], shape: tuple[int, ...], inside: Region, streams: Streams
    ) -> None:
        """Read the rows of a piece in their full width, which lie together in its file, and keep what is wanted."""
        rows = inside[0] if inside else slice(0, 1)
        begin = rows.start * prod(shape[1:]) * target.itemsize
        window = (rows.stop - rows.start, *shape[1:])
        direct = target.flags.c_contiguous and target.size == prod(window)
        block = target if direct else np.empty(window, target.dtype)
        streams.read(copies[0], begin, as_bytes(block))
        for twin in copies[1:]:
            other = np.empty(window, target.dtype)
            streams.read(twin, begin, as_bytes(other))
            if not np.array_equal(other.reshape(-1), block.reshape(-1)):
                raise UserError(
                    f"{twin.file}: {twin.name} differs from its copy in {copies[0].file}; they must be equal"
                )
        if not direct:
            kept = (slice(None), *inside[1:])
            target[...] = block[kept]


def cast_rows(rows: TensorRows, dtype: str, name: str) -> TensorRows:
    """A tensor in another dtype, F32, F16 or BF16; itself where it has that one. `name` is for errors."""
    return rows if rows.dtype == dtype else CastRows(rows, dtype, name)


@dataclass(frozen=True)
class CastRows:
    """A tensor in another dtype. See `cast_rows`."""

    rows: TensorRows
    dtype: str
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    @property
    def row_step(self) -> int:
        return self.rows.row_step

    @property
    def row_bytes(self) -> int:
        return 4 * self.rows.row_bytes  # the wide form and what is compared with it

    def read(self, region: Region, out: np.ndarray, streams: Streams) -> None:
        stored = np.empty(out.shape, words(self.rows.dtype))
        self.rows.read(region, stored, streams)
        out[...] = cast(stored.view(DTYPES[self.rows.dtype]), self.dtype, self.name).view(out.dtype)


@dataclass(frozen=True)
class InterleavedRows:
    """Several tensors in one: of each group, some rows of the first part, then some of the next, and so on.

    One group of all rows is plain concatenation.

    Args:
        parts: of one dtype, which differ in the number of rows only.
        group: how many rows of each part make a group.
    """

    parts: tuple[TensorRows, ...]
    group: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def row_step(self) -> int:
        return 1 if all(part.row_step == 1 for part in self.parts) else sum(self.group)

    @property
    def row_bytes(self) -> int:
        return 2 * max(part.row_bytes for part in self.parts)

    def read(self, region: Region, out: np.ndarray, streams: Streams) -> None:
        """Fill `out`. The rows that a window has of one part follow each other in that part."""
        group, within = np.divmod(np.arange(region[0].start, region[0].stop), sum(self.group))
        offset = 0
        for part, rows in zip(self.parts, self.group, strict=True):
            chosen = (offset <= within) & (within < offset + rows)
            offset += rows
            if chosen.any():
                first = int(group[chosen][0] * rows + within[chosen][0] - (offset - rows))
                count = int(chosen.sum())
                piece = np.empty((count, *out.shape[1:]), out.dtype)
                part.read((slice(first, first + count), *region[1:]), piece, streams)
                out[chosen] = piece


@dataclass(frozen=True)
class PartRows:
    """One part of a tensor that is made like `InterleavedRows`.

    Args:
        rows: the whole.
        group: how many rows of each part make a group.
        index: which part.
    """

    rows: TensorRows
    group: tuple[int, ...]
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows.shape[0] // sum(self.group) * self.row_step, *self.rows.shape[1:])

    @property
    def dtype(self) -> str:
        return self.rows.dtype

    @property
    def row_step(self) -> int:
        return self.group[self.index]

    @property
    def row_bytes(self) -> int:
        return self.rows.row_bytes * (sum(self.group) // self.row_step + 1)

    def read(self, region: Region, out: np.ndarray, streams: Streams) -> None:
        first, last, skip = _groups(region[0], self.row_step)
        step = sum(self.group)
        block = np.empty(((last - first) * step, *out.shape[1:]), out.dtype)
        self.rows.read((slice(first * step, last * step), *region[1:]), block, streams)
        offset = sum(self.group[: self.index])
        part = block.reshape(last - first, step, *out.shape[1:])[:, offset : offset + self.row_step]
        out[...] = part.reshape(-1, *out.shape[1:])[skip : skip + len(out)]


def _groups(rows: slice, step: int) -> tuple[int, int, int]:
    """The groups that cover some rows, first and behind the last, and how many rows of the first are not wanted."""
    first = rows.start // step
    return first, -(-rows.stop // step), rows.start - first * step


def _row_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return prod(shape[1:]) * DTYPES[dtype].itemsize
