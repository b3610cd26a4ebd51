"""One tensor in a checkpoint file, and where the tensors of a file to be written will lie."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from r1parallel.checkpoint.formats.dtypes import DTYPES
from r1parallel.errors import UserError

# (offset in the file, bytes): a stretch of a file. A tensor's stretches hold its elements in row order.
Extent = tuple[int, int]


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor.

    Attributes:
        name: as stored.
        file: which holds it.
        dtype: safetensors' name: F32, F16, BF16 …
        shape: of what is stored here, which may be a slice of a larger tensor.
        extents: where its bytes lie. Together they have `nbytes`.
        digest: what the manifest beside the file says that the bytes hash to, or None.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    digest: str | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    def read_bytes(self, descriptor: int, begin: int, out: memoryview) -> None:
        """Fill `out` with the tensor's bytes from `begin` on. The file is read, not mapped: one that is cut short
        meanwhile is an error here, under a map it would kill the process.

        Args:
            descriptor: of the open file.
            begin: byte of the tensor.
            out: as many bytes as are wanted.

        Raises:
            UserError: the file ends too early.
        """
        position, done = 0, 0
        for offset, size in self.extents:
            skip = begin + done - position
            if skip < size and done < len(out):
                count = min(size - skip, len(out) - done)
                self._read_exactly(descriptor, offset + skip, out[done : done + count])
                done += count
            position += size
        assert done == len(out), f"{self.name}: {len(out)} bytes from {begin} on are not within {self.nbytes}"

    def _read_exactly(self, descriptor: int, offset: int, out: memoryview) -> None:
        done = 0
        while done < len(out):
            count = os.preadv(descriptor, [out[done:]], offset + done)
            if count == 0:
                raise UserError(f"{self.file}: ends in the middle of {self.name}; was it cut short while it was read?")
            done += count


@dataclass(frozen=True)
class FilePlan:
    """Where everything in a file to be written will lie.

    Attributes:
        size: of the file, bytes.
        blobs: (offset, bytes) of what is no tensor data: headers.
        extents: name → where the tensor's bytes go.
    """

    size: int
    blobs: Sequence[tuple[int, bytes]]
    extents: dict[str, tuple[Extent, ...]]


def as_bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return array.reshape(-1).view(np.uint8).data
