"""Reading stored tensors in order. Few files are open at a time; what was read to the end is compared with its hash."""

import os
from pathlib import Path
from types import TracebackType

from r1parallel.checkpoint.formats.manifest import manifest_path, new_hash
from r1parallel.checkpoint.formats.tensor_entry import TensorEntry
from r1parallel.errors import UserError

_MOST_OPEN = 32  # files of one thread
_CHUNK = 2**20  # bytes


class Streams:
    """The stored tensors that one thread reads at a time. A context manager: leaving it closes the files."""

    def __init__(self) -> None:
        self._streams: dict[int, _Stream] = {}
        self._descriptors: dict[Path, int] = {}  # the file that was used last comes last

    def read(self, entry: TensorEntry, begin: int, out: memoryview) -> None:
        """Fill `out` with bytes of a stored tensor from `begin` on.

        Raises:
            UserError: the file cannot be read, or, after the last byte, the tensor is not what its manifest says.
        """
        if id(entry) not in self._streams:
            self._streams[id(entry)] = _Stream(entry)
        self._read(self._streams[id(entry)], begin, out)

    def read_rest(self) -> None:
        """Read to the end what was read in part, so that all of it is compared with the manifests.

        Raises:
            UserError: as in `read`.
        """
        buffer = memoryview(bytearray(_CHUNK))
        for stream in self._streams.values():
            while stream.unchecked:
                self._read(stream, stream.position, buffer[: min(_CHUNK, stream.unchecked)])

    def _read(self, stream: "_Stream", begin: int, out: memoryview) -> None:
        try:
            stream.read(self._open(stream.entry.file), begin, out)
        except OSError as error:
            raise UserError(f"{stream.entry.file}: cannot be read: {error.strerror}") from None

    def _open(self, file: Path) -> int:
        """Copies of a tensor can lie on a thousand ranks, more than a process can have open."""
        descriptor = self._descriptors.pop(file, None)
        if descriptor is None:
            if len(self._descriptors) >= _MOST_OPEN:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = os.open(file, os.O_RDONLY)
        self._descriptors[file] = descriptor
        return descriptor

    def __enter__(self) -> "Streams":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._streams.clear()


class _Stream:
    """One stored tensor. Its hash can be checked when all of it is read in order."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry, self.position = entry, 0
        self._hash = new_hash() if entry.digest is not None else None

    @property
    def unchecked(self) -> int:
        """Bytes that are still to be read before the hash can be compared; 0 where there is none to compare with."""
        return 0 if self._hash is None else self.entry.nbytes - self.position

    def read(self, descriptor: int, begin: int, out: memoryview) -> None:
        self.entry.read_bytes(descriptor, begin, out)
        if self._hash is None or begin != self.position:  # a part only, or read again
            return
        self._hash.update(out)
        self.position += len(out)
        if self.position == self.entry.nbytes and self._hash.hexdigest() != self.entry.digest:
            file = self.entry.file
            raise UserError(
                f"{file}: {self.entry.name} is not what {manifest_path(file).name} says: "
                "the file is damaged; copy or make it again"
            )
